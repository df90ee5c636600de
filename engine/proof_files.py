"""Proof documents as files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiofiles

from engine.errors import InvalidArgument
from engine.proof import MAX_DOCUMENT_CHARS, Proof
from engine.streams import translated

if TYPE_CHECKING:
    from pathlib import Path


async def write_proof(path: Path, document: str) -> None:
    """Write a document to a file, replacing one of that name. Raises OutOfSpace, PermissionDenied, NotFound."""
    with translated(path):
        async with aiofiles.open(path, "w", encoding="utf-8") as file:
            await file.write(document)


async def read_proof(path: Path) -> Proof:
    """Read one back. Raises NotFound; InvalidArgument: what is there is none."""
    with translated(path):
        try:
            async with aiofiles.open(path, encoding="utf-8") as file:
                text = await file.read(MAX_DOCUMENT_CHARS + 1)
        except IsADirectoryError:
            raise InvalidArgument(f"{path} is a folder") from None
        except UnicodeDecodeError:
            raise InvalidArgument(f"{path} is not a proof document: it is no text") from None
    if len(text) > MAX_DOCUMENT_CHARS:
        raise InvalidArgument(f"{path} is not a proof document: it is too long")
    return Proof.parse(text)
