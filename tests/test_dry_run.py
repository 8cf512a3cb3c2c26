"""Dry runs: no data page is read, nothing is written, and what they say is what a run does."""

from __future__ import annotations

import json
import os
import struct

import polars as pl
import pytest

from dpo_pipeline import (
    Batches,
    Outputs,
    Pairs,
    Reference,
    Subsets,
    check,
    convert,
    dry_run as planned,
    evaluate,
    score_parquet,
    sweep,
)
from dpo_pipeline.cli.program import main
from dpo_pipeline.errors import DpoPipelineError, StorageError, UsageError
from dpo_pipeline.options import StatisticsOptions
from dpo_pipeline.sources.dataset import open_dataset
from dpo_pipeline.storage.locks import hold, let_go
from option_tools import grouped
from pair_tools import DATA, LOGPS

FORMATS = DATA / "formats"


def dry_run(function, *places, **arguments):
    """Return what the plan of a call tells."""
    return planned(function, *places, **arguments).facts


READERS = [check, evaluate, sweep]


def without_data(path):
    """Zero all of a Parquet file but its footer: the magic number ends with its length."""
    data = bytearray(path.read_bytes())
    (footer,) = struct.unpack("<I", data[-8:-4])
    data[: len(data) - 8 - footer] = bytes(len(data) - 8 - footer)
    path.write_bytes(data)
    return path


def state(folder):
    """Return all that can be seen of a folder and does not change by reading."""
    return {
        os.path.join(inside, name): os.lstat(os.path.join(inside, name)).st_mtime_ns
        for inside, folders, names in os.walk(folder)
        for name in (".", *folders, *names)
    }


@pytest.fixture
def source(tmp_path, pairs):
    path = tmp_path / "pairs.parquet"
    pairs.write_parquet(path)
    return path


@pytest.fixture
def folder(tmp_path, pairs):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    pairs[:4].write_parquet(tmp_path / "in" / "a.parquet")
    pairs[4:].write_parquet(tmp_path / "in" / "deep" / "b.parquet")
    return tmp_path / "in"


@pytest.fixture
def split(tmp_path, pairs):
    """The policy's log-probs, and the reference's apart."""
    policy, reference = tmp_path / "policy.parquet", tmp_path / "reference.parquet"
    pairs.drop(LOGPS[2:]).write_parquet(policy)
    pairs.select("pair_id", *LOGPS[2:]).reverse().write_parquet(reference)
    return policy, reference


# What is read and written


@pytest.mark.parametrize("function", READERS)
def test_a_file_without_data_pages_can_be_rehearsed_and_not_read(source, function):
    without_data(source)
    assert dry_run(function, source).rows == 6
    with pytest.raises(DpoPipelineError):
        function(source)


@pytest.mark.parametrize("function", [score_parquet, convert])
def test_nor_are_they_read_where_something_would_be_written(tmp_path, source, function):
    without_data(source)
    before = state(tmp_path)
    made = dry_run(function, source, tmp_path / "out.parquet")
    assert [output.path for output in made.outputs] == [str(tmp_path / "out.parquet")]
    assert state(tmp_path) == before
    with pytest.raises(DpoPipelineError):
        function(source, tmp_path / "out.parquet")


@pytest.mark.parametrize("function", READERS)
def test_nor_those_of_a_reference(split, function):
    policy, reference = map(without_data, split)
    made = dry_run(function, policy, reference=reference)
    assert [(i.path, i.rows, i.is_reference) for i in made.inputs] == [
        (str(policy), 6, False),
        (str(reference), 6, True),
    ]
    with pytest.raises(DpoPipelineError):
        function(policy, reference=reference)


def test_no_plan_scans_a_file(engine, tmp_path, folder, split):
    dry_run(evaluate, folder, by=Subsets("subset", histogram=True), batches=4)
    dry_run(score_parquet, folder, tmp_path / "out", on_invalid="quarantine")
    dry_run(check, split[0], reference=split[1])
    dry_run(sweep, folder, [0.1, 0.2])
    dry_run(convert, folder, tmp_path / "out.parquet")
    assert engine.data_scans == 0
    check(folder)
    assert engine.data_scans == 1


@pytest.mark.parametrize("function", READERS)
def test_keys_of_csv_are_text_in_a_dry_run_too(tmp_path, pairs, function):
    pairs = pairs[:2].with_columns(key=pl.Series(["1.5", "2.5"]))
    pairs.select("key", *LOGPS[:2]).write_csv(tmp_path / "p.csv")
    pairs.select("key", *LOGPS[2:]).write_parquet(tmp_path / "r.parquet")
    joined = {"reference": Reference(tmp_path / "r.parquet", on="key")}
    assert dry_run(function, tmp_path / "p.csv", **joined).inputs[1].rows == 2
    function(tmp_path / "p.csv", **joined)


def test_a_footer_that_is_broken_is_an_error(source):
    source.write_bytes(source.read_bytes()[:-4] + b"NOPE")
    with pytest.raises(StorageError, match="begins as Parquet and is cut off"):
        dry_run(evaluate, source)


# What it says is what happens


def new_files(tmp_path, before):
    return {path for path in set(state(tmp_path)) - set(before) if os.path.isfile(path)}


def test_an_evaluation_writes_and_finds_what_was_said(tmp_path, source):
    arguments = {
        "loss": {"sigmoid": 0.8, "hinge": 0.2},
        "dialect": "trl",
        "by": "subset",
        "batch_size": 4,
        "summary": tmp_path / "summary.json",
    }
    made = dry_run(evaluate, source, 0.3, **grouped(**arguments))
    before = state(tmp_path)
    result = evaluate(source, 0.3, **grouped(**arguments))
    assert new_files(tmp_path, before) == {output.path for output in made.outputs}
    assert (made.rows, made.n_batches) == (result.summary.n_pairs, result.batches.height) == (6, 2)
    assert made.columns == result.columns
    assert made.objectives == (result.objective,)
    assert made.by == ("subset",)
    assert made.source == result.source


@pytest.mark.parametrize("of_folder", [False, True])
def test_a_score_writes_what_was_said(tmp_path, source, folder, of_folder):
    name = "out" if of_folder else "out.parquet"
    places = (folder if of_folder else source, tmp_path / name)
    arguments = {
        "keep": ["subset", "pair_id"],
        "on_invalid": "quarantine",
        "batch_size": 2,
        "batches": tmp_path / "means.parquet",
    }
    made = dry_run(score_parquet, *places, **grouped(**arguments))
    before = state(tmp_path)
    score_parquet(*places, **grouped(**arguments))
    written = {
        path
        for output in made.outputs
        for path in (
            [output.path]
            if output.files is None
            else [
                os.path.join(output.path, name)
                for name in ("a.parquet", os.path.join("deep", "b.parquet"), "_SUCCESS")
            ]
        )
    }
    assert new_files(tmp_path, before) == written
    assert [output.files for output in made.outputs] == (
        [2, None, 2] if of_folder else [None, None, None]
    )
    assert made.carried == ("pair_id", "subset")
    first = written - {str(tmp_path / "means.parquet")}
    scored = pl.read_parquet(next(p for p in first if p.endswith(".parquet") and "inv" not in p))
    assert tuple(scored.columns[:2]) == made.carried


def test_a_sweep_computes_what_was_said(source):
    made = dry_run(sweep, source, [0.1, 0.2], loss=["sigmoid", "ipo"])
    assert made.objectives == sweep(source, [0.1, 0.2], loss=["sigmoid", "ipo"]).objectives
    assert made.outputs == ()


def test_a_conversion_writes_what_was_said(tmp_path, pairs):
    csv = tmp_path / "pairs.csv"
    pairs.rename({LOGPS[0]: "policy_chosen_logprobs"}).write_csv(csv)
    made = dry_run(convert, csv, tmp_path / "out.parquet")
    assert (made.rows, made.inputs[0].rows) == (None, None)
    assert made.columns[LOGPS[0]] == "policy_chosen_logprobs"
    before = state(tmp_path)
    convert(csv, tmp_path / "out.parquet")
    assert new_files(tmp_path, before) == {output.path for output in made.outputs}


def test_columns_come_by_alias_and_mapping(tmp_path, pairs):
    path = tmp_path / "odd.parquet"
    pairs.rename({LOGPS[0]: "mine", LOGPS[2]: "reference_chosen_logps"}).write_parquet(path)
    made = dry_run(evaluate, Pairs(path, columns={LOGPS[0]: "mine"}))
    assert made.columns == {
        "pair_id": "pair_id",
        LOGPS[0]: "mine",
        LOGPS[1]: LOGPS[1],
        LOGPS[2]: "reference_chosen_logps",
        LOGPS[3]: LOGPS[3],
    }


def test_statistics_are_said(source):
    assert not dry_run(evaluate, source).statistics
    made = dry_run(evaluate, source, statistics=True)
    assert made.statistics
    assert "statistics: yes" in str(made)


def test_a_frame_can_be_rehearsed_too(pairs):
    made = dry_run(evaluate, pairs, by="subset")
    assert (made.source, made.rows, made.inputs[0].path) == ("pairs", None, "pairs")


# Errors are those of a run


def existing(folder):
    path = folder / "there.parquet"
    path.write_text("x")
    return path


ERRORS = [
    pytest.param(evaluate, ["{nothing}"], {}, id="no file"),
    pytest.param(evaluate, ["{pairs}"], {"loss": "ipoo"}, id="no loss"),
    pytest.param(evaluate, ["{pairs}"], {"beta": -1.0}, id="beta"),
    pytest.param(evaluate, ["{pairs}"], {"dialect": "x"}, id="dialect"),
    pytest.param(evaluate, ["{pairs}"], {"loss_args": {"x": 1.0}}, id="argument of a loss"),
    pytest.param(evaluate, ["{pairs}"], {"loss": "aot"}, id="batches wanted"),
    pytest.param(
        evaluate,
        ["{policy}"],
        {"loss": "aot", "batch_size": 2, "reference": "{reference}"},
        id="batches and join",
    ),
    pytest.param(evaluate, ["{pairs}"], {"loss": "simpo"}, id="no token counts"),
    pytest.param(evaluate, ["{pairs}"], {"by": "subst"}, id="by"),
    pytest.param(evaluate, ["{pairs}"], {"by": 3}, id="by a number"),
    pytest.param(evaluate, ["{pairs}"], {"batch_by": "subst"}, id="batch by"),
    pytest.param(evaluate, ["{pairs}"], {"batch_size": 0}, id="batch size"),
    pytest.param(evaluate, ["{pairs}"], {"max_logp": "x"}, id="max logp"),
    pytest.param(evaluate, ["{pairs}"], {"max_invalid": 1}, id="limit without exclude"),
    pytest.param(evaluate, ["{pairs}"], {"on_invalid": "quarantine"}, id="quarantine"),
    pytest.param(evaluate, ["{pairs}"], {"summary": "{there}"}, id="output exists"),
    pytest.param(
        evaluate,
        ["{pairs}"],
        {"summary": "{pairs}", "overwrite": True},
        id="output is input",
    ),
    pytest.param(evaluate, ["{pairs}"], {"summary": "{tmp}/no/s.json"}, id="no folder"),
    pytest.param(evaluate, ["{pairs}"], {"report": "{there}"}, id="report exists"),
    pytest.param(evaluate, ["{pairs}"], {"summary": "{in}", "overwrite": True}, id="a folder"),
    pytest.param(evaluate, ["{pairs}"], {"summary": "/dev/null", "overwrite": True}, id="a device"),
    pytest.param(
        evaluate,
        ["{pairs}"],
        {"summary": "{tmp}/x", "batches": "{tmp}/x", "batch_size": 2},
        id="outputs alike",
    ),
    pytest.param(evaluate, ["{pairs}"], {"summary": "{held}"}, id="held by another run"),
    pytest.param(evaluate, ["{short}"], {}, id="column missing"),
    pytest.param(evaluate, ["{text}"], {}, id="text"),
    pytest.param(evaluate, ["{empty}"], {}, id="no rows"),
    pytest.param(check, ["{empty}"], {}, id="no rows to check"),
    pytest.param(sweep, ["{empty}"], {}, id="no rows to sweep"),
    pytest.param(
        evaluate, ["{pairs}"], {"statistics": StatisticsOptions(judge="subset")}, id="judge"
    ),
    pytest.param(evaluate, ["{pairs}"], {"columns": {LOGPS[0]: "x"}}, id="mapped to nothing"),
    pytest.param(evaluate, ["{pairs}"], {"columns": {"x": "x"}}, id="no role"),
    pytest.param(evaluate, ["{pairs}"], {"contract": 3}, id="no contract"),
    pytest.param(check, ["{pairs}"], {"max_invalid": -1}, id="limit"),
    pytest.param(check, ["{pairs}"], {"reference": "{reference}"}, id="reference twice"),
    pytest.param(check, ["{policy}"], {"reference": "{nothing}"}, id="no reference"),
    pytest.param(check, ["{policy}"], {"reference": "{policy}"}, id="policy as reference"),
    pytest.param(check, ["{policy}"], {"reference": "{reference}", "on": "pair"}, id="no key"),
    pytest.param(
        check,
        ["{policy}"],
        {"reference": "{nothing}", "reference_columns": {"x": "y"}},
        id="no role of a reference",
    ),
    pytest.param(sweep, ["{pairs}", [0.1, 0.1]], {}, id="beta twice"),
    pytest.param(sweep, ["{pairs}"], {"loss": "aot"}, id="batches swept"),
    pytest.param(score_parquet, ["{pairs}", "{there}"], {}, id="score exists"),
    pytest.param(score_parquet, ["{pairs}", "{pairs}"], {"overwrite": True}, id="on itself"),
    pytest.param(score_parquet, ["{in}", "{there}"], {"overwrite": True}, id="file for folder"),
    pytest.param(score_parquet, ["{in}", "{in}"], {"overwrite": True}, id="folder on itself"),
    pytest.param(score_parquet, ["{in}", "{in}/sub"], {}, id="inside the input"),
    pytest.param(score_parquet, ["{in}", "{full}"], {}, id="folder not empty"),
    pytest.param(
        score_parquet, ["{in}", "{full}"], {"overwrite": True}, id="folder of somebody else"
    ),
    pytest.param(score_parquet, ["{pairs}", "{tmp}/o"], {"invalid": "x"}, id="no quarantine"),
    pytest.param(score_parquet, ["{pairs}", "{tmp}/o"], {"keep": "subst"}, id="keep"),
    pytest.param(score_parquet, ["{scored}", "{tmp}/o"], {}, id="in the way"),
    pytest.param(score_parquet, [3, "{tmp}/o"], {}, id="source"),
    pytest.param(score_parquet, ["{pairs}", 3], {}, id="sink"),
    pytest.param(score_parquet, ["{empty}", "{tmp}/o"], {}, id="no rows to score"),
    pytest.param(convert, ["{pairs}", "{there}"], {}, id="convert exists"),
    pytest.param(convert, ["{pairs}", "{pairs}"], {"overwrite": True}, id="convert on itself"),
    pytest.param(convert, ["{pairs}", "{tmp}/o", "x"], {}, id="no format"),
    pytest.param(convert, ["{one}", "{tmp}/o"], {}, id="convert too little"),
    pytest.param(convert, ["{pairs}", 3], {}, id="convert to a number"),
]


@pytest.mark.repeats(20)  # one walk; rooms have tests of their own errors
@pytest.mark.parametrize(("function", "places", "arguments"), ERRORS)
def test_errors_are_those_of_a_run(
    tmp_path, pairs, source, folder, split, function, places, arguments
):
    full = tmp_path / "full"
    full.mkdir()
    pairs.write_parquet(full / "theirs.parquet")
    known = {
        "tmp": tmp_path,
        "pairs": source,
        "in": folder,
        "policy": split[0],
        "reference": split[1],
        "nothing": tmp_path / "nothing.parquet",
        "there": existing(tmp_path),
        "full": full,
        "held": tmp_path / "held.json",
    }
    for name, frame in {
        "empty": pairs.clear(),
        "text": pairs.with_columns(pl.col(LOGPS[0]).cast(pl.String)),
        "short": pairs.drop(LOGPS[3]),
        "scored": pairs.with_columns(loss=1.0),
        "one": pairs.drop(LOGPS[1:]),
    }.items():
        known[name] = tmp_path / f"{name}.parquet"
        frame.write_parquet(known[name])
    _, lock = hold(str(known["held"]), lambda: None, name="held.json", is_folder=False)

    def filled(value):
        return value.format(**known) if isinstance(value, str) else value

    places = [filled(place) for place in places]
    arguments = {name: filled(value) for name, value in arguments.items()}
    if "columns" in arguments:
        places[0] = Pairs(places[0], columns=arguments.pop("columns"))
    if function is check and "max_invalid" in arguments:
        arguments["on_invalid"] = "exclude"
    arguments = grouped(**arguments)
    before = state(tmp_path)
    with pytest.raises(DpoPipelineError) as rehearsed:
        dry_run(function, *places, **arguments)
    assert state(tmp_path) == before
    with pytest.raises(DpoPipelineError) as real:
        function(*places, **arguments)
    let_go(lock)
    assert (type(rehearsed.value), str(rehearsed.value)) == (type(real.value), str(real.value))


def test_too_many_batches_are_refused_before(monkeypatch, source):
    monkeypatch.setattr("dpo_pipeline.sums.batches.MAX_BATCHES_HELD", 5)
    with pytest.raises(UsageError, match="more than 5 batches"):
        dry_run(evaluate, source, batches=1)
    assert dry_run(evaluate, source, batches=2).n_batches == 3


def test_overwriting_is_said(tmp_path, source):
    there = existing(tmp_path)
    made = dry_run(
        score_parquet, source, there, outputs=Outputs(tmp_path / "s.json", overwrite=True)
    )
    assert [(output.path, output.replaces) for output in made.outputs] == [
        (str(tmp_path / "s.json"), False),
        (str(there), True),
    ]
    assert f"would replace {there}" in str(made)
    assert f"would write {tmp_path / 's.json'}" in str(made)


def test_a_report_is_said_and_asks_for_statistics(tmp_path, source):
    made = dry_run(evaluate, source, outputs=Outputs(report=tmp_path / "report.html"))
    assert made.statistics
    assert f"would write {tmp_path / 'report.html'}" in str(made)
    assert not (tmp_path / "report.html").exists()


def test_only_calls_that_can_be_rehearsed_are_taken(source):
    with pytest.raises(UsageError, match="one of check, evaluate, sweep, score_parquet, select"):
        dry_run(open_dataset, source)
    with pytest.raises(TypeError, match="bta"):
        dry_run(evaluate, source, bta=0.1)


# The command line


def test_the_text_says_all_of_it(monkeypatch, tmp_path, folder):
    monkeypatch.chdir(tmp_path)
    made = dry_run(
        score_parquet,
        folder.name,
        "out",
        loss="ipo",
        by=["subset", "pair_id"],
        batches=Batches(by="subset"),
        scored="pair_id",
    )
    assert (
        f"{made}\n"
        == """\
in: 6 rows; a dry run, so nothing was computed or written

input              of     rows
in/a.parquet       pairs     4
in/deep/b.parquet  pairs     2

role                   column
pair_id                pair_id
policy_chosen_logps    policy_chosen_logps
policy_rejected_logps  policy_rejected_logps
ref_chosen_logps       ref_chosen_logps
ref_rejected_logps     ref_rejected_logps

option      value
--loss      ipo
--by        subset, pair_id
--batch-by  subset
--keep      pair_id

loss: ipo, beta 0.1
ipo: reference_free no, per_token no, f_divergence reverse_kl
log-probs accepted: at most 0
subsets: by subset, pair_id
batches: by the value of subset
columns carried along: pair_id
would write out, 2 files
"""
    )


@pytest.mark.parametrize("command", ["check", "evaluate", "sweep", "score", "convert"])
def test_every_command_on_pairs_has_it(capsys, tmp_path, source, command):
    out = [str(tmp_path / "out.parquet")] if command in {"score", "convert"} else []
    without_data(source)
    before = state(tmp_path)
    assert main([command, str(source), *out, "--dry-run", "--json"]) == 0
    text, err = capsys.readouterr()
    assert err == ""
    document = json.loads(text)
    assert document["rows"] == 6
    assert document["inputs"] == [{"path": str(source), "rows": 6, "is_reference": False}]
    assert [each["path"] for each in document["outputs"]] == out
    assert document["columns"][LOGPS[0]] == LOGPS[0]
    assert state(tmp_path) == before


def test_other_formats_have_their_settings_and_no_count_of_rows(capsys):
    path = FORMATS / "rewardbench_outputs.jsonl"
    words = ["evaluate", str(path), "--format", "rewardbench", "--json"]
    assert main([*words, "--dry-run"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert made["inputs"] == [{"path": str(path), "rows": None, "is_reference": False}]
    assert made["rows"] is None
    assert made["objectives"] == [result["objective"]]
    assert made["objectives"][0]["dialect"] == "rewardbench"
    assert made["columns"] == result["columns"]


def test_the_exit_codes_are_those_of_a_run(capsys, tmp_path, pairs, source):
    there = existing(tmp_path)
    pairs.drop(LOGPS[0]).write_parquet(tmp_path / "short.parquet")
    for words, code in [
        (["score", source, there], 3),
        (["evaluate", tmp_path / "short.parquet"], 1),
        (["evaluate", source, "--loss", "ipoo"], 2),
    ]:
        assert main([*map(str, words), "--dry-run"]) == code
        assert main([*map(str, words)]) == code
    out, _ = capsys.readouterr()
    assert out == ""


def test_settings_that_took_part_are_told(capsys, monkeypatch, source):
    monkeypatch.setenv("DPO_PIPELINE_BETA", "0.5")
    assert main(["evaluate", str(source), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "loss: sigmoid, beta 0.5\n" in out
    assert err == "setting: beta = 0.5, from DPO_PIPELINE_BETA\n"


def test_a_comparison_can_be_rehearsed(capsys, tmp_path, pairs, source, engine):
    other = tmp_path / "other.parquet"
    pairs.drop(LOGPS[2:]).write_parquet(other)
    engine.graphs.clear()
    summary = tmp_path / "c.json"
    words = ["compare", str(source), str(other), "--by", "subset", "--summary", str(summary)]
    assert main([*words, "--dry-run", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert engine.data_scans == 0
    assert [each["path"] for each in made["inputs"]] == [str(source), str(other)]
    assert made["outputs"] == [{"path": str(summary), "files": None, "replaces": False}]
    assert made["checked_later"] == ["that the keys of A and B fit"]
    assert f"B {LOGPS[2]}" not in made["columns"]
    assert not summary.exists()
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(summary.read_text())


def test_a_plan_can_be_run(source):
    plan = planned(evaluate, source, beta=0.2)
    assert plan.run().to_json() == evaluate(source, beta=0.2).to_json()
