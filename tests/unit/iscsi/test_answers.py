"""Arenas: nothing is overwritten before it has left, nothing leaves before it is journalled."""

import pytest

from engine.errors import StoreFailed
from iscsi.answers import ARENA_BYTES, FLUSH_BYTES, Answers, ArenaPool


class StalledReader:
    """A transport that keeps views of what it was given, as asyncio does from 3.12 on, until ``read`` takes it."""

    def __init__(self):
        self.waiting = []
        self.received = b""

    def send(self, data):
        self.waiting.append(memoryview(data))
        return self.unsent()

    def unsent(self):
        return sum(view.nbytes for view in self.waiting)

    def read(self):
        self.received += b"".join(self.waiting)
        self.waiting.clear()


class Journal:
    def __init__(self, error=None):
        self.passes = 0
        self.error = error

    def end_pass(self):
        self.passes += 1
        if self.error:
            raise self.error


def make(reader, pool=None):
    return Answers(pool or ArenaPool(), [], reader.send, reader.unsent)


def fill(answers, filled, length, byte):
    answers.arena[filled : filled + length] = bytes((byte,)) * length
    return filled + length


def test_what_a_stalled_reader_has_not_taken_stays_as_it_was():
    reader = StalledReader()
    answers = make(reader)
    sent = b""
    for byte in range(60):
        filled = answers.begin()
        if filled + 50_000 > ARENA_BYTES:
            filled = answers.make_room(filled, 50_000)
        answers.end(fill(answers, filled, 50_000, byte))
        sent += bytes((byte,)) * 50_000
    reader.read()
    assert reader.received == sent


def test_small_answers_to_a_stalled_reader_share_an_arena():
    reader = StalledReader()
    pool = ArenaPool()
    answers = make(reader, pool)
    arenas = set()
    for _ in range(1000):
        filled = answers.begin()
        arenas.add(id(answers.arena.obj))
        answers.end(fill(answers, filled, 48, 7))
    assert len(arenas) == 1


def test_an_arena_that_has_left_is_filled_again_and_given_back_at_the_end():
    reader = StalledReader()
    pool = ArenaPool()
    first, second = make(reader, pool), make(StalledReader(), pool)
    filled = first.begin()
    arena = first.arena
    filled = fill(first, filled, FLUSH_BYTES, 1)
    assert first.flush(filled) == FLUSH_BYTES  # still unsent: go on behind it
    reader.read()
    assert first.begin() == 0
    first.end(fill(first, 0, 48, 2))
    reader.read()
    first.reclaim()
    second.begin()
    assert second.arena is arena


def test_an_arena_in_use_is_not_given_to_another_connection():
    pool = ArenaPool()
    stalled = make(StalledReader(), pool)
    stalled.end(fill(stalled, stalled.begin(), 48, 1))
    other = make(StalledReader(), pool)
    other.begin()
    assert other.arena.obj is not stalled.arena.obj


def test_devices_are_journalled_before_anything_is_sent():
    order = []
    device = Journal()
    device.end_pass = lambda: order.append("journal")
    answers = Answers(ArenaPool(), [device], lambda data: order.append(bytes(data)) or 0, lambda: 0)
    answers.arena[: answers.begin()]
    answers.end(fill(answers, 0, 2, 65))
    assert order == ["journal", b"AA"]


def test_nothing_is_sent_when_the_journal_fails():
    reader = StalledReader()
    answers = Answers(ArenaPool(), [Journal(StoreFailed("no"))], reader.send, reader.unsent)
    filled = fill(answers, answers.begin(), 48, 1)
    with pytest.raises(StoreFailed):
        answers.end(filled)
    assert reader.unsent() == 0


def test_long_bytes_made_elsewhere_keep_their_place():
    reader = StalledReader()
    answers = make(reader)
    filled = fill(answers, answers.begin(), 4, 65)
    filled = answers.put(filled, b"B" * (FLUSH_BYTES + 1))
    filled = answers.put(filled, b"C")
    answers.end(filled)
    reader.read()
    assert reader.received == b"AAAA" + b"B" * (FLUSH_BYTES + 1) + b"C"
