"""One indication to one listener: CIM-XML's ExportIndication (DSP0200 7, DSP0201 3.2.4.9) over HTTP or HTTPS.

Who makes destinations is an administrator, and may name any host; what is sent there is a POST with CIM's headers and
an indication, never a redirect followed, a proxy asked or a credential given. An answer counts up to ``MAX_ANSWER``.

Over HTTPS a listener's certificate is one that the system trusts, or that ``POOL/tls/listeners.crt`` has or signed
(read again when it changes); that of a TWINVOL_PinnedListenerDestination has the fingerprint that it says, and nothing
else is asked of it. There is no way to send without knowing to whom.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
from pywbem import CIMError

from cim_facade import cimxml
from cim_facade.cimxml import Element, RequestError

if TYPE_CHECKING:
    from pathlib import Path

    from cim_facade.indications.records import Destination

TRUSTED_NAME = "listeners.crt"
CONNECT_S = 5.0
ANSWER_S = 30.0
MAX_ANSWER = 64 << 10
SAID_MAX = 300
"""Characters of what a listener says that go into the log."""

METHOD = "ExportIndication"


class Outcome(NamedTuple):
    """``reached``: somebody answered; not ``delivered`` then means that it does not want this one, or cannot now."""

    delivered: bool
    reached: bool
    text: str = ""


class Exporter:
    """See the module. ``trusted``: certificates of listeners and of their authorities, in PEM."""

    def __init__(self, trusted: Path | None) -> None:
        self._trusted = trusted
        self._seen: tuple[int, int, int] | None = None
        self._context: ssl.SSLContext | None = None
        self._session: aiohttp.ClientSession | None = None
        self._numbers = itertools.count(1)

    async def send(self, destination: Destination, indication: str) -> Outcome:
        """``indication``: the INSTANCE element. Never raises for what the listener, the network or a certificate is."""
        try:
            tls = await self._tls(destination)
        except (OSError, ValueError) as error:
            return Outcome(False, False, f"{self._trusted} is not usable: {error}")
        if self._session is None:
            self._session = _session()
        body = _request(str(next(self._numbers)), indication)
        try:
            async with self._session.post(
                destination.url, data=body, headers=_HEADERS, ssl=tls, allow_redirects=False
            ) as answer:
                content = await answer.content.read(MAX_ANSWER + 1)
                while len(content) <= MAX_ANSWER and not answer.content.at_eof():
                    content += await answer.content.read(MAX_ANSWER + 1 - len(content))
                return _outcome(answer, content)
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            return Outcome(False, False, f"{type(error).__name__} {error}"[:SAID_MAX])

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _tls(self, destination: Destination) -> ssl.SSLContext | aiohttp.Fingerprint | bool:
        if destination.fingerprint is not None:
            return aiohttp.Fingerprint(bytes.fromhex(destination.fingerprint))
        if not destination.url.startswith("https:"):
            return True
        version = None
        if self._trusted is not None and self._trusted.exists():
            found = self._trusted.stat()
            version = (found.st_mtime_ns, found.st_ino, found.st_size)
        if self._context is None or version != self._seen:
            self._context = await asyncio.to_thread(_context, self._trusted if version is not None else None)
            self._seen = version
        return self._context


_HEADERS = {
    "Content-Type": 'application/xml; charset="utf-8"',
    "CIMExport": "MethodRequest",
    "CIMExportMethod": METHOD,
    "CIMProtocolVersion": "1.0",
    "Accept-Encoding": "identity",
    "User-Agent": "twinvol",
}


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15.0),
        timeout=aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
    )


def _context(trusted: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if trusted is not None:
        context.load_verify_locations(trusted)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a listener's own certificate may be trusted as it is
    return context


def _request(message_id: str, indication: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="utf-8" ?>\n<CIM CIMVERSION="2.0" DTDVERSION="2.0">'
        f'<MESSAGE ID="{message_id}" PROTOCOLVERSION="1.0"><SIMPLEEXPREQ><EXPMETHODCALL NAME="{METHOD}">'
        f'<EXPPARAMVALUE NAME="NewIndication">{indication}</EXPPARAMVALUE>'
        "</EXPMETHODCALL></SIMPLEEXPREQ></MESSAGE></CIM>\n"
    ).encode()


def _outcome(answer: aiohttp.ClientResponse, content: bytes) -> Outcome:
    if answer.status != 200:
        why = answer.headers.get("CIMError", answer.reason or "")
        return Outcome(False, answer.status < 500, f"HTTP status {answer.status} {why}"[:SAID_MAX])
    if len(content) > MAX_ANSWER:
        return Outcome(False, True, f"an answer of more than {MAX_ANSWER} bytes")
    try:
        response = cimxml.tree(content)
        for name in ("MESSAGE", "SIMPLEEXPRSP", "EXPMETHODRESPONSE"):
            response = _child(response, name)
        refusals = [each for each in response.children if each.name == "ERROR"]
    except (RequestError, CIMError) as error:
        return Outcome(False, True, f"an answer that is not understood: {error}"[:SAID_MAX])
    if refusals:
        said = refusals[0].attributes
        return Outcome(False, True, f"CIM error {said.get('CODE')} {said.get('DESCRIPTION', '')}"[:SAID_MAX])
    return Outcome(True, True)


def _child(element: Element, name: str) -> Element:
    child = element.only()
    if child.name != name:
        raise RequestError("request-not-valid", f"{child.name} instead of {name}")
    return child
