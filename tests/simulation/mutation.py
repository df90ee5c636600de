"""One rule of the store taken away."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


MISFITS = ("TypeError", "NameError", "AttributeError: 'Sim", "IndexError: boolean index")
"""What a mutation makes of a store that has changed since it was written: nothing is proven by it. (Not what looking at
entries that are not in memory raises.)"""


@dataclass(frozen=True, slots=True)
class Mutation:
    """``patches``: (object, attribute, replacement made from the original)."""

    rule: str
    patches: tuple[tuple[object, str, Callable], ...]

    def apply(self) -> None:
        """For the rest of this process."""
        for target, attribute, make in self.patches:
            setattr(target, attribute, make(getattr(target, attribute)))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """For a while."""
        before = [(target, attribute, getattr(target, attribute)) for target, attribute, _ in self.patches]
        self.apply()
        try:
            yield
        finally:
            for target, attribute, original in before:
                setattr(target, attribute, original)


def nothing(original):
    return lambda *arguments, **named: None


def left_out(target: object, attribute: str) -> tuple[tuple[object, str, Callable], ...]:
    return ((target, attribute, nothing),)


def at_once(original):
    async def return_at_once(self):
        return

    return return_at_once
