"""A hash that never changes, for keys of any plain type; Polars' own may change any time.

SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014): its finaliser for an integer; for a string its length, then word after word of eight bytes.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from dpo_pipeline.errors import UsageError

GAMMA: Final = 0x9E3779B97F4A7C15
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB
_WORD: Final = 8


def mixed(numbers: pl.Expr) -> pl.Expr:
    """Return the next SplitMix64 output from each UInt64 state; null gives null."""
    # Polars multiplies and adds UInt64 modulo 2**64, and has no shift: // does it.
    z = numbers + uint64(GAMMA)
    z = (z ^ (z // uint64(1 << 30))) * uint64(_FIRST)
    z = (z ^ (z // uint64(1 << 27))) * uint64(_SECOND)
    return z ^ (z // uint64(1 << 31))


def cluster_hashes(prompts: pl.Series | None, pairs: pl.Series) -> pl.Series:
    """Return a UInt64 for the cluster of each pair: its prompt, or the pair where that is null.

    `pairs` holds a UInt64 for each pair, all different.
    """
    if prompts is None:
        return pairs
    # Hashed once more, because prompts may be the same numbers as pairs.
    return hashed(prompts).fill_null(pairs.to_frame("pair").select(mixed(pl.col("pair")))["pair"])


def with_hashes(rows: pl.LazyFrame, name: str, dtype: pl.DataType, *, into: str) -> pl.LazyFrame:
    """Add `hashed` of a column of plain values to a plan."""
    if not dtype.is_integer():
        texts = pl.col(name).map_batches(hashed, return_dtype=pl.UInt64, is_elementwise=True)
        return rows.with_columns(texts.alias(into))
    z = pl.col(into)
    rows = rows.with_columns((_wrapped(name, dtype) + uint64(GAMMA)).alias(into))
    # Step by step: one nested expression would compute its parts again and again.
    for bits, factor in ((30, _FIRST), (27, _SECOND)):
        rows = rows.with_columns((z ^ (z // uint64(1 << bits))) * uint64(factor))
    return rows.with_columns(z ^ (z // uint64(1 << 31)))


def _wrapped(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return whole numbers as UInt64, by way of Int64 whatever the width, not of slow Int128."""
    whole = pl.UInt64 if dtype.is_unsigned_integer() else pl.Int64
    wrapped = pl.col(name).cast(whole, wrap_numerical=True)
    return wrapped.cast(pl.UInt64, wrap_numerical=True)


def hashed(keys: pl.Series) -> pl.Series:
    """Return a UInt64 for each key; null gives null.

    Equal integers have equal hashes whatever their width, and so have equal strings, categories
    and the text of any other type (of bytes, in hexadecimal).
    """
    dtype = keys.dtype
    if dtype.is_nested():
        raise UsageError(f"{keys.name!r} is a {dtype}, not a plain value, and names no prompt")
    if dtype.is_integer() or dtype == pl.Boolean:
        return keys.to_frame("key").select(mixed(_wrapped("key", dtype)))["key"]
    if dtype == pl.Binary:
        return _of_strings(keys.bin.encode("hex"))
    return _of_strings(keys.cast(pl.String))


def _of_strings(keys: pl.Series) -> pl.Series:
    # A word is read from eight bytes, so zeros follow the last one; the length tells them apart.
    rows = keys.to_frame("key").select(
        text=(pl.col("key") + "\0" * _WORD).cast(pl.Binary),
        size=pl.col("key").str.len_bytes().cast(pl.UInt64),
    )
    rows = rows.with_columns(hash=mixed(pl.col("size")))
    # Step by step: one nested expression would compute its parts again and again.
    for start in range(0, rows.select(pl.col("size").max().fill_null(0)).item(), _WORD):
        word = pl.col("text").bin.slice(start, _WORD)
        rows = rows.with_columns(
            z=pl.col("hash") ^ word.bin.reinterpret(dtype=pl.UInt64, endianness="little")
        ).with_columns(
            hash=pl.when(pl.col("size") > start).then(mixed(pl.col("z"))).otherwise("hash")
        )
    return rows["hash"]


def uint64(number: int) -> pl.Expr:
    """Return a number as a UInt64 literal."""
    return pl.lit(number, dtype=pl.UInt64)
