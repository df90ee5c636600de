"""When the file is slow its writes leave the loop; not when only the processor was taken away (STORE section 6)."""

from dataclasses import replace

import pytest

from engine.tvol.fast_write import SLOW_PAUSE_S, SLOW_WRITE_S
from engine.tvol.file import TvolFile
from engine.units import KIB, MIB

CHUNK = 64 * KIB


class HandClock:
    """Time that passes when the file says so."""

    now = 1000.0
    lost = 0

    def time(self):
        return self.now

    monotonic = boottime = time

    def preemptions(self):
        return self.lost


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
async def head(env, clock, path):
    store = await TvolFile.create(replace(env, clock=clock), path, volume_name="v", size_bytes=MIB)
    yield store.volume("v")
    await store.close()


@pytest.fixture
def write(head, clock):
    """``try_write`` to chunk 0 or another, in a file that takes so long for it; as often preempted."""
    plain = head._write_now

    def slow(buffers, position):
        plain(buffers, position)
        clock.now += slow.seconds
        clock.lost += slow.preempted

    head._write_now = slow

    def write(*, chunk=0, seconds=0.0, preempted=0):
        slow.seconds, slow.preempted = seconds, preempted
        done = head.try_write(chunk * CHUNK, memoryview(b"x" * 4 * KIB))
        head.end_pass()
        return done

    return write


SLOW = 2 * SLOW_WRITE_S


async def test_a_second_slow_write_sends_the_following_ones_to_workers_for_a_while(head, clock, write):
    assert write()
    assert write(seconds=SLOW)
    assert write()  # watched
    assert write(chunk=1, seconds=SLOW)
    assert not write()
    assert not write(chunk=1)
    await head.write(0, memoryview(b"y" * 512))
    clock.now += SLOW_PAUSE_S
    assert write()
    assert write(seconds=SLOW)
    assert write()


async def test_writes_that_only_lost_their_processor_stay_in_the_loop(write):
    for _ in range(5):
        assert write(seconds=SLOW, preempted=1)
    assert write(seconds=SLOW)  # watched still
    assert not write()


async def test_slow_writes_that_are_far_apart_change_nothing(clock, write):
    for _ in range(5):
        assert write(seconds=SLOW)
        clock.now += SLOW_PAUSE_S


async def test_two_slow_writes_of_one_pass_are_enough_and_a_lost_processor_anywhere_in_it_excuses_both(head, clock):
    plain, lost = head._write_now, [0, 1, 0, 0]

    def slow(buffers, position):
        plain(buffers, position)
        clock.now += SLOW
        clock.lost += lost.pop(0)

    head._write_now = slow
    data = memoryview(b"x" * 4 * KIB)
    assert head.try_write(0, data)  # watched from here on
    assert head.try_write(CHUNK, data)  # preempted
    head.end_pass()
    assert head.try_write(0, data)
    assert not head.try_write(CHUNK, data)
    await head.write(CHUNK, memoryview(b"y" * 512))


async def test_a_burst_ends_with_a_slow_write_which_counts(head, clock, write):
    assert write()
    data = memoryview(b"x" * 4 * KIB * 4)
    slow, each = head._write_now, [0.0, SLOW, 0.0, SLOW]

    def written(buffers, position):
        slow.seconds = each.pop(0)
        slow(buffers, position)

    head._write_now = written
    offsets = [number * 4 * KIB for number in range(4)]
    assert head.try_write_each(offsets, data, 4 * KIB, 4 * KIB) == 2
    assert head.try_write_each(offsets[2:], data, 4 * KIB, 4 * KIB) == 2
    head.end_pass()
    assert head.try_write_each(offsets, data, 4 * KIB, 4 * KIB) == 0
    await head.write(0, memoryview(b"y" * 512))
