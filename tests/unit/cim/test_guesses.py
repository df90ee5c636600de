"""Lock-out and turns: who may try a password, and when."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cim_facade import guesses
from cim_facade.guesses import (
    FORGOTTEN_S,
    FROM_PLACE,
    LOCK_S,
    LONGEST_LOCK_S,
    MAX_SEATS,
    MAX_SEATS_OF_PLACE,
    OF_NAME,
    OF_NAME_HERE,
    LockedOut,
    Lockout,
    Overloaded,
    Turns,
    place_of,
)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def locked(lockout, place, name):
    """For how long."""
    try:
        lockout.check(place, name)
    except LockedOut as error:
        return error.seconds
    return 0


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1%eth0", "2001:db8:1:2::/64"),
        ("here", "here"),
    ],
)
def test_places(address, place):
    assert place_of(address) == place


def test_a_name_is_locked_where_it_was_guessed_and_nowhere_else():
    clock = Clock()
    lockout = Lockout(clock)
    for _ in range(OF_NAME_HERE - 1):
        assert lockout.wrong("a", "joe") == 0
    assert locked(lockout, "a", "joe") == 0
    assert lockout.wrong("a", "joe") == LOCK_S
    assert locked(lockout, "a", "joe") == LOCK_S
    assert (locked(lockout, "b", "joe"), locked(lockout, "a", "ann")) == (0, 0)
    clock.now += LOCK_S
    assert locked(lockout, "a", "joe") == 0
    waits = []
    for _ in range(8):
        lockout.wrong("a", "joe")
        waits.append(locked(lockout, "a", "joe"))
        clock.now += waits[-1]
    assert waits == [min(LOCK_S * 2**n, LONGEST_LOCK_S) for n in range(1, 9)]
    clock.now += FORGOTTEN_S + 1
    assert lockout.wrong("a", "joe") == 0


def test_the_right_one_forgets_this_names_wrong_ones_and_not_the_places():
    lockout = Lockout(Clock())
    for _ in range(FROM_PLACE // (OF_NAME_HERE - 1)):
        for _ in range(OF_NAME_HERE - 1):
            lockout.wrong("a", "joe")
        lockout.right("a", "joe")
        lockout.right("a", "own")
    assert locked(lockout, "a", "joe") == 0
    for _ in range(FROM_PLACE % (OF_NAME_HERE - 1)):
        lockout.wrong("a", "joe")
    assert locked(lockout, "a", "own") > 0
    assert locked(lockout, "b", "own") == 0


def test_names_are_not_gone_through_from_one_place():
    lockout = Lockout(Clock())
    for number in range(FROM_PLACE):
        assert locked(lockout, "a", "next") == 0
        lockout.wrong("a", f"name {number}")
    assert locked(lockout, "a", "next") > 0


def test_many_places_lock_a_name_for_strangers_only():
    lockout = Lockout(Clock())
    lockout.right("home", "joe")
    for number in range(OF_NAME):
        assert locked(lockout, "new", "joe") == 0
        lockout.wrong(f"place {number}", "joe")
    assert locked(lockout, "new", "joe") > 0
    assert locked(lockout, "home", "joe") == 0
    assert locked(lockout, "new", "ann") == 0


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(guesses, "MAX_COUNTS", 10)
    monkeypatch.setattr(guesses, "MAX_PROVEN", 10)
    lockout = Lockout(Clock())
    for number in range(100):
        lockout.wrong(f"p{number}", f"n{number}")
        lockout.right(f"q{number}", f"n{number}")
    assert len(lockout._counts) <= 10
    assert len(lockout._proven) <= 10


async def stand(turns, place, order, let):
    async with turns.of(place):
        order.append(place)
        await let.wait()


@given(st.lists(st.sampled_from("abcdefghijklmnopqrst"), max_size=120))
def test_places_take_turns_and_seats_are_bounded(arrivals):
    async def run():
        turns, order, let = Turns(), [], asyncio.Event()
        tasks = []
        for place in arrivals:
            tasks.append(asyncio.create_task(stand(turns, place, order, let)))
            await asyncio.sleep(0)
            assert turns.waiting <= MAX_SEATS
        waiting = {place: len(seats) for place, seats in turns._seats.items()}
        assert all(count <= MAX_SEATS_OF_PLACE for count in waiting.values())
        let.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert len(order) == len(arrivals) - sum(isinstance(each, Overloaded) for each in results)
        rest = order[1:]  # the first was let in when it came
        for nth in range(max(waiting.values(), default=0)):  # each round has all places that still wait, once
            there = {place for place, count in waiting.items() if count > nth}
            assert set(rest[: len(there)]) == there
            rest = rest[len(there) :]
        assert rest == []
        assert (turns._taken, turns.waiting) == (False, 0)

    asyncio.run(run())


async def test_a_greedy_place_gives_a_seat_up():
    turns, let = Turns(), asyncio.Event()
    tasks = [asyncio.create_task(stand(turns, "in", [], let))]
    places = MAX_SEATS // MAX_SEATS_OF_PLACE
    for number in range(places):
        tasks += [asyncio.create_task(stand(turns, f"p{number}", [], let)) for _ in range(MAX_SEATS_OF_PLACE)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert turns.waiting == MAX_SEATS
    newcomer = asyncio.create_task(stand(turns, "new", [], let))
    let.set()
    await newcomer
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(each, Overloaded) for each in results) == 1


async def test_who_leaves_passes_the_turn_on():
    turns, order, let = Turns(), [], asyncio.Event()
    holder = asyncio.create_task(stand(turns, "a", order, let))
    await asyncio.sleep(0)
    leaving = asyncio.create_task(stand(turns, "b", order, let))
    last = asyncio.create_task(stand(turns, "c", order, let))
    await asyncio.sleep(0)
    let.set()
    holder.cancel()  # b is given the turn ...
    await asyncio.sleep(0)
    leaving.cancel()  # ... and leaves before it has taken it
    await last
    await asyncio.gather(holder, leaving, return_exceptions=True)
    assert order[-1] == "c"
    assert not turns._taken
