"""Options: short forms, groups, and one more option for all commands from one field."""

from __future__ import annotations

import inspect
import json
from dataclasses import FrozenInstanceError, fields, make_dataclass
from functools import cache

import click
import pandera.polars as pa
import polars as pl
import pytest
from click.testing import CliRunner

import dpo_pipeline
from dpo_pipeline import (
    Batches,
    Contract,
    Execution,
    Objective,
    OnInvalid,
    Outputs,
    Pairs,
    Reference,
    StatisticsOptions,
    Subsets,
    UsageError,
    dry_run,
)
from dpo_pipeline.arguments import WHOLE, option, options_of
from dpo_pipeline.cli.program import command_line
from dpo_pipeline.options import CALLS
from dpo_pipeline.published import option_table
from pair_tools import ROOT

CALLED = {
    "rank": dpo_pipeline.rank,
    "check": dpo_pipeline.check,
    "evaluate": dpo_pipeline.evaluate,
    "sweep": dpo_pipeline.sweep,
    "score": dpo_pipeline.score_parquet,
    "select": dpo_pipeline.select,
    "logps": dpo_pipeline.logps,
    "convert": dpo_pipeline.convert,
    "compare": dpo_pipeline.compare,
}
PUBLIC = [getattr(dpo_pipeline, name) for name in dpo_pipeline.__all__ if name[0].islower()]


class OwnSchema(pa.DataFrameModel):
    """A user's own checks."""

    split: str = pa.Field(isin=["train", "test"])


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The example pairs, whole and as policy and reference."""
    pairs = pl.read_parquet(ROOT / "examples" / "pairs.parquet")
    reference = [name for name in pairs.columns if name.startswith("ref_")]
    pairs.write_parquet(tmp_path / "pairs.parquet")
    pairs.drop(reference).write_parquet(tmp_path / "policy.parquet")
    pairs.select("pair_id", *reference).write_parquet(tmp_path / "ref.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan_of(**given):
    return dry_run(dpo_pipeline.evaluate, "pairs.parquet", **given).options


@pytest.mark.parametrize(
    ("given", "parameter", "expected"),
    [
        pytest.param({"on_invalid": "exclude"}, "on_invalid", OnInvalid("exclude"), id="action"),
        pytest.param({"batches": 64}, "batches", Batches(64), id="size"),
        pytest.param(
            {"batches": "means.parquet"}, "batches", Batches(file="means.parquet"), id="file"
        ),
        pytest.param({"by": "split"}, "by", Subsets("split"), id="subsets"),
        pytest.param(
            {"loss": {"sigmoid": 1, "sft": 0.1}},
            "loss",
            Objective({"sigmoid": 1, "sft": 0.1}),
            id="weights",
        ),
        pytest.param({"statistics": True}, "statistics", StatisticsOptions(), id="statistics"),
        pytest.param({"contract": OwnSchema}, "contract", Contract(OwnSchema), id="contract"),
        pytest.param(
            {"outputs": "summary.json"}, "outputs", Outputs(summary="summary.json"), id="outputs"
        ),
        pytest.param({"execution": "local"}, "execution", Execution("local"), id="engine"),
        pytest.param({"beta": 0.2}, "loss", Objective(beta=0.2), id="beta"),
    ],
)
@pytest.mark.usefixtures("project")
def test_a_short_form_is_its_group(given, parameter, expected):
    assert plan_of(**given)[parameter] == expected
    group = {name: expected for name in given if name != "beta"} or {"loss": expected}
    assert plan_of(**group)[parameter] == expected


@pytest.mark.usefixtures("project")
def test_a_reference_by_its_path_gives_the_figures_of_the_whole():
    whole = dpo_pipeline.evaluate("pairs.parquet").summary
    for reference in ("ref.parquet", Reference("ref.parquet", on="pair_id")):
        assert dpo_pipeline.evaluate("policy.parquet", reference=reference).summary == whole
    assert dpo_pipeline.evaluate(Pairs("policy.parquet", reference="ref.parquet")).summary == whole


@pytest.mark.usefixtures("project")
def test_a_file_of_batch_means_alone_has_batches_of_64():
    dpo_pipeline.evaluate("pairs.parquet", batches="means.parquet")
    found = pl.read_parquet("means.parquet")["n_pairs"].to_list()
    rows = pl.read_parquet("pairs.parquet").height
    assert found == [64] * (rows // 64) + [rows % 64]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param({"beta": 0.2, "loss": Objective(beta=0.1)}, "beta is given twice", id="beta"),
        pytest.param({"loss": OnInvalid()}, "loss must be a name", id="another group"),
        pytest.param({"by": 7}, "by must be a column name", id="by"),
        pytest.param({"on_invalid": "drop"}, "on_invalid must be one of", id="action"),
        pytest.param({"batches": Batches(2, by="split")}, "not both", id="batches"),
    ],
)
@pytest.mark.usefixtures("project")
def test_contradictions_are_usage_errors(arguments, words):
    with pytest.raises(UsageError, match=words):
        dpo_pipeline.evaluate("pairs.parquet", **arguments)


@pytest.mark.usefixtures("project")
def test_a_reference_that_is_given_twice():
    with pytest.raises(UsageError, match="the reference is given twice"):
        dpo_pipeline.evaluate(
            Pairs("policy.parquet", reference="ref.parquet"), reference="ref.parquet"
        )


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_no_public_call_has_more_than_12_parameters_or_takes_any_options(function):
    parameters = inspect.signature(function).parameters.values()
    assert len(parameters) <= 12
    if function is not dpo_pipeline.dry_run:  # which takes those of another call
        assert not [p for p in parameters if p.kind is p.VAR_KEYWORD]


@pytest.mark.parametrize("call", CALLS)
def test_calls_take_the_groups_that_commands_do(call):
    parameters = set(inspect.signature(CALLED[call]).parameters)
    own = {"pairs": "policies"} if call == "compare" else {}
    named = {own.get(name, name) for name in CALLS[call]} - {"gates"}
    assert named <= parameters


@pytest.mark.parametrize("call", CALLS)
def test_flags_of_a_command_are_there_once(call):
    flags = [made.flag for group in CALLS[call].values() for _, made in options_of(group, call)]
    assert len(flags) == len(set(flags))


def test_groups_are_frozen_and_document_their_fields():
    made = OnInvalid()
    with pytest.raises(FrozenInstanceError):
        made.action = "exclude"
    for group in {group for groups in CALLS.values() for group in groups.values()}:
        for each in fields(group):
            assert f"    {each.name}: " in group.__doc__


# One more option for all commands: one field


Wider = make_dataclass(
    "Wider",
    [("niceness", int, option("--niceness", WHOLE, "How nice the run is to others.", default=0))],
    bases=(Execution,),
    frozen=True,
    slots=True,
    kw_only=True,
)
WIDER = {
    call: {name: Wider if group is Execution else group for name, group in groups.items()}
    for call, groups in CALLS.items()
}
PLACES = {
    "check": ["pairs.parquet"],
    "evaluate": ["pairs.parquet"],
    "sweep": ["pairs.parquet"],
    "score": ["pairs.parquet", "scored.parquet"],
    "convert": ["pairs.parquet", "converted.parquet"],
    "compare": ["pairs.parquet", "pairs.parquet"],
    "select": ["pairs.parquet", "selected.parquet"],
}
"""What commands are given; `logps` needs models, which tests/models has."""
MORE = {"select": ["--rule", "random", "--keep", "50%"]}
"""Options that a command cannot do without."""


@cache
def wider():
    """Return the command line with one more option: making it is most of what a dry run costs."""
    return command_line(WIDER)


def planned(call, *words):
    """Return the dry run of a command with one more option, as a document."""
    line = wider()
    done = CliRunner().invoke(
        line,
        [call, *PLACES[call], *MORE.get(call, ()), "--dry-run", "--json", *words],
        catch_exceptions=False,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("call", PLACES)
@pytest.mark.usefixtures("project")
def test_a_new_field_is_an_option_of_every_command(call, monkeypatch):
    text = wider().commands[call].get_help(click.Context(click.Command(call)))
    assert "--niceness INTEGER" in text
    assert "How nice the run is to others." in " ".join(text.split())
    assert planned(call)["options"].get("--niceness") is None
    assert planned(call, "--niceness", "3")["options"]["--niceness"] == 3
    monkeypatch.setenv("DPO_PIPELINE_NICENESS", "4")
    assert planned(call)["options"]["--niceness"] == 4
    monkeypatch.setenv(f"DPO_PIPELINE_{call.upper()}_NICENESS", "5")
    assert planned(call)["options"]["--niceness"] == 5


@pytest.mark.parametrize("call", PLACES)
def test_a_new_field_is_a_setting_of_every_command(project, call):
    (project / "pyproject.toml").write_text("[tool.dpo-pipeline]\nniceness = 6\n")
    assert planned(call)["options"]["--niceness"] == 6


def test_a_new_field_is_in_the_table_of_options():
    assert "--niceness" not in option_table()
    (line,) = (line for line in option_table(WIDER).splitlines() if "`--niceness`" in line)
    assert "How nice the run is to others." in line
    assert "`DPO_PIPELINE_NICENESS`" in line


@pytest.mark.parametrize("call", PLACES)
@pytest.mark.usefixtures("project")
def test_a_new_field_arrives_where_the_call_does(call):
    places = [*PLACES[call], *(["random", 0.5] if call == "select" else [])]
    plan = dry_run(CALLED[call], *places, execution=Wider(niceness=7))
    assert plan.options["execution"].niceness == 7
