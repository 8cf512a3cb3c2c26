"""Hashes of prompts against plain Python."""

from __future__ import annotations

import polars as pl
import pytest

from dpo_pipeline import evaluate
from dpo_pipeline.errors import UsageError
from dpo_pipeline.statistics.hashing import hashed, mixed
from gather_tools import WORD, hash_of, splitmix


def test_splitmix64_gives_its_published_outputs():
    # The first outputs from seed 1234567 in the reference implementation.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    state, ours, plain = 1234567, [], []
    for _ in expected:
        ours.append(pl.select(mixed(pl.lit(state, dtype=pl.UInt64))).item())
        plain.append(splitmix(state))
        state = (state + 0x9E3779B97F4A7C15) % WORD
    assert ours == plain == expected


TEXTS = ["", "a", "1234567", "12345678", "123456789", "a\0", "ünïcode \U0001f600", "x" * 100, None]


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum(TEXTS[:-1])])
def test_texts_are_hashed_as_said(dtype):
    ours = hashed(pl.Series("key", TEXTS, dtype=pl.String).cast(dtype)).to_list()
    assert ours == [None if text is None else hash_of(text) for text in TEXTS]
    assert len(set(ours)) == len(TEXTS)


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt8, pl.Int16, pl.Int64, pl.UInt64, pl.Int128])
def test_whole_numbers_are_hashed_as_said_whatever_their_width(dtype):
    numbers = [0, 1, 100, None, *([] if dtype in {pl.UInt8, pl.UInt64} else [-1, -100])]
    ours = hashed(pl.Series("key", numbers, dtype=dtype)).to_list()
    assert ours == [None if number is None else splitmix(number % WORD) for number in numbers]


def test_numbers_beyond_int64_and_truth_values_are_hashed():
    large = [2**63, WORD - 1]
    assert hashed(pl.Series("k", large, dtype=pl.UInt64)).to_list() == list(map(splitmix, large))
    assert hashed(pl.Series("k", [True, False])).to_list() == [splitmix(1), splitmix(0)]


def test_bytes_and_dates_are_hashed_by_their_text():
    assert hashed(pl.Series("k", [b"\xff\x00"])).to_list() == [hash_of("ff00")]
    dates = pl.Series("k", ["2024-02-29"]).str.to_date()
    assert hashed(dates).to_list() == [hash_of("2024-02-29")]


def test_lists_name_no_prompt(pairs):
    with pytest.raises(UsageError, match="names no prompt"):
        evaluate(pairs.with_columns(prompt_id=pl.concat_list("pair_id")), statistics=True)
