"""Every name that outputs print is explained, from what declares it."""

from __future__ import annotations

import ast
import doctest
import json
import re
from functools import cache

import pytest

import dpo_pipeline
from command_tools import run
from dpo_pipeline.columns import BATCH_MEANS, INVALID, ROLES, SCORED
from dpo_pipeline.losses import DIALECTS, LOSSES
from dpo_pipeline.published import glossary
from dpo_pipeline.published.explanations import DOUBTS, FINDINGS, RULES
from dpo_pipeline.sources import FORMATS
from pair_tools import ROOT

PACKAGE = ROOT / "dpo_pipeline"
NAMES = {each.name for each in glossary.entries()}


MADE = re.compile(r"\b(Doubt|_doubt|Finding|ValueRule|Rule|of_role)\(")


def made(*calls, keyword=None):
    """Return the names that the code gives to what it makes with these calls."""
    names = set()
    for node in every_call():
        if node.func.id in calls:
            given = [k.value for k in node.keywords if k.arg == keyword] or node.args[:1]
            names |= {each.value for each in given if isinstance(each, ast.Constant)}
    return names


@cache
def every_call():
    """Return the calls of named functions in the package."""
    texts = (text for p in PACKAGE.rglob("*.py") if MADE.search(text := p.read_text()))
    nodes = (node for text in texts for node in ast.walk(ast.parse(text)))
    return [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]


def test_every_finding_is_explained_and_no_other():
    assert made("Doubt", "_doubt") == set(DOUBTS)
    assert made("Finding") == set(FINDINGS)


def test_every_rule_is_explained():
    rules = made("ValueRule") | made("Rule", "of_role", keyword="check")
    assert len(rules) > 8
    assert rules <= set(RULES)


def test_every_column_loss_dialect_and_format_is_explained():
    columns = [each.name for each in (*ROLES.values(), *SCORED, *INVALID, *BATCH_MEANS)]
    assert {*columns, *LOSSES, *DIALECTS, *FORMATS} <= NAMES


def test_every_figure_that_an_evaluation_prints_is_explained(capsys):
    source = ROOT / "examples/pairs.parquet"
    code, out, _ = run(capsys, "evaluate", source, "--statistics", "--by", "split")
    assert code == 0
    printed = re.findall(r"^([a-z][\w:/]*(?: [\w:/]+)*)  +[-+<\d]", out, flags=re.MULTILINE)
    assert {"brier", "rewards/margins", "best beta", "prefer: longer"} <= set(printed)
    known = NAMES | {other for each in glossary.entries() for other in each.also}
    subsets = {"train", "test", "ties"}
    assert [name for name in printed if name not in known | subsets] == []


def test_every_figure_of_the_document_is_explained(capsys):
    _, out, _ = run(capsys, "evaluate", ROOT / "examples/pairs.parquet", "--json")
    document = json.loads(out)
    for name in (*document["summary"], *document["metrics"]):
        assert dpo_pipeline.explain(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rewards/margins", ["reward_margin (figure)", "mean(z)", "nats", "rewards/margins"]),
        ("reference_chosen_logprobs", ["ref_chosen_logps (input column)", "frozen reference"]),
        ("ref_chosen_logps.finite", ["finite (rule)"]),
        ("displacement", ["2410.08847", "50%"]),
        ("ipo", ["2310.12036"]),
        ("accuracy", ["reward_accuracy (figure)"]),
        ("Mean loss", ["loss (figure)"]),
        ("margin", ["reward_margin (figure)"]),
        ("length_bias", ["length (finding of statistics)"]),
        ("beta", ["beta (finding of statistics)", "--beta (option)", "Objective.beta"]),
        ("--fail-under", ["--fail-under (option)"]),
        ("loss", ["loss (figure)", "loss (column of scored pairs)", "2305.18290"]),
    ],
)
def test_a_name_is_explained(capsys, name, said):
    code, out, _ = run(capsys, "explain", name)
    assert code == 0
    for words in said:
        assert words in out
    assert out == dpo_pipeline.explain(name) + "\n"


def test_an_unknown_name_is_refused_with_the_nearest(capsys):
    code, _, err = run(capsys, "explain", "reward_acuracy")
    assert code == 2
    assert "did you mean 'reward_accuracy'?" in err


def test_a_word_of_a_name_leads_to_it(capsys):
    assert "or 'share of flipped labels'" in run(capsys, "explain", "flipped")[2]


def test_the_example_of_explain_is_true():
    test = doctest.DocTestFinder().find(glossary.explain, globs={"dpo_pipeline": dpo_pipeline})
    assert sum(len(each.examples) for each in test) == 1
    assert all(doctest.DocTestRunner().run(each).failed == 0 for each in test)
