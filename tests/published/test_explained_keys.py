"""Every name that a document, a contract or a command prints is explained."""

from __future__ import annotations

import json
import warnings
from functools import cache

import polars as pl
import pytest

import dpo_pipeline as library
from dpo_pipeline import Batches, Objective, Selection, StatisticsOptions, Subsets, UsageError
from dpo_pipeline.columns import ROLES
from dpo_pipeline.defaults import TRAINERS
from dpo_pipeline.errors import MEANINGS
from dpo_pipeline.evaluation import GATED, Gated
from dpo_pipeline.losses import EVERY_LOSS
from dpo_pipeline.options import Gates
from dpo_pipeline.published import explain, glossary
from dpo_pipeline.published.explanations import DOUBTS, FINDINGS, RULES
from dpo_pipeline.selection import RULES as SELECTION_RULES
from dpo_pipeline.tables import Table
from dpo_pipeline.unpaired import GATED_OF_COMPLETIONS
from pair_tools import EXAMPLES

PLAIN = {
    "of files and rows": {"path", "file", "row", "rows", "bytes", "inputs", "is_reference"},
    "said by what stands around them": {"count", "name", "other", "text", "title"},
    "said by their value": {"dry_run", "formula", "trainer"},
}
"""Keys that are words anybody reads, with the reason why nothing says more of them."""
OF_DATA = {"split", "turns", "subset"}
"""Columns of the example data by which subsets are made."""


def results(folder):
    pairs = pl.read_parquet(EXAMPLES / "pairs.parquet")
    judged = pairs.with_columns(judge=pl.int_range(pl.len()) % 9 - 4.5)
    rest = [
        pairs.with_columns(policy_chosen_logps=pl.col("policy_chosen_logps") - by)
        for by in (1.0, 2.0 * (pl.int_range(pl.len()) % 3))
    ]
    completions = pl.read_csv(EXAMPLES / "completions.csv").with_columns(
        label=pl.col("score") > 3,
        kl_policy_logps=-20.0 - pl.int_range(pl.len()),
        kl_ref_logps=-20.0,
    )
    statistics = StatisticsOptions(judge="judge", weights={"train": 1.0, "test": 2.0})
    yield library.check(EXAMPLES / "broken.parquet", on_invalid="exclude")
    yield library.evaluate(
        judged, by=Subsets("split", histogram=True), batches=64, statistics=statistics
    )
    yield library.evaluate(pairs, batches=Batches(50, as_trainer=TRAINERS[0]))
    yield Gated.of(library.evaluate(pairs), Gates(under={"reward_accuracy": 0.5}))
    yield library.sweep(pairs, [0.1, 0.5], by="split", batches=100)
    yield library.compare(pairs, EXAMPLES / "policy_b.parquet", by="turns")
    tables = [pairs, *rest, rest[0].with_columns(pl.col("policy_chosen_logps") - 3.0)]
    yield library.compare(
        pl.concat((t.with_columns(step=i) for i, t in enumerate(tables)), how="vertical_relaxed")
    )
    yield library.select(
        EXAMPLES / "pairs.parquet",
        rule="nearest_tie",
        keep=0.5,
        by="split",
        selection=Selection(compared="easiest", contradictions=folder / "contradictions.parquet"),
    )
    yield library.rank(EXAMPLES / "completions.csv", by="subset")
    yield library.evaluate(completions, loss="kto", by="subset", batches=6)
    keyed = completions.with_columns(completion_id=pl.int_range(pl.len()))
    yield library.compare(keyed, keyed, loss=Objective("kto", arguments={"kl": 0.0}))
    yield library.dry_run(library.evaluate, EXAMPLES / "pairs.parquet", batches=50)


def keys_of(document, *, of_data=False):
    """Yield the keys of a document, but for those that are values of the data."""
    for key, value in document.items() if isinstance(document, dict) else ():
        if not of_data:
            yield key
        yield from keys_of(value, of_data=key in {"columns", "options", "best_of"})
    for each in document if isinstance(document, list) else ():
        yield from keys_of(each)


@pytest.fixture(scope="module", autouse=True)
def entries_once():
    """Make the entries once: hundreds of names are looked for among them."""
    made = tuple(glossary.entries())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glossary, "entries", lambda: iter(made))
        yield


@cache
def is_explained(name):
    try:
        return bool(explain(name))
    except UsageError:
        return False


HEADS_OF_WORDS = {
    *("figure", "mean", "role", "option", "and", "must be", "first at", "rows", "subset"),
    *("pairs", "pairs of", "pairs of both", "completions", "completions of", "prompts"),
    *("found", "result"),
}
"""Heads of columns that are words anybody reads."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", library.DataWarning)  # made-up policies
        return list(results(tmp_path_factory.mktemp("results")))


def test_every_head_of_a_printed_table_is_explained(made):
    heads = {
        column.title
        for result in made
        for part in result.to_parts()
        if isinstance(part, Table)
        for column in part.columns
        if column.title
    } | {"in no other", "common, invalid", "minus full_a"}
    assert {"95% interval", "95% band", "loss at best beta", "B minus A", "kept by"} <= heads
    assert {head for head in heads if not is_explained(head)} == HEADS_OF_WORDS | OF_DATA


def test_every_key_of_every_result_is_explained(made):
    documents = [json.loads(result.to_json()) for result in made]
    keys = {key for document in documents for key in keys_of(document)}
    assert {"winner_accuracy", "auc", "kl", "cycles", "kendall_tau", "heterogeneity"} <= keys
    plain = {name for names in PLAIN.values() for name in names} | OF_DATA
    unexplained = {name for name in keys if not is_explained(name)}
    assert unexplained - plain == set()
    assert plain & {name for name in plain if is_explained(name)} == set(), "needs no exception"


def test_every_rule_finding_loss_gate_column_and_code_is_explained():
    names = [*RULES, *DOUBTS, *FINDINGS, *EVERY_LOSS, *SELECTION_RULES, *ROLES]
    names += [*GATED, *GATED_OF_COMPLETIONS, *(f"exit code {code}" for code in MEANINGS)]
    assert [name for name in names if not is_explained(name)] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tied accuracy", "a tie counts half"),
        ("best-of-n", "drawn without replacement"),
        ("tau_b", "Kendall's tau-b"),
        ("credit", "k at the top give 1/k"),
        ("cycle", "a before b before c"),
        ("doubts", "exit code 4"),
        ("offsets", "offset"),
        ("exit code 4", "missed the mark"),
        ("label_smoothing", "--loss-arg label_smoothing=..."),
        ("reward_margin_low", "The lower limit of the interval of this:\n\nreward_margin (figure)"),
        ("best_of_4_high", "The upper limit of the interval of this:"),
        ("brier", "range: from 0 to 1"),
        ("displaced", "chosen_down (figure)"),
        ("99.5% interval", "interval (number of a result)"),
        ("minus full_a", "that of the policy NAME"),
        ("B: policy_b", "The figure of policy B."),
    ],
)
def test_what_people_ask_for_is_explained(name, said):
    assert said in " ".join(explain(name).split("  ")).replace("\n ", " ") or said in explain(name)
