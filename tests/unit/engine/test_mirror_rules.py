"""Rules of streams and rounds that seeds seldom put to the test, as literal cases. tests/simulation has the rest."""

import asyncio
from pathlib import Path

import pytest

from engine.control_files import AioControlFiles
from engine.errors import InvalidState
from engine.files import RealFileSystem, StoreEnv, SystemClock, ThreadWorkers
from engine.links import Ack
from engine.links.local import LocalLink
from engine.mirror_record import MirrorPolicy, MirrorRecord, point_prefix
from engine.mirror_round import Rounds
from engine.mirror_stream import MirrorStream, StreamMode
from engine.thinned_point import Note, Notes
from engine.volume import Volume
from tests.support.memory_store import MemoryStore

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
PREFIX = point_prefix("m")


def volume(name: str) -> Volume:
    store = MemoryStore()
    return Volume(store.create_volume(name, SIZE))


class ScriptedLink:
    """A target that acknowledges as it is told to."""

    target_name = "t"

    def __init__(self) -> None:
        self.ack = Ack(7, 3)
        self.open = asyncio.Event()
        self.open.set()

    def apply_now(self, write):
        return None

    async def apply(self, write):
        await self.open.wait()
        return self.ack

    async def apply_in_order(self, writes):
        return self.ack

    async def flush(self):
        return self.ack


class Streamed:
    """A source whose stream is synchronous; ``record`` lets the record of a demotion become durable."""

    def __init__(self) -> None:
        self.link, self.source = ScriptedLink(), volume("s")
        self.record, self.reasons = asyncio.Event(), []
        self.stream = MirrorStream(self.source, self.link, self.link.ack, budget_s=1e9, demote=self.demote)
        self.source.attach(self.stream)

    async def demote(self, reason, retry):
        self.reasons.append(reason)
        await self.record.wait()

    async def write(self, offset=0):
        await self.source.write(offset, memoryview(b"x" * 512))


@pytest.fixture
async def streamed():
    made = Streamed()
    assert await made.stream.converge()
    return made


async def turns() -> None:
    """Whatever can go on without anything from outside has done so."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("ack", [Ack(7, 2), Ack(7, 4), Ack(6, 3)], ids=["before", "later", "another incarnation"])
async def test_an_acknowledgement_of_another_connection_or_incarnation_counts_for_nothing(streamed, ack):
    await streamed.write()  # one of this connection counts
    streamed.link.ack = ack
    host = asyncio.create_task(streamed.write())
    await turns()
    assert streamed.stream.mode is StreamMode.LEAVING
    assert not host.done(), "acknowledged before the demotion was on record"
    streamed.record.set()
    await host
    assert len(streamed.reasons) == 1


async def test_a_flush_acknowledged_by_another_incarnation_makes_nothing_synchronous():
    made = Streamed()
    made.link.ack = Ack(8, 3)
    made.record.set()
    with pytest.raises(InvalidState, match="acknowledgement"):
        await made.stream.converge()


async def test_a_host_that_gives_up_while_the_mirror_leaves_takes_nobody_with_it(streamed):
    streamed.stream.leave("the test says so", retry=False)
    one, other = asyncio.create_task(streamed.write()), asyncio.create_task(streamed.write(4096))
    await turns()
    one.cancel()
    await turns()
    late = asyncio.create_task(streamed.write(8192))
    await turns()
    assert not other.done()
    assert not late.done()
    streamed.record.set()
    await other
    await late


class Mirrored:
    """Source, target and rounds between them."""

    def __init__(self, path: Path) -> None:
        workers = ThreadWorkers(1)
        self.source, self.target = volume("s"), volume("t")
        self.link = LocalLink(self.target, PREFIX)
        control = AioControlFiles()
        self.env = StoreEnv(RealFileSystem(), workers, SystemClock(), control=control)
        self.ledger, self.record = path / "m.ledger", MirrorRecord()
        self.rounds = self.after_a_restart()

    def after_a_restart(self) -> Rounds:
        async def save() -> None:
            return

        self.rounds = Rounds(
            "m",
            self.source,
            self.link,
            self.env,
            self.ledger,
            MirrorPolicy(points_max=9),
            record=self.record,
            save=save,
            in_use=lambda: (),
        )
        return self.rounds

    async def write(self, offset: int, letter: bytes, *, to: Volume | None = None) -> None:
        await (to or self.source).write(offset, memoryview(letter * 64 * KIB))

    async def round(self) -> None:
        await self.rounds.run(await self.link.connect())

    def require_equal(self) -> None:
        assert self.target.head.content(0, SIZE) == self.source.head.content(0, SIZE)


async def test_a_note_of_another_common_point_counts_for_nothing(tmp_path: Path):
    made = Mirrored(tmp_path)
    await made.write(0, b"a")
    await made.round()
    first = made.record.common
    await made.write(MIB, b"b")
    await made.round()
    await made.write(2 * MIB, b"c")
    store, head = made.source.head.store, made.source.head
    await store.snapshot(head, f"{PREFIX}.until", guid="until", hidden=True)
    await Notes(made.env.control_files, made.ledger).write(Note(first, "until", ()))
    await store.delete_snapshot(made.rounds.source_point(made.record.common))
    await made.after_a_restart().run(await made.link.connect())
    made.require_equal()


async def test_an_interrupted_round_goes_on_only_from_its_own_base(tmp_path: Path):
    made = Mirrored(tmp_path)
    await made.write(0, b"a")
    await made.round()
    await made.write(MIB, b"b")
    store, head = made.source.head.store, made.source.head
    await store.snapshot(head, f"{PREFIX}.s", guid="s", hidden=True)
    await made.link.begin_staging(made.record.common, SIZE)
    made.record.round_source, made.record.round_base = "s", "a base that the target does not have any more"
    await made.write(2 * MIB, b"c")
    await made.after_a_restart().run(await made.link.connect())
    assert made.rounds.resumed == 0
    made.require_equal()  # S is of now, and not the older one
