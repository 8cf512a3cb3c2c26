"""Log-probs that TRL and open-instruct leave: read in one command, or refused."""

from __future__ import annotations

import json
import math
import pickle
import sys
from dataclasses import replace
from types import SimpleNamespace

import polars as pl
import pytest
from pyarrow import ipc

from dpo_pipeline import (
    ColumnError,
    Reference,
    StorageError,
    UsageError,
    evaluate,
    join_reference,
    read,
)
from dpo_pipeline.cli.program import main
from pair_tools import COUNTS, LOGPS
from reader_tools import SAMPLES, N, figures, summary, write_stream

# TRL


def trl_logps():
    """What TRL's own dataset returned for its columns when the sample was made."""
    return json.loads((SAMPLES / "trl_dataset.json").read_text())


def with_counts(policy, lengths=None):
    """Give the policy the token counts of TRL's completions."""
    parts = sorted((SAMPLES / "trl_dataset").glob("data-*.arrow"))
    rows = [row for p in parts for row in ipc.open_stream(p.read_bytes()).read_all().to_pylist()]
    counts = [
        pl.Series(name, lengths or [len(row[key]) for row in rows], dtype=pl.Int64)
        for name, key in zip(COUNTS, ("chosen_ids", "rejected_ids"), strict=True)
    ]
    pl.read_parquet(policy).with_columns(counts).write_parquet(policy)
    return policy


def test_trl_reference_in_one_command(capsys, eight, policy):
    with_counts(policy)
    found = summary(
        capsys, policy, "--reference", SAMPLES / "trl_dataset", "--reference-format", "trl"
    )
    own = eight.select(LOGPS[:2]).rows()
    logps = zip(*(trl_logps()[name] for name in LOGPS[2:]), strict=True)
    rows = [(*mine, *theirs) for mine, theirs in zip(own, logps, strict=True)]
    assert found == pytest.approx(figures(rows), abs=1e-12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            lambda p: p, "chosen_num_tokens and rejected_num_tokens of the policy", id="no"
        ),
        pytest.param(
            lambda p: with_counts(p, [3] * N), "rows have completions of other", id="other"
        ),
        pytest.param(
            lambda p: with_counts(p) and pl.read_parquet(p)[:-1].write_parquet(p),
            "1 of 8 rows have completions of other lengths, or are on one side only",
            id="short",
        ),
    ],
)
def test_a_row_number_is_no_id_unless_lengths_prove_it(capsys, policy, change, said):
    change(policy)
    arguments = ["--reference", str(SAMPLES / "trl_dataset"), "--reference-format", "trl"]
    assert main(["evaluate", str(policy), *arguments]) == 1
    err = capsys.readouterr().err
    assert "the number of a row is no identity" in err
    assert said in err
    assert "carry an id: add a column pair_id" in err


def test_an_id_that_the_dataset_carries_needs_no_proof(capsys, policy, tmp_path):
    rows = read(SAMPLES / "trl_dataset", "trl").collect().with_columns(pl.col("pair_id") + 100)
    rows.write_parquet(tmp_path / "ref.parquet")
    pl.read_parquet(policy).with_columns(pl.col("pair_id") + 100).write_parquet(policy)
    summary(capsys, policy, "--reference", tmp_path / "ref.parquet", "--reference-format", "trl")


def test_trl_as_pairs_is_told_to_be_the_reference(capsys):
    path = str(SAMPLES / "trl_dataset")
    assert main(["evaluate", path, "--format", "trl"]) == 2
    assert f"--reference {path} --reference-format trl" in capsys.readouterr().err


def test_missing_columns_list_what_is_there_once(capsys, policy):
    assert main(["evaluate", str(policy)]) == 1
    err = capsys.readouterr().err
    assert err.count("The columns are pair_id, policy_chosen_logps") == 1
    assert err.count("give that as reference (--reference)") == 1


def test_trl_rows_are_numbered_and_nothing_is_lost():
    rows = read(SAMPLES / "trl_dataset", "trl").collect()
    assert rows["pair_id"].to_list() == list(range(N))
    assert rows.select(LOGPS[2:]).to_dict(as_series=False) == trl_logps()
    assert rows["prompt"].to_list() == [f"w{i} w{i + 1}" for i in range(N)]


def test_trl_files_and_names_of_other_versions(tmp_path):
    shard = SAMPLES / "trl_dataset" / "data-00001-of-00002.arrow"
    assert (
        read(shard, "trl").collect()["ref_chosen_logps"].to_list()
        == (trl_logps()["ref_chosen_logps"][4:])
    )
    older = pl.DataFrame(
        {"pair_id": ["a"], "reference_chosen_logps": [-21.0], "reference_rejected_logps": [-2.0]}
    )
    older.write_parquet(tmp_path / "older.parquet")
    rows = read(tmp_path / "older.parquet", "trl")
    own = pl.DataFrame({"pair_id": ["a"], LOGPS[0]: [-30.0], LOGPS[1]: [-40.0]})
    assert evaluate(own, reference=rows).summary.chosen_reward == pytest.approx(-0.9)


def test_trl_without_reference_columns(tmp_path):
    rows = pl.DataFrame({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    write_stream(rows, tmp_path / "data.arrow")
    state = {"_data_files": [{"filename": "data.arrow"}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ColumnError, match="precompute_ref_log_probs=True"):
        read(tmp_path, "trl")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("dataset_dict.json", {"splits": ["train", "test"]}, r"several splits \(train, test\)"),
        ("state.json", {"_data_files": []}, "without rows"),
        ("other.json", {}, "looked for .arrow, .parquet"),
        ("state.json", {"_data_files": [{"filename": "gone.arrow"}]}, "no such file"),
        ("state.json", {"_data_files": [{"filename": "../x.arrow"}]}, "outside its folder"),
        ("state.json", {"_data_files": [{"filename": "/dev/zero"}]}, "outside its folder"),
        ("state.json", {"_data_files": [{"filename": ".."}]}, "outside its folder"),
        ("state.json", {"_data_files": [{"filename": 3}]}, "no list of names"),
        ("state.json", {"_data_files": [{}]}, "not as save_to_disk writes it"),
        ("state.json", {"_data_files": 3}, "not as save_to_disk writes it"),
        ("state.json", [], "not as save_to_disk writes it"),
        ("dataset_dict.json", {"splits": [1]}, "no list of names"),
        ("dataset_dict.json", {}, "not as save_to_disk writes it"),
    ],
)
def test_folders_that_are_no_dataset(tmp_path, name, content, said):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(StorageError, match=said):
        read(tmp_path, "trl")


# open-instruct


def expected_of_open_instruct(eight):
    rows = eight.select(LOGPS).rows()
    return figures([row for i, row in enumerate(rows) if i != 5])


def test_open_instruct_cache_in_one_command(capsys, eight, policy):
    pytest.importorskip("torch")
    pl.read_parquet(policy).rename({"pair_id": "index"}).write_parquet(policy)
    options = ["--reference-format", "open-instruct", "--on", "index", "--on-invalid", "exclude"]
    found = summary(capsys, policy, "--reference", SAMPLES / "open_instruct.pt", *options)
    assert found == pytest.approx(expected_of_open_instruct(eight), abs=1e-12)
    assert main(["evaluate", str(policy), "--reference", str(SAMPLES / "open_instruct.pt"),
                 *options[:4]]) == 1  # fmt: skip
    assert "ref_chosen_logps.not_null    not null      1  row 5" in capsys.readouterr().err


def test_open_instruct_averages_in_one_command(capsys, policy):
    pytest.importorskip("torch")
    cache = SAMPLES / "open_instruct_averaged.pt"
    pl.read_parquet(policy).rename({"pair_id": "index"}).write_parquet(policy)
    arguments = ["evaluate", str(policy), "--reference", str(cache), "--on-invalid", "exclude"]
    arguments += ["--on", "index"]
    assert main([*arguments, "--reference-format", "open-instruct"]) == 1
    assert "look averaged over tokens" in capsys.readouterr().err
    assert main([*arguments, "--reference-format", "open-instruct-averaged"]) == 0


class Tensor:
    """As much of a tensor as is asked for."""

    dtype = "torch.float32"

    def __init__(self, *values, floats=True, shape=None):
        self.values = values
        self.floats = floats
        self.shape = (len(values),) if shape is None else shape

    def is_floating_point(self):
        return self.floats

    def tolist(self):
        return list(self.values)


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """Make a file that a stand-in for torch loads as what was given."""

    def make(content):
        path = tmp_path / "cache.pt"
        path.write_bytes(pickle.dumps(None))

        def load(place, *, map_location, weights_only):
            assert (place, map_location, weights_only) == (str(path), "cpu", True)
            if isinstance(content, Exception):
                raise content
            return content

        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(load=load))
        return path

    return make


def test_the_index_of_open_instruct_is_no_pair_id(cached, policy):
    cache = cached(
        {f"{side}_logps": Tensor(*[-50.5 - i for i in range(N)]) for side in ("chosen", "rejected")}
    )
    reference = Reference(cache, format="open-instruct")
    with pytest.raises(ColumnError, match="number of a row is no identity; .* --on index"):
        evaluate(policy, reference=reference)
    with pytest.raises(ColumnError, match="number of a row is no identity"):
        join_reference(pl.read_parquet(policy), reference)
    carried = pl.read_parquet(policy).rename({"pair_id": "index"})
    joined = join_reference(carried, replace(reference, on="index")).collect()
    assert joined["ref_chosen_logps"].to_list() == [-50.5 - i for i in joined["index"]]


def test_open_instruct_ends_in_the_contracts_columns(cached):
    cache = cached(
        {
            "chosen_logps": Tensor(-50.5, -math.inf, math.nan),
            "rejected_logps": Tensor(-60.0, -70.0, -1.0),
        }
    )
    rows = read(cache, "open-instruct").collect()
    assert rows.columns == ["index", "ref_chosen_logps", "ref_rejected_logps"]
    assert rows.rows()[:2] == [(0, -50.5, -60.0), (1, None, -70.0)]
    assert math.isnan(rows.row(2)[1])


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        pytest.param({"chosen_logps": Tensor(-1.0)}, ColumnError, "found chosen_logps", id="key"),
        pytest.param([1, 2], ColumnError, "must be a dictionary .* found list", id="list"),
        pytest.param(
            {"chosen_logps": Tensor(-1.0), "rejected_logps": Tensor(-1.0, -2.0)},
            ColumnError,
            "chosen_logps has 1 values and rejected_logps 2",
            id="lengths",
        ),
        pytest.param(
            {"chosen_logps": Tensor(-1.0, shape=(1, 1)), "rejected_logps": Tensor(-1.0)},
            ColumnError,
            r"chosen_logps: must be a tensor of floats in one row, found torch.float32 of \[1, 1\]",
            id="shape",
        ),
        pytest.param(
            {"chosen_logps": Tensor(1, floats=False), "rejected_logps": Tensor(-1.0)},
            ColumnError,
            "chosen_logps: must be a tensor of floats",
            id="integers",
        ),
        pytest.param(
            {"chosen_logps": [-1.0], "rejected_logps": [-1.0]},
            ColumnError,
            "found list",
            id="no tensor",
        ),
        pytest.param(
            {"chosen_logps": Tensor(-1.5), "rejected_logps": Tensor(-9.5)},
            ColumnError,
            r"no log-prob is below -10 nats \(the lowest is -9.5\)",
            id="averaged",
        ),
        pytest.param(
            RuntimeError("set weights_only=False\nand more"),
            StorageError,
            "is not a file of torch, or holds more than tensors$",
            id="no torch file",
        ),
    ],
)
def test_caches_of_a_wrong_shape(cached, content, kind, said):
    with pytest.raises(kind, match=said):
        read(cached(content), "open-instruct")


def test_averages_that_are_said_to_be_so(cached):
    averages = {"chosen_logps": Tensor(-1.5), "rejected_logps": Tensor(-9.5)}
    rows = read(cached(averages), "open-instruct-averaged").collect()
    assert rows.rows() == [(0, -1.5, -9.5)]


def test_a_missing_torch_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match="needs torch"):
        read(SAMPLES / "open_instruct.pt", "open-instruct")


def test_a_cache_of_the_reference_is_no_pairs(capsys):
    path = str(SAMPLES / "open_instruct.pt")
    assert main(["evaluate", path, "--format", "open-instruct"]) == 2
    assert f"give it as reference of the policy's (--reference {path}" in (capsys.readouterr().err)
