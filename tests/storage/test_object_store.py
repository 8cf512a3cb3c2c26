"""Object stores: S3's API on loopback, in and out, with faults.

By default a small server answers (`store_tools.py`). The slow suite has moto answer all of it.
"""

from __future__ import annotations

import json
from functools import partial

import polars as pl
import pytest

from dpo_pipeline import (
    DataWarning,
    Execution,
    InvalidPairsError,
    StorageError,
    UsageError,
    check,
    dry_run,
    evaluate,
    score_parquet,
    sweep,
)
from dpo_pipeline.cli.program import main
from dpo_pipeline.storage.stores import Access
from option_tools import grouped


def local(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


GIVEN = {"on_invalid": "quarantine", "batch_size": 64, "by": "split", "histogram": True}


def test_a_folder_in_a_store_gives_the_bytes_of_one_here(both, store, how, tmp_path):
    given = {k: v for k, v in GIVEN.items() if k != "by"}
    here = score_parquet(both, tmp_path / "out", **grouped(part_rows=90, **given))
    there = score_parquet(
        "s3://bucket/in", "s3://bucket/out", **grouped(part_rows=90, **given, **how)
    )
    found = store.files("out")
    assert found == local(tmp_path / "out")
    assert sorted(found)[:3] == ["_SUCCESS", "a-00000.parquet", "a-00001.parquet"]
    assert store.files("out.invalid") == local(tmp_path / "out.invalid")
    assert there.summary == here.summary
    assert there.invalid.broken == here.invalid.broken
    assert there.batches.equals(here.batches)
    assert not [name for name in store.files() if "_attempts" in name]


@pytest.mark.slow  # as one here, written as the documents below
def test_a_manifest_says_what_is_there(both, store, how):  # noqa: ARG001
    result = score_parquet(
        "s3://bucket/in/deep", "s3://bucket/out", **grouped(**GIVEN | {"by": None}, **how)
    )
    manifest = json.loads(store.files()["out.manifest.json"])
    assert manifest["summary"] == result.summary.to_dict()
    assert manifest["files"] == {
        name: pl.read_parquet(content).height
        for name, content in store.files("out").items()
        if name != "_SUCCESS"
    }
    assert sum(manifest["files"].values()) == 338 - 3


@pytest.mark.repeats(1)  # the same code, with other names
@pytest.mark.parametrize(
    ("source", "rows"),
    [
        ("s3://bucket/in/**/[cd].parquet", 338),
        (["s3://bucket/in/a.parquet", "s3://bucket/in/deep/c.parquet"], 360),
        ("s3://bucket/in/deep", 338),
        ("s3://bucket/in/a.parquet", 180),
        ("s3://bucket/in/deep/", 338),
        ("s3://bucket/in/*.parquet", 360),
        ("s3://bucket/in/**/*.parquet", 698),
        ("s3://bucket/in/deep/?.parquet", 338),
    ],
)
def test_what_is_read(both, how, source, rows):  # noqa: ARG001
    assert evaluate(source, **grouped(on_invalid="exclude", **how)).summary.n_pairs == rows
    assert check(source, **grouped(**how)).n_pairs == rows


@pytest.mark.slow  # as "keys in a store" below, and written too
def test_folder_names_are_columns(both, store, how, tmp_path):
    for name, split in (("a", "x"), ("b", "y")):
        content = (both / f"{name}.parquet").read_bytes()
        store.put(f"hive/kind={split}/{name}.parquet", content)
        path = tmp_path / "hive" / f"kind={split}" / f"{name}.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    given = {"by": "kind", "on_invalid": "exclude"}
    here = score_parquet(tmp_path / "hive", tmp_path / "out", **grouped(**given))
    there = score_parquet("s3://bucket/hive", "s3://bucket/out", **grouped(**given, **how))
    assert there.subsets.equals(here.subsets)
    assert here.subsets["kind"].to_list() == ["x", "y"]
    assert store.files("out") == local(tmp_path / "out")


@pytest.mark.slow  # the command line below does it with parts
def test_one_object_gives_one_object(both, store, how, tmp_path):
    score_parquet(both / "a.parquet", tmp_path / "out.parquet", on_invalid="exclude")
    place = "s3://bucket/made/out.parquet"
    score_parquet("s3://bucket/in/a.parquet", place, **grouped(on_invalid="exclude", **how))
    assert store.files("made") == {"out.parquet": (tmp_path / "out.parquet").read_bytes()}
    with pytest.raises(StorageError, match="exists already; pass overwrite"):
        score_parquet("s3://bucket/in/a.parquet", place, **grouped(on_invalid="exclude", **how))


@pytest.mark.slow  # both ways together; the tests above and below go each of them
@pytest.mark.parametrize("loss", ["sigmoid", "kto_pair"])
def test_from_here_to_there_and_back(both, store, how, tmp_path, loss):
    given = {"on_invalid": "exclude", "batch_size": 32, "loss": loss}
    score_parquet(both, "s3://bucket/out", **grouped(**given, **how))
    score_parquet("s3://bucket/in", tmp_path / "back", **grouped(**given, **how))
    score_parquet(both, tmp_path / "here", **grouped(**given))
    assert store.files("out") == local(tmp_path / "back") == local(tmp_path / "here")


def test_documents_go_there_too(both, store, how):  # noqa: ARG001
    documents = {"summary": "s3://bucket/s.json", "batches": "s3://bucket/b.parquet"}
    given = {"on_invalid": "exclude", "batch_size": 100}
    result = evaluate("s3://bucket/in/deep", **grouped(**given, **documents, **how))
    assert json.loads(store.files()["s.json"])["summary"] == result.summary.to_dict()
    assert pl.read_parquet(store.files()["b.parquet"]).height == 4


@pytest.mark.slow  # as where something is there already, below
def test_a_broken_contract_leaves_nothing(both, store, how):  # noqa: ARG001
    with pytest.raises(InvalidPairsError):
        score_parquet("s3://bucket/in/deep", "s3://bucket/out", **grouped(**how))
    assert store.files("out") == {}


def test_a_sink_that_fails_leaves_no_object(both, store, how, monkeypatch):  # noqa: ARG001
    written = []
    sink = pl.LazyFrame.sink_parquet

    def fail(self, target, **arguments):
        written.append(target)
        if len(written) == 3:
            plan = self.with_columns(loss=pl.lit("a").str.to_integer() + pl.col("loss"))
            return sink(plan, target, **arguments)
        return sink(self, target, **arguments)

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", fail)
    with pytest.raises(StorageError):
        score_parquet("s3://bucket/in", "s3://bucket/out", **grouped(on_invalid="exclude", **how))
    assert store.files("out") == {}
    assert all("/_attempts/" in target for target in written)
    assert len(set(written)) == 3


def test_an_object_that_is_short_is_not_moved(both, store, how, monkeypatch):  # noqa: ARG001
    sink = pl.LazyFrame.sink_parquet
    monkeypatch.setattr(
        pl.LazyFrame, "sink_parquet", lambda self, *a, **k: sink(self.limit(10), *a, **k)
    )
    with pytest.raises(StorageError, match="it changed while it was read"):
        score_parquet(
            "s3://bucket/in/deep", "s3://bucket/out", **grouped(on_invalid="exclude", **how)
        )
    assert "_SUCCESS" not in store.files("out")


@pytest.mark.slow  # as what is there, below, and `test_publication` here
def test_what_a_dead_run_left_is_replaced(both, store, how):  # noqa: ARG001
    given = {"on_invalid": "exclude", **how}
    score_parquet("s3://bucket/in/deep", "s3://bucket/out", **grouped(**given))
    whole = store.files("out")
    store.system.delete_file("bucket/out/_SUCCESS")
    store.put("out/d.parquet", whole["c.parquet"])
    store.put("out/old.parquet", whole["c.parquet"])
    store.put("out/_attempts/1.parquet", b"half")
    score_parquet("s3://bucket/in/deep", "s3://bucket/out", **grouped(**given))
    assert store.files("out") == whole


def test_what_is_there_is_replaced_only_if_asked_for(both, store, how):  # noqa: ARG001
    given = {"on_invalid": "exclude", **how}
    score_parquet("s3://bucket/in/deep", "s3://bucket/out", **grouped(**given))
    old = store.files("out")
    with pytest.raises(StorageError, match="is not empty; pass overwrite"):
        score_parquet("s3://bucket/in/deep", "s3://bucket/out", **grouped(**given))
    with pytest.raises(InvalidPairsError):
        score_parquet("s3://bucket/in/deep", "s3://bucket/out", **grouped(overwrite=True, **how))
    assert store.files("out") == old
    score_parquet(
        ["s3://bucket/in/a.parquet"], "s3://bucket/out", **grouped(overwrite=True, **given)
    )
    assert sorted(store.files("out")) == ["_SUCCESS", "a.parquet"]


@pytest.mark.slow  # as "theirs" below
def test_what_is_not_ours_stays(both, store, how):
    store.put("out/theirs.parquet", (both / "a.parquet").read_bytes())
    for overwrite in (False, True):
        with pytest.raises(StorageError, match="theirs.parquet: is in the output folder and no"):
            score_parquet(
                "s3://bucket/in",
                "s3://bucket/out",
                **grouped(on_invalid="exclude", overwrite=overwrite, **how),
            )
    assert list(store.files("out")) == ["theirs.parquet"]


def test_an_input_that_changes_is_noticed(both, store, how):
    def meanwhile(progress):
        if progress.phase == "writing":
            store.put("in/deep/c.parquet", (both / "b.parquet").read_bytes())

    with pytest.raises(StorageError, match="changed while it was read"):
        score_parquet(
            "s3://bucket/in/deep",
            "s3://bucket/out",
            **grouped(on_invalid="exclude", progress=meanwhile, **how),
        )
    assert store.files("out") == {}


def test_errors_name_the_object(both, store, how):  # noqa: ARG001
    with pytest.raises(StorageError, match=r"s3://bucket/none: no file in it or like it"):
        evaluate("s3://bucket/none", **grouped(**how))
    store.put("bad.parquet", b"PAR1 and no more")
    with pytest.raises(StorageError, match="s3://bucket/bad.parquet: "):
        evaluate("s3://bucket/bad.parquet", **grouped(**how))
    with pytest.raises(StorageError, match="paths and addresses"):
        evaluate(["s3://bucket/bad.parquet", "here.parquet"], **grouped(**how))
    with pytest.raises(StorageError, match="lies in the input folder"):
        score_parquet("s3://bucket/in", "s3://bucket/in/out", **grouped(**how))


@pytest.mark.slow  # `test_dry_run` does so here; what is refused is below
def test_a_dry_run_says_what_a_run_writes_there(both, store, how):  # noqa: ARG001
    before = store.files()
    given = {
        "on_invalid": "quarantine",
        "batch_size": 100,
        "batches": "s3://bucket/means.parquet",
        "summary": "s3://bucket/s.json",
        **how,
    }
    made = dry_run(score_parquet, "s3://bucket/in/deep", "s3://bucket/out", **grouped(**given))
    assert store.files() == before
    score_parquet("s3://bucket/in/deep", "s3://bucket/out", **grouped(**given))
    new = set(store.files()) - set(before)
    for output in made.outputs:
        name = output.path.removeprefix("s3://bucket/")
        parts = {each for each in new if each.startswith(name + "/") and "_SUCCESS" not in each}
        assert len(parts) == output.files if output.files is not None else name in new
        assert not output.replaces
    assert [output.files for output in made.outputs] == [2, None, None, 2]
    again = dry_run(
        score_parquet, "s3://bucket/in/deep", "s3://bucket/out", **grouped(overwrite=True, **given)
    )
    assert all(output.replaces for output in again.outputs)


@pytest.mark.repeats(2)  # what is refused here too: `test_dry_run` has all of it
@pytest.mark.parametrize(
    ("sink", "arguments", "message"),
    [
        ("theirs", {"overwrite": True}, "is in the output folder and no output of this tool"),
        ("there.parquet", {}, "exists already; pass overwrite"),
        ("full", {}, "is not empty; pass overwrite"),
        ("in/a.parquet", {"overwrite": True}, "the output is also an input"),
        ("new", {"summary": "s3://bucket/there.parquet"}, "exists already; pass overwrite"),
        (
            "new",
            {"summary": "s3://bucket/in/b.parquet", "overwrite": True},
            "the output is also an input",
        ),
        (
            "new",
            {"summary": "s3://bucket/x", "batches": "s3://bucket/x", "batch_size": 9},
            "two outputs have this name",
        ),
        ("in", {"overwrite": True}, "the output folder holds inputs"),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(both, store, how, sink, arguments, message):  # noqa: ARG001
    if sink == "theirs":
        store.put("theirs/their.parquet", store.files("in")["a.parquet"])
    elif sink == "full":
        store.put("full/_SUCCESS", b"")
    elif "there.parquet" in {sink, *(str(value)[-13:] for value in arguments.values())}:
        store.put("there.parquet", b"mine")
    source = "s3://bucket/in/a.parquet" if sink.endswith(".parquet") else "s3://bucket/in"
    before = store.listed()
    for call in (partial(dry_run, score_parquet), score_parquet):
        with pytest.raises(StorageError, match=message):
            call(
                source,
                f"s3://bucket/{sink}",
                **grouped(on_invalid="exclude", **arguments, **how),
            )
    assert store.listed() == before


@pytest.fixture
def policy_here(store, tmp_path, real_pairs):
    """The policy here, and the reference both here and in the store."""
    policy, reference = tmp_path / "policy.parquet", tmp_path / "reference.parquet"
    real_pairs.drop("ref_chosen_logps", "ref_rejected_logps").write_parquet(policy)
    real_pairs.select("pair_id", "^ref_.*$").write_parquet(reference)
    store.put("reference.parquet", reference.read_bytes())
    return policy


@pytest.mark.repeats(1)  # the others open the reference as `evaluate` does
@pytest.mark.parametrize("call", [evaluate, score_parquet, check, sweep])
def test_a_reference_is_reached_as_the_pairs_are(how, tmp_path, policy_here, call):
    here, there = tmp_path / "reference.parquet", "s3://bucket/reference.parquet"
    sinks = [tmp_path / "here.parquet", tmp_path / "there.parquet"] if call is score_parquet else []
    plan = dry_run(call, policy_here, *sinks[1:], **grouped(reference=there, **how))
    assert plan.facts.rows == 698
    assert [(i.path, i.rows) for i in plan.facts.inputs if i.is_reference] == [(there, 698)]
    expected = call(policy_here, *sinks[:1], reference=here)
    found = call(policy_here, *sinks[1:], **grouped(reference=there, **how))
    assert str(found).replace(there, "r") == str(expected).replace(str(here), "r")
    assert (found.n_pairs if call is check else found.invalid.n_pairs) == 698


def test_a_reference_that_changes_there_is_noticed(store, how, policy_here):
    def meanwhile(progress):
        if progress.phase == "evaluating":
            store.put("reference.parquet", policy_here.read_bytes())

    given = grouped(reference="s3://bucket/reference.parquet", progress=meanwhile, **how)
    with pytest.raises(StorageError, match="reference.parquet: it changed while it was read"):
        evaluate(policy_here, **given)


def test_a_provider_gives_credentials(both, options):  # noqa: ARG001
    calls = []

    def provider():
        calls.append(True)
        return {key: options[key] for key in ("aws_access_key_id", "aws_secret_access_key")}, None

    rest = {key: value for key, value in options.items() if "key" not in key}
    found = evaluate(
        "s3://bucket/in/deep",
        on_invalid="exclude",
        execution=Execution(storage_options=rest, credential_provider=provider),
    )
    assert found.summary.n_pairs == 338
    assert calls


def test_the_command_line_takes_options(both, store, options, capsys, tmp_path):  # noqa: ARG001
    words = [f"--storage-option={name}={value}" for name, value in options.items()]
    words += ["--on-invalid", "exclude", "--quiet"]
    assert main(["evaluate", "s3://bucket/in", *words]) == 0
    assert "s3://bucket/in: 698 pairs, 7 invalid" in capsys.readouterr().out
    assert main(["check", "s3://bucket/in", *words[:-3], "-q"]) == 1
    words += ["--part-rows", "100"]
    assert main(["score", "s3://bucket/in/a.parquet", "s3://bucket/out", *words]) == 0
    assert sorted(store.files("out")) == ["_SUCCESS", "a-00000.parquet", "a-00001.parquet"]


@pytest.mark.slow  # tasks elsewhere write as those here do; `engine` tests how they are run
def test_ray_writes_to_a_store(both, store, how, tmp_path):
    class There:
        """Runs tasks as an engine does: pickled, and each of them twice."""

        elsewhere = True

        def __call__(self, function, tasks, check):
            import pickle

            for task in tasks:
                check()
                function = pickle.loads(pickle.dumps(function))  # noqa: S301
                list(function(task))
                yield task.index, list(function(task))

    score_parquet(
        "s3://bucket/in", "s3://bucket/out", **grouped(on_invalid="exclude", engine=There(), **how)
    )
    score_parquet(both, tmp_path / "here", on_invalid="exclude")
    assert store.files("out") == local(tmp_path / "here")


# --- without a server


def test_other_stores_are_given_what_was_said():
    google = Access(credential_provider=lambda: ({"bearer_token": "t"}, 2_000_000_000))
    system, path = google.filesystem("gs://bucket/a/b.parquet")
    assert (system.type_name, path) == ("gcs", "bucket/a/b.parquet")
    azure = Access(storage_options={"azure_storage_account_name": "us", "account_key": "a2V5"})
    system, path = azure.filesystem("az://container/b.parquet")
    assert (system.type_name, path) == ("abfs", "container/b.parquet")
    assert azure.polars("az://container/b.parquet")["storage_options"] == azure.storage_options
    assert azure.polars("/here/b.parquet") == {}


def test_hugging_face_is_only_read(monkeypatch, real_pairs):
    asked = []
    scan = pl.scan_parquet

    def noted(source, **arguments):
        asked.append((source, arguments.get("storage_options")))
        return real_pairs.lazy() if "hf://" in str(source) else scan(source, **arguments)

    monkeypatch.setattr(pl, "scan_parquet", noted)
    place = "hf://datasets/us/pairs@main/test.parquet"
    found = evaluate(place, execution=Execution(storage_options={"token": "secret"}))
    assert found.summary.n_pairs == 698
    assert {options["token"] for _, options in asked} == {"secret"}
    assert {str(source) for source, _ in asked} == {place, str([place])}
    with pytest.raises(UsageError, match="can be read, and not listed or written to"):
        score_parquet(
            place,
            "hf://datasets/us/out.parquet",
            execution=Execution(storage_options={"token": "secret"}),
        )


def test_a_folder_here_may_have_colons(tmp_path, real_pairs):
    place = tmp_path / "a:b"
    real_pairs.write_parquet(place / "in.parquet", mkdir=True)
    assert evaluate(place).summary.n_pairs == 698


def test_what_is_left_out_of_a_store_is_named(both, store, how):  # noqa: ARG001
    for name in ("_hidden/a.parquet", "b.csv", "deep/.c.parquet", "_part=1/d.txt"):
        store.put(f"in/{name}", b"no Parquet")
    said = "3 files look like data and are left out: _hidden/a.parquet, b.csv, deep/.c.parquet$"
    with pytest.warns(DataWarning, match=said):
        assert check("s3://bucket/in", **grouped(**how)).n_pairs == 698


LOG = "_delta_log/00000000000000000000.json"


@pytest.mark.repeats(1)  # markers are listed as other objects are
@pytest.mark.parametrize(
    ("source", "marker", "system"),
    [
        ("in", ".hoodie/hoodie.properties", "Hudi"),
        ("in/deep", "metadata/v3.metadata.json", "Iceberg"),
        ("in/deep/c.parquet", LOG, "Delta Lake"),
        ("in/**/*.parquet", LOG, "Delta Lake"),
        (["in/a.parquet", "in/deep"], LOG, "Delta Lake"),
    ],
)
def test_lake_tables_in_a_store_are_no_folders(both, store, how, source, marker, system):  # noqa: ARG001
    store.put(f"in/{marker}", b"{}")
    names = [source] if isinstance(source, str) else source
    paths = [f"s3://bucket/{name}" for name in names]
    with pytest.raises(StorageError, match=f"a table of {system}"):
        check(paths[0] if len(paths) == 1 else paths, **grouped(**how))


def test_keys_in_a_store_are_those_below_the_folder_that_was_given(both, store, how):
    for k in (1, 2):
        content = (both / f"{'ab'[k - 1]}.parquet").read_bytes()
        store.put(f"above/kind=all/ds/kind={k}/{k}.parquet", content)
    sources = ["s3://bucket/above/kind=all/ds", "s3://bucket/above/kind=all/ds/*/*.parquet"]
    for source in sources:
        found = evaluate(source, **grouped(by="kind", on_invalid="exclude", **how)).subsets
        assert found.select("kind", "n_pairs").rows() == [(1, 180), (2, 180)]
