"""The listener: HTTP as DSP0200 7 asks for, and clients that do not."""

import asyncio
import base64
import contextlib
import logging
import socket
import ssl
import threading

import pytest

from cim_facade import cimxml, guesses, server
from cim_facade.auth import UsersFile
from tests.support import cim
from twinvol import certificate

NAMESPACE = '<LOCALNAMESPACEPATH><NAMESPACE NAME="root"/><NAMESPACE NAME="test"/></LOCALNAMESPACEPATH>'


def body_of(call):
    head = '<CIM CIMVERSION="2.0" DTDVERSION="2.0"><MESSAGE ID="1" PROTOCOLVERSION="1.0"><SIMPLEREQ>'
    return f"{head}{call}</SIMPLEREQ></MESSAGE></CIM>".encode()


NAMES = body_of(f'<IMETHODCALL NAME="EnumerateClassNames">{NAMESPACE}</IMETHODCALL>')
HEADERS = {
    "Host": "localhost:5988",
    "Content-Type": 'application/xml; charset="utf-8"',
    "CIMOperation": "MethodCall",
    "CIMMethod": "EnumerateClassNames",
    "CIMObject": "root/test",
}


def request(body=NAMES, method="POST", path="/cimom", **headers):
    """Bytes of a request; a header of None is left out."""
    given = {**HEADERS, "Content-Length": str(len(body))}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body


async def read_answer(reader):
    """Status, headers in lower case, body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")[:-2]
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while length := int(await reader.readuntil(b"\n"), 16):
            body += (await reader.readexactly(length + 2))[:-2]
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(first.split()[1]), headers, body


@contextlib.asynccontextmanager
async def connected(address, tls=None):
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=tls)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def asked(data, facade=None, **options):
    async with cim.served(facade or cim.facade(), **options) as (address, _), connected(address) as (reader, writer):
        writer.write(data)
        return await read_answer(reader)


async def test_an_answer():
    status, headers, body = await asked(request())
    assert status == 200
    assert headers["cimoperation"] == "MethodResponse"
    assert headers["content-type"] == 'application/xml; charset="utf-8"'
    assert body.count(b"CLASSNAME NAME=") == 2  # without superclass
    assert b"aiohttp" not in str(headers).encode()


async def test_a_cim_error_is_an_answer():
    status, headers, body = await asked(request(NAMES.replace(b'"test"', b'"none"'), CIMObject="root/none"))
    assert (status, "cimerror" in headers) == (200, False)
    assert b'<ERROR CODE="3"' in body


async def test_requests_come_chunked_in_pieces_and_one_after_the_other():
    async with cim.served(cim.facade()) as (address, _), connected(address) as (reader, writer):
        for _ in range(3):
            head = request(b"", Content_Length=None, Transfer_Encoding="chunked")
            data = head + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (NAMES[:7], NAMES[7:])) + b"0\r\n\r\n"
            for start in range(0, len(data), 100):
                writer.write(data[start : start + 100])
                await writer.drain()
            assert (await read_answer(reader))[0] == 200
        writer.write(request() + request())
        assert [(await read_answer(reader))[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize(
    ("object_name", "ok"),
    [
        ("root/test:T_Service.Name=%22svc%22", True),
        ("root%2Ftest%3AT_Service.Name%3D%22svc%22", True),
        ("ROOT/test:t_service.Name=x", True),
        ("root/test:T_Service", True),  # nothing else is said of the object than its class
        ("root/test:T_Serv", False),
        ("root/test", False),
        ("root/other:T_Service.Name=1", False),
    ],
)
async def test_the_header_of_an_extrinsic_call_names_its_object(object_name, ok):
    key = '<KEYBINDING NAME="Name"><KEYVALUE>svc</KEYVALUE></KEYBINDING>'
    path = f'<INSTANCENAME CLASSNAME="T_Service">{key}</INSTANCENAME>'
    call = f'<METHODCALL NAME="GetName"><LOCALINSTANCEPATH>{NAMESPACE}{path}</LOCALINSTANCEPATH></METHODCALL>'
    status, headers, _ = await asked(request(body_of(call), CIMMethod="GetName", CIMObject=object_name))
    assert (status, headers.get("cimerror")) == ((200, None) if ok else (400, "header-mismatch"))


@pytest.mark.parametrize(
    ("status", "cim_error", "data"),
    [
        (400, "unsupported-operation", request(CIMOperation=None)),
        (400, "unsupported-operation", request(CIMOperation="Other")),
        (400, "header-mismatch", request(CIMMethod="GetClass")),
        (400, "header-mismatch", request(CIMMethod=None)),
        (400, "header-mismatch", request(CIMObject="root/other")),
        (400, "header-mismatch", request(CIMObject=None)),
        (400, "unsupported-protocol-version", request(CIMProtocolVersion="2.0")),
        (400, "request-not-well-formed", request(b"<CIM")),
        (400, "request-not-well-formed", request(b"")),
        (400, "request-not-valid", request(b"<HTML/>")),
        (400, "request-not-valid", request(b'<!DOCTYPE a [<!ENTITY b "x">]><CIM>&b;</CIM>')),
        (400, "multiple-requests-unsupported", request(NAMES.replace(b"SIMPLEREQ", b"MULTIREQ"))),
        (405, None, request(b"", method="GET")),
        (405, None, request(method="PUT")),
        (413, None, request(Content_Length=str(cimxml.MAX_REQUEST_BYTES + 1))),
        (415, None, request(Content_Type="text/plain")),
        (415, None, request(Content_Encoding="gzip")),
        (403, None, request(Host="attacker.example:5988")),
        (403, None, request(Host="")),
        (403, None, request(Host="[::::]")),
        (403, None, request(Host="[1.2.3]:80")),
    ],
)
async def test_what_is_refused_and_how(status, cim_error, data):
    got, headers, _ = await asked(data)
    assert (got, headers.get("cimerror")) == (status, cim_error)


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 100 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /" + b"a" * 100_000,
        b"POST / HTTP/1.1\r\nA: " + b"a" * 100_000,
        b"POST / HTTP/1.1\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
        request(Transfer_Encoding="chunked", Content_Length=None) + b"zz\r\n",
    ],
)
async def test_what_is_no_http_ends_its_connection(data, caplog):
    async with cim.served(cim.facade()) as (address, _):
        async with connected(address) as (reader, writer):
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                answer = await reader.read()
                assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer[:100]
        async with connected(address) as (reader, writer):
            writer.write(request())
            assert (await read_answer(reader))[0] == 200


async def test_a_body_without_end_is_cut_off():
    async with cim.served(cim.facade()) as (address, _), connected(address) as (reader, writer):
        writer.write(request(b"", Content_Length=None, Transfer_Encoding="chunked"))
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(2 * cimxml.MAX_REQUEST_BYTES // 0x10000):
                writer.write(piece)
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            assert (await read_answer(reader))[0] == 413


async def test_who_sends_nothing_is_sent_away(monkeypatch):
    monkeypatch.setattr(server, "FIRST_REQUEST_S", 0.05)
    async with cim.served(cim.facade()) as (address, _), connected(address) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def test_who_sends_half_a_body_is_told(monkeypatch):
    monkeypatch.setattr(server, "BODY_S", 0.05)
    async with cim.served(cim.facade()) as (address, _), connected(address) as (reader, writer):
        writer.write(request()[:-5])
        assert (await read_answer(reader))[0] == 408
        assert await reader.read() == b""


async def test_connections_are_counted(monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS_PER_ADDRESS", 2)
    async with cim.served(cim.facade()) as (address, _):
        async with connected(address) as (_, one), connected(address) as (_, two), connected(address) as (reader, _):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            one.write(request())
            two.write(request())
        answer = b""
        while not answer:  # a place is free again once the server has seen an end
            with contextlib.suppress(ConnectionError):
                async with connected(address) as (reader, writer):
                    writer.write(request())
                    answer = await reader.read(8)
        assert answer == b"HTTP/1.1"


async def test_who_does_not_read_is_sent_away(monkeypatch):
    monkeypatch.setattr(server, "SEND_S", 0.05)
    async with cim.served(cim.facade()) as (address, _), connected(address) as (_, writer):
        with contextlib.suppress(ConnectionError):  # more answers than sockets hold, none of them read
            while True:
                writer.write(request(b"", method="GET") * 100)
                await writer.drain()


async def test_a_long_answer_is_not_kept_for_who_does_not_read(monkeypatch):
    monkeypatch.setattr(server, "SEND_S", 0.05)
    ended = asyncio.Event()

    class Endless(Failing):
        async def answer(self, *_):
            try:
                while True:
                    yield "x" * 100_000
            finally:
                ended.set()

    async with cim.served(Endless(ValueError())) as (address, _), connected(address) as (_, writer):
        writer.write(request())
        await ended.wait()


async def test_handshakes_are_counted_among_connections(monkeypatch, tls):
    monkeypatch.setattr(server, "MAX_CONNECTIONS_PER_ADDRESS", 2)
    async with cim.served(cim.facade(), tls=tls[0]) as (address, _):
        async with connected(address), connected(address), connected(address) as (reader, _):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""  # at once, not when the time of its handshake is over
        while True:  # those that began none have left their places
            with contextlib.suppress(OSError):
                async with connected(address, tls[1]) as (reader, writer):
                    writer.write(request())
                    assert (await read_answer(reader))[0] == 401
                    return


@pytest.mark.parametrize("limit", ["MAX_REQUESTS", "MAX_REQUESTS_OF_USER"])
async def test_requests_are_counted(monkeypatch, limit):
    monkeypatch.setattr(server, limit, 0)
    status, headers, _ = await asked(request())
    assert (status, headers["retry-after"]) == (503, "1")


async def test_a_user_who_keeps_all_requests_keeps_only_his_own(users, tls):
    """Of each of them half of the body comes: others still get in."""
    serving, trusting = tls
    async with (
        cim.served(cim.facade(), users=users, tls=serving) as (address, _),
        contextlib.AsyncExitStack() as all_,
    ):
        slow, good = basic("ann", "battery staple"), basic("joe", "correct horse")
        for _ in range(server.MAX_REQUESTS_OF_USER):
            _, writer = await all_.enter_async_context(connected(address, trusting))
            writer.write(request(Authorization=slow)[:-5])
        reader, writer = await all_.enter_async_context(connected(address, trusting))
        status = 200
        while status == 200:  # until all of those have come in
            writer.write(request(Authorization=slow))
            status = (await read_answer(reader))[0]
        assert status == 503
        reader, writer = await all_.enter_async_context(connected(address, trusting))
        writer.write(request(Authorization=good))
        assert (await read_answer(reader))[0] == 200


async def test_big_requests_are_counted(monkeypatch):
    monkeypatch.setattr(server, "MAX_BIG_OF_USER", 0)
    async with cim.served(cim.facade()) as (address, _), connected(address) as (reader, writer):
        writer.write(request(NAMES + b" " * server.BIG_REQUEST_BYTES))
        assert (await read_answer(reader))[0] == 503
        writer.write(request())
        assert (await read_answer(reader))[0] == 200


async def test_a_full_house_has_room_for_another_address(monkeypatch, users, tls):
    """Those who have proven nothing give way: in their handshake, idle before or behind a refused request."""
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 4)
    serving, trusting = tls
    served = cim.served(cim.facade(), users=users, tls=serving)
    async with served as (address, _), contextlib.AsyncExitStack() as all_:
        good = basic("joe", "correct horse")
        known = await all_.enter_async_context(connected(address, trusting))
        known[1].write(request(Authorization=good))
        assert (await read_answer(known[0]))[0] == 200
        silent = await all_.enter_async_context(connected(address))
        for _ in range(2):
            idle = await all_.enter_async_context(connected(address, trusting))
        idle[1].write(request())
        assert (await read_answer(idle[0]))[0] == 401
        refused = await all_.enter_async_context(connected(address))
        with contextlib.suppress(ConnectionError):
            assert await refused[0].read() == b""  # of the same address
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=trusting, local_addr=("127.0.0.2", 0))
        writer.write(request(Authorization=good))
        assert (await read_answer(reader))[0] == 200
        with contextlib.suppress(ConnectionError):
            assert await silent[0].read() == b""  # the oldest
        known[1].write(request(Authorization=good))
        assert (await read_answer(known[0]))[0] == 200
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def burst(address, *places):
    """Connections that all queue before the server's loop turns."""
    host, port = address.split(":")
    return [socket.create_connection((host, int(port)), source_address=(place, 0)) for place in places]


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # what it watches has no event
            await asyncio.sleep(0)


async def test_a_burst_of_connections_lets_others_work():
    """``sock_accept`` does not wait while there are any."""
    seen = set()
    async with cim.served(cim.facade()) as (address, serving):
        for each in await burst(address, *["127.0.0.1"] * 40):
            each.close()
        await until(lambda: seen.add(serving._connections) or (len(seen) > 1 and not serving._connections))
    assert len(seen) > 3  # it was 0 and 40


async def test_a_burst_into_a_full_house_takes_no_place_for_ever(monkeypatch):
    """Who gives way may have come in the same moment, and is over only a little later."""
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    most = 0
    async with cim.served(cim.facade()) as (address, serving):
        came = await burst(address, "127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.4", "127.0.0.5")
        for _ in range(100):
            await asyncio.sleep(0)
            most = max(most, serving._connections)
        for each in came:
            each.close()
        await until(lambda: not serving._connections)
        assert (serving._places, serving._unproven) == ({}, {})
    assert most < 6  # whoever is let in, one ends for it


async def test_addresses_of_one_place_are_counted_together(monkeypatch):
    """A host has 2**64 of IPv6, and would be let in with all of them."""
    monkeypatch.setattr(server, "place_of", lambda address: address.rpartition(".")[0])
    monkeypatch.setattr(server, "MAX_CONNECTIONS_PER_ADDRESS", 2)
    async with cim.served(cim.facade()) as (address, serving):
        came = await burst(address, "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.1.1")
        await until(lambda: serving._connections == 3)
        assert serving._places == {"127.0.0": 2, "127.0.1": 1}
        for each in came:
            each.close()


# --- who


@pytest.fixture
def users(tmp_path):
    path = tmp_path / "users.json"
    UsersFile(path).add("joe", "admin", "correct horse")
    UsersFile(path).add("ann", "reader", "battery staple")
    return path


@pytest.fixture
def tls(tmp_path):
    context = certificate.server_context(tmp_path, "127.0.0.1:0")
    client = ssl.create_default_context(cafile=tmp_path / certificate.FOLDER / certificate.CA)
    return context, client


def basic(name, password):
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


async def test_over_tls_everybody_says_who_they_are(users, tls):
    serving, trusting = tls
    async with cim.served(cim.facade(), users=users, tls=serving) as (address, _):

        async def status_of(**headers):
            async with connected(address, trusting) as (reader, writer):
                writer.write(request(**headers))
                status, answer, body = await read_answer(reader)
                return status, answer.get("www-authenticate"), body

        wanted = (401, 'Basic realm="twinvol"')
        assert (await status_of())[:2] == wanted
        assert (await status_of(Authorization=basic("joe", "wrong horse")))[:2] == wanted
        assert (await status_of(Authorization=basic("eve", "correct horse")))[:2] == wanted
        assert (await status_of(Authorization="Bearer x"))[:2] == wanted
        assert (await status_of(Authorization=basic("joe", "correct horse")))[0] == 200
        assert (await status_of(Authorization=basic("joe", "correct horse"), Host="any.example"))[0] == 200
        path = f'<LOCALCLASSPATH>{NAMESPACE}<CLASSNAME NAME="T_Service"/></LOCALCLASSPATH>'
        reset = body_of(f'<METHODCALL NAME="Reset">{path}</METHODCALL>')
        call = {"body": reset, "CIMMethod": "Reset", "CIMObject": "root/test:T_Service"}
        assert b'<ERROR CODE="2"' in (await status_of(**call, Authorization=basic("ann", "battery staple")))[2]
        assert b"RETURNVALUE" in (await status_of(**call, Authorization=basic("joe", "correct horse")))[2]


async def test_a_body_is_not_read_before_its_sender_is_known(users, tls):
    serving, trusting = tls
    served = cim.served(cim.facade(), users=users, tls=serving)
    async with served as (address, _), connected(address, trusting) as (reader, writer):
        writer.write(request(Content_Length=str(1 << 20))[: -len(NAMES)])
        assert (await read_answer(reader))[0] == 401


async def test_who_guesses_is_locked_out_and_his_neighbour_works_on(users, tls, monkeypatch):
    monkeypatch.setattr(server, "HELD_S", 0)
    serving, trusting = tls
    served = cim.served(cim.facade(), users=users, tls=serving)
    async with served as (address, _), connected(address, trusting) as (reader, writer):
        good = request(Authorization=basic("joe", "correct horse"))
        writer.write(good)
        assert (await read_answer(reader))[0] == 200
        async with connected(address, trusting) as (guessing, guess):
            for number in range(guesses.OF_NAME_HERE):
                guess.write(request(Authorization=basic("joe", f"guess {number}")))
                assert (await read_answer(guessing))[0] == 401
            for authorization in (basic("joe", "another"), basic("joe", "correct horse")):
                guess.write(request(Authorization=authorization))
                status, headers, _ = await read_answer(guessing)
                assert (status, 0 < int(headers["retry-after"]) <= guesses.LOCK_S) == (429, True)
        writer.write(good)
        assert (await read_answer(reader))[0] == 200


async def test_passwords_are_not_logged(users, tls, caplog):
    serving, trusting = tls
    caplog.set_level(logging.DEBUG)
    served = cim.served(cim.facade(), users=users, tls=serving)
    async with served as (address, _), connected(address, trusting) as (reader, writer):
        writer.write(request(Authorization=basic("joe", "topsecret!")))
        assert (await read_answer(reader))[0] == 401
    assert "wrong user or password" in caplog.text
    assert "topsecret" not in caplog.text
    assert basic("joe", "topsecret!") not in caplog.text


# --- what goes wrong while answering


class Failing:
    """Answers in place of a facade."""

    def __init__(self, error, pieces=()):
        self._error = error
        self._pieces = pieces
        self.enumerations, self.aside = cim.facade().enumerations, cim.facade().aside

    async def answer(self, *_):
        for piece in self._pieces:
            yield piece
        raise self._error


async def test_a_fault_of_ours_is_a_cim_error_without_a_traceback(caplog):
    status, _, body = await asked(request(), Failing(ValueError("secret detail")))
    assert status == 200
    assert b'<ERROR CODE="1"' in body
    assert b"secret" not in body
    assert b"Traceback" not in body
    assert "secret detail" in caplog.text


async def test_an_engine_that_is_away_is_503():
    status, headers, _ = await asked(request(), Failing(ConnectionAbortedError("no daemon")))
    assert (status, headers["retry-after"]) == (503, "1")


async def test_an_error_after_some_results_is_still_the_answer():
    _, _, body = await asked(request(), Failing(ValueError("x"), ["<IRETURNVALUE>", "some"]))
    assert b'<ERROR CODE="1"' in body
    assert b"IRETURNVALUE" not in body


async def test_a_long_answer_that_fails_is_not_taken_for_whole(caplog):
    pieces = ["<IRETURNVALUE>", *(["x" * 10_000] * 100)]
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await asked(request(), Failing(ValueError("x"), pieces))


async def test_what_is_big_is_not_read_in_the_loop(monkeypatch):
    read = cimxml.value
    threads = set()

    def noted(*given, **options):
        threads.add(threading.current_thread())
        return read(*given, **options)

    monkeypatch.setattr(cimxml, "value", noted)
    names = "<VALUE>a</VALUE>" * 1000
    listed = f'<IPARAMVALUE NAME="PropertyList"><VALUE.ARRAY>{names}</VALUE.ARRAY></IPARAMVALUE>'
    named = '<IPARAMVALUE NAME="ClassName"><CLASSNAME NAME="T_Disk"/></IPARAMVALUE>'
    body = body_of(f'<IMETHODCALL NAME="EnumerateInstances">{NAMESPACE}{named}{listed}</IMETHODCALL>')
    assert b"VALUE.NAMEDINSTANCE" in (await asked(request(body, CIMMethod="EnumerateInstances")))[2]
    assert threads
    assert threading.current_thread() not in threads
    threads.clear()
    key = '<KEYBINDING NAME="Name"><KEYVALUE>svc</KEYVALUE></KEYBINDING>'
    path = f'<INSTANCENAME CLASSNAME="T_Service">{key}</INSTANCENAME>'
    path = f"<LOCALINSTANCEPATH>{NAMESPACE}{path}</LOCALINSTANCEPATH>"
    numbers = f'<PARAMVALUE NAME="Numbers"><VALUE.ARRAY>{names}</VALUE.ARRAY></PARAMVALUE>'
    body = body_of(f'<METHODCALL NAME="Act">{path}{numbers}</METHODCALL>')
    refused = await asked(request(body, CIMMethod="Act", CIMObject='root/test:T_Service.Name="svc"'))
    assert b"is not a uint16" in refused[2]
    assert threads
    assert threading.current_thread() not in threads


async def test_a_long_answer_goes_in_chunks():
    world = cim.world(disks=2000)
    names = body_of(
        f'<IMETHODCALL NAME="EnumerateInstances">{NAMESPACE}<IPARAMVALUE NAME="ClassName">'
        '<CLASSNAME NAME="T_Disk"/></IPARAMVALUE></IMETHODCALL>'
    )
    status, headers, body = await asked(request(names, CIMMethod="EnumerateInstances"), cim.facade(world))
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    assert body.count(b"<VALUE.NAMEDINSTANCE>") == 2000
    assert body.endswith(b"</IRETURNVALUE></IMETHODRESPONSE></SIMPLERSP></MESSAGE></CIM>\n")
