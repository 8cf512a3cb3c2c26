"""The line that says how far a run is."""

from __future__ import annotations

import errno
import io

import pytest

from dpo_pipeline import Execution, score_parquet
from dpo_pipeline.cli.running import ProgressLine
from dpo_pipeline.engine.progress import Progress


class Stream(io.StringIO):
    def __init__(self, *, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


class Clock:
    def __init__(self):
        self.now = 1_000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr("dpo_pipeline.cli.running.time", fake)
    monkeypatch.setattr("dpo_pipeline.cli.running._QUIET_SECONDS", 2.0)
    return fake


def show_ten_seconds(line, clock):
    for rows in range(0, 1_001, 10):
        line.show(Progress(phase="writing", rows=rows, total=1_000))
        clock.now += 0.1


@pytest.mark.parametrize(("terminal", "asked"), [(False, True), (True, False), (False, False)])
def test_progress_is_for_terminals_unless_quiet(terminal, asked):
    assert not ProgressLine(Stream(terminal=terminal), enabled=asked).enabled
    assert ProgressLine(Stream(terminal=True), enabled=True).enabled


def test_a_line_is_never_as_long_as_a_terminal_is_wide(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = Stream(terminal=True)
    with ProgressLine(stream, enabled=True) as line:
        show_ten_seconds(line, clock)
    lines = stream.getvalue().split("\r")
    assert max(map(len, lines)) == 29
    assert "\n" not in stream.getvalue()


def test_progress_on_a_terminal_marks_the_estimate_and_clears_its_line(clock):
    stream = Stream(terminal=True)
    with ProgressLine(stream, enabled=True) as line:
        show_ten_seconds(line, clock)
    shown = stream.getvalue().split("\r")
    assert "writing: 500 of 1,000 pairs, 100/s, about 5 s to go (estimate)" in shown
    assert shown[-3].rstrip() == "writing: 1,000 of 1,000 pairs, 100/s, computed; writing ..."
    assert (shown[-2].strip(), shown[-1]) == ("", "")


def test_a_reader_of_progress_who_left_does_not_stop_the_run(tmp_path, real_pairs, clock):
    class Gone(Stream):
        def write(self, _text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    source = tmp_path / "pairs.parquet"
    real_pairs.write_parquet(source)
    stream = Gone(terminal=True)
    with ProgressLine(stream, enabled=True) as line:
        clock.now += 60
        score_parquet(
            source,
            tmp_path / "out.parquet",
            on_invalid="exclude",
            execution=Execution(progress=line.show),
        )
    assert (tmp_path / "out.parquet").exists()
