"""Tokens: what they stand for, how they end, and what stays of them."""

from __future__ import annotations

import asyncio

import pytest

from engine import tokens as module
from engine.errors import InUse, NotSupported, TokenFault, TokenInvalid
from engine.stores import Extent
from engine.tokens import LIFETIME_S, MAX_TOKENS, MAX_TOKENS_PER_OWNER, Tokens
from engine.units import MIB
from engine.volume import Volume
from tests.support.memory_device import MemoryDevice
from tests.support.memory_store import MemoryStore


class HandClock:
    """Time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def boottime(self) -> float:
        return self.now

    monotonic = time = boottime


def a_volume() -> tuple[MemoryStore, Volume]:
    store = MemoryStore()
    return store, Volume(store.create_volume("v", MIB))


async def issue(tokens, device, *, owner="host", inactivity_s=60):
    return await tokens.issue(
        device,
        (Extent(4096, 1024), Extent(0, 512)),
        owner=owner,
        inactivity_s=inactivity_s,
        represent=lambda token: token.identifier.to_bytes(8, "big") + token.secret,
    )


def fault(tokens, token) -> str | None:
    try:
        assert tokens.redeem(token.identifier, token.representation) is token
    except TokenInvalid as invalid:
        return invalid.fault
    return None


async def test_a_token_stands_for_the_instant_when_it_was_made():
    _, volume = a_volume()
    await volume.write(4096, memoryview(b"1" * 1024))
    tokens = Tokens(HandClock())
    token = await issue(tokens, volume)
    await volume.write(4096, memoryview(b"2" * 1024))
    got = bytearray(1024)
    await token.point.read(4096, memoryview(got))
    assert got == b"1" * 1024
    assert token.length == 1536
    assert list(token.read_from(0, 9999)) == [(4096, 1024), (0, 512)]
    assert list(token.read_from(512, 1024)) == [(4608, 512), (0, 512)]
    assert list(token.read_from(1024, 512)) == [(0, 512)]
    assert list(token.read_from(1536, 512)) == []


async def test_only_the_very_bytes_redeem_it():
    _, volume = a_volume()
    tokens = Tokens(HandClock())
    one, two = await issue(tokens, volume), await issue(tokens, volume)
    assert one.secret != two.secret
    assert len(one.secret) >= 32
    assert fault(tokens, one) is None
    for identifier, image in (
        (one.identifier, two.representation),
        (one.identifier, one.representation[:-1] + bytes((one.representation[-1] ^ 1,))),
        (one.identifier, b""),
        (two.identifier + 1, one.representation),
    ):
        with pytest.raises(TokenInvalid) as refused:
            tokens.redeem(identifier, image)
        assert refused.value.fault == TokenFault.UNKNOWN


async def test_it_expires_when_nobody_uses_it_and_its_snapshot_goes():
    store, volume = a_volume()
    clock = HandClock()
    tokens = Tokens(clock)
    token = await issue(tokens, volume, inactivity_s=60)
    assert [snapshot.hidden for snapshot in store.snapshots()] == [True]
    clock.now += 59
    assert fault(tokens, token) is None
    with tokens.using(token):
        clock.now += 100
        assert fault(tokens, token) is None
    clock.now += 59
    assert fault(tokens, token) is None
    clock.now += 1
    assert fault(tokens, token) == TokenFault.EXPIRED
    await tokens.settled()
    assert store.snapshots() == []
    clock.now += LIFETIME_S
    assert fault(tokens, token) == TokenFault.UNKNOWN


async def test_use_does_not_lengthen_its_lifetime_but_keeps_its_data():
    store, volume = a_volume()
    clock = HandClock()
    tokens = Tokens(clock)
    token = await issue(tokens, volume)
    with tokens.using(token):
        clock.now += LIFETIME_S
        assert fault(tokens, token) == TokenFault.EXPIRED
        await tokens.settled()
        assert len(store.snapshots()) == 1
    await tokens.settled()
    assert store.snapshots() == []


async def test_the_timer_ends_it_without_any_question():
    store, volume = a_volume()
    clock = HandClock()
    tokens = Tokens(clock)
    token = await issue(tokens, volume)
    clock.now += 60
    with tokens.using(token):  # leaving sets the timer anew
        token.ends_at = clock.now
    while len(tokens):
        await module.asyncio.sleep(0)
    await tokens.settled()
    assert store.snapshots() == []


async def test_deleted_and_cancelled_are_told_apart():
    store, volume = a_volume()
    tokens = Tokens(HandClock())
    one, two = await issue(tokens, volume), await issue(tokens, volume)
    tokens.delete(one)
    tokens.cancel(two)
    assert (fault(tokens, one), fault(tokens, two)) == (TokenFault.DELETED, TokenFault.CANCELLED)
    await tokens.settled()
    assert store.snapshots() == []


async def test_one_owner_cannot_take_the_others_room():
    store, volume = a_volume()
    clock = HandClock()
    tokens = Tokens(clock)
    made = []
    for _ in range(MAX_TOKENS_PER_OWNER):
        clock.now += 0.001
        made.append(await issue(tokens, volume))
    with tokens.using(made[0]):
        pass
    other = await issue(tokens, volume, owner="another")
    last = await issue(tokens, volume)
    assert fault(tokens, made[1]) == TokenFault.CANCELLED  # the one not used for longest
    assert [fault(tokens, token) for token in (made[0], made[2], other, last)] == [None] * 4
    for number in range(MAX_TOKENS - len(tokens)):
        await issue(tokens, volume, owner=f"host {number}")
    with pytest.raises(InUse):
        await issue(tokens, volume, owner="late")
    await issue(tokens, volume)
    assert len(tokens) == MAX_TOKENS
    await tokens.close()
    assert store.snapshots() == []


async def test_tokens_that_are_being_made_count_for_their_owner():
    store, volume = a_volume()
    tokens = Tokens(HandClock())
    freeze = store.snapshot
    may_freeze = asyncio.Event()

    async def snapshot(*arguments, **options):
        await may_freeze.wait()
        return await freeze(*arguments, **options)

    store.snapshot = snapshot
    making = [asyncio.create_task(issue(tokens, volume)) for _ in range(MAX_TOKENS_PER_OWNER + 3)]
    other = asyncio.create_task(issue(tokens, volume, owner="another"))
    await asyncio.sleep(0)  # all of them have begun
    may_freeze.set()
    results = await asyncio.gather(*making, return_exceptions=True)
    assert [type(result) for result in results if isinstance(result, BaseException)] == [InUse] * 3
    assert fault(tokens, await other) is None
    assert len(tokens) == MAX_TOKENS_PER_OWNER + 1
    await tokens.close()


async def test_a_token_of_a_snapshot_keeps_nothing_and_deletes_nothing():
    store, volume = a_volume()
    snapshot = await store.snapshot(volume.head, "s")
    tokens = Tokens(HandClock())
    token = await issue(tokens, snapshot)
    assert token.point is snapshot
    await tokens.close()
    assert store.snapshots() == [snapshot]


async def test_a_device_that_cannot_be_frozen_has_no_tokens():
    with pytest.raises(NotSupported):
        await issue(Tokens(HandClock()), MemoryDevice(MIB))
