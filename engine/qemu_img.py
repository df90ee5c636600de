"""qcow2 through ``qemu-img``, a program of QEMU, as a child process.

A qcow2 image becomes a raw one beside the volume that is being made, which the copy loop then takes; on the way out a
raw image becomes a qcow2 one. Either result is compared with what it came from, byte by byte, by ``qemu-img compare``.

An image that refers to other files (a backing file, an external data file) is refused before ``qemu-img`` sees it: its
header comes from whoever made it, and must not have another file of this machine read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import struct
from typing import TYPE_CHECKING

from engine.errors import EngineError, IntegrityError, NotSupported, StoreCorrupt
from engine.image_device import ImageDevice, RawImage
from engine.streams import StreamFile
from engine.units import SECTOR_SIZE, align_up

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.stores import Extent

PROGRAM = "qemu-img"
MAGIC = b"QFI\xfb"
MAX_QCOW2_BYTES = 1 << 50
ERROR_TEXT_MAX = 2000
_HEADER = struct.Struct(">4sIQIIQI")  # magic, version, backing file offset and length, cluster bits, size, encryption
_INCOMPATIBLE = struct.Struct(">Q")
_INCOMPATIBLE_AT, _EXTERNAL_DATA = 72, 1 << 2
_PERCENT = re.compile(rb"\(\s*(\d+\.\d+)/100%\)")
_DIFFERENT = 1
"""Exit code of ``compare``."""


def require_program() -> None:
    """Raises NotSupported."""
    if shutil.which(PROGRAM) is None:
        raise NotSupported(f"qcow2 needs {PROGRAM} on the daemon's machine (Debian: qemu-utils); it is not installed")


class Qcow2Image(ImageDevice):
    """A qcow2 image. It can be read once ``prepare`` has made a raw one of it. Ended by ``close``."""

    logical_sector_bytes = SECTOR_SIZE

    def __init__(self, file: StreamFile, size_bytes: int) -> None:
        super().__init__(str(file.path), size_bytes, read_only=True)
        self._file = file
        self._raw: RawImage | None = None
        self._scratch: Path | None = None

    @classmethod
    async def open(cls, path: Path) -> Qcow2Image:
        """Raises NotSupported: no ``qemu-img``, or an image that refers to other files; StoreCorrupt; NotFound."""
        require_program()
        file = await StreamFile.open(path)
        try:
            size_bytes = _checked(str(path), await file.read(0, _INCOMPATIBLE_AT + _INCOMPATIBLE.size))
        except BaseException:
            await file.close()
            raise
        return cls(file, align_up(size_bytes, SECTOR_SIZE))

    async def prepare(self, scratch: Path, report: Callable[[str], None]) -> None:
        """Convert to the raw image ``scratch``, which is removed by ``close``. ``report`` is told how far it is."""
        self._scratch = scratch
        await convert(self._file.path, "qcow2", scratch, "raw", report)
        self._raw = await RawImage.open(scratch)

    async def close(self) -> None:
        await self._file.close()
        if self._raw is not None:
            await self._raw.close()
        if self._scratch is not None:
            scratch = self._scratch
            await asyncio.to_thread(lambda: scratch.unlink(missing_ok=True))

    async def identity(self) -> str:
        return await self._file.identity()

    async def read(self, offset: int, view: memoryview, /) -> None:
        assert self._raw is not None
        await self._raw.read(offset, view)

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        assert self._raw is not None
        return await self._raw.extents(offset, length)


def _checked(name: str, head: bytes) -> int:
    """The size of the disk in the image with this header."""
    magic, version, backing, _, _, size_bytes, encryption = _HEADER.unpack_from(head)
    if magic != MAGIC or version not in (2, 3):
        raise StoreCorrupt(name, "is no qcow2 image of version 2 or 3")
    if not 0 < size_bytes <= MAX_QCOW2_BYTES:
        raise StoreCorrupt(name, f"says that its disk has {size_bytes} bytes")
    if backing:
        raise NotSupported(f"{name} has a backing file; make it whole first: qemu-img convert -O qcow2")
    if version == 3 and _INCOMPATIBLE.unpack_from(head, _INCOMPATIBLE_AT)[0] & _EXTERNAL_DATA:
        raise NotSupported(f"{name} keeps its data in another file; make it whole first: qemu-img convert -O qcow2")
    if encryption:
        raise NotSupported(f"{name} is encrypted; decrypt it first: qemu-img convert")
    return int(size_bytes)


async def convert(
    source: Path, source_format: str, target: Path, target_format: str, report: Callable[[str], None]
) -> None:
    """Make ``target`` of ``source`` and compare the two.

    Raises IntegrityError: they differ. EngineError: what ``qemu-img`` said.
    """

    def percent(what: str) -> Callable[[bytes], None]:
        return lambda text: report(f"qemu-img {what}: {text.decode()} %")

    formats = ("-f", source_format, "-O", target_format)
    await _run("convert", "-p", *formats, str(source), str(target), report=percent("convert"))
    formats = ("-f", source_format, "-F", target_format)
    code, text = await _run(
        "compare", "-p", *formats, str(source), str(target), report=percent("compare"), also=_DIFFERENT
    )
    if code == _DIFFERENT:
        raise IntegrityError(str(target), 0, 0, f"that of {source}", f"another one ({text})")


async def _run(*arguments: str, report: Callable[[bytes], None], also: int = 0) -> tuple[int, str]:
    """One call of the program: its exit code, 0 or ``also``, and what it printed last."""
    try:
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except FileNotFoundError:
        require_program()
        raise
    except OSError as error:
        raise EngineError(f"{PROGRAM}: {error}") from error
    assert process.stdout is not None
    text = b""
    try:
        while part := await process.stdout.read(1 << 12):
            text = (text + part)[-ERROR_TEXT_MAX:]
            if found := _PERCENT.findall(text):
                report(found[-1])
        code = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
        raise
    said = _PERCENT.sub(b"", text).decode(errors="replace").strip()
    if code not in (0, also):
        raise EngineError(f"{PROGRAM} {arguments[0]} ended with {code}: {said}")
    return code, said
