"""Fixtures that more than one test file uses."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
import pytest

from dpo_pipeline.cli import running as progress_line

DATA = Path(__file__).parent / "data"
LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


def reference_row(c, r, ref_c, ref_r, beta):
    """The plain Python of the specification: rewards and loss of one pair."""
    chosen, rejected = beta * (c - ref_c), beta * (r - ref_r)
    margin = chosen - rejected
    return chosen, rejected, max(-margin, 0.0) + math.log1p(math.exp(-abs(margin)))


@pytest.fixture(autouse=True)
def quiet_when_slow(monkeypatch):
    """Commands called in this process show no progress, however slow the machine is."""
    monkeypatch.setattr(progress_line, "_QUIET_SECONDS", 1e9)


@pytest.fixture(scope="session")
def real_pairs():
    """698 real pairs, with TRL's figures beside them in the same folder."""
    return pl.read_parquet(DATA / "hh_harmless_policy_a_test.parquet")


@pytest.fixture
def pairs():
    """Six pairs to be checked by hand; beta 0.1 gives margins 0.1, -0.2, 0, 0.5, 1, -1."""
    return pl.DataFrame(
        {
            "pair_id": ["a", "b", "c", "d", "e", "f"],
            "subset": ["x", "y", "x", None, "y", "x"],
            "policy_chosen_logps": [-20.0, -31.0, -40.0, -50.0, -60.0, -70.0],
            "policy_rejected_logps": [-22.0, -33.0, -44.0, -55.0, -66.0, -77.0],
            "ref_chosen_logps": [-21.0, -30.0, -41.0, -52.0, -65.0, -68.0],
            "ref_rejected_logps": [-22.0, -34.0, -45.0, -52.0, -61.0, -85.0],
        }
    )


class Engine:
    """The plans that Polars was asked to run, as physical graphs."""

    def __init__(self):
        self.graphs = []

    def note(self, frame):
        self.graphs.append(
            frame.show_graph(engine="streaming", plan_stage="physical", raw_output=True, show=False)
        )

    def count(self, what):
        return sum(graph.count(what) for graph in self.graphs)

    @property
    def data_scans(self):
        """Scans of Parquet in all plans."""
        return self.count("multi-scan[parquet]")


@pytest.fixture
def engine(monkeypatch):
    """Record every plan that is run, through any of the ways to run one."""
    record = Engine()
    collect, sink, chunks = (
        pl.LazyFrame.collect,
        pl.LazyFrame.sink_parquet,
        pl.LazyFrame.collect_batches,
    )
    inside = []

    def recorded(run, as_plan):
        def call(self, *args, **kwargs):
            if inside:
                return run(self, *args, **kwargs)
            inside.append(True)
            try:
                record.note(as_plan(self, *args, **kwargs))
                return run(self, *args, **kwargs)
            finally:
                inside.clear()

        return call

    def itself(frame, *_, **__):
        return frame

    def as_sink(frame, target, **kwargs):
        return sink(frame, target, **{**kwargs, "lazy": True})

    monkeypatch.setattr(pl.LazyFrame, "collect", recorded(collect, itself))
    monkeypatch.setattr(pl.LazyFrame, "collect_batches", recorded(chunks, itself))
    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", recorded(sink, as_sink))
    return record
