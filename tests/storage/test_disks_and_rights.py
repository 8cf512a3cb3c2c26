"""Full disks, missing rights, inputs that change: said with the path, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import tempfile
from pathlib import Path

import polars as pl
import pytest

from dpo_pipeline import Batches, DpoPipelineError, Outputs, StorageError, evaluate, score_parquet
from dpo_pipeline.cli.program import main
from option_tools import grouped
from process_tools import arguments, everything

NOBODY = 65534


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """Yield a folder with room for 256 kB, on a disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "dpo-test", folder],  # noqa: S607  wherever it is
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.strip()}")
    yield folder
    # Lazily: what an error's traceback keeps alive may have a file open.
    subprocess.run(["umount", "-l", folder], check=True)  # noqa: S607


@pytest.mark.parametrize("full", ["scored", "invalid", "batches", "folder"])
def test_a_full_disk_is_said_with_the_outputs_path(small_disk, tmp_path, noisy, full):
    options = {}
    out = small_disk / "out.parquet" if full == "scored" else tmp_path / "out.parquet"
    blamed = out
    pairs = noisy
    if full == "invalid":
        blamed = small_disk / "apart.parquet"
        pl.read_parquet(noisy).with_columns(
            policy_chosen_logps=pl.when(pl.int_range(pl.len()) % 2 == 0)
            .then(1.0)
            .otherwise("policy_chosen_logps"),
            noise=pl.int_range(pl.len()).hash(),
        ).write_parquet(pairs)
        options = {"on_invalid": "quarantine", "invalid": blamed}
    elif full == "batches":
        blamed = small_disk / "means.parquet"
        options = {"batch_size": 1, "batches": blamed}
    elif full == "folder":
        pairs, out = [noisy], small_disk / "out"
        blamed = out / "pairs.parquet"
    before = noisy.read_bytes()
    with pytest.raises(StorageError, match="No space left on device") as caught:
        score_parquet(pairs, out, **grouped(**options))
    assert caught.value.path == str(blamed)
    assert list(small_disk.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir() if path != small_disk] == ["pairs.parquet"]
    assert noisy.read_bytes() == before


def test_a_full_disk_in_the_command_line(small_disk, noisy, capsys):
    out = small_disk / "out.parquet"
    assert main(["score", str(noisy), str(out)]) == 3
    assert f"error: {out}: No space left on device" in capsys.readouterr().err
    assert list(small_disk.iterdir()) == []


def test_a_file_that_may_not_grow_is_said(tmp_path, noisy, capsys):
    out = tmp_path / "out.parquet"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))  # Python ignores the signal
    try:
        code = main(["score", str(noisy), str(out)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 3
    assert f"error: {out}: File too large" in capsys.readouterr().err
    assert list(everything(tmp_path)) == ["pairs.parquet"]


# Rights


@contextlib.contextmanager
def without_rights():
    """Be nobody for a while, if this is root, for whom no right is missing."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public(source, tmp_path):
    """Yield a folder that nobody may enter, with pairs in it."""
    score_parquet(
        source, tmp_path / "first.parquet", **grouped(**arguments(tmp_path))
    )  # imports are done
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        (path / "pairs.parquet").write_bytes(source.read_bytes())
        (path / "pairs.parquet").chmod(0o644)
        (path / "open").mkdir()
        (path / "open").chmod(0o777)
        yield path
        path.chmod(0o755)


@pytest.mark.parametrize("closed", ["input", "output", "batches", "folder"])
def test_permission_denied(public, closed, monkeypatch):
    # Nobody may not be allowed to read the package's own metadata either.
    monkeypatch.setattr("dpo_pipeline.evaluation.planning.own_version", lambda: "0")
    pairs, out, options = public / "pairs.parquet", public / "open" / "out.parquet", {}
    if closed == "input":
        blamed = pairs
        pairs.chmod(0)
    elif closed == "batches":
        blamed = public / "means.parquet"
        options = {"batch_size": 2, "batches": blamed}
    elif closed == "folder":
        pairs, out = [pairs], public / "out"
        blamed = out
    else:
        blamed = out = public / "out.parquet"
    public.chmod(0o555)
    before = everything(public)
    with without_rights(), pytest.raises(StorageError, match="permission denied") as caught:
        score_parquet(pairs, out, **grouped(on_invalid="exclude", **options))
    assert caught.value.path == str(blamed)
    assert everything(public) == before


# Inputs that go away or change


@pytest.mark.repeats  # each change in one of the phases
@pytest.mark.parametrize("change", ["vanish", "grow", "touch"])
@pytest.mark.parametrize("phase", ["evaluating", "writing"])
def test_an_input_that_changes_meanwhile(tmp_path, source, change, phase):
    other = pl.read_parquet(source).with_columns(pl.col("policy_rejected_logps") - 1)
    done = []

    def meddle(progress):
        if progress.phase == phase and not done:
            done.append(True)
            if change == "vanish":
                source.unlink()
            elif change == "grow":
                pl.concat([other, other]).write_parquet(source)
            else:  # as many rows, as many of them invalid, and other values
                other.write_parquet(source)

    expected = r"no such file|changed while it was read|out of specification"
    with pytest.raises(StorageError, match=expected) as caught:
        score_parquet(
            source, tmp_path / "out.parquet", **grouped(progress=meddle, **arguments(tmp_path))
        )
    assert caught.value.path == str(source)
    assert done
    assert set(everything(tmp_path)) <= {"pairs.parquet"}


# Places that are none


@pytest.mark.parametrize("which", ["sink", "invalid", "batches"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "input", "link to the input"])
def test_a_place_that_is_none(tmp_path, source, which, kind):
    place = tmp_path / "place"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "input":
        place = tmp_path / "." / "pairs.parquet"
    else:
        place.symlink_to(source)
    before = source.read_bytes()
    places = {"sink": tmp_path / "out.parquet", **arguments(tmp_path), which: place}
    with pytest.raises(StorageError, match="is a folder|a pipe|also an input") as caught:
        score_parquet(source, **grouped(overwrite=True, **places))
    assert caught.value.path == str(place)
    assert source.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.parquet", place.name}


def test_an_output_inside_an_output_folder_is_refused(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"on_invalid": "exclude", "overwrite": True}
    score_parquet([source], "out", **grouped(**options))
    batches = "./out/../out/means.parquet"
    with pytest.raises(StorageError, match="one output lies in another one"):
        score_parquet([source], "out", **grouped(batch_size=5, batches=batches, **options))
    assert sorted(os.listdir("out")) == ["_SUCCESS", "pairs.parquet"]


def test_evaluate_refuses_an_input_as_its_batches(source):
    with pytest.raises(DpoPipelineError, match="also an input"):
        evaluate(source, batches=Batches(2, file=source), outputs=Outputs(overwrite=True))
