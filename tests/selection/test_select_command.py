"""Columns of other names on the command line of `select` and `rank`."""

from __future__ import annotations

import polars as pl

from dpo_pipeline.cli.program import main
from pair_tools import EXAMPLES


def test_a_column_of_another_name_is_mapped(tmp_path, capsys):
    pairs = pl.read_parquet(EXAMPLES / "pairs.parquet")
    pairs.rename({"policy_chosen_logps": "mine"}).write_parquet(tmp_path / "pairs.parquet")
    words = ["select", str(tmp_path / "pairs.parquet"), "--rule", "random", "--keep", "10%"]
    assert main(words) == 1
    assert main([*words, "--column", "policy_chosen_logps=mine"]) == 0
    assert "random keeps 20 of 200 pairs" in capsys.readouterr().out


def test_it_says_what_a_rule_is_blind_to_and_then_what_it_keeps_and_wrote(tmp_path, capsys):
    out = tmp_path / "kept.parquet"
    words = ["select", EXAMPLES / "pairs.parquet", out, "--rule", "nearest_tie", "--keep", "50%"]
    assert main([str(word) for word in words]) == 0
    said, err = capsys.readouterr()
    assert said.startswith("note: nearest_tie is blind to ")
    assert 0 < said.index("\nnearest_tie keeps 100 of 200 pairs") < said.index("\nkept by")
    assert err == f"wrote {out}: 100 rows, {out.stat().st_size:,} bytes\n"


def test_completions_of_other_names_are_mapped(tmp_path, capsys):
    source = pl.read_csv(EXAMPLES / "completions.csv")
    source.rename({"policy_logps": "mine"}).write_csv(tmp_path / "completions.csv")
    words = ["rank", str(tmp_path / "completions.csv")]
    assert main([*words, "--column", "policy_logps=mine", "--json"]) == 0
    mapped = capsys.readouterr().out
    assert main(["rank", str(EXAMPLES / "completions.csv"), "--json"]) == 0
    assert mapped.replace(str(tmp_path), "") == capsys.readouterr().out.replace(str(EXAMPLES), "")
