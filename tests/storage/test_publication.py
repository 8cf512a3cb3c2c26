"""A fault at any step of publishing leaves the old output or the new one, whole."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import polars as pl
import pytest

from dpo_pipeline import StorageError, score_parquet
from dpo_pipeline.storage.read_errors import reading
from option_tools import grouped
from process_tools import arguments, everything


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("over", ["nothing", "old"])
@pytest.mark.parametrize("shape", ["file", "folder"])
def test_a_fault_at_any_step_of_the_commit(tmp_path, source, monkeypatch, call, over, shape):  # noqa: C901
    """Fail at the first fsync (or renaming), then at the second, and so on to the last."""
    inside = tmp_path / "inside"
    inside.mkdir()
    pairs, out = (source, inside / "out.parquet") if shape == "file" else ([source], inside / "out")
    options = arguments(inside, overwrite=over == "old")
    if shape == "folder":
        options["invalid"] = inside / "apart"
    if over == "old":
        score_parquet(pairs, out, **grouped(beta=0.9, **options))
    old = everything(inside)
    real = getattr(os, call)
    for number in range(1, 40):
        calls = []

        def fail(*args, calls=calls, number=number):
            calls.append(args)
            if len(calls) == number:
                raise OSError(errno.EIO, "Input/output error")
            return real(*args)

        monkeypatch.setattr(os, call, fail)
        failed = False
        try:
            score_parquet(pairs, out, **grouped(**options))
        except StorageError as error:
            failed = True
            assert str(error).endswith("Input/output error")  # noqa: PT017  not at the last one
            assert str(inside) in error.path  # noqa: PT017
        monkeypatch.undo()
        found = everything(inside)
        assert not [name for name in found if Path(name).name.startswith(".")]
        if not failed:
            break
        # An fsync after the last renaming comes too late to take anything back.
        whole = {name: data for name, data in found.items() if data != old.get(name)}
        if over == "nothing":
            assert not found or len(found) == len(everything_new(tmp_path, pairs, options, out))
            for path in sorted(inside.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
        else:
            final = "out.parquet" if shape == "file" else "out/_SUCCESS"
            assert set(found) <= set(old)
            if shape == "file":
                assert set(found) == set(old)
                assert final not in whole or len(whole) == 3
            score_parquet(pairs, out, **grouped(**{**options, "beta": 0.9}))
            assert everything(inside) == old
    assert number >= (6 if call == "fsync" else 4)
    assert not failed


def everything_new(tmp_path, pairs, options, out):
    """Return what an undisturbed run makes, elsewhere."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        elsewhere = {
            key: Path(folder) / value.name if isinstance(value, Path) else value
            for key, value in options.items()
        }
        score_parquet(pairs, Path(folder) / out.name, **grouped(**elsewhere))
        return everything(folder)


def test_a_panic_of_the_engine_is_an_error_with_the_path():
    expected = r"^a\.parquet: cannot be read: index out of bounds$"
    with pytest.raises(StorageError, match=expected) as caught, reading("a.parquet"):
        raise pl.exceptions.PanicException("index out of bounds\nbacktrace")
    assert isinstance(caught.value.__cause__, pl.exceptions.PanicException)
