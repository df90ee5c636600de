import contextlib
import random
from pathlib import Path

import pytest

from engine.hash_tree import LEAF_BYTES, leaf_digests
from engine.ledger import Ledger, LedgerKey
from engine.stores import Extent
from tests.support.sim_control_files import SimControlFiles
from tests.support.sim_files import SimFileSystem
from tests.support.sim_loop import ProcessDied, SimLoop, SimWorkers

PATH = Path("/pool/ledgers/a")
KEY = LedgerKey("source", "base", "target", 40 * LEAF_BYTES + 512)


def entry(leaf: int, count: int = 1) -> tuple[Extent, bytes]:
    offset = leaf * LEAF_BYTES
    length = min(count * LEAF_BYTES, KEY.size_bytes - offset)
    return Extent(offset, length), leaf_digests(memoryview(bytes([leaf + 1]) * length))


class Machine:
    def __init__(self, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.files = SimFileSystem(self.rng)
        self.boot()

    def boot(self) -> None:
        self.loop = SimLoop()
        self.control = SimControlFiles(self.files, SimWorkers(self.loop, self.rng))

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def open(self, key: LedgerKey = KEY) -> Ledger:
        return self.run(Ledger.open(self.control, PATH, key))


def test_what_was_recorded_is_found_again_with_its_digests():
    machine = Machine()
    ledger = machine.open()
    machine.run(ledger.record([entry(0, 3), entry(7)]))
    machine.run(ledger.record([entry(40)]))
    machine.run(ledger.close())
    again = machine.open()
    assert again.resumed
    assert again.done_bytes == 4 * LEAF_BYTES + 512
    assert again.is_done(0, 3 * LEAF_BYTES)
    assert not again.is_done(0, 4 * LEAF_BYTES)
    assert again.is_done(40 * LEAF_BYTES, 512)
    assert again.tree.leaf(7) == entry(7)[1]
    assert again.tree.root() == ledger.tree.root()


@pytest.mark.parametrize(
    "other",
    [
        LedgerKey("another source", "base", "target", KEY.size_bytes),
        LedgerKey("source", "another base", "target", KEY.size_bytes),
        LedgerKey("source", "base", "another target", KEY.size_bytes),
        LedgerKey("source", "base", "target", KEY.size_bytes + 512),
    ],
)
def test_a_ledger_counts_for_its_own_key_only(other):
    machine = Machine()
    ledger = machine.open()
    machine.run(ledger.record([entry(0)]))
    machine.run(ledger.close())
    assert machine.open(other).done_bytes == 0


def test_a_removed_ledger_does_not_come_back_after_power_loss():
    for seed in range(20):
        machine = Machine(seed)
        ledger = machine.open()
        machine.run(ledger.record([entry(0)]))
        machine.run(ledger.remove())
        machine.files.lose_power()
        assert not machine.files.exists(PATH)


def test_what_completes_a_copy_is_not_written():
    machine = Machine()
    ledger = machine.open()
    ledger.complete([entry(0, 40), entry(40)])
    assert ledger.done_bytes == KEY.size_bytes
    assert not machine.files.exists(PATH), "no file for a copy that is over before its first record"
    machine.run(ledger.remove())
    ledger = machine.open()
    machine.run(ledger.begin())
    machine.run(ledger.close())
    again = machine.open()
    assert again.resumed
    assert not again.done_bytes
    machine.run(again.record([entry(0)]))
    again.complete([entry(1)])
    machine.run(again.close())
    assert machine.open().done_bytes == LEAF_BYTES


@pytest.mark.parametrize("power_loss", [False, True])
def test_after_a_crash_at_any_operation_the_ledger_holds_what_was_acknowledged_and_nothing_else(power_loss):
    for seed in range(120):
        machine = Machine(seed)
        machine.files.die_after(machine.rng.randrange(1, 16))
        asked: list[int] = []
        acknowledged: list[int] = []

        async def copy(machine=machine, asked=asked, acknowledged=acknowledged) -> None:
            ledger = await Ledger.open(machine.control, PATH, KEY)
            for leaf in range(8):
                asked.append(leaf)
                await ledger.record([entry(leaf)])
                acknowledged.append(leaf)

        with contextlib.suppress(ProcessDied):
            machine.run(copy())
        machine.loop.close()
        if power_loss:
            machine.files.lose_power()
        else:
            machine.files.restart_process()
        machine.boot()
        ledger = machine.open()
        held = [leaf for leaf in range(41) if ledger.is_done(leaf * LEAF_BYTES, 512)]
        assert set(acknowledged) <= set(held) <= set(asked), f"seed {seed}"
        assert all(ledger.tree.leaf(leaf) == entry(leaf)[1] for leaf in held), f"seed {seed}"
        machine.run(ledger.record([entry(30)]))
        machine.run(ledger.close())
        again = machine.open()
        assert again.is_done(30 * LEAF_BYTES, 512), f"seed {seed}"
        assert again.done_bytes == (len(held) + 1) * LEAF_BYTES, f"seed {seed}"


def test_a_flipped_bit_ends_the_ledger_there():
    machine = Machine()
    ledger = machine.open()
    machine.run(ledger.record([entry(0)]))
    first_end = machine.files.image(PATH).size
    machine.run(ledger.record([entry(1)]))
    machine.run(ledger.record([entry(2)]))
    machine.run(ledger.close())
    machine.files.flip(PATH, first_end + 20)
    again = machine.open()
    assert again.is_done(0, 512)
    assert not again.is_done(LEAF_BYTES, 512)
    assert not again.is_done(2 * LEAF_BYTES, 512)
