"""Files of a joined reference: never overwritten, and noticed when they change."""

from __future__ import annotations

import os
import shutil

import polars as pl
import pytest

from dpo_pipeline import (
    Batches,
    ColumnError,
    JoinError,
    OnInvalid,
    Outputs,
    StorageError,
    evaluate,
    score_parquet,
)
from dpo_pipeline.sources.dataset import Dataset
from option_tools import grouped
from reference_tools import raised, tree


def refusals(files):
    policy, reference = files
    out = policy.parent.parent / "out.parquet"
    yield JoinError, lambda **k: score_parquet(policy, out, **grouped(**k)), {"reference": "short"}
    yield ColumnError, lambda **k: score_parquet(policy, out, **grouped(**k)), {"on": "nothing"}
    yield (
        StorageError,
        lambda **k: score_parquet(policy, out, **grouped(**k)),
        {"reference": "nothing"},
    )
    yield (
        StorageError,
        lambda **k: score_parquet(policy, out, **grouped(**k)),
        {"reference": "text"},
    )
    yield (
        StorageError,
        lambda **k: score_parquet(policy, policy, **grouped(**k)),
        {"overwrite": True},
    )
    yield StorageError, lambda **k: score_parquet(policy, reference, **grouped(**k)), {}


def test_nothing_is_written_and_inputs_stay_on_any_error(tmp_path, files):
    places = {name: files[0].parent / f"{name}.parquet" for name in ("short", "text", "nothing")}
    pl.read_parquet(files[1])[:3].write_parquet(places["short"])
    places["text"].write_text("a,b\n1,2\n")
    before = tree(tmp_path)
    for kind, call, changes in refusals(files):
        arguments = {"reference": files[1], **changes}
        arguments["reference"] = places.get(arguments["reference"], arguments["reference"])
        error = raised(kind, call, **arguments)
        if changes.get("reference") in ("nothing", "text"):
            assert error.path == str(arguments["reference"])
            assert error.exit_code == 3
        assert tree(tmp_path) == before


OUTPUTS = [
    pytest.param(
        lambda p, r: score_parquet(p, r, reference=r, outputs=Outputs(overwrite=True)), id="sink"
    ),
    pytest.param(
        lambda p, r: evaluate(p, reference=r, outputs=Outputs(r, overwrite=True)), id="summary"
    ),
    pytest.param(
        lambda p, r: evaluate(
            p, reference=r, batches=Batches(2, file=r), outputs=Outputs(overwrite=True)
        ),
        id="batches",
    ),
    pytest.param(
        lambda p, r: score_parquet(
            p,
            f"{p}.out",
            reference=r,
            on_invalid=OnInvalid("quarantine", file=r),
            outputs=Outputs(overwrite=True),
        ),
        id="quarantine",
    ),
]


@pytest.mark.parametrize("call", OUTPUTS)
def test_an_output_in_the_place_of_the_reference_is_refused(tmp_path, files, call):
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="the output is also an input"):
        call(*map(str, files))
    assert tree(tmp_path) == before


def test_an_output_folder_that_holds_the_reference_is_refused(tmp_path, files, pairs):
    pairs.write_parquet(tmp_path / "whole.parquet")
    score_parquet(tmp_path / "whole.parquet", tmp_path / "inputs" / "scored.parquet")
    (tmp_path / "out").mkdir()
    os.replace(tmp_path / "inputs" / "scored.parquet", tmp_path / "out" / "scored.parquet")
    before = tree(tmp_path)
    with pytest.raises(StorageError, match="the output folder holds inputs"):
        score_parquet(
            [files[0]],
            tmp_path / "out",
            reference=tmp_path / "out" / "scored.parquet",
            outputs=Outputs(overwrite=True),
        )
    assert tree(tmp_path) == before


def test_an_output_inside_the_reference_folder_is_refused(tmp_path, files):
    folder = tmp_path / "reference"
    folder.mkdir()
    shutil.move(files[1], folder / "a.parquet")
    with pytest.raises(StorageError, match="a next run would read it"):
        score_parquet(files[0], folder / "out.parquet", reference=folder)


@pytest.fixture
def meanwhile(monkeypatch):
    """Do something right after the keys were compared."""

    def register(action):
        compared = Dataset.check_keys

        def then(self):
            compared(self)
            action()

        monkeypatch.setattr(Dataset, "check_keys", then)

    return register


def replaced(path, frame):
    """Write a file as long as the other, page by page, and put it in its place."""
    options = {"compression": "uncompressed", "use_pyarrow": True}
    frame.write_parquet(
        f"{path}.new",
        pyarrow_options={"use_dictionary": False, "write_statistics": False},
        **options,
    )
    os.replace(f"{path}.new", path)


CALLS = {
    "evaluate": lambda p, r: evaluate(p, reference=r, on_invalid="exclude"),
    "score": lambda p, r: score_parquet(p, f"{p}.out", reference=r, on_invalid="exclude"),
}


@pytest.mark.repeats  # one check after all runs
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"ref_chosen_logps": pl.col("ref_chosen_logps") - 1.0}, id="values"),
        pytest.param({"pair_id": pl.col("pair_id").replace("b", "a")}, id="keys"),
    ],
)
def test_a_reference_that_changes_during_the_run_is_noticed(files, two, meanwhile, name, change):
    reference = two[1]
    replaced(files[1], reference)
    meanwhile(lambda: replaced(files[1], reference.with_columns(**change)))
    error = raised(StorageError, CALLS[name], *files)
    assert "changed while it was read" in str(error)
    assert not os.path.exists(f"{files[0]}.out")


@pytest.mark.parametrize("name", CALLS)
def test_a_reference_that_vanishes_is_an_error_without_outputs(tmp_path, files, meanwhile, name):
    meanwhile(lambda: os.unlink(files[1]))
    error = raised(StorageError, CALLS[name], *files)
    # It was in another order, and its rows were kept in that of the policy.
    assert str(error) == f"{files[1]}: it changed while it was read"
    assert list(tree(tmp_path)) == [files[0]]


@pytest.mark.parametrize("name", CALLS)
def test_a_reference_that_vanishes_is_named(files, meanwhile, name):
    meanwhile(lambda: os.unlink(files[1]))
    assert str(files[1]) in str(raised(StorageError, CALLS[name], *files))
