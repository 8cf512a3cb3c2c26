"""vLLM's lines, joined into pairs; `test_dump_shapes` has the other shapes."""

from __future__ import annotations

import json
import math

import polars as pl
import pytest

from dpo_pipeline import ColumnError, read
from pair_tools import DATA, LOGPS
from reader_tools import SAMPLES, figures, summary


@pytest.fixture(scope="module")
def tokens():
    """Real token log-probs; the samples hold three of these pairs."""
    lines = (SAMPLES / "vllm_policy.jsonl").read_text().splitlines()
    ids = {json.loads(line)["pair_id"] for line in lines}
    path = DATA / "hh_harmless_policy_a_test_tokens.parquet"
    return [r for r in pl.read_parquet(path).iter_rows(named=True) if r["pair_id"] in ids]


def test_vllm_in_one_command(capsys, tokens):
    found = summary(
        capsys,
        SAMPLES / "vllm_policy.jsonl",
        "--format",
        "vllm",
        "--reference",
        SAMPLES / "vllm_reference.jsonl",
        "--reference-format",
        "vllm",
    )
    rows = [
        [math.fsum(row[name.replace("_logps", "_token_logps")]) for name in LOGPS] for row in tokens
    ]
    assert found == pytest.approx(figures(rows), abs=1e-12)


def test_vllm_ends_in_the_contracts_columns(tokens):
    rows = read(SAMPLES / "vllm_policy.jsonl", "vllm").collect()
    assert rows.columns == ["pair_id", *LOGPS[:2], "chosen_num_tokens", "rejected_num_tokens"]
    assert rows["rejected_num_tokens"].to_list() == [
        len(row["policy_rejected_token_logps"]) for row in tokens
    ]
    as_reference = read(SAMPLES / "vllm_policy.jsonl", "vllm", as_reference=True).collect()
    assert as_reference["ref_chosen_logps"].to_list() == rows["policy_chosen_logps"].to_list()


def line(**changes):
    """A line whose completion is the tokens 8 and 9, changed; None takes a key away."""
    logprobs = [
        None,
        {"7": {"logprob": -5.0, "rank": 1, "decoded_token": "a"}},
        {"8": {"logprob": -1.5, "rank": 1, "decoded_token": "b"}},
        {
            "9": {"logprob": -2.5, "rank": 2, "decoded_token": "c"},
            "3": {"logprob": -0.5, "rank": 1, "decoded_token": "d"},
        },
    ]
    row = {
        "pair_id": 1,
        "side": "chosen",
        "prompt_tokens": 2,
        "prompt_logprobs": logprobs,
        "prompt_token_ids": [6, 7, 8, 9],
    }
    row |= changes
    return {name: value for name, value in row.items() if value is not None}


def lines(tmp_path, *rows):
    path = tmp_path / "responses.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_completion_is_summed_from_its_first_token(tmp_path):
    rows = read(lines(tmp_path, line(), line(side="rejected", prompt_tokens=3)), "vllm").collect()
    assert rows.rows() == [(1, -4.0, -2.5, 2, 1)]


def test_token_ids_are_not_needed_where_there_is_one_log_prob(tmp_path):
    single = line(prompt_logprobs=line()["prompt_logprobs"][:3], prompt_token_ids=None)
    assert (
        read(lines(tmp_path, single, line(side="rejected")), "vllm").collect()[LOGPS[0]].item()
        == -1.5
    )


def test_what_a_server_clamped_is_minus_infinity_again(tmp_path):
    logprobs = [*line()["prompt_logprobs"][:3], {"9": {"logprob": -9999.0}}]
    path = lines(tmp_path, line(prompt_logprobs=logprobs), line(side="rejected"))
    assert read(path, "vllm").collect()["policy_chosen_logps"].item() == -math.inf


def test_an_empty_completion_counts_no_token(tmp_path):
    path = lines(tmp_path, line(prompt_tokens=4), line(side="rejected"))
    assert read(path, "vllm").collect().rows() == [(1, 0.0, -4.0, 0, 2)]


def test_a_side_that_is_missing_is_said_with_its_pair(tmp_path):
    path = lines(tmp_path, line(pair_id="b", side="rejected"), line(pair_id="c"))
    with pytest.raises(ColumnError) as caught:
        read(path, "vllm")
    problem = "2 sides missing: chosen of pair 'b', rejected of pair 'c'; ask again, or leave out"
    assert problem in caught.value.problems[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({"pair_id": None}, "pair_id must be .*, and is missing", id="no pair"),
        pytest.param(
            {"error": {"message": "too long"}, "choices": None},
            'the server answered with an error: {"message": "too long"}',
            id="error",
        ),
        pytest.param({"pair_id": True}, "pair_id must be", id="odd pair"),
        pytest.param({"side": "left"}, "side must be 'chosen' or 'rejected', found 'left'", id="s"),
        pytest.param(
            {"prompt_tokens": None}, "prompt_tokens must be .*, and is missing", id="no prompt"
        ),
        pytest.param({"prompt_tokens": 0}, "prompt_tokens must be", id="empty prompt"),
        pytest.param({"prompt_tokens": 5}, "and the response has 4 tokens", id="long prompt"),
        pytest.param({"prompt_logprobs": None}, "ask the server for it", id="no log-probs"),
        pytest.param({"prompt_token_ids": None}, "return_token_ids", id="no ids"),
        pytest.param({"prompt_token_ids": [1]}, "1 token ids and 4", id="lengths"),
        pytest.param({"prompt_token_ids": [6, 7, 8, 4]}, r"\[3\] has no token 4", id="other ids"),
        pytest.param({"choices": []}, "one prompt and n=1", id="choices"),
        pytest.param({"prompt_logprobs": [None] * 4}, r"\[2\] must be an object", id="nulls"),
        pytest.param(
            {"prompt_logprobs": [None, None, {"8": {}}, {"9": {}}]}, "no logprob of", id="no value"
        ),
        pytest.param({}, "chosen of pair 1 is there a second time", id="twice"),
    ],
)
def test_lines_of_a_wrong_shape(tmp_path, changes, said):
    with pytest.raises(ColumnError, match=f"line 2: .*{said}"):
        read(lines(tmp_path, line(), line(**changes)), "vllm")


def test_pairs_have_names_of_one_kind(tmp_path):
    with pytest.raises(ColumnError, match="pair_id: numbers in some lines, and something else"):
        read(lines(tmp_path, line(), line(pair_id="a")), "vllm")
