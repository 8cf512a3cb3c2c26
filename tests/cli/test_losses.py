"""Losses on the command line: the options, the mistakes, and the list of losses."""

from __future__ import annotations

import json
import math

import pytest

from command_tools import run
from dpo_pipeline import evaluate, score_parquet
from dpo_pipeline.losses.catalogue import EVERY_LOSS, LOSSES
from objective_tools import DIVERGENT, NEED_COUNTS, PER_TOKEN_IF_ASKED, RANGES, REFERENCE
from option_tools import grouped


@pytest.fixture
def source(tmp_path, counted):
    path = tmp_path / "pairs.parquet"
    counted.write_parquet(path)
    return str(path)


@pytest.mark.repeats(2)  # a loss, and batches; `test_options` holds that each option has one way
@pytest.mark.parametrize(
    ("options", "call"),
    [
        pytest.param(["--loss", "hinge"], {"loss": "hinge"}, id="loss"),
        pytest.param(
            ["--loss", "ipo=0.5", "--loss", "sigmoid=0.25"],
            {"loss": {"ipo": 0.5, "sigmoid": 0.25}},
            id="sum",
        ),
        pytest.param(
            ["--loss", "sigmoid", "--loss", "sft=2"], {"loss": {"sigmoid": 1, "sft": 2}}, id="1"
        ),
        pytest.param(
            ["--loss-arg", "label_smoothing=0.1", "--loss-arg", "per_token=true"],
            {"loss_args": {"label_smoothing": 0.1, "per_token": True}},
            id="arguments",
        ),
        pytest.param(
            ["--loss", "hinge", "--dialect", "trl", "--loss-arg", "per_token=False"],
            {"loss": "hinge", "dialect": "trl", "loss_args": {"per_token": False}},
            id="False",
        ),
        pytest.param(
            ["--loss-arg", "f_divergence=alpha_divergence", "--loss-arg", "f_alpha=0.25"],
            {"loss_args": {"f_divergence": "alpha_divergence", "f_alpha": 0.25}},
            id="text",
        ),
        pytest.param(["--dialect", "rewardbench"], {"dialect": "rewardbench"}, id="dialect"),
        pytest.param(
            ["--dialect", "rewardbench", "--beta", "0.3"],
            {"dialect": "rewardbench", "beta": 0.3},
            id="beta",
        ),
        pytest.param(
            ["--loss", "aot", "--batch-size", "4"], {"loss": "aot", "batch_size": 4}, id="batches"
        ),
    ],
)
def test_the_command_line_says_it_to_the_library(capsys, source, tmp_path, options, call):
    code, out, err = run(capsys, "evaluate", source, "--json", *options)
    assert (code, err) == (0, "")
    expected = evaluate(source, **grouped(**call))
    assert json.loads(out) == json.loads(expected.to_json())
    code, _, err = run(capsys, "score", source, tmp_path / "cli.parquet", "-q", *options)
    assert (code, err) == (0, "")
    score_parquet(source, tmp_path / "library.parquet", **grouped(**call))
    assert (tmp_path / "cli.parquet").read_bytes() == (tmp_path / "library.parquet").read_bytes()


def test_the_order_of_losses_is_that_of_the_command_line(capsys, source):
    margins = []
    for order in (["sigmoid", "sft"], ["sft", "sigmoid"]):
        options = [word for name in order for word in ("--loss", f"{name}=1.0")]
        out = run(capsys, "evaluate", source, "--json", *options)[1]
        margins.append(json.loads(out)["summary"]["reward_margin"])
    # By hand: log-ratios of sums, and mean log-probs of the policy; each times 0.1, over 6.
    of_policy = math.fsum([-10, -7.75, -8, -5, -15, -10, 5.5, 16.5, 8.8, 11, 8.25, 5.5])
    assert margins == pytest.approx([0.4 / 6, 0.1 * of_policy / 6], abs=1e-12)


@pytest.mark.repeats  # both commands have one group of options
@pytest.mark.parametrize("verb", ["evaluate", "score"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--loss", "sigmod"], "did you mean 'sigmoid'", id="loss"),
        pytest.param(["--loss", "sigmoid=x"], "--loss takes NAME or NAME=WEIGHT", id="weight"),
        pytest.param(["--loss", "sigmoid="], "--loss takes NAME or NAME=WEIGHT", id="none"),
        pytest.param(["--loss", "sigmoid=0"], "the weight of sigmoid must be above 0", id="0"),
        pytest.param(["--loss", "sigmoid=nan"], "the weight of sigmoid must be", id="nan"),
        pytest.param(["--loss-arg", "tau"], "--loss-arg takes NAME=VALUE, found 'tau'", id="no ="),
        pytest.param(["--loss-arg", "tau="], "--loss-arg takes NAME=VALUE", id="no value"),
        pytest.param(["--loss-arg", "taw=1"], "sigmoid has no 'taw'", id="argument"),
        pytest.param(
            ["--loss", "discopop", "--loss-arg", "tau=0"],
            "tau of discopop must be a finite number above 0, found 0.0",
            id="range",
        ),
        pytest.param(["--loss-arg", "per_token=yes"], "must be True or False", id="yes"),
        pytest.param(["--loss-arg", "label_smoothing=nan"], "must be a finite number", id="NaN"),
        pytest.param(["--dialect", "trll"], "'trll' is not one of 'trl', 'dpo-paper'", id="dia"),
        pytest.param(
            ["--dialect", "trl", "--loss-arg", "label_smoothing=0.1"], "ignores it", id="refused"
        ),
        pytest.param(["--loss", "ipo", "--beta", "0"], "must be above 0 for ipo", id="beta"),
        pytest.param(["--loss", "aot"], "as batches=SIZE (--batch-size)", id="batches"),
    ],
)
def test_mistakes_exit_with_2(capsys, source, tmp_path, verb, options, said):
    outputs = [tmp_path / "s.parquet"] if verb == "score" else []
    code, out, err = run(capsys, verb, source, *outputs, *options)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.parquet"]


def test_data_that_lacks_what_the_loss_needs_exits_with_1(capsys, tmp_path, pairs):
    path = tmp_path / "bare.parquet"
    pairs.write_parquet(path)
    code, out, err = run(capsys, "evaluate", path, "--loss", "sft")
    assert (code, out) == (1, "")
    assert "chosen_num_tokens: missing" in err


def test_losses_are_listed(capsys):
    code, out, err = run(capsys, "losses")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["loss", "needs", "formula"]
    assert [line.split()[0] for line in lines[1 : len(EVERY_LOSS) + 1]] == list(EVERY_LOSS)
    by_name = {line.split()[0]: line for line in lines if line}
    assert "policy log-probs, token counts" in by_name["simpo"]
    assert "policy and reference log-probs, a batch size" in by_name["aot"]
    assert "policy and reference log-probs, token counts" in by_name["rdpo"]
    assert "token counts" not in by_name["ipo"]
    assert "reference" not in by_name["cpo"]
    assert "label_smoothing" in lines[-1]


def test_one_loss_is_told_in_full(capsys):
    code, out, _ = run(capsys, "losses", "ipo")
    assert code == 0
    for fact in ("arXiv 2310.12036", "(h_c - h_r - 1/(2 beta))^2", "ipo (per_token)", "OpenRLHF"):
        assert fact in out
    out = run(capsys, "losses", "exo_pair")[1]
    assert "0.001: share that the target gives to the rejected completion" in out
    assert "a finite number above 0 and at most 0.5" in out


def test_losses_as_json(capsys):
    code, out, err = run(capsys, "losses", "--json")
    assert (code, err) == (0, "")
    rows = {row["name"]: row for row in json.loads(out)["losses"]}
    assert list(rows) == list(EVERY_LOSS)
    assert rows["ipo"]["needs"] == "policy and reference log-probs"
    for name in LOSSES:
        row = rows[name]
        assert row["reference_free"] == next(k for k, v in REFERENCE.items() if name in v)
        assert ("optional" in row["per_token"]) == (name in PER_TOKEN_IF_ASKED)
        assert ("js_divergence" in row["f_divergence"]) == (name in DIVERGENT)
        assert ("token counts" in row["needs"]) == (name in NEED_COUNTS)
        assert {p["name"] for p in row["parameters"]} == {a for n, a in RANGES if n == name}
    assert json.loads(run(capsys, "losses", "ipo", "--json")[1]) == rows["ipo"]


def test_a_loss_that_there_is_not(capsys):
    for more in ([], ["--json"]):
        code, out, err = run(capsys, "losses", "ipoo", *more)
        assert (code, out) == (2, "")
        assert "there is no loss 'ipoo' (did you mean 'ipo'?)" in err


@pytest.mark.parametrize(("form", "begins"), [("csv", "loss,needs,"), ("markdown", "| loss |")])
def test_the_list_has_every_form(capsys, form, begins):
    code, out, err = run(capsys, "losses", "--output", form)
    assert (code, err) == (0, "")
    assert out.startswith(begins)
    assert all(name in out for name in EVERY_LOSS)
