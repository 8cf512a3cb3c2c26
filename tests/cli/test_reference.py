"""A joined reference on the command line."""

from __future__ import annotations

import json

import pytest

from dpo_pipeline import evaluate
from dpo_pipeline.cli.program import main
from pair_tools import REFS, split


def test_one_command_from_two_files_to_the_figures(tmp_path, real_pairs, monkeypatch, capsys):
    policy, reference = split(real_pairs)
    mapping = {ref: ref.replace("ref_", "policy_") for ref in REFS}
    policy.rename({"pair_id": "key"}).write_parquet(tmp_path / "policy.parquet")
    reference.rename({"pair_id": "key", **mapping}).write_parquet(tmp_path / "base.parquet")
    options = [f"--reference-column={role}={name}" for role, name in mapping.items()]
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "policy.parquet", "--json", "--reference", "base.parquet", "--on", "key"]
    assert main([*words, *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["summary"] == evaluate(real_pairs).summary.to_dict()


@pytest.mark.repeats(2)  # they have one group of options
@pytest.mark.parametrize("verb", ["evaluate", "check", "sweep", "score"])
def test_every_command_takes_a_reference(tmp_path, capsys, files, verb):
    out = [tmp_path / "out.parquet"] if verb == "score" else []
    assert main([str(a) for a in (verb, files[0], *out, "--reference", files[1])]) == 0
    assert "6 pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        pytest.param(["--reference", "{r}", "--on", "pairid"], 2, "'pair_id'?", id="key"),
        pytest.param(["--reference", "nothing.parquet"], 3, "no such file", id="file"),
        pytest.param(["--reference-column", "x"], 2, "--reference-column takes", id="no ="),
        pytest.param(["--reference-column", "ref_chosen_logps=x"], 2, "give one", id="alone"),
        pytest.param(
            ["--reference", "{r}", "--reference-column", "ref_chosen_logps=ref_chosn_logps"],
            2,
            "did you mean 'ref_chosen_logps'?",
            id="column",
        ),
        pytest.param(
            ["--reference", "{r}", "--loss", "aot", "--batch-size", "2"], 2, "batches", id="aot"
        ),
    ],
)
def test_mistakes_on_the_command_line(capsys, files, options, code, said):
    found = main(["evaluate", str(files[0]), *(o.format(r=files[1]) for o in options)])
    out, err = capsys.readouterr()
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err
