"""Gates: figures below or above their mark, by value and by interval; exit code 4."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace

import polars as pl
import pytest

from dpo_pipeline import GateError, StatisticsOptions, UsageError, evaluate, gate, score_parquet
from dpo_pipeline.cli.program import main
from dpo_pipeline.errors import GATE
from dpo_pipeline.evaluation.gating import GATED
from oracle_tools import stats
from pair_tools import DATA, LOGPS, ROOT
from schema_tools import validate

REAL = str(DATA / "hh_harmless_policy_a_test.parquet")
RIGHT, N = 390, 698  # of the real pairs: 55.87%

pytestmark = pytest.mark.usefixtures("few_groups")


@pytest.fixture(scope="module")
def plain():
    return evaluate(REAL)


@pytest.fixture(scope="module")
def full():
    half = (pl.int_range(pl.len()) % 2).alias("half")
    frame = pl.read_parquet(REAL).with_columns(half)
    return evaluate(frame, by="half", statistics=StatisticsOptions(weights={0: 1, 1: 2}))


def test_the_example_is_what_it_is_said_to_be(plain):
    assert plain.summary.n_valid == N
    assert plain.summary.reward_accuracy == RIGHT / N


@pytest.mark.parametrize("name", ["rewards/accuracies", "reward_accuracy"])
@pytest.mark.parametrize(
    ("mark", "passes"),
    [(0.5, True), (RIGHT / N, True), (math.nextafter(RIGHT / N, 1), False), (0.6, False)],
)
def test_a_figure_must_not_be_under_its_mark(plain, name, mark, passes):
    if passes:
        gate(plain, under={name: mark})
        return
    with pytest.raises(GateError) as caught:
        gate(plain, under={name: mark})
    (missed,) = caught.value.missed
    facts = (missed.name, missed.side, missed.mark, missed.value)
    assert facts == (name, "below", mark, RIGHT / N)
    limits = stats.binomtest(RIGHT, N).proportion_ci(0.95, "wilson")
    assert missed.interval == pytest.approx(tuple(limits), rel=1e-9)
    assert caught.value.exit_code == GATE == 4


def test_a_figure_must_not_be_over_its_mark(plain):
    loss = plain.summary.loss
    gate(plain, over={"loss": loss, "n_invalid": 0})
    with pytest.raises(GateError, match=r"loss is 0\.68\d+ \(0\.6\d+ to 0\.7\d+\), above 0\.6$"):
        gate(plain, over={"loss": 0.6})


@pytest.mark.parametrize(("side", "end", "inside"), [("under", 0, 1e-9), ("over", 1, -1e-9)])
def test_an_interval_must_keep_the_mark_with_its_nearer_end(full, side, end, inside):
    limits = stats.binomtest(RIGHT, N).proportion_ci(0.95, "wilson")
    mark = limits[end]
    gate(full, by_interval=True, **{side: {"rewards/accuracies": mark - inside}})
    with pytest.raises(GateError) as caught:
        gate(full, by_interval=True, **{side: {"rewards/accuracies": mark + inside}})
    (missed,) = caught.value.missed
    assert missed.by_interval
    assert missed.interval == pytest.approx(tuple(limits), rel=1e-9)
    # The value alone would pass.
    gate(full, **{side: {"rewards/accuracies": mark + inside}})


def test_the_message_says_metric_value_interval_and_mark(full):
    with pytest.raises(GateError) as caught:
        gate(full, under={"rewards/accuracies": 0.55}, over={"tie_rate": 0.0001}, by_interval=True)
    assert str(caught.value).startswith(
        "pairs fails its gate: rewards/accuracies is 0.558739 (0.521681 to 0.595154): "
        "the lower end is below 0.55; tie_rate is 0 (0 to 0.0035"
    )
    assert str(caught.value).endswith("the upper end is above 0.0001")


def test_all_figures_that_miss_are_named(plain):
    with pytest.raises(GateError) as caught:
        gate(plain, under={"reward_accuracy": 0.9, "reward_margin": 0.0, "loss": 1.0})
    assert [missed.name for missed in caught.value.missed] == ["reward_accuracy", "loss"]


def test_the_error_can_be_sent_to_another_process(plain):
    with pytest.raises(GateError) as caught:
        gate(plain, under={"reward_accuracy": 0.9})
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  our own bytes
    assert str(again) == str(caught.value)
    assert again.missed == caught.value.missed


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("macro", lambda s: s.macro),
        ("weighted", lambda s: s.weighted),
        ("advantage/longer", lambda s: s.advantages["longer"]),
        ("chosen_down", lambda s: s.displacement["chosen_down"]),
        ("brier", lambda s: s.figures["brier"]),
        ("reward_accuracy_half", lambda s: s.figures["reward_accuracy_half"]),
    ],
)
def test_figures_of_statistics_can_be_gated(full, plain, name, of):
    estimate = of(full.statistics)
    gate(full, under={name: estimate.value}, over={name: estimate.value})
    gate(full, under={name: estimate.interval.low}, by_interval=True)
    with pytest.raises(GateError):
        gate(full, under={name: estimate.value + 1e-6})
    with pytest.raises(UsageError, match=f"has no {name}; it needs statistics"):
        gate(plain, under={name: 0.0})


def test_a_benchmarks_score_is_missing_without_sections(full):
    with pytest.raises(UsageError, match="this evaluation has no score$"):
        gate(full, under={"score": 0.5})


def test_what_is_not_a_number_does_not_pass(plain):
    nan = replace(plain, summary=replace(plain.summary, loss=math.nan))
    for marks in ({"under": {"loss": 0.0}}, {"over": {"loss": 9.0}}):
        with pytest.raises(GateError):
            gate(nan, **marks)


def test_a_figure_that_the_loss_does_not_have_is_an_error():
    result = evaluate(REAL, loss="cpo")
    with pytest.raises(UsageError, match="has no ref_chosen_logps"):
        gate(result, under={"ref_chosen_logps": -300})


def test_an_interval_that_is_not_there_is_an_error(plain, full):
    with pytest.raises(UsageError, match="policy_chosen_logps has no interval here"):
        gate(plain, over={"policy_chosen_logps": 1.0}, by_interval=True)
    assert plain.figure("loss")[1] == pytest.approx(full.figure("loss")[1], rel=1e-12)
    with pytest.raises(UsageError, match="is a count"):
        gate(full, over={"n_ties": 1}, by_interval=True)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"under": {"reward/accuracies": 0.5}}, "did you mean 'rewards/accuracies'"),
        ({"over": {"loss": math.nan}}, "must be a number"),
        ({"over": {"loss": "0.5"}}, "must be a number"),
        ({"over": {"loss": True}}, "must be a number"),
        ({"by_interval": True}, "needs a mark"),
    ],
)
def test_marks_are_checked(plain, arguments, problem):
    with pytest.raises(UsageError, match=problem):
        gate(plain, **arguments)


def test_every_name_of_a_mark_is_known_to_some_evaluation(full):
    unknown = []
    for name in GATED:
        try:
            gate(full, under={name: 0.0})
        except GateError:
            pass
        except UsageError:
            unknown.append(name)
    assert unknown == ["score"]


def test_scored_files_can_be_gated(tmp_path):
    result = score_parquet(REAL, tmp_path / "scored.parquet")
    with pytest.raises(GateError):
        gate(result, under={"reward_accuracy": 0.6})


# ---- the command line


def run(capsys, *words):
    code = main(["evaluate", REAL, "-q", *words])
    return code, *capsys.readouterr()


def test_a_missed_mark_is_exit_code_4_after_the_result(capsys, tmp_path):
    summary = tmp_path / "summary.json"
    words = ["--fail-under", "rewards/accuracies=0.6", "--json", "--summary", str(summary)]
    code, out, err = run(capsys, *words)
    assert code == 4
    assert json.loads(out)["summary"]["reward_accuracy"] == RIGHT / N
    assert json.loads(summary.read_text())["summary"]["n_valid"] == N
    said = f"error: {REAL} fails its gate: rewards/accuracies is 0.558739 "
    assert err == f"{said}(0.521681 to 0.595154), below 0.6\n"


def test_kept_marks_are_exit_code_0(capsys):
    words = ["--fail-under", "rewards/accuracies=0.55", "--fail-over", "loss=0.69"]
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert "statistics" not in out


MARKS = ["--fail-under", "rewards/accuracies=0.6", "--fail-over", "loss=0.69"]
FOUND = "0.558739 (0.521681 to 0.595154)"


def test_markdown_says_which_marks_are_met(capsys):
    """A step summary has standard output alone."""
    code, out, _ = run(capsys, *MARKS, "--output", "markdown")
    assert code == 4
    first, _, head, _, missed, met, _, verdict = out.splitlines()[:8]
    assert first == "**gate missed: 1 of 2 marks**"
    assert head == "| figure | mark | found | result |"
    assert missed == f"| rewards/accuracies | at least 0.6 | {FOUND} | missed |"
    assert met.startswith("| loss | at most 0.69 | 0.68")
    assert met.endswith(" | met |")
    assert verdict.startswith("**better than a coin toss")


def test_a_gate_that_is_passed_is_said(capsys):
    words = ["--fail-under", "rewards/accuracies=0.55", "--fail-over", "n_invalid=0"]
    code, out, err = run(capsys, *words)
    assert (code, err, out.splitlines()[0]) == (0, "", "gate passed: 2 marks met")
    rows = [line.split()[-1] for line in out.splitlines()[3:5]]
    assert rows == ["met", "met"]
    assert "gate" not in run(capsys)[1]
    # A table of figures alone stays one.
    code, out, err = run(capsys, *words, "--output", "csv")
    assert (code, err) == (0, "gate passed: 2 marks met\n")
    assert out.startswith("figure,value")


def test_json_has_every_mark_and_keeps_its_schema(capsys):
    for words, passed in ((MARKS, False), (MARKS[2:], True)):
        document = json.loads(run(capsys, *words, "--json")[1])
        validate(document, "summary")
        assert document["gates"]["passed"] is passed
        assert document["gates"]["why"] is None
        loss = document["gates"]["marks"][-1]
        assert (loss["name"], loss["at"], loss["mark"], loss["is_met"]) == (
            "loss",
            "most",
            0.69,
            True,
        )
        assert loss["value"] == document["summary"]["loss"]
        limits = document["intervals"]["figures"]["loss"]["interval"]
        assert (loss["low"], loss["high"]) == (limits["low"], limits["high"])
    assert "gates" not in json.loads(run(capsys, "--json")[1])


def test_a_mark_for_the_interval_is_held_to_its_end(capsys):
    words = ["--fail-under", "rewards/accuracies=0.55", "--fail-on-interval"]
    code, out, _ = run(capsys, *words)
    assert code == 4
    row = out.splitlines()[3].split("  ")
    cells = [each.strip() for each in row if each.strip()]
    assert cells == ["rewards/accuracies", "lower end at least 0.55", FOUND, "missed"]


def test_other_results_say_their_gates_too(capsys, tmp_path):
    a, b = str(ROOT / "examples/pairs.parquet"), str(ROOT / "examples/policy_b.parquet")
    assert main(["compare", a, b, "--fail-on-no-verdict", "-q"]) == 0
    assert capsys.readouterr().out.startswith("gate passed: there is a verdict\n")
    shifted = str(tmp_path / "shifted.parquet")
    refs = (pl.col(each).shift(1, fill_value=-100.0) for each in LOGPS[2:])
    pl.read_parquet(a).with_columns(refs).write_parquet(shifted)
    assert main(["compare", a, shifted, "--fail-on-no-verdict", "-q"]) == 4
    assert capsys.readouterr().out.startswith("gate missed: without a verdict nothing passes\n")
    scored = str(tmp_path / "scored.parquet")
    assert main(["score", a, scored, "--fail-over", "loss=0.1", "-q"]) == 4
    assert capsys.readouterr().out.startswith("gate missed: 1 of 1 mark\n")
    assert main(["score", a, scored, "--fail-over", "loss=1", "--fail-on-interval"]) == 2
    assert "score has no statistics" in capsys.readouterr().err


def test_a_mark_for_the_interval_asks_for_statistics(capsys):
    words = ["--fail-under", "rewards/accuracies=0.55"]
    assert run(capsys, *words)[0] == 0
    code, out, err = run(capsys, *words, "--fail-on-interval")
    assert code == 4
    assert "\nstatistics\n" in out
    assert "(0.521681 to 0.595154): the lower end is below 0.55" in err
    # At a level of 50% the lower end is 54.6%.
    assert run(capsys, *words[:1], "rewards/accuracies=0.54", "--fail-on-interval")[0] == 4
    level = ["--level", "0.5"]
    assert run(capsys, *words[:1], "rewards/accuracies=0.54", "--fail-on-interval", *level)[0] == 0


def test_a_mark_of_a_statistic_asks_for_statistics(capsys):
    code, out, err = run(capsys, "--fail-under", "advantage/longer=0.9")
    assert code == 4
    assert "95% interval" in out
    assert "advantage/longer is" in err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--fail-under", "rewards/accuracies"], "--fail-under takes NAME=VALUE"),
        (["--fail-over", "loss=low"], "--fail-over takes NAME=VALUE"),
        (["--fail-under", "accuracy=0.6"], "there is no figure 'accuracy'"),
        (["--fail-on-interval"], "needs a mark"),
        (["--fail-over", "n_invalid=3", "--fail-on-interval"], "is a count"),
        (["--fail-over", "loss=1", "--fail-over", "loss=2"], "--fail-over loss is there twice"),
    ],
)
def test_marks_that_cannot_be_used_are_exit_code_2(capsys, words, problem):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert problem in err


def test_a_dry_run_checks_names_and_no_figures(capsys):
    code, out, _ = run(capsys, "--fail-under", "rewards/accuracies=0.99", "--dry-run")
    assert code == 0
    assert "dry run" in out
    assert run(capsys, "--fail-under", "accuracies=0.99", "--dry-run")[0] == 2


def test_marks_can_be_settings(capsys, tmp_path):
    config = tmp_path / "gate.toml"
    config.write_text('[evaluate]\nfail-under = ["rewards/accuracies=0.6"]\n')
    code, _, err = run(capsys, "--config", str(config))
    assert code == 4, err


@pytest.mark.parametrize(
    ("name", "option"), [("macro", "--by"), ("weighted", "--weight"), ("score", "--sections")]
)
def test_a_mark_of_what_is_not_asked_for_is_said_before_reading(capsys, tmp_path, name, option):
    assert main(["evaluate", str(tmp_path / "nothing.parquet"), f"--fail-under={name}=0.5"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: there is a mark for {name}, which needs {option}\n"
