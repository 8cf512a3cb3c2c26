"""Every hint on odd inputs of completions leads to a command that works."""

from __future__ import annotations

import json
import re
import shlex

import polars as pl
import pytest

from command_tools import run

COMPLETIONS = pl.DataFrame(
    {
        "prompt_id": [1, 1, 2, 2],
        "completion_id": [0, 1, 2, 3],
        "policy_logps": [-3.0, -4.0, -5.0, -6.0],
        "ref_logps": [-3.5, -4.0, -5.0, -6.5],
        "label": [True, False, False, True],
    }
)
REWARDBENCH = {
    "id": ["1", "2"],
    "subset": ["Math"] * 2,
    "scores": [[2.0, 1.0], [1.0, 2.0]],
    "num_correct": [1, 1],
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    COMPLETIONS.write_parquet("completions.parquet")
    COMPLETIONS.rename({"policy_logps": "mine"}).write_parquet("renamed.parquet")
    COMPLETIONS.drop("prompt_id", "completion_id").write_parquet("kto.parquet")
    dump = {
        "completion_id": 1,
        "prompt_tokens": 1,
        "prompt_logprobs": [None, {"5": {"logprob": -1.0, "rank": 1}}],
    }
    samples = {
        "doc_id": 0,
        "target": "0",
        "arguments": {"gen_args_0": {"arg_0": "q", "arg_1": "a"}},
        "resps": [[["-1.5", "False"]], [["-2.5", "False"]]],
        "filtered_resps": [["-1.5", "False"], ["-2.5", "False"]],
    }
    for name, document in (
        ("scores.json", REWARDBENCH),
        ("dump.json", dump),
        ("samples.jsonl", samples),
    ):
        (tmp_path / name).write_text(json.dumps(document) + "\n")


def tried(err):
    """The command that an error says to try."""
    line = re.search(r"^try: dpo-pipeline (.*)$", err, re.MULTILINE)
    return shlex.split(line[1].replace("NAME", "mine"))


@pytest.mark.repeats(5)  # a hint is of a file's form, whichever command met it
@pytest.mark.parametrize(
    "typed",
    [
        "rank renamed.parquet",
        "check renamed.parquet",
        "evaluate renamed.parquet --pairing all",
        "rank scores.json",
        "evaluate scores.json",
        "check scores.json",
        "rank samples.jsonl",
        "check dump.json",
        "evaluate kto.parquet --loss kto",
    ],
)
@pytest.mark.usefixtures("files")
def test_the_command_that_is_to_be_tried_works(capsys, typed):
    code, _, err = run(capsys, *typed.split())
    assert code != 0
    assert run(capsys, *tried(err))[0] == 0


@pytest.mark.parametrize(
    ("typed", "words", "works"),
    [
        ("evaluate kto.parquet", "--loss kto", "evaluate kto.parquet --loss apo_zero_unpaired"),
        ("score kto.parquet o.parquet", "unpaired loss", ""),
        ("evaluate completions.parquet", "--pairing all|", "rank completions.parquet"),
        ("compare completions.parquet renamed.parquet", "--pairing all|", ""),
        ("rank kto.parquet", "an unpaired loss needs none", ""),
        ("evaluate dump.json", "--format token-dump", ""),
    ],
)
@pytest.mark.usefixtures("files")
def test_what_is_said_instead_fits_the_columns(capsys, typed, words, works):
    code, _, err = run(capsys, *typed.split())
    assert code != 0
    assert words in " ".join(err.split())
    assert "policy_chosen_logps" not in err
    if works:
        assert run(capsys, *works.split())[0] == 0


@pytest.mark.usefixtures("files")
def test_pairs_are_not_ranked(capsys, pairs):
    pairs.write_parquet("pairs.parquet")
    code, _, err = run(capsys, "rank", "pairs.parquet")
    assert (code, "these are pairs, and rank is of completions: evaluate them" in err) == (2, True)
    code, _, err = run(capsys, "evaluate", "pairs.parquet", "--loss", "kto")
    assert (code, "give a loss of pairs (for kto: --loss kto_pair)" in err) == (2, True)
