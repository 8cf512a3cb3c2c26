"""What a report of invalid pairs says, against pandera's own report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pandera.polars as pa
import polars as pl
import pytest

import dpo_pipeline
from dpo_pipeline.contract.binding import bind
from dpo_pipeline.contract.model import row_model
from dpo_pipeline.defaults import WIDE_LIMIT
from dpo_pipeline.losses.objective import CheckedObjective
from dpo_pipeline.losses.scored_columns import with_scores
from pandera_tools import (
    LIMIT,
    OUR_COLUMNS,
    clean,
    failed_rows,
    faults_of,
    name_of,
    pandera_errors,
    pandera_rows,
)


def test_a_loss_out_of_range_is_a_fault_only_of_sound_pairs():
    # beta 1e12 makes the margins 5e11, -4e18, null and 2.1e13 nats; the range ends at 1.1e15.
    frame = clean(
        4, policy_chosen_logps=[-20.0, -LIMIT, None, 0.5], policy_rejected_logps=[-20.5] * 4
    )
    binding = bind(frame.lazy(), source="pairs", max_logp=0.0)
    objective = CheckedObjective.of(beta=1e12)
    rules = binding.rules.with_scores_in_range(objective.columns_to_check(0.0))
    marked = (
        with_scores(binding.prepare(frame.lazy()), objective)
        .select(rules.valid.alias("valid"), loss=rules.rules[-1].keeps)
        .collect()
    )
    assert rules.rules[-1].name == "loss.in_range"
    assert marked["loss"].to_list() == [True, False, True, True]
    unsound = frozenset().union(*pandera_rows(row_model(), frame=frame).values())
    assert frozenset(marked["valid"].not_().arg_true()) == unsound | {1}


@pytest.mark.parametrize(
    ("beta", "max_logp", "can_break"),
    [
        (2.0**27 - 1.0, 0.0, False),
        (2.0**27, 0.0, True),
        (2.0**26, LIMIT, True),
        (2.0**26 - 1.0, LIMIT, False),
    ],
)
def test_scores_have_rules_where_they_can_break(beta, max_logp, can_break):
    # The largest margin: one log-ratio from the lower bound up to max_logp, the other back.
    widest = clean(1, policy_chosen_logps=[max_logp], ref_chosen_logps=[-LIMIT])
    widest = widest.with_columns(policy_rejected_logps=pl.lit(-LIMIT), ref_rejected_logps=max_logp)
    binding = bind(widest.lazy(), source="pairs", max_logp=max_logp)
    objective = CheckedObjective.of(beta=beta)
    margin = with_scores(binding.prepare(widest.lazy()), objective).collect()["reward_margin"]
    assert bool(objective.columns_to_check(max_logp)) is can_break
    assert can_break or abs(margin.item()) <= WIDE_LIMIT


def many_faults():
    """120 pairs: each rule of each column broken by more rows than a report shows."""
    rows = 120
    spoilt = {}
    for i, name in enumerate(OUR_COLUMNS):
        faults = list(faults_of(name).values())
        sound = clean(rows)[name].to_list()
        spoilt[name] = [
            faults[(row // 7) % len(faults)] if (row + i) % 7 == 0 else value
            for row, value in enumerate(sound)
        ]
    return clean(rows, **spoilt, weight=[0.5, -1.0, None, 1.0] * (rows // 4))


class Weighted(dpo_pipeline.PreferencePairs):
    """One column more."""

    weight: pl.Float64 = pa.Field(gt=0, nullable=True)


def as_report(errors):
    """What pandera found, in the words of a report."""
    return {
        f"{error.column_name}.{name_of(error)[1]}": (
            error.check.error,
            len(failed_rows(error)),
            sorted(failed_rows(error))[:5],
            [repr(value) for value in error.failure_cases.to_series().head(5)],
        )
        for error in errors
    }


def in_words(report):
    return {
        rule.name: (
            rule.requirement,
            rule.count,
            [offender.row for offender in rule.offenders],
            [repr(offender.value) for offender in rule.offenders],
        )
        for rule in report.broken
    }


def test_a_report_has_the_counts_rows_and_values_of_pandera():
    frame = many_faults()
    errors = pandera_errors(Weighted, frame)
    report = dpo_pipeline.check(frame, contract=Weighted)
    assert in_words(report) == as_report(errors)
    assert len(report.broken) == 4 * 5 + 2 + 1
    assert max(rule.count for rule in report.broken) > 5
    assert report.n_pairs == frame.height
    assert report.n_invalid == len(frozenset().union(*map(failed_rows, errors)))
    assert all(offender.file is None for rule in report.broken for offender in rule.offenders)


def test_a_report_from_parquet_is_that_of_the_frame(tmp_path):
    many_faults().write_parquet(tmp_path / "pairs.parquet", row_group_size=17)
    report = dpo_pipeline.check(tmp_path / "pairs.parquet", contract=Weighted)
    assert in_words(report) == as_report(pandera_errors(Weighted, many_faults()))
    files = {offender.file for rule in report.broken for offender in rule.offenders}
    assert files == {"pairs.parquet"}


def test_worker_threads_validate_as_the_main_thread_does():
    # A new thread does not inherit pandera's validation depth.
    frame, wrong = many_faults(), many_faults().with_columns(weight=pl.lit("heavy"))
    expected = as_report(pandera_errors(Weighted, frame))

    def judge(_):
        with pytest.raises(dpo_pipeline.ColumnError, match="weight: must be Float64, found String"):
            dpo_pipeline.check(wrong, contract=Weighted)
        return in_words(dpo_pipeline.check(frame, contract=Weighted))

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(judge, range(2))) == [expected] * 2


SCRIPT = """
import json, sys
import polars as pl
import pandera.polars as pa
import dpo_pipeline

class Weighted(dpo_pipeline.PreferencePairs):
    weight: pl.Float64 = pa.Field(gt=0, nullable=True)

frame = pl.read_parquet(sys.argv[1])
wrong = frame.with_columns(weight=pl.lit("heavy"))
try:
    Weighted.validate(wrong, lazy=True)
    pandera_refuses = False
except pa.errors.SchemaErrors:
    pandera_refuses = True
try:
    dpo_pipeline.check(wrong, contract=Weighted)
    problems = []
except dpo_pipeline.ColumnError as error:
    problems = error.problems
report = dpo_pipeline.check(frame, contract=Weighted)
found = {r.name: [r.count, [o.row for o in r.offenders]] for r in report.broken}
print(json.dumps({"pandera_refuses": pandera_refuses, "problems": problems, "found": found}))
"""


# checks are read as expressions, as all tests here see: pandera validates nothing
@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "pandera_refuses"),
    [
        pytest.param("PANDERA_VALIDATION_ENABLED", "False", False, id="pandera-off"),
        # Depths, which are read at the same place.
        pytest.param(
            "PANDERA_VALIDATION_DEPTH", "DATA_ONLY", True, id="data-only", marks=pytest.mark.slow
        ),
        pytest.param(
            "PANDERA_VALIDATION_DEPTH",
            "SCHEMA_ONLY",
            True,
            id="schema-only",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_settings_of_pandera_in_the_environment_do_not_matter(
    tmp_path, variable, value, pandera_refuses
):
    path = tmp_path / "pairs.parquet"
    many_faults().write_parquet(path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, os.fspath(path)],
        env=os.environ | {variable: value},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    expected = as_report(pandera_errors(Weighted, many_faults()))
    assert found["pandera_refuses"] is pandera_refuses
    assert found["problems"] == ["weight: must be Float64, found String; cast it before"]
    assert found["found"] == {n: [count, rows] for n, (_, count, rows, _) in expected.items()}
