"""Indications to many: ``python -m bench.indications --subscriptions 1000 --changes 20``.

A pool in process, a listener in process, and so many destinations with a subscription to new volumes each. Printed: how
long until everybody was told of all changes, what turns of the loop took meanwhile in CPU time (everything is in one
loop here, engine and listener, too), and what the process grew by. Expected: some 1,000 deliveries a second, no turn
above 10 ms, a few MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import socket
import tempfile
import time
from pathlib import Path

from aiohttp import web

from cim_facade import repository
from cim_facade.indications.records import DESTINATION_CLASS, Destination, Subscription
from cim_facade.indications.service import Indications
from cim_facade.registry import whole_registry
from tests.support.engine import opened

ANSWER = (
    b'<?xml version="1.0"?><CIM CIMVERSION="2.0" DTDVERSION="2.0"><MESSAGE ID="1" PROTOCOLVERSION="1.0">'
    b'<SIMPLEEXPRSP><EXPMETHODRESPONSE NAME="ExportIndication"/></SIMPLEEXPRSP></MESSAGE></CIM>'
)
FILTER = "SNIA:Block Services:VolumeCreation"


class Counter:
    """A listener that takes everything. ``numbers``: the last sequence number, by destination."""

    def __init__(self, expected: int) -> None:
        self.left = expected
        self.numbers: dict[str, int] = {}
        self.out_of_order = 0
        self.all_there = asyncio.Event()

    async def take(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        number = int(body.partition(b'"SequenceNumber"')[2].partition(b"<VALUE>")[2].partition(b"<")[0])
        self.out_of_order += number != self.numbers.get(request.path, -1) + 1
        self.numbers[request.path] = number
        self.left -= 1
        if not self.left:
            self.all_there.set()
        return web.Response(body=ANSWER, content_type="application/xml")


async def _turns(holds: list[float]) -> None:
    """What each turn of the loop takes, in its thread's CPU time: other programs do not count."""
    while True:
        before = time.thread_time()
        await asyncio.sleep(0)
        holds.append(time.thread_time() - before)


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def run(subscriptions: int, changes: int) -> dict[str, float]:
    listener = socket.create_server(("127.0.0.1", 0))
    counter = Counter(subscriptions * changes)
    runner = web.ServerRunner(web.Server(counter.take, access_log=None))
    await runner.setup()
    await web.SockSite(runner, listener).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    classes, registry = repository.load(), whole_registry()
    gc.freeze()  # as the process that delivers does
    with tempfile.TemporaryDirectory() as folder:
        async with opened(Path(folder)) as engine:
            service = Indications(engine.api, classes, registry)
            await service.start()
            began = time.perf_counter()
            for number in range(subscriptions):
                made = Destination(DESTINATION_CLASS, f"d{number}", f"{url}/{number}", f"id{number}")
                await service.book.put_destination(made, new=True)
                await service.subscribe(Subscription(FILTER, made.key, 0, 0.0, 0.0))
            subscribed_s = time.perf_counter() - began
            resident, holds = _resident(), [0.0]
            watch = asyncio.create_task(_turns(holds))
            began = time.perf_counter()
            for number in range(changes):
                await engine.api.volume_create(f"v{number}", 1 << 20)
            await counter.all_there.wait()
            took_s = time.perf_counter() - began
            watch.cancel()
            grown = _resident() - resident
            await service.close()
    await runner.cleanup()
    holds.sort()
    return {
        "subscriptions": subscriptions,
        "changes": changes,
        "subscribed_s": round(subscribed_s, 2),
        "delivered": subscriptions * changes,
        "out_of_order": counter.out_of_order,
        "took_s": round(took_s, 2),
        "per_s": round(subscriptions * changes / took_s),
        "turn_ms_p99": round(1000 * holds[int(0.99 * (len(holds) - 1))], 1),
        "turn_ms_max": round(1000 * holds[-1], 1),
        "grown_mib": round(grown / (1 << 20), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscriptions", type=int, default=1000)
    parser.add_argument("--changes", type=int, default=20)
    arguments = parser.parse_args()
    print(json.dumps(asyncio.run(run(arguments.subscriptions, arguments.changes))))


if __name__ == "__main__":
    main()
