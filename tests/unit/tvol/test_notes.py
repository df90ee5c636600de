"""Holds, descriptions and who comes from whom, as the file remembers them."""

from dataclasses import replace

import pytest

from engine.errors import InUse, InvalidArgument, NotFound
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.tvol.layout import LayoutError
from engine.tvol.layout_notes import HoldRecord, NodeText
from engine.tvol.notes import MAX_HOLDS

MIB = 1 << 20
DAY = 86400.0


class HandClock:
    """A wall clock and a true one, both moved by hand."""

    def __init__(self):
        self.wall = 1_800_000_000.0
        self.true = 1000.0

    def monotonic(self):
        return self.true

    def boottime(self):
        return self.true

    def time(self):
        return self.wall

    def preemptions(self):
        return 0

    def passes(self, seconds):
        self.wall += seconds
        self.true += seconds


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
def env(env, clock):
    return replace(env, clock=clock)


async def make(env, path):
    store = await TvolFile.create(env, path, volume_name="v", size_bytes=MIB)
    (head,) = store.volumes()
    return store, head, await store.snapshot(head, "s")


async def reopened(env, path, store):
    await store.close()
    assert not check_file(path).damaged
    store = await TvolFile.open(env, path)
    (head,) = store.volumes()
    return store, head, store.snapshot_named(head.volume_id, "s")


async def test_a_held_snapshot_is_not_deleted_until_all_have_released_it(env, path):
    store, head, snapshot = await make(env, path)
    await store.notes.hold(snapshot, "backup", None)
    await store.notes.hold(snapshot, "audit", None)
    store, head, snapshot = await reopened(env, path, store)
    assert [hold.owner for hold in store.notes.holds(snapshot)] == ["audit", "backup"]
    with pytest.raises(InUse, match="audit, backup"):
        await store.delete_snapshot(snapshot)
    with pytest.raises(InUse, match="audit, backup"):
        await store.delete_volume(head)
    await store.notes.release(snapshot, "backup")
    with pytest.raises(NotFound):
        await store.notes.release(snapshot, "backup")
    with pytest.raises(InUse, match="held by audit;"):
        await store.delete_snapshot(snapshot)
    await store.notes.release(snapshot, "audit")
    await store.delete_snapshot(snapshot)
    await store.close()
    assert not check_file(path).damaged


async def test_an_expired_hold_is_void_and_a_renewed_one_is_not(env, path, clock):
    store, _, snapshot = await make(env, path)
    await store.notes.hold(snapshot, "backup", clock.wall + DAY)
    await store.notes.hold(snapshot, "audit", clock.wall + 2 * DAY)
    clock.passes(DAY)
    assert [hold.owner for hold in store.notes.holds(snapshot)] == ["audit"]
    await store.notes.hold(snapshot, "backup", clock.wall + 2 * DAY)
    clock.passes(DAY)
    assert [hold.owner for hold in store.notes.holds(snapshot)] == ["backup"]
    clock.passes(DAY)
    await store.delete_snapshot(snapshot)
    await store.close()


@pytest.mark.parametrize("step", [-10 * 365 * DAY, -1.0, 10 * 365 * DAY])
async def test_no_step_of_the_wall_clock_releases_a_hold_early(env, path, clock, step):
    store, _, snapshot = await make(env, path)
    await store.notes.hold(snapshot, "backup", clock.wall + DAY)
    clock.passes(DAY / 2)
    clock.wall += step
    clock.passes(DAY / 2 - 1)
    with pytest.raises(InUse):
        await store.delete_snapshot(snapshot)
    await store.close()


async def test_a_hold_that_looked_void_while_the_clock_was_wrong_is_valid_again(env, path, clock):
    store, _, snapshot = await make(env, path)
    await store.notes.hold(snapshot, "backup", clock.wall + DAY)
    clock.wall += 365 * DAY  # a daemon that starts now cannot know better
    store, _, snapshot = await reopened(env, path, store)
    assert store.notes.holds(snapshot) == []
    clock.wall -= 365 * DAY
    store, _, snapshot = await reopened(env, path, store)
    with pytest.raises(InUse):
        await store.delete_snapshot(snapshot)
    await store.close()


async def test_a_hold_made_while_a_deletion_waits_for_room_counts(env, path):
    store, _, snapshot = await make(env, path)
    room = store._core.make_room

    async def held_meanwhile(**options):
        store._core.make_room = room
        await store.notes.hold(snapshot, "backup", None)
        await room(**options)

    store._core.make_room = held_meanwhile
    with pytest.raises(InUse):
        await store.delete_snapshot(snapshot)
    await store.close()


@pytest.mark.parametrize("owner", ["", "x" * 257, "a\nb"])
async def test_owners_without_a_usable_name_are_refused(env, path, owner):
    store, _, snapshot = await make(env, path)
    with pytest.raises(InvalidArgument):
        await store.notes.hold(snapshot, owner, None)
    await store.close()


async def test_holds_have_a_limit_and_an_expiry_in_the_past_is_refused(env, path, clock):
    store, _, snapshot = await make(env, path)
    with pytest.raises(InvalidArgument):
        await store.notes.hold(snapshot, "backup", clock.wall)
    for number in range(MAX_HOLDS):
        await store.notes.hold(snapshot, f"owner {number}", None)
    with pytest.raises(InvalidArgument, match="release one"):
        await store.notes.hold(snapshot, "one more", None)
    await store.notes.hold(snapshot, "owner 0", clock.wall + 1)
    await store.close()


async def test_descriptions_and_the_mark_of_a_schedule_stay(env, path):
    store, head, snapshot = await make(env, path)
    await store.snapshot(head, "auto", scheduled=True)
    assert store.notes.description(snapshot) == ""
    await store.notes.describe(snapshot, "before the upgrade · vor dem Umbau")
    with pytest.raises(InvalidArgument):
        await store.notes.describe(snapshot, "ä" * 513)
    store, head, snapshot = await reopened(env, path, store)
    assert store.notes.description(snapshot) == "before the upgrade · vor dem Umbau"
    marks = {each.name: store.notes.is_scheduled(each) for each in store.snapshots()}
    assert marks == {"s": False, "auto": True}
    await store.notes.describe(snapshot, "")
    store, head, snapshot = await reopened(env, path, store)
    assert store.notes.description(snapshot) == ""
    await store.close()


async def test_the_parent_is_the_nearest_snapshot_that_exists(env, path):
    store, head, first = await make(env, path)
    second = await store.snapshot(head, "second")
    third = await store.snapshot(head, "third")
    parent = store.notes.parent
    assert (parent(head), parent(third), parent(second), parent(first)) == (third, second, first, None)
    await store.rollback(head, first)
    clone = await store.clone(third, "c")
    await store.delete_snapshot(second)
    assert (parent(head), parent(third), parent(clone)) == (first, first, third)
    await store.close()


def test_records_round_trip_and_damaged_ones_are_refused():
    holds = [HoldRecord(1, "a", 1.0, None), HoldRecord(2, "ä", 2.0, 3.0)]
    data = b"".join(hold.serialize() for hold in holds)
    assert data[:4] == b"\x01\0\0\0"
    assert list(HoldRecord.parse_all(data)) == holds
    texts = [NodeText(7, ""), NodeText(8, "x")]
    assert NodeText(8, "x").serialize() == b"\x08\0\0\0\x01\0x"
    assert list(NodeText.parse_all(b"".join(text.serialize() for text in texts))) == texts
    for cut in range(1, len(data)):
        if cut != len(holds[0].serialize()):
            with pytest.raises(LayoutError):
                list(HoldRecord.parse_all(data[:cut]))
    with pytest.raises(LayoutError):
        list(HoldRecord.parse_all(HoldRecord(1, "a", float("nan"), None).serialize()))
