"""Fixtures that more than one test file uses."""

from __future__ import annotations

import gc
import os
from collections import defaultdict

# Two processes fill two cores, and small plans cost a fifth less on one thread. Tests that compare
# bits start processes with more threads. Set the variable to run all tests with more.
os.environ.setdefault("POLARS_MAX_THREADS", "1")

import polars as pl
import pytest
from hypothesis import HealthCheck, settings

from dpo_pipeline.cli import running as progress_line
from dpo_pipeline.evaluation import estimating, gathering, measuring, shards
from dpo_pipeline.report import page
from pair_tools import COUNTS, DATA, TOOLS, split

pytest.register_assert_rewrite(
    *(path.stem for path in TOOLS.glob("*_tools.py") if path.stem != "pair_tools")
)

# No example is judged by the time that it takes.
settings.register_profile(
    "project", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("often", settings.get_profile("project"), max_examples=1_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "project"))


def pytest_configure(config):
    """Lines stay whole where tests run, so that they find their words; pytest's own are as wide as
    the terminal. Garbage is not looked for while tests are collected: there is next to none."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", 0):
        os.environ["COLUMNS"] = "1000"
        gc.disable()


def pytest_collection_finish():
    """Have collections of garbage pass over what lives as long as the process does."""
    gc.collect()
    gc.freeze()
    gc.enable()


def sets_of(item):
    """Return which set of each of its parametrisations a test has, by the names of the first one's
    arguments."""
    names = [mark.args[0] for mark in item.iter_markers("parametrize")]
    names = [each.split(",") if isinstance(each, str) else each for each in names]
    held = {name: id(value) for name, value in item.callspec.params.items()}
    sets = {each[0].strip(): tuple(held.pop(name.strip()) for name in each) for each in names}
    return sets | held  # parameters of fixtures are left


def few_of(items, at_most):
    """Return those of a test's items that have each set of each parametrisation about once.

    With i the set of the longest parametrisation, the others have sets that go on as i does.
    """
    every = [sets_of(item) for item in items]
    sets = {name: list(dict.fromkeys(each[name] for each in every)) for name in every[0]}
    longest = max(sets, key=lambda name: len(sets[name]))
    step, wanted = 1, [{longest: each} for each in sets[longest]]
    for place, (name, values) in enumerate(sets.items()):
        if name != longest:
            step = step if len(wanted) > step * (len(values) - 1) else 1
            for i, each in enumerate(wanted):
                each[name] = values[(i // step + place) % len(values)]
            step *= len(values)
    kept = [i for i, each in enumerate(every) if each in wanted]
    seen = {pair for i in kept for pair in every[i].items()}
    for i, each in enumerate(every):  # where not each set goes with each
        if not seen.issuperset(each.items()):
            kept.append(i)
            seen.update(each.items())
    n = len(kept) if at_most is None else min(at_most, len(kept))
    return [items[kept[i * (len(kept) - 1) // max(n - 1, 1)]] for i in range(n)]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Have repeats be slow: all but a few parameter sets of tests that are marked so."""
    repeated = defaultdict(list)
    for item in items:
        if item.get_closest_marker("repeats") and not item.get_closest_marker("slow"):
            repeated[item.nodeid.split("[")[0]].append(item)
    for each in repeated.values():
        kept = few_of(each, *each[0].get_closest_marker("repeats").args or (None,))
        for item in each:
            if item not in kept:
                item.add_marker(pytest.mark.slow)


TOGETHER = {"statistics", "comparison", "report"}
"""Rooms whose tests share what is dear: statistics of other libraries, and drawn pages."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Have the tests of a file run in one process, and those of rooms that go together."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "together" if file.split("/")[1] in TOGETHER else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def quiet_when_slow(monkeypatch):
    """Commands called in this process show no progress, however slow the machine is."""
    monkeypatch.setattr(progress_line, "_QUIET_SECONDS", 1e9)


@pytest.fixture(scope="session", autouse=True)
def unchecked_charts():
    """Leave out Altair's check of each part of a chart by its schema: half of what a page costs.

    The charts of one page are checked: of the fixture `text` in `report/conftest.py`.
    """
    from altair.utils import schemapi

    with schemapi.debug_mode(arg=False):
        yield


@pytest.fixture(scope="session", autouse=True)
def short_bundle(request):
    """Have a line stand in pages for the script of all charts, which takes seconds to make.

    A run of tests marked `outside` has the whole script: a browser runs it, and pages are weighed.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not any(each.get_closest_marker("outside") for each in request.session.items):
            patch.setattr(page, "_bundle", lambda: "window.vegaEmbed = undefined;")
        yield


@pytest.fixture(scope="session")
def real_pairs():
    """698 real pairs, with TRL's figures beside them in the same folder."""
    return pl.read_parquet(DATA / "hh_harmless_policy_a_test.parquet")


@pytest.fixture(scope="session")
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


@pytest.fixture
def counted(pairs):
    """Six pairs with token counts; log-ratios 1, -1, 1, 2, 5, -2 and 0, 1, 1, -3, -5, 8."""
    return pairs.with_columns(
        pl.Series(COUNTS[0], [2, 4, 5, 10, 4, 7]), pl.Series(COUNTS[1], [4, 2, 5, 5, 8, 14])
    )


@pytest.fixture
def two(pairs):
    """The six pairs as a policy and its reference, each in a frame of its own."""
    return split(pairs)


@pytest.fixture
def files(tmp_path, two):
    """The same two in files of one folder."""
    place = tmp_path / "inputs"
    place.mkdir()
    for frame, name in zip(two, ("policy.parquet", "reference.parquet"), strict=True):
        frame.write_parquet(place / name)
    return place / "policy.parquet", place / "reference.parquet"


@pytest.fixture
def few_groups(request, monkeypatch):
    """Leave out each of ten groups, not of 64: most of what statistics cost is this jackknife.

    For tests that ask what is done with an interval. Slow tests keep all groups.
    """
    if request.node.get_closest_marker("slow") is None:
        for module in (gathering, estimating):
            monkeypatch.setattr(module, "GROUPS", 10)


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
        """Scans of Parquet in all plans, but for those that read the ids and nothing else."""
        return self.count("multi-scan[parquet]") - self.id_scans

    @property
    def id_scans(self):
        """Scans of the column of ids alone."""
        return sum(
            "is_not_null" in graph
            and "_logps" not in graph
            and graph.count("multi-scan[parquet]") == 1
            for graph in self.graphs
        )


@pytest.fixture
def engine(monkeypatch):
    """Record every plan that is run, through any of the ways to run one.

    Neighbouring rows are not compared: that keeps the first rows, and only them, in memory.
    """
    for module in (measuring, shards):
        monkeypatch.setattr(module, "NEIGHBOURS_ROWS", 0)
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

    def together(frames, *args, **kwargs):
        # Plans that are run together share their scans: what is shared is in `explain_all` once.
        shared = pl.explain_all(frames).count("Parquet SCAN")
        assert shared == frames[0].explain().count("Parquet SCAN")
        record.note(frames[0])
        inside.append(True)
        try:
            return all_of(frames, *args, **kwargs)
        finally:
            inside.clear()

    all_of = pl.collect_all
    monkeypatch.setattr(pl, "collect_all", together)
    monkeypatch.setattr(pl.LazyFrame, "collect", recorded(collect, itself))
    monkeypatch.setattr(pl.LazyFrame, "collect_batches", recorded(chunks, itself))
    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", recorded(sink, as_sink))
    return record


@pytest.fixture(scope="session")
def real_tokens():
    """The tokens of the first 100 real pairs."""
    return pl.read_parquet(DATA / "hh_harmless_policy_a_test_tokens.parquet")


@pytest.fixture(scope="session")
def real_sums(real_tokens):
    """What TRL summed of them, in float32."""
    rows = pl.read_parquet(DATA / "hh_harmless_policy_a_test.parquet").head(real_tokens.height)
    assert rows["pair_id"].equals(real_tokens["pair_id"])
    return rows
