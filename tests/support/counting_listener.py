"""A listener for a thousand destinations: counts what it is told, and sees that each is told in order."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

_MESSAGE = re.compile(r'<MESSAGE ID="([^"]*)"')
_SEQUENCE = re.compile(r'NAME="SequenceNumber"[^>]*>\s*<VALUE>(-?\d+)</VALUE>')
_ANSWER = (
    '<?xml version="1.0" encoding="utf-8"?><CIM CIMVERSION="2.0" DTDVERSION="2.0"><MESSAGE ID="{}" '
    'PROTOCOLVERSION="1.0"><SIMPLEEXPRSP><EXPMETHODRESPONSE NAME="ExportIndication"><IRETURNVALUE/>'
    "</EXPMETHODRESPONSE></SIMPLEEXPRSP></MESSAGE></CIM>"
)


class CountingListener:
    """One destination for each path below ``url``. ``told``: by path; ``again``: told a second time, after a crash."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        self.again = 0
        self.wrong: list[str] = []
        self.url = ""
        self._last: dict[str, int] = {}
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> CountingListener:
        application = web.Application(client_max_size=1 << 20)
        application.router.add_post("/{path}", self._indication)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def all_told(self, is_enough: Callable[[Counter[str]], bool], timeout_s: float) -> None:
        """Raises TimeoutError: not everybody was."""
        async with asyncio.timeout(timeout_s):
            while not is_enough(self.told):  # noqa: ASYNC110 - at the pace of another process
                await asyncio.sleep(0.05)

    async def _indication(self, request: web.Request) -> web.Response:
        path, text = request.match_info["path"], await request.text()
        sequence = _SEQUENCE.search(text)
        number, last = int(sequence[1]) if sequence else -1, self._last.get(path, -1)
        if number <= last:
            self.again += 1
        elif number == last + 1:
            self._last[path] = number
            self.told[path] += 1
        else:
            self.wrong.append(f"{path}: {last} was followed by {number}")
        message = _MESSAGE.search(text)
        answer = _ANSWER.format(message[1] if message else "")
        return web.Response(text=answer, content_type="application/xml", headers={"CIMExport": "MethodResponse"})
