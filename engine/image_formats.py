"""Which formats images have, how a file is known to have one, and how it is opened to be imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engine.errors import InvalidArgument, NotSupported
from engine.image_device import RawImage
from engine.qemu_img import MAGIC as QCOW2_MAGIC
from engine.qemu_img import Qcow2Image
from engine.streams import StreamFile
from engine.tvol.layout import SUPERBLOCK_MAGIC
from engine.vhdx.chain import VhdxImage
from engine.vhdx.layout import SIGNATURE as VHDX_MAGIC

if TYPE_CHECKING:
    from engine.image_device import SourceImage

IMPORT_FORMATS = ("auto", "raw", "vhdx", "qcow2")
EXPORT_FORMATS = ("raw", "vhdx", "vhdx-fixed", "qcow2")

_OTHERS = (
    (0, b"conectix", "VHD"),
    (0, b"KDMV", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"QED\0", "QED"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
)
"""Offset, magic and name of what is known to be no raw image."""
_HEAD_BYTES = 512


class RemoteDisks(Protocol):
    """Disks of elsewhere that can be imported, by URL; handed in from outside of the engine."""

    def shown(self, url: str, /) -> str:
        """The URL as it may be shown and recorded. Raises InvalidArgument: none that is understood."""
        ...

    async def open(self, url: str, secret: str | None, /) -> SourceImage:
        """Connect. Raises EngineError: the disk cannot be reached, or not with this secret."""
        ...


def absolute(path: str) -> Path:
    """The path of an image. Raises InvalidArgument: a relative one would mean another file in the daemon."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{path!r} is not UTF-8") from None
    found = Path(path)
    if not found.is_absolute() or "\0" in path:
        raise InvalidArgument(f"{path!r} is not an absolute path")
    return found


async def open_source(
    remotes: RemoteDisks | None, source: str, image_format: str, secret: str | None
) -> tuple[SourceImage, str]:
    """Open a path or URL to read from; returns it and its format. Raises as ``open_image`` and ``RemoteDisks.open``."""
    if "://" not in source:
        return await open_image(absolute(source), image_format)
    if remotes is None:
        raise NotSupported("disks of elsewhere cannot be imported here")
    if image_format not in ("auto", "raw"):
        raise InvalidArgument(f"{remotes.shown(source)} is a disk, whose format is raw")
    return await remotes.open(source, secret), "raw"


async def open_image(path: Path, image_format: str) -> tuple[SourceImage, str]:
    """Open an image to read from; with ``auto`` by what it begins with. Returns it and its format.

    A disk that a stranger could write to may begin with whatever that stranger likes: name its format.

    Raises NotFound, PermissionDenied, InvalidArgument, StoreCorrupt, NotSupported.
    """
    if image_format not in IMPORT_FORMATS:
        raise InvalidArgument(f"{image_format!r} is no format to import; say one of {', '.join(IMPORT_FORMATS)}")
    if image_format == "auto":
        image_format = await _detect(path)
    match image_format:
        case "vhdx":
            return await VhdxImage.open(path), image_format
        case "qcow2":
            return await Qcow2Image.open(path), image_format
        case _:
            return await RawImage.open(path), image_format


async def _detect(path: Path) -> str:
    file = await StreamFile.open(path)
    try:
        head = await file.read(0, _HEAD_BYTES)
    finally:
        await file.close()
    for magic, name in ((VHDX_MAGIC, "vhdx"), (QCOW2_MAGIC, "qcow2")):
        if head.startswith(magic):
            return name
    if head.startswith(SUPERBLOCK_MAGIC):
        raise InvalidArgument(f"{path} is a volume file; say --new-identity to take in a copy of its volumes")
    for offset, magic, name in _OTHERS:
        if head.startswith(magic, offset):
            raise NotSupported(
                f"{path} looks like a {name} image; convert it first: qemu-img convert -O vhdx (or say --format raw)"
            )
    return "raw"
