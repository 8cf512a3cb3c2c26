"""Readers of other formats: samples of the tools give figures known by other means, or an error."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from statistics import fmean
from threading import Event
from types import SimpleNamespace

import polars as pl
import pyarrow as pa
import pytest

import dpo_pipeline
from conftest import DATA, LOGPS, reference_row
from dpo_pipeline import (
    Cancelled,
    ColumnError,
    StorageError,
    UsageError,
    check,
    convert,
    evaluate,
    read,
    score_parquet,
    sweep,
)
from dpo_pipeline.cli.program import main
from dpo_pipeline.sources.formats import FORMATS, guess
from dpo_pipeline.sources.opening import READERS, opened
from dpo_pipeline.sources.text_files import INFERRED_ROWS

SAMPLES = DATA / "formats"
N = 8


@pytest.fixture
def eight(real_pairs):
    """The real pairs behind the samples; in Float64, so that text holds them exactly."""
    return real_pairs.head(N).with_columns(pl.col(LOGPS).cast(pl.Float64))


@pytest.fixture
def policy(eight, tmp_path):
    """The policy's side, numbered as the samples of references are."""
    path = tmp_path / "policy.parquet"
    own = eight.select(pl.int_range(N).alias("pair_id"), *LOGPS[:2])
    own.write_parquet(path)
    return path


def figures(rows, beta=0.1):
    """Return means of loss, rewards and accuracy by plain Python."""
    scored = [reference_row(*row, beta) for row in rows]
    return {
        "loss": fmean(loss for _, _, loss in scored),
        "rewards/chosen": fmean(chosen for chosen, _, _ in scored),
        "rewards/rejected": fmean(rejected for _, rejected, _ in scored),
        "rewards/accuracies": fmean(chosen > rejected for chosen, rejected, _ in scored),
        "rewards/margins": fmean(chosen - rejected for chosen, rejected, _ in scored),
    }


def summary(capsys, *arguments):
    """Return what one command prints."""
    code = main(["evaluate", *map(str, arguments), "--json", "--quiet"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return {n: v for n, v in json.loads(out)["metrics"].items() if not n.startswith("logps")}


def write_stream(frame, path, rows=3):
    table = frame.to_arrow()
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table, max_chunksize=rows)


TABLES = {
    "parquet": pl.DataFrame.write_parquet,
    "jsonl": pl.DataFrame.write_ndjson,
    "csv": pl.DataFrame.write_csv,
    "feather": pl.DataFrame.write_ipc,
    "arrow": write_stream,
}


@pytest.mark.parametrize("ending", TABLES)
def test_a_table_goes_to_the_summary_in_one_command(capsys, tmp_path, eight, ending):
    path = tmp_path / f"pairs.{ending}"
    TABLES[ending](eight, path)
    expected = figures(eight.select(LOGPS).rows())
    assert summary(capsys, path) == pytest.approx(expected, abs=1e-12)
    assert evaluate(read(path)).to_metrics() == evaluate(eight).to_metrics()


@pytest.mark.parametrize("ending", TABLES)
def test_reading_is_lazy_and_evaluating_reads_once(tmp_path, eight, engine, ending):
    path = tmp_path / f"pairs.{ending}"
    TABLES[ending](eight, path)
    engine.graphs.clear()
    rows = read(path)
    assert engine.graphs == []
    evaluate(rows)
    assert len(engine.graphs) == 1


@pytest.mark.parametrize("ending", TABLES)
def test_a_list_a_glob_and_a_folder(tmp_path, eight, ending):
    folder = tmp_path / "odd [1]" / "deeper"
    folder.mkdir(parents=True)
    paths = [folder / f"{part}[x].{ending}" for part in "ab"]
    for path, rows in zip(paths, (eight.head(3), eight.tail(5)), strict=True):
        TABLES[ending](rows, path)
    TABLES[ending](eight, folder / f"_hidden.{ending}")
    expected = evaluate(eight).summary
    name = guess(paths)
    for source in (paths, folder.parent, tmp_path / "*" / "deeper" / f"*.{ending}"):
        assert evaluate(read(source, name)).summary == expected


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_first_rows_do_not_decide_what_a_log_prob_is(tmp_path, ending):
    n = INFERRED_ROWS + 2
    whole = pl.int_range(-n, 0, eager=True)
    frame = pl.DataFrame(dict.fromkeys(LOGPS[1:], whole))
    frame = frame.with_columns(
        mine=whole.cast(pl.Float64) - pl.Series([0.0] * (n - 1) + [0.5]),
        chosen_num_tokens=pl.Series([None] * (n - 1) + [3]),
        note=pl.Series([None] * (n - 1) + ["late"]),
    )
    path = tmp_path / f"pairs.{ending}"
    if ending == "csv":
        text = frame.with_columns(pl.col("mine").cast(pl.String).str.strip_suffix(".0"))
        text.write_csv(path)
    else:
        rows = frame.to_dicts()
        for row in rows[:-1]:
            row["mine"] = int(row["mine"])
        path.write_text("\n".join(map(json.dumps, rows)))
    columns = {LOGPS[0]: "mine"}
    rows = read(path, columns=columns)
    assert rows.collect().row(-1, named=True)["note"] == "late"
    mean = evaluate(rows, columns=columns).summary.policy_chosen_logps
    assert mean == pytest.approx(fmean([*range(-n, -1), -1.5]), abs=1e-9)


def test_csv_takes_nulls_infinities_and_what_the_contract_counts(tmp_path):
    path = tmp_path / "pairs.csv"
    values = ["-1.5", "", "nan", "-inf", "-Infinity", "inf", "2.5"]
    lines = [f"{value},-20,-30,-40" for value in values]
    path.write_text("\n".join([",".join(LOGPS), *lines]))
    broken = {rule.name: rule.count for rule in check(read(path)).broken}
    assert broken == {
        "policy_chosen_logps.not_null": 1,
        "policy_chosen_logps.not_nan": 1,
        "policy_chosen_logps.finite": 3,
        "policy_chosen_logps.at_most": 1,
    }


def test_token_lists_in_json_lines(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lists = {name.replace("_logps", "_token_logps"): [-1, -2] for name in LOGPS}
    late = {name: [-30.5 - i] for i, name in enumerate(lists)}
    path.write_text("\n".join(map(json.dumps, [lists] * INFERRED_ROWS + [late])))
    found = evaluate(read(path).tail(1)).summary
    assert found.policy_chosen_logps == -30.5


CONTENTS = {
    "parquet": b"PAR1 and more",
    "text": b"nothing of use",
    "json array": b'[{"a": 1},\n {"a": 2}]',
    "nan": b'{"policy_chosen_logps": NaN}',
    "empty": b"",
    "text in csv": (",".join(LOGPS) + "\n-1,-2,-3,-4\n-1,n/a,-3,-4\n").encode(),
    "twice in csv": b"policy_chosen_logps,policy_chosen_logps\n-1,-2\n",
    "semicolons": b"policy_chosen_logps;ref_chosen_logps\n-1;-2\n",
    "json lines": b'{"a": 1}\n',
    "text scores": b'{"scores_chosen": "1", "scores_rejected": "2"}\n',
    "texts": b'{"chosen": "good", "rejected": "bad"}\n',
    "rewardbench 2": b'{"scores": [1.5, 2.5, 0.5], "num_correct": 1}\n',
}


@pytest.mark.parametrize(
    ("format_name", "content", "kind", "said"),
    [
        pytest.param("ndjson", "parquet", StorageError, "is Parquet, and not text", id="1"),
        pytest.param("ndjson", "json array", StorageError, "one JSON object a line", id="2"),
        pytest.param("ndjson", "nan", StorageError, "JSON has no NaN", id="3"),
        pytest.param("ndjson", "empty", StorageError, "cannot be read as NDJSON", id="4"),
        pytest.param("csv", "parquet", StorageError, "is Parquet, and not text", id="5"),
        pytest.param("csv", "empty", StorageError, "cannot be read as CSV: empty", id="6"),
        pytest.param(
            "csv",
            "text in csv",
            ColumnError,
            "policy_rejected_logps: must be a number, and is text in 1 row, first at row 1: 'n/a'",
            id="7",
        ),
        pytest.param("csv", "twice in csv", ColumnError, "the header has it twice", id="8"),
        pytest.param("csv", "semicolons", StorageError, "the separator looks like ';'", id="19"),
        pytest.param("ipc", "parquet", StorageError, "is Parquet, not Arrow IPC", id="9"),
        pytest.param("ipc", "text", StorageError, "is not Arrow IPC", id="10"),
        pytest.param("trl", "text", StorageError, "is not Arrow IPC", id="11"),
        pytest.param("parquet", "text", StorageError, "cannot be read as Parquet", id="12"),
        pytest.param("rewardbench", "json lines", ColumnError, "scores_chosen, scores_", id="13"),
        pytest.param("rewardbench", "text scores", ColumnError, "must be a number, or a", id="14"),
        pytest.param("rewardbench", "texts", ColumnError, "chosen: must be a number", id="15"),
        pytest.param("rewardbench", "rewardbench 2", ColumnError, "and no pairs", id="16"),
        pytest.param("vllm", "json lines", ColumnError, "line 1: pair_id must be", id="17"),
        pytest.param("vllm", "text", ColumnError, "line 1: Expecting value", id="18"),
    ],
)
def test_a_wrong_shape_is_said_with_the_file(tmp_path, format_name, content, kind, said):
    path = tmp_path / "file"
    path.write_bytes(CONTENTS[content])
    with pytest.raises(kind) as caught:
        read(path, format_name)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_not_there_is_said(tmp_path, name):
    with pytest.raises(StorageError, match="no such file or folder"):
        read(tmp_path / "nothing", name)
    with pytest.raises((StorageError, UsageError)):
        read([], name)
    with pytest.raises(StorageError):
        read(tmp_path, name)


def test_damaged_arrow_is_said(tmp_path, eight):
    stream, file = tmp_path / "stream.arrow", tmp_path / "file.arrow"
    write_stream(eight, stream)
    eight.write_ipc(file)
    for path in (stream, file):
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(StorageError, match="as an Arrow IPC file"):
        read(file)
    with pytest.raises(StorageError, match="as an Arrow IPC stream"):
        evaluate(read(stream))


def test_streams_of_one_source_are_alike(tmp_path, eight):
    paths = [tmp_path / "a.arrow", tmp_path / "b.arrow"]
    write_stream(eight, paths[0])
    write_stream(eight.drop("turns"), paths[1])
    with pytest.raises(StorageError, match=r"b.arrow: has other columns or types than .*a.arrow"):
        read(paths)


def test_a_stream_is_cut_and_filtered_as_any_scan(tmp_path, eight):
    path = tmp_path / "a.arrow"
    write_stream(eight, path)
    rows = read(path)
    assert rows.head(4).collect().equals(eight.head(4))
    assert rows.filter(pl.col("turns") > 2).collect().equals(eight.filter(pl.col("turns") > 2))
    assert rows.select(pl.len()).collect().item() == N


def test_a_stream_makes_only_the_columns_that_are_asked_for(tmp_path, eight, monkeypatch):
    path = tmp_path / "a.arrow"
    write_stream(eight, path)
    rows = read(path).select("turns")
    made = []

    def frame(batch):
        made.append(batch.schema.names)
        return whole(batch)

    whole = pl.DataFrame
    monkeypatch.setattr(pl, "DataFrame", frame)
    rows.collect(engine="streaming")
    assert made == [["turns"]] * 4  # the empty one, and eight rows by three


# RewardBench


REWARDBENCH = (
    "rewardbench_outputs.jsonl",
    "rewardbench_all.jsonl",
    "rewardbench_eval_set_scores.json",
)


@pytest.fixture(scope="module")
def results():
    """RewardBench's own lines: the scores, and which of them it counted as correct."""
    lines = (SAMPLES / "rewardbench_outputs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", REWARDBENCH)
def test_rewardbench_gives_its_own_figures(capsys, results, name):
    found = summary(capsys, SAMPLES / name, "--format", "rewardbench")
    pairs = [(row["scores_chosen"], row["scores_rejected"]) for row in results]
    assert any(score > 0 for pair in pairs for score in pair)
    expected = figures([(c, r, 0.0, 0.0) for c, r in pairs], beta=1.0)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found["rewards/accuracies"] == fmean(row["results"] for row in results)
    assert found["rewards/margins"] == pytest.approx(fmean(c - r for c, r in pairs), abs=1e-12)


def test_rewardbench_by_subset(results):
    rows = read(SAMPLES / "rewardbench_outputs.jsonl", "rewardbench")
    found = evaluate(rows, by="subset", **FORMATS["rewardbench"].settings).subsets
    shares = {
        subset: fmean(row["results"] for row in results if row["subset"] == subset)
        for subset in {row["subset"] for row in results}
    }
    assert dict(found.select("subset", "reward_accuracy").rows()) == shares


@pytest.mark.parametrize(
    ("arguments", "beta"),
    [
        pytest.param(["--beta", "0.2"], 0.2, id="beta"),
        pytest.param(["--dialect", "trl", "--loss", "cpo"], 0.1, id="loss and dialect"),
        pytest.param(["--loss", "cpo"], 1.0, id="loss"),
        pytest.param(["--loss-arg", "label_smoothing=0"], 1.0, id="argument"),
    ],
)
def test_settings_of_a_format_give_way(capsys, results, arguments, beta):
    path = SAMPLES / "rewardbench_outputs.jsonl"
    found = summary(capsys, path, "--format", "rewardbench", *arguments)
    rows = [(row["scores_chosen"], row["scores_rejected"], 0.0, 0.0) for row in results]
    assert found == pytest.approx(figures(rows, beta=beta), abs=1e-12)


def test_a_limit_that_is_given_is_kept(capsys):
    path = str(SAMPLES / "rewardbench_outputs.jsonl")
    assert main(["evaluate", path, "--format", "rewardbench", "--max-logp", "0"]) == 1
    assert "policy_chosen_logps.at_most" in capsys.readouterr().err


def test_scores_are_no_log_probs_to_be_checked(capsys):
    assert main(["check", str(SAMPLES / REWARDBENCH[0]), "--format", "rewardbench"]) == 2
    assert "use evaluate or sweep" in capsys.readouterr().err


def test_sweep_takes_formats(capsys):
    path = str(SAMPLES / REWARDBENCH[0])
    code = main(["sweep", path, "--format", "rewardbench", "--beta", "0.1", "--beta", "1"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert "smallest loss of those tried: sigmoid: beta 0.1" in out


def test_lists_of_no_one_score_are_counted(tmp_path):
    path = tmp_path / "scores.jsonl"
    scores = [[1], [2.5], [], [1.0, 2.0], None]
    rows = [{"scores_chosen": score, "scores_rejected": [0]} for score in scores]
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = FORMATS["rewardbench"].settings
    with pytest.warns(dpo_pipeline.DataWarning):
        found = evaluate(read(path, "rewardbench"), on_invalid="exclude", **settings)
    assert [(rule.name, rule.count) for rule in found.invalid.broken] == [
        ("policy_chosen_logps.not_null", 3)
    ]
    assert found.summary.chosen_reward == 1.75


def test_scores_that_are_whole_at_first(tmp_path):
    path = tmp_path / "scores.jsonl"
    lines = ['{"scores_chosen": [1], "scores_rejected": 0}'] * INFERRED_ROWS
    lines.append('{"scores_chosen": [1.5], "scores_rejected": 0.5}')
    path.write_text("\n".join(lines))
    rows = read(path, "rewardbench").tail(1).collect()
    assert rows.select(LOGPS[:2]).row(0) == (1.5, 0.5)


# TRL


def trl_logps():
    """What TRL's own dataset returned for its columns when the sample was made."""
    return json.loads((SAMPLES / "trl_dataset.json").read_text())


def test_trl_reference_in_one_command(capsys, eight, policy):
    found = summary(
        capsys, policy, "--reference", SAMPLES / "trl_dataset", "--reference-format", "trl"
    )
    own = eight.select(LOGPS[:2]).rows()
    logps = zip(*(trl_logps()[name] for name in LOGPS[2:]), strict=True)
    rows = [(*mine, *theirs) for mine, theirs in zip(own, logps, strict=True)]
    assert found == pytest.approx(figures(rows), abs=1e-12)


def test_trl_as_pairs_is_told_to_be_the_reference(capsys):
    path = str(SAMPLES / "trl_dataset")
    assert main(["evaluate", path, "--format", "trl"]) == 2
    assert f"--reference {path} --reference-format trl" in capsys.readouterr().err


def test_missing_columns_list_what_is_there_once(capsys, policy):
    assert main(["evaluate", str(policy)]) == 1
    err = capsys.readouterr().err
    assert err.count("the columns are pair_id, policy_chosen_logps") == 1
    assert err.count("give that as reference (--reference)") == 2


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
    options = ["--reference-format", "open-instruct", "--on-invalid", "exclude"]
    found = summary(capsys, policy, "--reference", SAMPLES / "open_instruct.pt", *options)
    assert found == pytest.approx(expected_of_open_instruct(eight), abs=1e-12)
    assert main(["evaluate", str(policy), "--reference", str(SAMPLES / "open_instruct.pt"),
                 *options[:2]]) == 1  # fmt: skip
    assert "ref_chosen_logps.not_null    not null  1 row, first at row 5" in capsys.readouterr().err


def test_open_instruct_averages_in_one_command(capsys, policy):
    pytest.importorskip("torch")
    cache = SAMPLES / "open_instruct_averaged.pt"
    arguments = ["evaluate", str(policy), "--reference", str(cache), "--on-invalid", "exclude"]
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


def test_open_instruct_ends_in_the_contracts_columns(cached):
    cache = cached(
        {
            "chosen_logps": Tensor(-50.5, -math.inf, math.nan),
            "rejected_logps": Tensor(-60.0, -70.0, -1.0),
        }
    )
    rows = read(cache, "open-instruct").collect()
    assert rows.columns == ["pair_id", "ref_chosen_logps", "ref_rejected_logps"]
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


# vLLM


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
        pytest.param({"prompt_token_ids": [1]}, "1 prompt_token_ids and 4", id="lengths"),
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
    with pytest.raises(ColumnError, match="numbers in some lines and strings in others"):
        read(lines(tmp_path, line(), line(pair_id="a")), "vllm")


# Which format


def test_every_format_has_a_reader():
    assert {*READERS, "parquet"} == set(FORMATS)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a.parquet", "parquet"),
        ("a.CSV", "csv"),
        ("a.jsonl", "ndjson"),
        ("a.ndjson", "ndjson"),
        ("a.arrow", "ipc"),
        ("a.feather", "ipc"),
        ("a.ipc", "ipc"),
        ("runs/*.csv", "csv"),
        ("a.json", "parquet"),
        ("a.pt", "parquet"),
        ("folder", "parquet"),
        (["a.csv", "b.csv"], "csv"),
        (["a.csv", "b.jsonl"], "parquet"),
    ],
)
def test_only_endings_that_are_one_formats_are_taken(source, name):
    assert guess(source) == name


@pytest.mark.parametrize("ending", ["csv", "jsonl", "feather"])
def test_calls_open_other_formats_as_the_command_line_does(tmp_path, eight, ending):
    path, reference = tmp_path / f"pairs.{ending}", tmp_path / f"reference.{ending}"
    own = eight.select(pl.int_range(N).alias("pair_id"), *LOGPS[:2])
    TABLES[ending](eight, path)
    expected = evaluate(eight).summary
    assert evaluate(path).summary == expected
    assert evaluate([path]).summary == expected
    assert check(path).n_pairs == N
    assert sweep(path, [0.1]).table["loss"].item() == expected.loss
    TABLES[ending](eight.select(pl.int_range(N).alias("pair_id"), *LOGPS[2:]), reference)
    assert evaluate(own, reference=reference).summary == expected
    own.write_parquet(tmp_path / "own.parquet")
    scored = score_parquet(tmp_path / "own.parquet", tmp_path / "out.parquet", reference=reference)
    assert scored.summary == expected


def test_parquet_by_its_name_alone_is_read_so(capsys, tmp_path, eight):
    eight.write_parquet(tmp_path / "pairs.csv")
    found = summary(capsys, tmp_path / "pairs.csv", "--format", "parquet")
    assert found["loss"] == evaluate(eight).summary.loss


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.csv", "a.csv is CSV by its ending, and this reads Parquet: `dpo-pipeline convert "),
        ("a.jsonl", "is NDJSON by its ending"),
        ("a.feather", "is Arrow IPC by its ending"),
        ("a.pt", "tells no format: say which (--format or --reference-format: open-instruct, "),
        ("a.json", "tells no format: say which (--format or --reference-format: rewardbench;"),
        ("a.tsv", "is separated by tabs by its ending"),
        ("a.csv.gz", "is compressed: unpack it first"),
        ("a.parquet", "cannot be read as Parquet: "),
    ],
)  # fmt: skip
def test_a_score_of_no_parquet_says_what_the_file_seems_to_be(tmp_path, name, said):
    path = tmp_path / name
    path.write_text("policy_chosen_logps\n-1\n")
    with pytest.raises(StorageError) as caught:
        score_parquet(path, tmp_path / "out.parquet")
    assert said in str(caught.value).replace(f"{path}: is", f"{name} is")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["dataset_info.json", "state.json", "data-0.arrow"], "--reference-format trl"),
        (["cache.arrow"], "looks like a dataset of save_to_disk"),
        (["a.csv"], "say --format csv"),
        (["a.jsonl"], "say --format ndjson"),
        (["notes.md"], "no .parquet file in this folder"),
    ],
)
def test_a_folder_without_parquet_is_told_what_it_seems_to_hold(tmp_path, names, said):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(StorageError) as caught:
        evaluate(tmp_path)
    assert said in str(caught.value)
    assert ("--" in str(caught.value)) == (names != ["notes.md"])


@pytest.mark.parametrize("ending", ["csv", "jsonl", "arrow"])
@pytest.mark.parametrize("verb", ["convert", "score"])
def test_parquet_is_not_written_under_another_formats_name(capsys, tmp_path, eight, verb, ending):
    eight.write_parquet(tmp_path / "in.parquet")
    for more in ([], ["--dry-run"]):
        arguments = [verb, str(tmp_path / "in.parquet"), str(tmp_path / f"out.{ending}"), *more]
        assert main(arguments) == 2
        assert f"name it {tmp_path / 'out.parquet'}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_averages_of_the_reference_beside_sums_are_warned_of(capsys, policy, tmp_path, eight):
    reference = eight.select(
        pl.int_range(N).alias("pair_id"), *(pl.col(name) / 300 for name in LOGPS[2:])
    )
    reference.write_parquet(tmp_path / "r.parquet")
    assert main(["evaluate", str(policy), "--reference", str(tmp_path / "r.parquet")]) == 0
    assert "the reference's look averaged over tokens" in capsys.readouterr().err


def test_a_folder_of_trl_is_not_rewardbenchs():
    with pytest.raises(StorageError, match="and not RewardBench's"):
        read(SAMPLES / "trl_dataset", "rewardbench")


def test_scores_of_mixed_kinds_are_said_with_their_lines(tmp_path):
    path = tmp_path / "scores.jsonl"
    rows = [{"scores_chosen": [1], "scores_rejected": 0}, {"scores_chosen": 2}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(StorageError, match="scores_chosen: is a list on line 1, and a number on"):
        read(path, "rewardbench")


def test_a_format_that_there_is_not():
    with pytest.raises(UsageError, match="did you mean 'rewardbench'"):
        read("a", "reward-bench")


def test_a_reference_in_another_format(capsys, tmp_path, eight, policy):
    path = tmp_path / "reference.csv"
    eight.select(pl.int_range(N).alias("pair_id"), *LOGPS[2:]).write_csv(path)
    found = summary(capsys, policy, "--reference", path)
    assert found == pytest.approx(figures(eight.select(LOGPS).rows()), abs=1e-12)
    assert main(["evaluate", str(policy), "--reference-format", "csv"]) == 2
    assert "give one" in capsys.readouterr().err


# convert


def test_convert_writes_what_score_takes(capsys, tmp_path, eight):
    source, out, scored = (tmp_path / n for n in ("pairs.csv", "pairs.parquet", "scored.parquet"))
    eight.rename({LOGPS[0]: "mine", LOGPS[2]: "reference_chosen_logps"}).write_csv(source)
    column = ["--column", f"{LOGPS[0]}=mine"]
    assert main(["convert", str(source), str(out), *column]) == 0
    assert capsys.readouterr() == (f"{out}: {N} rows\n", "")
    assert set(pl.read_parquet(out).columns) == set(eight.columns)
    result = score_parquet(out, scored)
    assert result.to_metrics() == evaluate(eight).to_metrics()
    assert main(["convert", str(source), str(out), *column]) == 3
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", str(source), str(out), *column, "--overwrite"]) == 0


def test_convert_notes_where_columns_came_from(tmp_path):
    out = tmp_path / "reference.parquet"
    assert convert(SAMPLES / "trl_dataset", out, "trl") == N
    facts = json.loads(pl.read_parquet_metadata(out)["dpo_pipeline"])
    assert facts["format"] == "trl"
    assert facts["columns"]["ref_chosen_logps"] == "ref_chosen_logps"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        pytest.param(("a", "b"), "policy_chosen_logps: missing", id="none"),
        pytest.param(LOGPS[:3], "ref_rejected_logps: missing", id="half"),
        pytest.param(LOGPS[:1], "policy_rejected_logps: missing", id="one side"),
    ],
)
def test_convert_asks_for_both_sides(tmp_path, names, said):
    source, out = tmp_path / "pairs.csv", tmp_path / "out.parquet"
    pl.DataFrame({name: [-1.0] for name in names}).write_csv(source)
    with pytest.raises(ColumnError, match=said):
        convert(source, out)
    assert not out.exists()


def test_convert_overwrites_no_column(tmp_path, eight):
    source = tmp_path / "pairs.csv"
    eight.with_columns(other=pl.col(LOGPS[0])).write_csv(source)
    with pytest.raises(ColumnError, match="the input has this column already"):
        convert(source, tmp_path / "out.parquet", columns={LOGPS[0]: "other"})


def test_convert_leaves_nothing_of_a_file_that_breaks_off(tmp_path):
    source, out = tmp_path / "pairs.jsonl", tmp_path / "out.parquet"
    good = json.dumps(dict.fromkeys(LOGPS, -1.5))
    source.write_text("\n".join([good] * (INFERRED_ROWS + 10) + [good[:20]]))
    with pytest.raises(StorageError, match=r"pairs.jsonl"):
        convert(source, out)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_convert_can_be_stopped(tmp_path, eight):
    source, out = tmp_path / "pairs.csv", tmp_path / "out.parquet"
    eight.write_csv(source)
    cancel = Event()
    cancel.set()
    with pytest.raises(Cancelled):
        convert(source, out, cancel=cancel)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.csv"]


def test_an_evaluation_can_be_stopped_and_reads_no_more_columns_for_it(tmp_path, eight):
    path = tmp_path / "pairs.feather"
    eight.write_ipc(path)
    cancel = Event()
    rows = opened(path, None, columns=None, on="pair_id", cancel=cancel)
    plan = rows.frame.select(pl.col("turns").sum()).explain()
    assert f"PROJECT 1/{eight.width} COLUMNS" in plan
    assert evaluate(rows).to_metrics() == evaluate(eight).to_metrics()
    cancel.set()
    with pytest.raises(Cancelled):
        evaluate(rows)


@pytest.mark.parametrize("command", ["evaluate", "check", "sweep"])
def test_reports_name_the_file_whatever_its_format(command, eight, tmp_path, capsys):
    path = tmp_path / "of-monday.csv"
    eight.with_columns(policy_chosen_logps=pl.Series([0.5] + [-1.0] * 7)).write_csv(path)
    assert main([command, str(path)]) == 1
    printed = capsys.readouterr()
    assert "of-monday.csv breaks its contract in 1 of 8" in printed.out + printed.err


@pytest.mark.parametrize("name", ["convert", "sweep", "evaluate"])
def test_help_lists_formats_and_imports_no_polars(name):
    code = (
        "import sys\nfrom dpo_pipeline.cli import main\nassert main(sys.argv[1:]) == 0\n"
        "assert not {'polars', 'pyarrow', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "open-instruct-averaged" in done.stdout
