"""Files by their bytes and not by their names: those that are compressed, and copies."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from filecmp import cmp
from typing import Any, BinaryIO, Final, cast

from dpo_pipeline.storage.read_errors import reading

_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""The first bytes of compressed files, and what pyarrow calls their compression."""
_END: Final = 4096
"""Bytes at both ends of files of one size that are compared before all are."""


def is_packed(path: str) -> bool:
    """Return whether a file is compressed."""
    with open(path, "rb") as file:
        return file.read(4).startswith(tuple(_COMPRESSED))


def copies_among(paths: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each file whose bytes an earlier one has.

    Files of one size are compared, first by their ends: of other content, little is read.
    """
    by_size: dict[int, list[str]] = {}
    for path in paths:
        by_size.setdefault(os.path.getsize(path), []).append(path)
    for size, alike in by_size.items():
        firsts: dict[tuple[bytes, bytes], list[str]] = {}
        for path in alike if size and len(alike) > 1 else ():
            same = firsts.setdefault(_ends(path), [])
            first = next((each for each in same if cmp(each, path, shallow=False)), None)
            if first is None:
                same.append(path)
            else:
                yield f"{path} has the bytes of {first}: its rows count again"


def _ends(path: str) -> tuple[bytes, bytes]:
    with reading(path), open(path, "rb") as file:
        head = file.read(_END)
        file.seek(max(os.path.getsize(path) - _END, 0))
        return head, file.read(_END)


@contextmanager
def unpacked(path: str) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, those of gzip and zstd unpacked, whatever its name."""
    with reading(path), open(path, "rb") as file:
        head = file.read(4)
        packing = next((c for magic, c in _COMPRESSED.items() if head.startswith(magic)), None)
        file.seek(0)
        if packing is None:
            yield file
        else:
            import pyarrow as pa

            with pa.CompressedInputStream(file, packing) as stream:
                yield cast(BinaryIO, io.BufferedReader(cast(Any, stream)))
