"""Harnesses for images that strangers made: a spoilt file is read, or refused by an engine error that names it."""

# ruff: noqa: ASYNC240 - blocking on purpose: nothing else is to run meanwhile.

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, NotFound, NotSupported, StoreCorrupt
from engine.image_formats import open_image
from engine.qemu_img import Qcow2Image
from engine.units import KIB, MIB
from engine.vhdx import layout
from engine.vhdx.chain import VhdxImage
from engine.vhdx.layout import BlockState, crc32c
from engine.vhdx.log import LogEntry, Page, Zeroes
from tests.fuzz.mutations import BOUNDARIES, mutate
from tests.support.vhdx_files import BAT_AT, LOG_AT, METADATA_AT, Block, MadeVhdx

if TYPE_CHECKING:
    import random

LOG_GUID = uuid.UUID(int=5)
SECTORS = frozenset({0, 3, 4, 2047})
STRUCTURES = (
    (0, 16),
    *((at, 96) for at in layout.HEADER_OFFSETS),
    *((at, 96) for at in layout.REGION_TABLE_OFFSETS),
    (METADATA_AT, 256),
    (METADATA_AT + 64 * KIB, 400),
    (BAT_AT, 48),
    (LOG_AT, 160),
    (LOG_AT + 4 * KIB, 64),
)
"""Where bytes are spoilt: offset and length."""
SEALED = (
    *((at, layout.HEADER_BYTES) for at in layout.HEADER_OFFSETS),
    *((at, layout.REGION_TABLE_BYTES) for at in layout.REGION_TABLE_OFFSETS),
    (LOG_AT, 8 * KIB),
)
"""What has a checksum at 4: made right again most of the time, since nothing spoilt would come further."""


def _file(folder: Path, chance: random.Random) -> Path:
    base = MadeVhdx(2 * MIB + 512, blocks={0: Block(BlockState.FULLY_PRESENT, b"base" * 1024)})
    base.write(folder / "base.vhdx")
    made = MadeVhdx(base.size_bytes)
    if chance.random() < 0.5:
        made = MadeVhdx(
            base.size_bytes, parent=base, pairs={"relative_path": "base.vhdx", "volume_path": "x\\base.vhdx"}
        )
        made.blocks[1] = Block(BlockState.PARTIALLY_PRESENT, b"part" * 1024, SECTORS)
    made.blocks[0] = Block(BlockState.FULLY_PRESENT, b"full" * 1024)
    made.write(folder / "top.vhdx")
    if chance.random() < 0.5:
        size = made.file_bytes
        table = (folder / "top.vhdx").read_bytes()[BAT_AT : BAT_AT + 4096]
        changes = (Page(BAT_AT, table), Zeroes(size - 8192, 4096))
        made.log_guid, made.log = LOG_GUID, [LogEntry(1, 0, LOG_GUID, size, size, changes)]
        made.write(folder / "top.vhdx")
    return folder / "top.vhdx"


def _spoil(path: Path, chance: random.Random) -> None:
    with path.open("r+b") as file:
        for _ in range(chance.randrange(1, 6)):
            at, length = chance.choice(STRUCTURES)
            new = chance.choice((*BOUNDARIES, chance.randbytes(1), chance.randbytes(4)))
            file.seek(at + chance.randrange(length))
            file.write(new)
        for at, length in SEALED if chance.random() < 0.9 else ():
            file.seek(at)
            data = bytearray(file.read(length))
            data[4:8] = bytes(4)
            file.seek(at + 4)
            file.write(crc32c(data).to_bytes(4, "little"))
        if chance.random() < 0.1:
            file.truncate(chance.randrange(8 * MIB))


async def vhdx(chance: random.Random) -> None:
    """VHDX files: a chain or one file, with a log in use or without."""
    with tempfile.TemporaryDirectory() as folder:
        path = _file(Path(folder).resolve(), chance)
        _spoil(path, chance)
        before = path.stat()
        try:
            image = await VhdxImage.open(path)
        except (StoreCorrupt, NotSupported, NotFound) as error:
            if folder not in str(error):
                raise AssertionError("an error names its file") from error
            return
        try:
            size = image.size_bytes
            for at in (0, chance.randrange(size), max(0, size - MIB)):
                length = min(MIB, size - at) // 512 * 512
                view = bytearray(length)
                await image.read(at // 512 * 512, memoryview(view))
                extents = await image.extents(at // 512 * 512, length)
                assert sum(extent.length for extent in extents) == length
        finally:
            await image.close()
        after = path.stat()
        assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size), "a reader changes nothing"


QCOW2 = bytes.fromhex(
    "514649fb 00000003 0000000000000000 00000000 00000010 0000000000100000 00000000 00000001 0000000000030000"
    "0000000000010000 00000001 00000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000"
    "00000004 00000068"
)


async def image_heads(chance: random.Random) -> None:
    """The beginnings of images by which formats are told apart, and the header of qcow2."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(mutate(QCOW2, chance))
        for opened in (open_image(path, "auto"), Qcow2Image.open(path)):
            try:
                image = await opened
            except EngineError:
                continue
            await (image[0] if isinstance(image, tuple) else image).close()
