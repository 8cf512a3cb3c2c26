"""The codec of scored pairs: the values are the same, the pages are written as asked."""

from __future__ import annotations

import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from dpo_pipeline import Scored, UsageError, score_parquet

CODECS = {"zstd": "ZSTD", "snappy": "SNAPPY", "none": "UNCOMPRESSED"}


def codecs(path):
    """The codecs of a file's columns, as pyarrow reads them."""
    group = pq.read_metadata(path).row_group(0)
    return {group.column(i).compression for i in range(group.num_columns)}


@pytest.mark.repeats(2)  # codecs have one name for the writer
@pytest.mark.parametrize("loss", ["sigmoid", "kto_pair"])  # the second is one of batches
@pytest.mark.parametrize("name", CODECS)
def test_scored_pairs_are_written_in_the_codec_asked_for(tmp_path, real_pairs, name, loss):
    batches = {"batches": 8} if loss == "kto_pair" else {}
    out, plain = tmp_path / "out.parquet", tmp_path / "plain.parquet"
    score_parquet(real_pairs, out, loss=loss, scored=Scored(compression=name), **batches)
    score_parquet(real_pairs, plain, loss=loss, **batches)
    assert codecs(out) == {CODECS[name]}
    assert codecs(plain) == {"ZSTD"}
    assert_frame_equal(pl.read_parquet(out), pl.read_parquet(plain))


def test_no_other_codec():
    with pytest.raises(UsageError, match="compression must be one of zstd, snappy, none"):
        Scored(compression="lz4")
