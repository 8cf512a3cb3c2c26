"""No output takes the place of an input, whatever the input's format and however it is named."""

from __future__ import annotations

import json
import os
import shutil
import sys
from types import SimpleNamespace

import polars as pl
import polars.selectors as cs
import pytest

from dpo_pipeline import (
    Contract,
    Execution,
    Outputs,
    Reference,
    StorageError,
    UsageError,
    compare,
    convert,
    dry_run,
    evaluate,
    score_parquet,
)
from dpo_pipeline.cli.program import main
from dpo_pipeline.options import Pairs
from dpo_pipeline.sources import open_pairs
from dpo_pipeline.storage import LOCAL, Outputs as Publication
from option_tools import grouped
from pair_tools import DATA, LOGPS

FORMATS = DATA / "formats"


def of_frame(ending, write):
    def make(folder, pairs):
        path = folder / f"x.{ending}"
        write(pairs, path)
        return path, [path]

    return make


def parquet_folder(folder, pairs):
    files = [folder / "x" / "a.parquet", folder / "x" / "deep" / "b.parquet"]
    for path in files:
        path.parent.mkdir(parents=True)
        pairs.filter(pl.col("pair_id").is_in(["a", "b", "c"]) == (path == files[0])).write_parquet(
            path
        )
    return folder / "x", files


def csv_folder(folder, pairs):
    files = [folder / "x" / "a.csv", folder / "x" / "b.csv"]
    files[0].parent.mkdir()
    pairs[:3].write_csv(files[0])
    pairs[3:].write_csv(files[1])
    return folder / "x", files


def rewardbench(folder, _pairs):
    path = folder / "x.jsonl"
    path.write_text('{"scores_chosen": -1.0, "scores_rejected": -2.0}\n')
    return path, [path]


def copied(name):
    def make(folder, _pairs):
        path = folder / name
        if (FORMATS / name).is_dir():
            shutil.copytree(FORMATS / name, path)
            # What only `datasets` reads of a saved dataset is no input.
            return path, [p for p in path.iterdir() if p.name != "dataset_info.json"]
        shutil.copy(FORMATS / name, path)
        return path, [path]

    return make


PAIRS = {
    "parquet": of_frame("parquet", pl.DataFrame.write_parquet),
    "parquet folder": parquet_folder,
    "csv": of_frame("csv", pl.DataFrame.write_csv),
    "csv folder": csv_folder,
    "ndjson": of_frame("jsonl", pl.DataFrame.write_ndjson),
    "ipc": of_frame("arrow", pl.DataFrame.write_ipc),
    "ipc stream": of_frame("arrow", pl.DataFrame.write_ipc_stream),
    "rewardbench": rewardbench,
    "vllm": copied("vllm_policy.jsonl"),
}
SIDES = ("chosen", "rejected")
REFERENCES = {
    **{name: PAIRS[name] for name in ("parquet", "parquet folder", "csv", "ndjson", "ipc")},
    "trl": copied("trl_dataset"),
    "open-instruct": copied("open_instruct.pt"),
    "vllm": copied("vllm_reference.jsonl"),
}


@pytest.fixture(autouse=True)
def torch(monkeypatch):
    """Stand in for torch, which is not installed everywhere."""
    values = [pl.Series([-10.0, -12.0, -150.0])] * 2
    tensors = [
        SimpleNamespace(shape=(3,), is_floating_point=lambda: True, tolist=each.to_list)
        for each in values
    ]
    made = dict(zip(("chosen_logps", "rejected_logps"), tensors, strict=True))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(load=lambda *_, **__: made))


def made(name, folder, pairs, *, as_reference=False):
    """Make a source, open it, and return it with its files and their bytes."""
    if as_reference:
        pairs = pairs.select("pair_id", *LOGPS[2:])
    source, files = (REFERENCES if as_reference else PAIRS)[name](folder, pairs)
    asked = Pairs(source, format=name.split()[0])
    dataset = open_pairs(asked, access=LOCAL, as_reference=as_reference)
    return dataset, {path: path.read_bytes() for path in files}


def names_of(path):
    """Yield what else a file can be called, with an ending that no format has."""
    yield path
    yield path.parent / ".." / path.parent.name / path.name
    symlink, hard = path.with_name("link"), path.with_name("hard")
    symlink.symlink_to(path)
    yield symlink
    os.link(path, hard)
    yield hard


KINDS = [
    *((name, False) for name in PAIRS),
    *((name, True) for name in REFERENCES),
]


@pytest.mark.parametrize(("name", "as_reference"), KINDS)
def test_a_dataset_knows_its_files(tmp_path, pairs, name, as_reference):
    dataset, before = made(name, tmp_path, pairs, as_reference=as_reference)
    assert sorted(dataset.inputs) == sorted(map(str, before))
    checks = Publication(overwrite=True, inputs=dataset.inputs)
    for path in before:
        for other in names_of(path):
            with pytest.raises(StorageError, match="the output is also an input"):
                checks.check(other)
            other.unlink() if other.name in ("link", "hard") else None
        with pytest.raises(StorageError, match="the output folder holds inputs"):
            checks.check(path.parent, ["new.parquet"])
    checks.check(tmp_path / "new.json")


@pytest.mark.repeats  # one guard for all outputs
@pytest.mark.parametrize("output", ["summary", "report", "batches"])
@pytest.mark.parametrize("name", PAIRS)
def test_an_evaluation_keeps_its_input(tmp_path, pairs, name, output):
    dataset, before = made(name, tmp_path, pairs)
    given = {"loss": "cpo", "overwrite": True, "batch_size": 2 if output == "batches" else None}
    for path in before:
        # Batches are Parquet: a file that is named as another format is refused before that.
        is_refused = output == "batches" and path.suffix != ".parquet"
        error, why = (
            (UsageError, "Parquet is written")
            if is_refused
            else (StorageError, "the output is also an input")
        )
        for call in (evaluate, lambda *a, **k: dry_run(evaluate, *a, **k)):
            with pytest.raises(error, match=why):
                call(dataset, **grouped(**given, **{output: path}))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.repeats(3)  # one guard for all inputs
@pytest.mark.parametrize("name", REFERENCES)
def test_a_call_keeps_its_reference(tmp_path, pairs, name):
    (tmp_path / "there").mkdir()
    dataset, before = made(name, tmp_path / "there", pairs, as_reference=True)
    key = "index" if name == "open-instruct" else "pair_id"
    keys, dataset = dataset.frame.select(key).collect(), Reference(dataset, on=key)
    policy = tmp_path / "policy.parquet"
    keys.with_columns(**dict.fromkeys(LOGPS[:2], pl.lit(-9.0))).write_parquet(policy)
    for path in before:
        link = tmp_path / "out.parquet"
        link.symlink_to(path)
        for target in ({"summary": path}, {"report": path}):
            with pytest.raises(StorageError, match="the output is also an input"):
                evaluate(policy, **grouped(reference=dataset, overwrite=True, **target))
        with pytest.raises(StorageError, match="the output is also an input"):
            score_parquet(policy, link, reference=dataset, outputs=Outputs(overwrite=True))
        link.unlink()
    with pytest.raises(StorageError, match="the output folder holds inputs"):
        score_parquet([policy], path.parent, reference=dataset, outputs=Outputs(overwrite=True))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", PAIRS)
def test_a_conversion_keeps_its_input(tmp_path, pairs, name):
    source, files = PAIRS[name](tmp_path, pairs)
    before = {path: path.read_bytes() for path in files}
    for path in files:
        (tmp_path / "out.parquet").unlink(missing_ok=True)
        (tmp_path / "out.parquet").symlink_to(path)
        for call in (convert, lambda *a, **k: dry_run(convert, *a, **k)):
            with pytest.raises(StorageError, match="the output is also an input"):
                call(
                    source,
                    tmp_path / "out.parquet",
                    name.split()[0],
                    outputs=Outputs(overwrite=True),
                )
    assert {path: path.read_bytes() for path in files} == before


@pytest.mark.repeats(3)  # one list of files for all formats
@pytest.mark.parametrize("name", PAIRS)
def test_an_input_that_changes_is_noticed(tmp_path, pairs, name):
    dataset, before = made(name, tmp_path, pairs)

    def touch(progress):
        if progress.phase == "evaluating":
            os.utime(next(iter(before)), ns=(1, 1))

    with pytest.raises(StorageError, match="it changed while it was read"):
        evaluate(
            dataset,
            loss="cpo",
            contract=Contract(max_logp=1e6),
            outputs=tmp_path / "summary.json",
            execution=Execution(progress=touch),
        )
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.repeats(3)  # one list of files for all formats
@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_that_changes_is_noticed(tmp_path, pairs, name):
    dataset, before = made(name, tmp_path, pairs, as_reference=True)
    # Row numbers of TRL's dataset are joined where lengths prove them.
    lengths = {f"__dpo_pipeline_{side}_length": f"{side}_num_tokens" for side in SIDES}
    key = "index" if name == "open-instruct" else "pair_id"
    frame = dataset.frame.select(key, cs.by_name(*lengths, require_all=False))
    keys = frame.rename(lengths, strict=False).collect()
    policy = keys.with_columns(**dict.fromkeys(LOGPS[:2], pl.lit(-9.0)))

    def touch(progress):
        if progress.phase == "evaluating":
            os.utime(max(before), ns=(1, 1))

    with pytest.raises(StorageError, match="it changed while it was read"):
        evaluate(
            policy,
            reference=Reference(dataset, on=key),
            on_invalid="exclude",
            execution=Execution(progress=touch),
        )


@pytest.mark.repeats  # one guard for all inputs
@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("end", ["a", "b", "r"])
def test_a_comparison_keeps_its_sides(tmp_path, monkeypatch, capsys, pairs, ending, end):
    monkeypatch.chdir(tmp_path)
    frames = {
        "a": pairs.drop(LOGPS[2:]),
        "b": pairs.drop(LOGPS[2:]).with_columns(pl.col(LOGPS[0]) - 0.5),
        "r": pairs.select("pair_id", *LOGPS[2:]),
    }
    write = {"parquet": "write_parquet", "csv": "write_csv", "jsonl": "write_ndjson"}[ending]
    for name, frame in frames.items():
        getattr(frame, write)(f"{name}.{ending}")
    taken = tmp_path / f"{end}.{ending}"
    before = taken.read_bytes()
    words = [f"a.{ending}", f"b.{ending}", "--reference", f"r.{ending}"]
    for path in (taken.name, f"../{tmp_path.name}/{taken.name}"):
        assert main(["compare", *words, "--report", path, "--overwrite"]) == 3
        assert "the output is also an input" in capsys.readouterr().err
    assert taken.read_bytes() == before
    assert compare(*words[:2], reference=words[3]).n_common == 6


def test_commands_keep_their_input(tmp_path, capsys, pairs):
    path = tmp_path / "x.csv"
    pairs.write_csv(path)
    before = path.read_bytes()
    for words in (["evaluate", path, "--summary", path], ["evaluate", path, "--report", path]):
        assert main([*map(str, words), "--overwrite"]) == 3
        assert "the output is also an input" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_files_that_are_protected_never_become_outputs(tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({}))
    checks = Publication(overwrite=True, protected=[settings, tmp_path / "not there"])
    for path in (*names_of(settings), tmp_path / "not there"):
        with pytest.raises(StorageError, match="the output is also an input"):
            checks.check(path)


def test_a_check_writes_nothing_and_does_not_count_as_an_output(tmp_path):
    outputs = Publication(overwrite=False)
    assert outputs.check(tmp_path / "a.json").replaces is False
    with pytest.raises(StorageError, match="two outputs have this name"):
        outputs.check(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
    with outputs:
        hidden = outputs.stage(tmp_path / "a.json")
        assert list(map(str, tmp_path.iterdir())) == [hidden]
        outputs.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_report_of_a_result_is_no_input_of_it(tmp_path, monkeypatch, pairs):
    monkeypatch.chdir(tmp_path)
    pairs.drop(LOGPS[2:]).write_csv("a.csv")
    pairs.drop(LOGPS[2:]).with_columns(pl.col(LOGPS[0]) - 0.5).write_csv("b.csv")
    pairs.select("pair_id", *LOGPS[2:]).write_csv("reference.csv")
    evaluated = evaluate("a.csv", reference="reference.csv", statistics=True)
    compared = compare("a.csv", "b.csv", reference="reference.csv")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for result, name in (
        (evaluated, "a.csv"),
        (evaluated, "reference.csv"),
        (compared, "a.csv"),
        (compared, "b.csv"),
        (compared, "reference.csv"),
    ):
        for path in (name, tmp_path / name):
            with pytest.raises(StorageError, match="also an input"):
                result.report(path, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
