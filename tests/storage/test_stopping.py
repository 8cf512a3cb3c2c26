"""Signals and cancelling stop a run in any phase and leave nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from dpo_pipeline import Cancelled, score_parquet
from dpo_pipeline.storage import renames
from dpo_pipeline.storage.publication import Publication
from option_tools import grouped
from process_tools import arguments, ended, everything, tool


@pytest.mark.repeats(1)  # writing is where files are to be removed
@pytest.mark.parametrize("phase", ["writing", "evaluating"])
@pytest.mark.parametrize(
    ("times", "delays"),
    # One signal, and later ones, meet the same code at fewer or other moments.
    [(2, [0.0]), pytest.param(1, [0.0, 0.02], marks=pytest.mark.slow)],
)
def test_ctrl_c_in_the_main_thread_of_a_program(tmp_path, large, phase, times, delays):
    """Polars can deliver one Ctrl-C twice, the second time while files are being removed."""
    for delay in delays:
        order = {
            "source": str(large),
            "sink": str(tmp_path / "out.parquet"),
            "arguments": {"batch_size": 100, "batches": str(tmp_path / "means.parquet")},
            "shard_rows": 50_000,
        }
        process = tool("job", order)
        for line in process.stdout:
            if line.split()[1] == phase:
                break
        time.sleep(delay)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.001)
        _, err = ended(process)
        found = set(everything(tmp_path))
        if found == {"pairs.parquet", "means.parquet", "out.parquet"}:  # it was faster
            for name in ("means.parquet", "out.parquet"):
                (tmp_path / name).unlink()
        else:
            assert found == {"pairs.parquet"}
            assert process.returncode
            assert "KeyboardInterrupt" in err


def test_an_interrupt_while_cleaning_up_does_not_stop_it(tmp_path, monkeypatch):
    real = os.unlink
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) < 3:
            raise KeyboardInterrupt
        real(*args)

    with pytest.raises(KeyboardInterrupt), Publication(overwrite=False) as publication:  # noqa: PT012
        for name in ("a", "b"):
            Path(publication.stage(tmp_path / name)).write_text("half")
        monkeypatch.setattr(os, "unlink", interrupted)
        raise ValueError
    assert everything(tmp_path) == {}


def test_an_interrupt_between_renamings_does_not_stop_them(tmp_path, monkeypatch):
    real = renames.renameat2
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) % 2 == 0:
            raise KeyboardInterrupt
        real(*args)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Publication(overwrite=False) as publication:  # noqa: PT012
        for name in ("a", "b", "c"):
            Path(publication.stage(tmp_path / name)).write_text("whole")
        monkeypatch.setattr(renames, "renameat2", interrupted)
        publication.commit()
    assert everything(tmp_path) == dict.fromkeys("abc", b"whole")


@pytest.mark.parametrize("phase", ["evaluating", "writing", "fsync"])
def test_cancel_stops_in_every_phase_and_leaves_nothing(tmp_path, source, monkeypatch, phase):
    cancel = threading.Event()
    real = os.fsync

    def cancelled(*args):
        cancel.set()
        real(*args)

    if phase == "fsync":
        monkeypatch.setattr(os, "fsync", cancelled)
    with pytest.raises(Cancelled, match="nothing was published"):
        score_parquet(
            source,
            tmp_path / "out.parquet",
            **grouped(
                cancel=cancel,
                progress=lambda at: cancel.set() if at.phase == phase else None,
                **arguments(tmp_path),
            ),
        )
    assert list(everything(tmp_path)) == ["pairs.parquet"]


@pytest.mark.parametrize(
    "number",
    # One handler serves both; `cli/test_program.py` sends both to a run that stops.
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_a_second_signal_ends_a_run_that_does_not_stop(tmp_path, source, number):
    order = {
        "source": str(source),
        "sink": str(tmp_path / "out.parquet"),
        "arguments": {"on_invalid": "exclude"},
        "wait_at": ["evaluating", 1],
    }
    process = tool("stoppable", order)
    assert any(line.startswith("waiting") for line in process.stdout)
    assert len(everything(tmp_path)) == 2
    process.send_signal(number)
    assert any(line == "told to stop\n" for line in process.stdout)
    assert process.poll() is None
    process.send_signal(number)
    _, err = ended(process)  # it would wait for longer than this does
    assert process.returncode == 128 + number, err
    assert list(everything(tmp_path)) == ["pairs.parquet"]
