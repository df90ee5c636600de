"""Hostile WBEM clients beside a good one: ``python -m tests.integration.hostile_wbem --seconds 10``

One daemon, served over HTTPS. The good client (pywbem, an administrator, from 127.0.0.1) asks for a volume again and
again on a connection that it keeps, and every tenth time logs in on a new one. Beside it, from other addresses, each
kind of hostile client in turn, and then all at once:

- *passwords*: 32 connections guess without end, each with other passwords of the good client's name;
- *slow*: 300 connections of five addresses: nothing at all, half a TLS greeting, a header a second, half a body;
- *huge*: a reader's bodies of 2 MiB of elements, and longer ones than are read;
- *deep*: a reader's documents 100,000 deep, entities, instances within instances within instances;
- *unread*: a reader asks for all classes and reads nothing.

Shown for each: the good client's answers and what they took, what the hostile ones were told, and the most memory and
descriptors that the management process had. All answers of the good client have to be right.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import contextlib
import itertools
import json
import multiprocessing
import os
import ssl
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pywbem

from tests.support import wbem
from tests.support.wbem import NAMESPACE, Wbem, serving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

VOLUME = "MSISCSITARGET_StorageVolume"
GUESSERS, SLOW_OF_ADDRESS, HEAVY = 32, 60, 12
SLOW_ADDRESSES = [f"127.0.1.{number}" for number in range(1, 6)]
GUESSING_ADDRESS, OTHER_ADDRESS = "127.0.2.1", "127.0.3.1"
LONGEST_ANSWER = 64 << 10

_SPACE = "".join(f'<NAMESPACE NAME="{part}"/>' for part in NAMESPACE.split("/"))
_HEAD = '<CIM CIMVERSION="2.0" DTDVERSION="2.0"><MESSAGE ID="1" PROTOCOLVERSION="1.0"><SIMPLEREQ>'


def _call(name: str, inner: str) -> bytes:
    body = f'<IMETHODCALL NAME="{name}"><LOCALNAMESPACEPATH>{_SPACE}</LOCALNAMESPACEPATH>{inner}</IMETHODCALL>'
    return f"{_HEAD}{body}</SIMPLEREQ></MESSAGE></CIM>".encode()


def _names(count: int) -> bytes:
    names = "<VALUE>a</VALUE>" * count
    listed = f'<IPARAMVALUE NAME="PropertyList"><VALUE.ARRAY>{names}</VALUE.ARRAY></IPARAMVALUE>'
    named = f'<IPARAMVALUE NAME="ClassName"><CLASSNAME NAME="{VOLUME}"/></IPARAMVALUE>'
    return _call("EnumerateInstances", named + listed)


def _request(
    user: str, password: str, body: bytes, method: str = "EnumerateInstances", length: int | None = None
) -> bytes:
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    lines = [
        "POST /cimom HTTP/1.1",
        "Host: localhost",
        f"Authorization: Basic {token}",
        'Content-Type: application/xml; charset="utf-8"',
        "CIMOperation: MethodCall",
        f"CIMMethod: {method}",
        f"CIMObject: {NAMESPACE}",
        f"Content-Length: {len(body) if length is None else length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Hostile:
    """What hostile clients of one kind work with, and what they were told: HTTP statuses, or how it ended, how often.

    ``heard``: at least one of them was told something.
    """

    address: str
    trusted: str
    slow_of_address: int
    told: collections.Counter[str] = field(default_factory=collections.Counter)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, what: str) -> None:
        self.told[what] += 1
        self.heard.set()

    async def connect(self, local: str, *, tls: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.address.split(":")
        context = ssl.create_default_context(cafile=self.trusted) if tls else None
        return await asyncio.open_connection(host, int(port), ssl=context, local_addr=(local, 0))

    async def status(self, reader: asyncio.StreamReader) -> None:
        """Read one answer and count what it says."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        self.hear(head.split()[1])
        length = head.partition("content-length:")[2].split("\r\n")[0].strip()
        while "chunked" in head and (await reader.readline()).strip() != b"0":
            pass
        await reader.readexactly(int(length) if length.isdigit() else 2)

    async def again(self, once: Callable[[], Awaitable[None]]) -> None:
        """Without end; refused connections and such are counted."""
        while True:
            try:
                await once()
            except (OSError, asyncio.IncompleteReadError) as error:
                self.hear(type(error).__name__)
                await asyncio.sleep(0.01)

    async def passwords(self) -> None:
        numbers = itertools.count()

        async def guess() -> None:
            reader, writer = await self.connect(GUESSING_ADDRESS)
            with contextlib.closing(writer):
                while True:
                    writer.write(_request(wbem.USER, f"guess {next(numbers)}", b""))
                    await self.status(reader)

        await asyncio.gather(*(self.again(guess) for _ in range(GUESSERS)))

    async def slow(self) -> None:
        async def one(local: str, kind: int) -> None:
            reader, writer = await self.connect(local, tls=kind >= 2)
            with contextlib.closing(writer):
                if kind == 1:
                    writer.write(b"\x16\x03\x01\x02\x00")  # a TLS record, and no more
                elif kind == 3:
                    writer.write(_request(wbem.USER, "no such", b"<", length=100))
                while kind == 2:
                    writer.write(b"P")
                    await writer.drain()
                    await asyncio.sleep(1)
                while await reader.read(4096):
                    pass
                self.hear("cut off")

        await asyncio.gather(
            *(
                self.again(lambda local=local, kind=number % 4: one(local, kind))  # type: ignore[misc]
                for local in SLOW_ADDRESSES
                for number in range(self.slow_of_address)
            )
        )

    async def _heavy(self, requests: list[bytes]) -> None:
        numbers = itertools.count()

        async def one() -> None:
            reader, writer = await self.connect(OTHER_ADDRESS)
            with contextlib.closing(writer):
                writer.write(requests[next(numbers) % len(requests)])
                await writer.drain()
                await self.status(reader)

        await asyncio.gather(*(self.again(one) for _ in range(HEAVY)))

    async def huge(self) -> None:
        reader = wbem.READER, wbem.READER_PASSWORD
        await self._heavy(
            [
                _request(*reader, _names(39_000)),
                _request(*reader, _call("EnumerateInstances", " " * (1 << 20))),
                _request(*reader, _names(60_000)),
                _request(*reader, b" " * (3 << 20)),
            ]
        )

    async def deep(self) -> None:
        reader = wbem.READER, wbem.READER_PASSWORD
        bomb = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x"}">' for n in range(9))
        embedded = "<INSTANCE CLASSNAME='T'/>"
        for _ in range(8):
            embedded = embedded.replace("&", "&amp;").replace("<", "&lt;")
            within = f"<PROPERTY NAME='p' TYPE='string'><VALUE>{embedded}</VALUE></PROPERTY>"
            embedded = f"<INSTANCE CLASSNAME='T'>{within}</INSTANCE>"
        await self._heavy(
            [
                _request(*reader, b"<a>" * 100_000),
                _request(*reader, f"<!DOCTYPE c [{bomb}]><CIM>&e8;</CIM>".encode()),
                _request(*reader, _call("CreateInstance", f'<IPARAMVALUE NAME="NewInstance">{embedded}</IPARAMVALUE>')),
            ]
        )

    async def unread(self) -> None:
        everything = _call("EnumerateClasses", '<IPARAMVALUE NAME="DeepInheritance"><VALUE>TRUE</VALUE></IPARAMVALUE>')

        async def one() -> None:
            _, writer = await self.connect(OTHER_ADDRESS)
            with contextlib.closing(writer):
                writer.write(_request(wbem.READER, wbem.READER_PASSWORD, everything, "EnumerateClasses"))
                await asyncio.sleep(2)
                self.hear("left unread")

        await asyncio.gather(*(self.again(one) for _ in range(HEAVY)))


KINDS = ("passwords", "slow", "huge", "deep", "unread")


def attack(
    kinds: list[str],
    address: str,
    trusted: str,
    seconds: float,
    slow_of_address: int,
    told: multiprocessing.Queue[dict[str, dict[str, int]]],
) -> None:
    """In a process of its own. Ends after ``seconds``, when each kind has been told something, and says what."""

    async def run() -> dict[str, dict[str, int]]:
        hostile = {kind: Hostile(address, trusted, slow_of_address) for kind in kinds}
        clients = [asyncio.create_task(getattr(each, kind)()) for kind, each in hostile.items()]
        await asyncio.sleep(seconds)
        for each in hostile.values():
            await each.heard.wait()
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        return {kind: dict(each.told) for kind, each in hostile.items()}

    told.put(asyncio.run(run()))


@dataclass
class Row:
    """``answers`` and ``logins``: seconds that each took. ``wrong``: what was not as it has to be."""

    kinds: list[str]
    answers: list[float] = field(default_factory=list)
    logins: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    told: dict[str, dict[str, int]] = field(default_factory=dict)
    rss_mib: int = 0
    descriptors: int = 0

    def shown(self) -> dict[str, object]:
        def of(times: list[float]) -> dict[str, float | int]:
            ranked = sorted(times)
            if not ranked:
                return {"count": 0}
            return {
                "count": len(ranked),
                "p50_ms": round(1000 * ranked[len(ranked) // 2], 1),
                "p99_ms": round(1000 * ranked[len(ranked) * 99 // 100], 1),
                "max_ms": round(1000 * ranked[-1], 1),
            }

        return {
            "beside": " + ".join(self.kinds) or "nobody",
            "answers": of(self.answers),
            "logins": of(self.logins),
            "wrong": self.wrong[:5],
            "hostile_were_told": self.told,
            "rss_mib": self.rss_mib,
            "descriptors": self.descriptors,
        }


class Site:
    """One daemon with one volume, and the good client before it."""

    def __init__(self, served: Wbem) -> None:
        self.served = served
        served.daemon.run("volume", "create", "good", "--size", "16M")
        self.connection = served.connection()
        (self.volume,) = self.connection.EnumerateInstanceNames(VOLUME)
        self.pid = self._management()

    def _management(self) -> int:
        """The process with the HTTPS listener that is not the data process: its child that has pywbem."""
        own = str(self.served.daemon.process.pid)
        for each in Path("/proc").iterdir():
            with contextlib.suppress(OSError, IndexError):  # it may have ended
                parent = (each / "stat").read_text(encoding="ascii").rpartition(")")[2].split()[1]
                if parent == own and b"--wbem" in (each / "cmdline").read_bytes():
                    return int(each.name)
        raise AssertionError("there is no management process")

    def rss_mib(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) >> 10
        raise AssertionError("no VmRSS")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208

    def round(self, kinds: list[str], seconds: float, slow_of_address: int = SLOW_OF_ADDRESS) -> Row:
        """The good client beside hostile ones of these kinds."""
        row = Row(kinds)
        spawn = multiprocessing.get_context("spawn")
        told: multiprocessing.Queue[dict[str, dict[str, int]]] = spawn.Queue()
        given = (kinds, self.served.address, str(self.served.certificate), seconds, slow_of_address, told)
        hostile = spawn.Process(target=attack, args=given)
        hostile.start()
        over = threading.Event()
        watching = threading.Thread(target=self._watch, args=(row, over))
        watching.start()
        try:
            while hostile.is_alive() or not row.logins:
                self._ask(row)
            row.told = told.get(timeout=60)
        finally:
            over.set()
            watching.join()
            hostile.join()
        return row

    def _watch(self, row: Row, over: threading.Event) -> None:
        while not over.wait(0.05):
            row.rss_mib = max(row.rss_mib, self.rss_mib())
            row.descriptors = max(row.descriptors, self.descriptors())

    def _ask(self, row: Row) -> None:
        begun = time.monotonic()
        try:
            if len(row.answers) % 10 == 9 and len(row.logins) <= len(row.answers) // 10:
                fresh = self.served.connection()
                assert fresh.GetInstance(self.volume)["ElementName"] == "good"
                fresh.close()
                row.logins.append(time.monotonic() - begun)
            else:
                assert self.connection.GetInstance(self.volume)["ElementName"] == "good"
                row.answers.append(time.monotonic() - begun)
        except (pywbem.Error, AssertionError) as error:
            row.wrong.append(str(error))
            row.answers.append(time.monotonic() - begun)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each kind")
    given = parser.parse_args()
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        os.environ.pop(name, None)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for served in serving(Path(folder) / "pool"):
            site = Site(served)
            for kinds in ([], *([kind] for kind in KINDS), list(KINDS), []):
                row = site.round(kinds, given.seconds)
                wrong += len(row.wrong)
                print(json.dumps(row.shown()), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
