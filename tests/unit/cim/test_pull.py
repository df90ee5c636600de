"""Open enumerations: limits, expiry, owners, and that nothing of a result is made before it is pulled."""

import asyncio

import pytest
from pywbem import (
    CIM_ERR_INVALID_ENUMERATION_CONTEXT,
    CIM_ERR_INVALID_OPERATION_TIMEOUT,
    CIM_ERR_SERVER_LIMITS_EXCEEDED,
    CIMError,
)

from cim_facade import pull
from cim_facade.pull import Enumerations
from tests.support.sim_loop import SimLoop

JOE, ANN = ("joe", "root/test"), ("ann", "root/test")


class Counted:
    """Yields numbers and remembers how many, and that it was closed."""

    def __init__(self, count):
        self.made = 0
        self.closed = False
        self.items = self._yield(count)

    async def _yield(self, count):
        try:
            for number in range(count):
                self.made += 1
                yield number
        finally:
            self.closed = True


def run(test):
    loop = SimLoop()
    result = loop.run_until_complete(test())
    assert loop.errors == []
    return result


async def refused(awaitable, code):
    with pytest.raises(CIMError) as caught:
        await awaitable
    assert caught.value.status_code == code


async def test_pieces_are_made_as_they_are_pulled():
    open_ones, source = Enumerations(), Counted(10)
    items, context = await open_ones.open(JOE, "paths", source.items, None, 0)
    assert (items, source.made) == ([], 1)  # one ahead, to know whether that was all
    items, context = await open_ones.pull(JOE, "paths", context, 4)
    assert (items, source.made) == ([0, 1, 2, 3], 5)
    items, context = await open_ones.pull(JOE, "paths", context, 0)
    assert (items, source.made) == ([], 5)
    items, end = await open_ones.pull(JOE, "paths", context, 6)
    assert (items, end, source.closed, len(open_ones)) == ([4, 5, 6, 7, 8, 9], None, True, 0)
    await refused(open_ones.pull(JOE, "paths", context, 1), CIM_ERR_INVALID_ENUMERATION_CONTEXT)


@pytest.mark.parametrize("count", [0, 3])
async def test_what_fits_into_the_first_answer_stays_not_open(count):
    open_ones = Enumerations()
    assert await open_ones.open(JOE, "paths", Counted(count).items, None, 3) == (list(range(count)), None)
    assert len(open_ones) == 0


async def test_one_answer_has_a_bound():
    open_ones, source = Enumerations(), Counted(10 * pull.MAX_OBJECTS)
    items, context = await open_ones.open(JOE, "paths", source.items, None, 2**32 - 1)
    assert (len(items), context is None) == (pull.MAX_OBJECTS, False)
    assert source.made == pull.MAX_OBJECTS + 1
    await open_ones.close_all()
    assert source.closed


async def test_an_enumeration_is_its_owners_and_of_its_kind():
    open_ones = Enumerations()
    _, context = await open_ones.open(JOE, "paths", Counted(3).items, None, 1)
    code = CIM_ERR_INVALID_ENUMERATION_CONTEXT
    await refused(open_ones.pull(ANN, "paths", context, 1), code)
    await refused(open_ones.pull(("joe", "interop"), "paths", context, 1), code)
    await refused(open_ones.pull(JOE, "instances", context, 1), code)
    await refused(open_ones.pull(JOE, "paths", "nothing", 1), code)
    await refused(open_ones.close(ANN, context), code)
    await open_ones.close(JOE, context)
    await refused(open_ones.close(JOE, context), code)


async def test_there_are_only_so_many():
    open_ones = Enumerations()
    for _ in range(pull.MAX_OPEN_PER_USER):
        await open_ones.open(JOE, "paths", Counted(3).items, None, 1)
    await refused(open_ones.open(JOE, "paths", Counted(3).items, None, 1), CIM_ERR_SERVER_LIMITS_EXCEEDED)
    number = 0
    while len(open_ones) < pull.MAX_OPEN:
        number += 1
        await open_ones.open((f"user {number}", "root/test"), "paths", Counted(3).items, None, 1)
    await refused(open_ones.open(ANN, "paths", Counted(3).items, None, 1), CIM_ERR_SERVER_LIMITS_EXCEEDED)
    await open_ones.close_all()
    assert len(open_ones) == 0


@pytest.mark.parametrize("timeout_s", [0, pull.MAX_TIMEOUT_S + 1, 2**32 - 1])
async def test_a_timeout_has_bounds(timeout_s):
    open_ones = Enumerations()
    await refused(open_ones.open(JOE, "paths", Counted(3).items, timeout_s, 1), CIM_ERR_INVALID_OPERATION_TIMEOUT)


def test_what_nobody_pulls_expires_and_a_pull_begins_the_time_anew():
    async def test():
        open_ones, source = Enumerations(), Counted(9)
        _, context = await open_ones.open(JOE, "paths", source.items, 10, 1)
        for _ in range(3):
            await asyncio.sleep(9)
            await open_ones.pull(JOE, "paths", context, 1)
        await asyncio.sleep(11)
        await refused(open_ones.pull(JOE, "paths", context, 1), CIM_ERR_INVALID_ENUMERATION_CONTEXT)
        assert (source.closed, len(open_ones)) == (True, 0)

    run(test)


def test_an_enumeration_does_not_expire_while_it_is_pulled():
    async def slow():
        for number in range(3):
            await asyncio.sleep(30)
            yield number

    async def test():
        open_ones = Enumerations()
        items, context = await open_ones.open(JOE, "paths", slow(), 10, 1)
        assert items == [0]
        both = await asyncio.gather(open_ones.pull(JOE, "paths", context, 1), open_ones.pull(JOE, "paths", context, 1))
        assert [items for items, _ in both] == [[1], [2]]
        assert both[1][1] is None

    run(test)


async def test_an_error_ends_an_enumeration():
    async def failing():
        yield 1
        yield 2
        raise CIMError(1, "it broke")

    open_ones = Enumerations()
    _, context = await open_ones.open(JOE, "paths", failing(), None, 1)
    await refused(open_ones.pull(JOE, "paths", context, 2), 1)
    assert len(open_ones) == 0
    await refused(open_ones.pull(JOE, "paths", context, 1), CIM_ERR_INVALID_ENUMERATION_CONTEXT)
