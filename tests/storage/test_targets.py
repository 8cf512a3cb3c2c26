"""Where a part is written: attempts at one part may overlap, die and come second."""

from __future__ import annotations

import pickle
from pathlib import Path

import polars as pl
import pytest

from dpo_pipeline import StorageError
from dpo_pipeline.storage.locks import hidden_name
from dpo_pipeline.storage.targets import StagedFile, without_attempts

FRAME = pl.DataFrame({"a": range(10)})


def write(out):
    FRAME.write_parquet(out.target)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def target(tmp_path):
    return StagedFile(hidden=hidden_name(str(tmp_path / "part.parquet")), apart=True)


def test_two_attempts_at_a_time_do_no_harm(target, tmp_path):
    def slow(out):
        out.target.write(b"half of it")
        assert not Path(target.hidden).exists()
        assert target.write(write, "source") == 10  # begins later and ends before
        out.target.seek(0)
        out.target.write(b"another half")
        assert pl.read_parquet(target.hidden).equals(FRAME)
        out.target.seek(0)
        out.target.truncate()
        write(out)

    assert target.write(slow, "source") == 10
    assert pl.read_parquet(target.hidden).equals(FRAME)
    assert names(tmp_path) == [".part.parquet.dpo-pipeline.tmp"]


def test_a_name_that_is_locked_is_written_to_itself(tmp_path):
    target = StagedFile(hidden=hidden_name(str(tmp_path / "part.parquet")))

    def look(out):
        assert names(tmp_path) == [".part.parquet.dpo-pipeline.tmp"]
        write(out)

    assert target.write(look, "source") == 10


def test_an_attempt_that_fails_leaves_nothing(target, tmp_path):
    def fail(out):
        out.target.write(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"part\.parquet: No space left on device"):
        target.write(fail, "source")
    with pytest.raises(StorageError, match="cannot be read as Parquet"):
        target.write(lambda out: out.target.write(b"no Parquet at all"), "source")
    assert names(tmp_path) == []


def test_what_dead_attempts_left_is_removed_and_nothing_else(target, tmp_path):
    target.write(write, "source")
    left = hidden_name(str(tmp_path / "part.parquet"), locked=False)
    other = hidden_name(str(tmp_path / "other.parquet"), locked=False)
    for path in (left, other, str(tmp_path / "mine.parquet")):
        FRAME.write_parquet(path)
    with pytest.raises(ZeroDivisionError), without_attempts([target]):
        raise ZeroDivisionError
    assert len(names(tmp_path)) == 3
    assert left.rpartition("/")[2] not in names(tmp_path)


def test_a_part_that_this_machine_does_not_see_is_an_error(target):
    with pytest.raises(StorageError, match="does not share this file system"):
        target.check(10)
    target.write(write, "source")
    target.check(10)
    with pytest.raises(StorageError, match="has 10 rows, and 11 were written"):
        target.check(11)


def test_a_target_pickles(target):
    assert pickle.loads(pickle.dumps(target)) == target  # noqa: S301
