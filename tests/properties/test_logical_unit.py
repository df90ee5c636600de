"""A logical unit under arbitrary commands of several initiators, events and resets.

Checked after every step, for every nexus: what the fast path's slots promise is what the plain path does. With
``fast_device`` set a READ is good; with ``fast_writable`` a WRITE is, too; without ``fast_device`` a unit attention
pends or a READ is refused. And whatever comes, a command gets a well-formed result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sanitize import Sanitizer
from iscsi.scsi.command import ScsiCommand, ScsiResult, Status
from iscsi.scsi.sense import SenseKey
from tests.support.memory_device import MemoryDevice
from tests.support.sanitize_host import SanitizeHost
from tests.support.scsi_host import Host, disk, sense_of

if TYPE_CHECKING:
    from iscsi.scsi.lun import LogicalUnit

BLOCKS = 64
HOSTS = 3
READ = bytes.fromhex("28000000000000000100")
WRITE = bytes.fromhex("2a000000000000000100")


@st.composite
def persistent_reserve(draw) -> tuple[bytes, bytes]:
    action, kind = draw(st.integers(0, 7)), draw(st.sampled_from((1, 3, 5, 6, 7, 8)))
    key, other = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    data = key.to_bytes(8, "big") + other.to_bytes(8, "big") + bytes(8)
    return bytes((0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0)), data


@st.composite
def mode_select(draw) -> tuple[bytes, bytes]:
    caching = bytes((0x08, 0x12, draw(st.sampled_from((0, 4))))) + bytes(17)
    control = bytes((0x0A, 0x0A, draw(st.sampled_from((0, 4))), 0x10, draw(st.sampled_from((0, 8)))))
    page = draw(st.sampled_from((caching, control + bytes((0, 0, 0, 0xFF, 0xFF, 0, 0)))))
    return bytes((0x15, 0x10, 0, 0, 4 + len(page), 0)), bytes(4) + page


@st.composite
def set_target_port_groups(draw) -> tuple[bytes, bytes]:
    states = draw(st.lists(st.tuples(st.sampled_from((0, 1, 2, 3)), st.integers(1, HOSTS)), min_size=1, max_size=3))
    data = bytes(4) + b"".join(bytes((state, 0, 0, group)) for state, group in states)
    return bytes((0xA4, 0x0A, 0, 0, 0, 0, 0, 0, 0, len(data), 0, 0)), data


COMMANDS = st.one_of(
    persistent_reserve(),
    set_target_port_groups(),
    mode_select(),
    st.sampled_from(
        [
            (bytes.fromhex(cdb), data)
            for cdb, data in (
                ("160000000000", b""),  # RESERVE(6)
                ("170000000000", b""),  # RELEASE(6)
                ("000000000000", b""),
                ("03000000ff00", b""),
                ("1b0000000200", b""),  # eject
                ("1b0000000300", b""),  # load
                ("1e0000000100", b""),  # prevent
                ("1e0000000000", b""),  # allow
                ("89000000000000000000000000010000", bytes(1024)),  # COMPARE AND WRITE
                ("9c000000000000000000000000010000", bytes(512)),  # WRITE ATOMIC(16)
                ("48820000000000000000", b""),  # SANITIZE: BLOCK ERASE, IMMED
                ("48020000000000000000", b""),
                ("481f0000000000000000", b""),  # EXIT FAILURE MODE
                ("42000000000000001800", b"\0\x16\0\x10" + bytes(12) + b"\0\0\0\x08" + bytes(4)),
            )
        ]
    ),
    st.tuples(st.binary(min_size=6, max_size=16), st.binary(max_size=32)),
)
EVENTS = st.sampled_from(["reset", "resize", "replace", "relogin", "protect", "unprotect"])
STEPS = st.lists(st.one_of(st.tuples(st.integers(0, HOSTS - 1), COMMANDS), EVENTS), max_size=30)


def happen(event: str, lu: LogicalUnit, hosts: list[Host]) -> None:
    if event == "reset":
        lu.reset()
    elif event == "resize":
        lu.device.resize(BLOCKS * 512 if lu.blocks > BLOCKS else 2 * BLOCKS * 512)
        lu.capacity_changed()
    elif event == "replace":
        lu.content_replaced(MemoryDevice(BLOCKS * 512))
    elif event == "relogin":
        lu.detach(hosts[0].nexus)
        hosts[0].nexus = lu.attach(hosts[0].it_nexus)
    else:
        lu.write_protection_changed(read_only=event == "protect")


def is_well_formed(result: ScsiResult) -> bool:
    return (result.status == Status.CHECK_CONDITION) == bool(result.sense) and (
        sense_of(result)[0] is not SenseKey.HARDWARE_ERROR
    )


async def check(host: Host) -> None:
    nexus = host.nexus
    assert not nexus.fast_writable or nexus.fast_device is not None
    assert nexus.blocks == host.lu.blocks
    if nexus.unit_attentions:
        assert nexus.fast_device is None
        return
    read = await host.lu.execute(nexus, ScsiCommand(READ, memoryview(b""), 512))
    assert (nexus.fast_device is host.lu.device) == (read.status == Status.GOOD)
    if nexus.fast_writable:
        write = await host.lu.execute(nexus, ScsiCommand(WRITE, memoryview(bytes(512)), 0))
        assert write.status == Status.GOOD
        assert host.lu.mode.write_cache


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, removable=st.booleans())
async def test_the_fast_paths_slots_agree_with_the_plain_path(steps, removable):
    device, around = MemoryDevice(BLOCKS * 512), SanitizeHost()
    device.sanitizer = Sanitizer(device, around, spread_s=0)
    lu = disk(device=device, removable=removable)
    around.on_change = lu.refresh_all
    hosts = [Host(lu, number, target=f"iqn.2026-11.org.twinvol:{number}") for number in range(HOSTS)]
    for step in steps:
        if isinstance(step, str):
            happen(step, lu, hosts)
        else:
            number, (cdb, data) = step
            result = await lu.execute(hosts[number].nexus, ScsiCommand(cdb, memoryview(data), 4096))
            assert is_well_formed(result)
        for host in hosts:
            await check(host)
