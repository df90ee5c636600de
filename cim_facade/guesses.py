"""Who may try a password, and when: lock-out, and turns. Both are bounded, and know nothing of users.

A *place* is where somebody comes from: an IPv4 address, the /64 of an IPv6 address (of which one host has all).

``Lockout`` counts wrong passwords, and refuses to look at any more for a time that doubles with each further one:

- of a name from one place after ``OF_NAME_HERE``: a station with an old password locks out nobody but itself;
- from one place after ``FROM_PLACE``, whatever the names: nobody goes through names, or alternates with an own one;
- of a name after ``OF_NAME``, for places where that name has never been proven: many guess from many places, and who
  has logged in before from where he is now is not locked out by them.

While a place is locked, its right passwords are refused like wrong ones, or refusals would tell them apart.

``Turns`` lets one in at a time, the places in turn: who comes first from a place waits for no more than one of each
other place, however many those have sent. When all seats are taken, the place that has most gives one up.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

OF_NAME_HERE, FROM_PLACE, OF_NAME = 10, 50, 50
LOCK_S, LONGEST_LOCK_S = 30.0, 900.0
FORGOTTEN_S = 900.0
"""Behind the last wrong one, and the lock that it brought."""

MAX_COUNTS = 8192
"""That are remembered; the least lately used is forgotten first."""

MAX_PROVEN = 4096
MAX_SEATS, MAX_SEATS_OF_PLACE = 64, 8


class Overloaded(Exception):
    """More passwords wait to be verified than are looked at: come again later."""


class LockedOut(Exception):
    """After too many wrong passwords none is looked at. ``seconds`` from now."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many wrong passwords; none is looked at for {seconds:.0f} s")
        self.seconds = seconds


def place_of(address: str) -> str:
    """See the module. ``address`` as a socket says it."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


class _Key(NamedTuple):
    """Whose wrong passwords are counted: of a name from a place, or (with one of them empty) of the other one."""

    place: str
    name: str

    @property
    def free(self) -> int:
        """How many may be wrong."""
        if not self.name:
            return FROM_PLACE
        return OF_NAME_HERE if self.place else OF_NAME


@dataclass(slots=True)
class _Count:
    wrong: int = 0
    locked_until: float = 0.0
    at: float = 0.0


class Lockout:
    """See the module. ``clock`` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: OrderedDict[_Key, _Count] = OrderedDict()
        self._proven: OrderedDict[tuple[str, str], None] = OrderedDict()

    def check(self, place: str, name: str) -> None:
        """Raises LockedOut."""
        now = self._clock()
        left = max(self._count(key, now).locked_until - now for key in self._keys(place, name))
        if left > 0:
            raise LockedOut(left)

    def wrong(self, place: str, name: str) -> float:
        """One was. The seconds for which that locks out; 0: it does not."""
        now = self._clock()
        longest = 0.0
        for key in self._keys(place, name):
            count = self._count(key, now)
            count.wrong += 1
            count.at = now
            self._counts[key] = count
            self._counts.move_to_end(key)
            if count.wrong >= key.free:
                lock = min(LOCK_S * 2.0 ** min(count.wrong - key.free, 16), LONGEST_LOCK_S)
                count.locked_until = now + lock
                longest = max(longest, lock)
        while len(self._counts) > MAX_COUNTS:
            self._counts.popitem(last=False)
        return longest

    def right(self, place: str, name: str) -> None:
        """It was: this name's wrong ones here are forgotten, not the place's, which may be another's."""
        self._counts.pop(_Key(place, name), None)
        self._proven[place, name] = None
        self._proven.move_to_end((place, name))
        while len(self._proven) > MAX_PROVEN:
            self._proven.popitem(last=False)

    def forget(self) -> None:
        """All wrong ones: an administrator has changed the users."""
        self._counts.clear()

    def _keys(self, place: str, name: str) -> list[_Key]:
        keys = [_Key(place, name), _Key(place, "")]
        return keys if (place, name) in self._proven else [*keys, _Key("", name)]

    def _count(self, key: _Key, now: float) -> _Count:
        count = self._counts.get(key)
        if count is None or now > max(count.locked_until, count.at) + FORGOTTEN_S:
            return _Count()
        return count


class Turns:
    """See the module."""

    def __init__(self) -> None:
        self._taken = False
        self._seats: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # the next place first

    @property
    def waiting(self) -> int:
        return sum(map(len, self._seats.values()))

    @contextlib.asynccontextmanager
    async def of(self, place: str) -> AsyncIterator[None]:
        """When it is its turn. Raises Overloaded."""
        if self._taken:
            await self._wait(place)
        self._taken = True
        try:
            yield
        finally:
            self._next()

    async def _wait(self, place: str) -> None:
        self._find_room(place)
        seat = asyncio.get_running_loop().create_future()
        self._seats.setdefault(place, deque()).append(seat)
        try:
            await seat
        except asyncio.CancelledError:
            if seat.done() and not seat.cancelled() and seat.exception() is None:
                self._next()  # it had its turn already
            elif place in self._seats and seat in self._seats[place]:
                self._seats[place].remove(seat)
                self._drop(place)
            raise

    def _find_room(self, place: str) -> None:
        own = len(self._seats.get(place, ()))
        if own >= MAX_SEATS_OF_PLACE:
            raise Overloaded
        if self.waiting < MAX_SEATS:
            return
        greediest = max(self._seats, key=lambda each: len(self._seats[each]))
        if len(self._seats[greediest]) <= own + 1:
            raise Overloaded
        self._seats[greediest].pop().set_exception(Overloaded())

    def _next(self) -> None:
        """The turn goes on to who waits, without being free in between."""
        while self._seats:
            place, seats = next(iter(self._seats.items()))
            seat = seats.popleft()
            self._seats.move_to_end(place)
            self._drop(place)
            if not seat.done():
                seat.set_result(None)
                return
        self._taken = False

    def _drop(self, place: str) -> None:
        if not self._seats[place]:
            del self._seats[place]
