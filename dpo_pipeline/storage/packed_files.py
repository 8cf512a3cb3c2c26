"""Files that are compressed, by their first bytes and not by their names."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, cast

from dpo_pipeline.storage.read_errors import reading

_COMPRESSED: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""The first bytes of compressed files, and what pyarrow calls their compression."""


def is_packed(path: str) -> bool:
    """Return whether a file is compressed."""
    with open(path, "rb") as file:
        return file.read(4).startswith(tuple(_COMPRESSED))


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
