"""The contract of completions: its columns, which rows break it, and how `check` says so."""

from __future__ import annotations

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from dpo_pipeline import ColumnError, DataWarning, Pairs, UsageError, check, dry_run, evaluate, read
from dpo_pipeline.columns import Needs, needs_of_columns, resolve, row_of
from dpo_pipeline.contract import Completions, bind
from dpo_pipeline.contract.compiling import check_schema
from dpo_pipeline.contract.rules import check_types

SOUND = {
    "prompt_id": ["a", "a", "b"],
    "completion_id": [0, 1, 0],
    "policy_logps": [-1.0, -2.0, -3.0],
    "ref_logps": [-1.5, -2.5, -3.5],
    "num_tokens": [3, 4, 5],
    "label": [True, False, True],
}


def completions(**changed):
    """Return three sound completions of two prompts, with these columns changed; None drops one."""
    return pl.DataFrame({n: v for n, v in (SOUND | changed).items() if v is not None})


@pytest.mark.parametrize(
    ("names", "row"),
    [
        pytest.param(["policy_logps"], "completion", id="sums"),
        pytest.param(["policy_token_logps", "label"], "completion", id="tokens"),
        pytest.param(["reference_logps"], "completion", id="a reference"),
        pytest.param(["policy_chosen_logps", "policy_logps"], "pair", id="pairs win"),
        pytest.param(["label", "rank", "score", "num_tokens"], "pair", id="no log-prob"),
    ],
)
def test_the_columns_decide_which_contract_a_file_has(names, row):
    assert row_of(names) == row


def test_a_mapped_column_decides_too():
    assert row_of(["reward"], {"policy_logps": "reward"}) == "completion"


def test_sound_completions_keep_the_contract_and_are_called_so():
    report = check(completions())
    assert (report.row, report.n_pairs, report.n_invalid) == ("completion", 3, 0)
    assert "all 3 completions keep the contract" in str(report)
    assert report.to_dict()["row"] == "completion"


@pytest.mark.parametrize(
    ("changed", "broken"),
    [
        ({"policy_logps": [None, -2.0, -3.0]}, "policy_logps.not_null"),
        ({"policy_logps": [float("nan"), -2.0, -3.0]}, "policy_logps.not_nan"),
        ({"policy_logps": [0.5, -2.0, -3.0]}, "policy_logps.at_most"),
        (
            {"policy_logps": [0.0, -2.0, -3.0], "ref_logps": [0.0, -1.0, -1.0]},
            "policy_logps.not_empty",
        ),
        ({"ref_logps": [float("-inf"), -2.0, -3.0]}, "ref_logps.finite"),
        ({"num_tokens": [0, 4, 5]}, "num_tokens.at_least"),
        ({"num_tokens": [1.5, 4.0, 5.0]}, "num_tokens.whole"),
        ({"label": [2, 0, 1]}, "label.not_null"),
        ({"label": ["perhaps", "chosen", "Rejected "]}, "label.not_null"),
        ({"label": None, "rank": [float("nan"), 1.0, 2.0]}, "rank.not_nan"),
        ({"label": None, "score": [None, 1.0, 2.0]}, "score.not_null"),
        ({"prompt_id": [None, "a", "b"]}, "prompt_id.not_null"),
        (
            {"policy_logps": None, "policy_token_logps": [[], [-1.0], [-2.0]]},
            "policy_token_logps.not_empty",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rule_finds_its_row(changed, broken):
    report = check(completions(**changed))
    assert report.by_rule == {broken: 1}
    (offender,) = report.broken[0].offenders
    assert offender.place == "row 0 (completion_id 0)"


def test_a_label_may_be_words_or_numbers():
    for label in (
        [1, 0, 1],
        [1.0, 0.0, 1.0],
        ["chosen", "rejected", "chosen"],
        ["True", "false", "1"],
    ):
        frame = completions(label=label)
        binding = bind(
            frame.lazy(), source="x", max_logp=0.0, needs=needs_of_columns(frame.columns)
        )
        made = binding.prepare(frame.lazy()).collect()
        assert made["label"].to_list() == [True, False, True]


def test_sums_and_counts_are_made_from_tokens():
    frame = completions(
        policy_logps=None,
        ref_logps=None,
        num_tokens=None,
        policy_token_logps=[[-1.0, -2.0], [-3.0], [-4.0]],
        token_mask=[[True, False], [True], [True]],
    )
    binding = bind(frame.lazy(), source="x", max_logp=0.0, needs=needs_of_columns(frame.columns))
    made = binding.prepare(frame.lazy()).collect()
    assert made["policy_logps"].to_list() == [-1.0, -3.0, -4.0]
    assert made["num_tokens"].to_list() == [1, 1, 1]
    assert "ref_logps" not in made


def test_aliases_are_those_that_tools_spell():
    spelled = {"policy_logprobs": "policy_logps", "reference_logps": "ref_logps", "side": "label"}
    found = resolve(["prompt_id", *spelled, "completion_tokens"]).mapping
    assert {column: role for role, column in found.items()} == spelled | {
        "prompt_id": "prompt_id",
        "completion_tokens": "num_tokens",
    }


def test_what_a_loss_asks_for_must_be_there():
    needs = Needs(row="completion", reference=True, extras=("label",))
    problems = resolve(["policy_logps"], needs=needs).problems
    assert [each.partition(":")[0] for each in problems] == ["ref_logps", "label"]


def test_ids_are_unique_within_their_prompt():
    assert check(completions(prompt_id=["a", "b", "b"])).doubts == ()
    with pytest.warns(DataWarning, match="completion_id is there more than once"):
        (doubt,) = check(completions(completion_id=[0, 0, 0])).doubts
    assert "1 of 3 completions has the completion_id" in doubt.evidence


def test_a_loss_of_pairs_refuses_completions():
    with pytest.raises(UsageError, match="these are completions, one a row"):
        evaluate(completions())


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_reader_takes_completions(tmp_path, ending):
    path = tmp_path / f"completions.{ending}"
    whole = completions(label=None, rank=[1, 2, 1])
    write = {"csv": whole.write_csv, "jsonl": whole.write_ndjson, "parquet": whole.write_parquet}
    write[ending](path)
    assert read(path).collect()["policy_logps"].to_list() == whole["policy_logps"].to_list()
    report = check(path)
    assert (report.row, report.n_pairs, report.n_invalid) == ("completion", 3, 0)


def test_a_dry_run_says_which_columns_it_took():
    facts = dry_run(check, Pairs(completions(), columns={"score": "num_tokens"})).facts
    assert facts.columns["score"] == "num_tokens"
    assert "rank" not in facts.columns


def test_our_types_are_those_of_the_pandera_model():
    needs = Needs(row="completion")
    frame = completions(completion_id=None, prompt_id=None, label=["x", "y", "z"]).lazy()
    problems = []
    for checking in (check_types, check_schema):
        with pytest.raises(ColumnError) as error:
            checking(frame, source="x", max_logp=0.0, contract=None, needs=needs)
        problems.append(error.value.problems)
    assert problems[0] == problems[1]
    assert "label: must be true or false" in problems[0][0]


def test_the_pandera_model_can_be_subclassed():
    class Short(Completions):
        class Config:
            strict = True

    frame = completions(completion_id=None, prompt_id=None).lazy()
    checked = check_schema(
        frame, source="x", max_logp=0.0, contract=Short, needs=Needs(row="completion")
    )
    assert_frame_equal(checked.collect(), frame.collect())
