"""Two runs at once, and what dead runs left behind."""

from __future__ import annotations

import errno
import fcntl
import threading
from pathlib import Path

import polars as pl
import pytest

from dpo_pipeline import Outputs, StorageError, score_parquet
from dpo_pipeline.storage.publication import Publication
from option_tools import grouped
from process_tools import PATIENCE, ended, everything, tool


@pytest.mark.repeats(2)  # a file and what is in a folder
@pytest.mark.parametrize("shape", ["file", "folder", "file in the folder", "folder in the folder"])
def test_a_second_run_for_the_same_output_is_refused(tmp_path, source, shape):
    first, second = {
        "file": ((source, "out.parquet"), (source, "./out.parquet")),
        "folder": (([source], "out"), ([source], "./out")),
        "file in the folder": (([source], "out"), (source, "out/pairs.parquet")),
        "folder in the folder": (([source], "out"), ([source], "out/pairs")),
    }[shape]
    waiting, go_on = threading.Event(), threading.Event()

    def wait(_progress):
        waiting.set()
        assert go_on.wait(PATIENCE)

    outcome = []
    options = {"on_invalid": "exclude", "overwrite": True}
    thread = threading.Thread(
        target=lambda: outcome.append(
            score_parquet(first[0], tmp_path / first[1], **grouped(progress=wait, **options))
        )
    )
    thread.start()
    try:
        assert waiting.wait(PATIENCE)
        with pytest.raises(StorageError, match="another run is writing") as caught:
            score_parquet(second[0], f"{tmp_path}/{second[1]}", **grouped(**options))
        assert caught.value.path == f"{tmp_path}/{second[1]}"
    finally:
        go_on.set()
        thread.join(PATIENCE)
    assert outcome[0].summary.n_valid == 697
    target = "out.parquet" if shape == "file" else "out/pairs.parquet"
    assert pl.read_parquet(tmp_path / target).height == 697
    assert not any(Path(name).name.startswith(".") for name in everything(tmp_path))


@pytest.mark.slow  # the lock of another process is met in `test_kill`, of a thread above
def test_many_runs_at_once_and_one_output(tmp_path, source):
    order = {
        "source": str(source),
        "sink": str(tmp_path / "out.parquet"),
        "arguments": {"on_invalid": "exclude", "overwrite": True},
    }
    processes = [tool("job", order) for _ in range(2)]
    errors = [ended(process)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert 0 in codes
    for code, error in zip(codes, errors, strict=True):
        assert code == 0 or f"{order['sink']}: another run is writing it" in error
    assert pl.read_parquet(tmp_path / "out.parquet").height == 697
    assert len(everything(tmp_path)) == 2


def test_leftovers_of_dead_runs_go_and_other_files_stop_the_run(tmp_path, source):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    dead = [".pairs.parquet.dpo-pipeline.tmp", "deep/.old.parquet.dpo-pipeline.tmp"]
    for name in (*dead, ".mine.tmp"):
        (out / name).write_text("left")
    beside = tmp_path / ".out.dpo-pipeline.tmp"
    beside.mkdir()
    (beside / "half.parquet").write_text("left")
    with pytest.raises(StorageError, match="not listed by its output") as caught:
        score_parquet([source], out, on_invalid="exclude", outputs=Outputs(overwrite=True))
    assert caught.value.path == str(out / ".mine.tmp")
    (out / ".mine.tmp").unlink()
    score_parquet([source], out, on_invalid="exclude", outputs=Outputs(overwrite=True))
    assert list(everything(tmp_path)) == ["out/_SUCCESS", "out/pairs.parquet", "pairs.parquet"]


def test_only_leftovers_are_no_content(tmp_path, source):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep" / ".pairs.parquet.dpo-pipeline.tmp").write_text("left")
    score_parquet([source], out, on_invalid="exclude")
    assert list(everything(out)) == ["_SUCCESS", "pairs.parquet"]


def test_a_part_that_another_run_is_writing_stops_the_sweep(tmp_path, source):
    out = tmp_path / "out"
    out.mkdir()
    other = out / ".other.parquet.dpo-pipeline.tmp"
    with other.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match=r"other\.parquet: another run is writing it"):
            score_parquet([source], out, on_invalid="exclude")
    assert list(everything(out)) == [other.name]


@pytest.mark.repeats(1)  # locks are taken before the shape matters
@pytest.mark.parametrize("shape", ["file", "folder"])
def test_without_locks_outputs_are_whole_all_the_same(tmp_path, source, monkeypatch, shape):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    pairs, out = (source, "out.parquet") if shape == "file" else ([source], "out")
    score_parquet(pairs, tmp_path / out, on_invalid="exclude")
    score_parquet(pairs, tmp_path / out, on_invalid="exclude", outputs=Outputs(overwrite=True))
    assert len(everything(tmp_path)) == (2 if shape == "file" else 3)
    with Publication(overwrite=True) as one, Publication(overwrite=True) as other:
        target = tmp_path / "x.parquet"
        assert one.stage(target) != other.stage(target)
