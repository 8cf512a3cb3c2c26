"""Makes the benchmark data: Parquet written chunk by chunk, so that memory stays low.

The same rows come out for the same arguments. A file with bad rows is the clean one in which
one log-prob of some rows is replaced.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SEED = 20_230_529
ROWS_PER_GROUP = 500_000
# Files of text have row groups of tens of megabytes, so far fewer rows in each.
ROWS_PER_TEXT_GROUP = 20_000
ROWS_PER_TOKEN_GROUP = 50_000
SUBSETS = [f"subset-{number:02}" for number in range(30)]
LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
FAULTS = np.array([math.nan, 0.0, -math.inf, 0.5])
NULL_FAULT = 1
WORD_BYTES = 6
N_WORDS = 5_000


def log_probs(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    """Return four columns of full-precision negative numbers, a few hundred nats in size."""
    columns = {}
    for side, shift in (("chosen", -0.01), ("rejected", 0.01)):
        reference = -rng.gamma(4.0, 50.0, rows)
        columns[f"ref_{side}_logps"] = reference
        columns[f"policy_{side}_logps"] = reference * np.exp(rng.normal(shift, 0.05, rows))
    return {name: columns[name] for name in LOGPS}


def broken(
    rng: np.random.Generator, columns: dict[str, np.ndarray], bad_share: float
) -> dict[str, pa.Array]:
    """Replace one value of a share of the rows by NaN, null, -inf or a positive number."""
    rows = len(columns[LOGPS[0]])
    is_bad = rng.random(rows) < bad_share
    at_column = rng.integers(0, len(LOGPS), rows)
    fault = rng.integers(0, len(FAULTS), rows)
    arrays = {}
    for number, (name, values) in enumerate(columns.items()):
        hit = is_bad & (at_column == number)
        replaced = np.where(hit, FAULTS[fault], values)
        arrays[name] = pa.array(replaced, mask=hit & (fault == NULL_FAULT))
    return arrays


def texts(rng: np.random.Generator, rows: int, text_bytes: int) -> pa.Array:
    """Return texts of random words, the frequent ones far more frequent than the rest."""
    letters = rng.integers(ord("a"), ord("z") + 1, (N_WORDS, WORD_BYTES), dtype=np.uint8)
    letters[:, -1] = ord(" ")
    words = text_bytes // WORD_BYTES
    chosen = (rng.random(rows * words) ** 3 * N_WORDS).astype(np.int32)
    offsets = np.arange(rows + 1, dtype=np.int32) * (words * WORD_BYTES)
    return pa.StringArray.from_buffers(
        rows, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(letters[chosen]))
    )


def token_lists(rng: np.random.Generator, rows: int, tokens: int) -> dict[str, pa.Array]:
    """Return the log-probs of every token as four columns of Float32 lists.

    Lists have `tokens` values on average, from half to one and a half as many; the two models
    see the same tokens.
    """
    lists = {}
    for side in ("chosen", "rejected"):
        lengths = rng.integers(tokens // 2, tokens + tokens // 2 + 1, rows, dtype=np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        reference = -2.0 * rng.standard_exponential(int(offsets[-1]), dtype=np.float32)
        noise = rng.random(len(reference), dtype=np.float32)
        for model, values in (("policy", reference * (0.9 + 0.2 * noise)), ("ref", reference)):
            array = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
            lists[f"{model}_{side}_token_logps"] = array
    return lists


def prompts_and_counts(
    rng: np.random.Generator, first: int, rows: int, prompts: int
) -> dict[str, pa.Array]:
    """Return prompt ids, each of so many pairs, and token counts."""
    counts = {
        f"{side}_num_tokens": pa.array(rng.integers(1, 500, rows))
        for side in ("chosen", "rejected")
    }
    return {"prompt_id": pa.array(np.arange(first, first + rows) // prompts)} | counts


def rows_per_group(text_bytes: int, tokens: int) -> int:
    """Return the rows of a row group, fewer where they are long."""
    if text_bytes:
        return ROWS_PER_TEXT_GROUP
    return ROWS_PER_TOKEN_GROUP if tokens else ROWS_PER_GROUP


def chunks(
    rows: int, *, bad_share: float, text_bytes: int, tokens: int, prompts: int
) -> Iterator[pa.Table]:
    """Yield the tables of the row groups."""
    step = rows_per_group(text_bytes, tokens)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        rng = np.random.default_rng([SEED, first])
        columns: dict[str, pa.Array] = {
            "pair_id": pa.array(np.arange(first, first + count)),
            "subset": pa.DictionaryArray.from_arrays(
                rng.integers(0, len(SUBSETS), count, dtype=np.int8), SUBSETS
            ).cast(pa.string()),
        }
        if tokens:
            columns |= token_lists(rng, count, tokens)
        else:
            columns |= broken(rng, log_probs(rng, count), bad_share)
        if prompts:
            columns |= prompts_and_counts(rng, first, count, prompts)
        if text_bytes:
            columns["text"] = texts(rng, count, text_bytes)
        yield pa.table(columns)


def write(path: str, *, text_bytes: int, **columns: Any) -> None:
    """Write a file; it appears under its name when it is whole."""
    hidden = f"{path}.part"
    writer = None
    for table in chunks(text_bytes=text_bytes, **columns):
        if writer is None:
            writer = pq.ParquetWriter(
                hidden, table.schema, compression="zstd", use_dictionary=["subset"]
            )
        writer.write_table(table, row_group_size=table.num_rows)
    if writer is not None:
        writer.close()
        os.replace(hidden, path)


def main() -> None:
    """Write one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--bad-share", type=float, default=0.0)
    parser.add_argument("--text-bytes", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=0)
    given = parser.parse_args()
    write(
        given.path,
        rows=given.rows,
        bad_share=given.bad_share,
        text_bytes=given.text_bytes,
        tokens=given.tokens,
        prompts=given.prompts,
    )


if __name__ == "__main__":
    main()
