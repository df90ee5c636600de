"""The rules that find rot, and those of failing calls and wrong clocks, each taken away (``rot.py``, ``host.py``)."""

from __future__ import annotations

from engine.steady_clock import SteadyClock
from engine.tvol import journal, layout, recovery
from engine.tvol.core import Core
from engine.tvol.journal import Journal
from tests.simulation.mutation import Mutation, nothing


class _Matches(int):
    """A checksum that is equal to any other."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def _any_checksum(original):
    return lambda data: _Matches(original(data))


def _never(original):
    return lambda *arguments, **named: False


def _on_any_boot(original):
    return lambda *arguments, trusted: original(*arguments, trusted=True)


def _a_pad_instead(original):
    def write_commit_again(self, covers):
        self._write(layout.RecordType.PAD, b"", layout.COMMIT_ALIGNMENT)

    return write_commit_again


def _every_failure_is_told(original):
    def fail(self, cause):
        self._has_sync_failed = True
        return original(self, cause)

    return fail


def _wall_time(original):
    return lambda self: self._clock.time()


def _first_slot_only(original):
    """Of two slots the second is not looked at when the first does not verify."""

    def read_superblock(file, *, writable):
        data = bytearray(layout.SUPERBLOCK_SIZE)
        file.read_into((memoryview(data),), layout.SUPERBLOCK_OFFSETS[0])
        layout.Superblock.parse(bytes(data))
        return original(file, writable=writable)

    return read_superblock


ROT: dict[str, Mutation] = {
    "pages-are-verified": Mutation(
        "a page that does not have the checksum of who refers to it is not used",
        ((recovery, "checksum64", _any_checksum),),
    ),
    "a-later-commit-is-a-witness": Mutation(
        "a record that does not verify, though a later COMMIT says that it was durable, is damage",
        ((journal, "later_commit", nothing),),
    ),
    "no-kill-tears-a-sector": Mutation(
        "a soft record that has rotted in the page cache, or on its way back to it, is damage, not the journal's end",
        ((layout, "is_rotten", _never),),
    ),
    "power-loss-tears-any": Mutation(
        "what a power loss leaves of a COMMIT that nobody was told of is the journal's end, not damage",
        ((recovery, "_was_longer", _on_any_boot),),
    ),
    "commit-has-a-copy": Mutation(
        "a COMMIT that rots has a copy",
        ((Journal, "_write_commit_again", _a_pad_instead),),
    ),
    "either-copy-of-a-commit": Mutation(
        "one good copy of a COMMIT is enough",
        ((journal, "_by_its_copy", nothing),),
    ),
    "either-superblock-slot": Mutation(
        "one good superblock slot is enough",
        ((recovery, "read_superblock", _first_slot_only),),
    ),
    "only-failed-syncs-are-told": Mutation(
        "after a failure that is no sync's the next opening has all that was acknowledged",
        ((Core, "fail", _every_failure_is_told),),
    ),
    "expiry-takes-its-time": Mutation(
        "a step of the wall clock ends no hold",
        ((SteadyClock, "time", _wall_time),),
    ),
}
