"""``EncryptedFile``: a data file whose bytes are encrypted by AES-256-XTS (IEEE 1619) on their way in and out.

It stands between the store and the file for payload only; superblocks, journal and pages go to the file itself.

* The tweak is the number of the 16 KiB unit in the *file*, not in the volume: chunks that nodes share are the same
  bytes for all of them, and what is moved is encrypted anew.
* Any extent in whole 512-byte sectors can be read and written alone. XTS encrypts each 16 bytes of a unit by
  themselves, so a sector in the middle of a unit needs no other sector; the cipher is given as many zeroes before it as
  it takes to come to its place. A torn write leaves sectors old or new, as without encryption.
* A hole of the file does not read as zeroes: no chunk is taken for zero because it was punched (``Allocator``).

A unit costs 2 us for making the cipher's context and 0.1 us per KiB, whatever its size: with units of 4 KiB, as disks
have them, 256 KiB cost four times as much as with 16 KiB; with 64 KiB a random 4 KiB costs twice as much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from engine.tvol.layout_encryption import UNIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.files import BlockFile
    from engine.stores.place import ReadWrite

_ZEROES = bytes(UNIT_BYTES)


class EncryptedBytes:
    """``engine.stores.place.ReadWrite`` over that of another file. ``key``: 64 bytes."""

    def __init__(self, inner: ReadWrite, key: bytes) -> None:
        self._inner = inner
        self._aes = algorithms.AES(key)

    def read_into(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        self._inner.read_into(buffers, offset)
        for buffer in buffers:
            self._apply(buffer, offset, encrypting=False)
            offset += len(buffer)

    def write(self, buffers: Sequence[memoryview], offset: int, /) -> None:
        data = memoryview(bytearray().join(buffers))
        self._apply(data, offset, encrypting=True)
        self._inner.write((data,), offset)

    def _apply(self, view: memoryview, offset: int, *, encrypting: bool) -> None:
        """Encrypt or decrypt ``view``, which lies at ``offset`` in the file, where it is."""
        at, end = 0, len(view)
        while at < end:
            unit, within = divmod(offset + at, UNIT_BYTES)
            step = min(UNIT_BYTES - within, end - at)
            cipher = Cipher(self._aes, modes.XTS(unit.to_bytes(16, "little")))
            context = cipher.encryptor() if encrypting else cipher.decryptor()
            piece = view[at : at + step]
            if within:
                padded = bytearray(_ZEROES[:within]) + piece
                context.update_into(padded, padded)
                piece[:] = memoryview(padded)[within:]
            else:
                context.update_into(piece, piece)
            at += step


class EncryptedFile(EncryptedBytes):
    """``engine.files.BlockFile`` over another one. ``key``: 64 bytes."""

    def __init__(self, inner: BlockFile, key: bytes) -> None:
        super().__init__(inner, key)
        self.path = inner.path
        self.key = key
        self.fileno = inner.fileno
        self.size = inner.size
        self.sync_data = inner.sync_data
        self.drop_cache = inner.drop_cache
        self.punch = inner.punch
        self.allocate = inner.allocate
        self.truncate = inner.truncate
        self.close = inner.close
        self._read_inner_now = inner.read_now

    def read_now(self, view: memoryview, offset: int, /) -> bool:
        if not self._read_inner_now(view, offset):
            return False
        self._apply(view, offset, encrypting=False)
        return True

    def stored(self, data: bytes, offset: int) -> bytes:
        """What ``write`` of this would put into the file."""
        view = memoryview(bytearray(data))
        self._apply(view, offset, encrypting=True)
        return bytes(view)
