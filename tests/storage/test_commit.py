"""Kills and errors at every call of a commit: each output is old or new, and a set comes back."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter

import pytest

from commit_tools import (
    PARTS,
    TARGETS,
    Counted,
    Killed,
    fails,
    files_of,
    found_in,
    kill_at_every_call,
    killed,
    put,
    staged,
    state_of,
)
from dpo_pipeline import StorageError
from dpo_pipeline.storage import renames
from dpo_pipeline.storage.publication import Publication

OFTEN = [("file", "old"), ("files", "old"), ("folder", "old"), ("folders", "nothing")]
RARE = [("file", "nothing"), ("files", "nothing"), ("folder", "nothing"), ("folders", "old")]
SCENES = [
    *(pytest.param(*scene, id=" over ".join(scene)) for scene in OFTEN),
    # The same calls, in sets of other sizes.
    *(pytest.param(*s, id=" over ".join(s), marks=pytest.mark.slow) for s in RARE),
]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """No disk is waited for: that calls are made, and in which order, is what is tested here."""
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


def before(over):
    return "old" if over == "old" else "none"


@pytest.mark.parametrize(("scene", "over"), SCENES)
def test_a_kill_at_every_call(scene, over):
    left = list(kill_at_every_call(scene, over))
    assert [each["died"] for each in left] == [True] * (len(left) - 1) + [False]
    assert not [each for each in left if each["torn"]]
    states = [each["left"] for each in left]
    # First what was there, then, of several names, a moment of both, then the new output.
    assert [s for i, s in enumerate(states) if s not in states[:i]] == [
        before(over),
        *(["mixed"] if scene in ("files", "folders") else []),
        "new",
    ]
    for each in left:
        once_staged = "new" if each["left"] == "new" else before(over)
        assert (each["once_staged"], each["in_the_end"]) == (once_staged, "new"), each
        assert each["hidden"] == []
    if (scene, over) == ("folder", "old"):  # who has it open sees nothing of the new one
        old = ["_SUCCESS", "a.parquet", "deep", "stale.parquet"]
        for each in left:
            assert set(each["open_folder"]) <= set(old)
            if each["left"] == "old":
                assert each["open_folder"] == old


@pytest.mark.repeats(2)  # no number and no size of a set changes how all comes back
@pytest.mark.parametrize(("scene", "over"), SCENES)
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_an_error_at_every_call_brings_all_back(tmp_path, scene, over, number):
    ended = Counter()
    for at in range(1, 100):
        folder = tmp_path / str(at)
        put(folder, files_of(scene, "old") if over == "old" else {})
        folder.mkdir(exist_ok=True)
        counted, error = Counted(fails(at, forever=False, error=number)), None
        try:
            with staged(folder, scene, overwrite=over == "old") as publication:
                counted.start()
                publication.commit()
        except StorageError as caught:
            error = caught
        finally:
            counted.stop()
        found, hidden = found_in(folder)
        assert state_of(found, scene) == ("new" if error is None else before(over), [])
        assert hidden == []
        if error is not None:
            assert os.strerror(number) in str(error)
            assert error.path.startswith(str(folder))
            if publication.is_publishing:
                assert str(error).endswith("; what was there before is there again")
        ended[error is None] += 1
        if len(counted.names) < at:
            break
    assert len(counted.names) < at
    assert min(ended.values()) >= 1


# By default at every third call: `test_a_kill_at_every_call` stops at each of them.
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_died_is_said_and_the_next_run_brings_the_old_back(tmp_path, step):
    put(tmp_path, files_of("folders", "old"))
    last = len(counted_calls(tmp_path / "whole"))
    seen = set()
    for at in range(1, last + 1, step):
        folder = tmp_path / str(at)
        put(folder, files_of("folders", "old"))
        counted, error = Counted(fails(at, forever=True)), None
        try:
            with staged(folder, "folders", overwrite=True) as publication:
                counted.start()
                publication.commit()
        except StorageError as caught:
            error = caught
        finally:
            counted.stop()
        state, torn = state_of(found_in(folder)[0], "folders")
        seen.add(state)
        assert torn == []
        if state == "mixed":
            assert "could not be brought back, and the next run tries again" in str(error)
        with staged(folder, "folders", overwrite=True):
            once_staged = state_of(found_in(folder)[0], "folders")[0]
        assert once_staged == ("new" if state == "new" else "old")
    assert seen == {"old", "mixed", "new"}


def counted_calls(folder):
    put(folder, files_of("folders", "old"))
    counted = Counted(lambda *_: None)
    with staged(folder, "folders", overwrite=True) as publication:
        counted.start()
        publication.commit()
    counted.stop()
    return counted.names


def test_names_are_durable_before_the_last_one_is_given_and_before_the_old_is_removed(tmp_path):
    names = counted_calls(tmp_path)
    given = [at for at, name in enumerate(names) if name == "renameat2"]
    removed = [at for at, name in enumerate(names) if name in ("unlink", "rmdir")]
    assert len(given) == 3
    assert "fsync" in names[given[-2] : given[-1]]
    assert "fsync" in names[given[-1] : removed[0]]


@pytest.mark.parametrize(
    ("scene", "over"), [("file", "old"), ("files", "old"), ("files", "nothing")]
)
def test_another_run_waits_for_all_names_of_this_one(tmp_path, monkeypatch, scene, over):
    """What was replaced has a hidden name for a moment, and is no dead run's."""
    put(tmp_path, files_of(scene, "old") if over == "old" else {})
    real, tried = renames.renameat2, []

    def call(one, other, flags):
        real(one, other, flags)
        if not tried:
            tried.append(one)
            other_run = Publication(overwrite=True)
            with pytest.raises(StorageError, match="another run is writing it"), other_run:
                other_run.stage(tmp_path / TARGETS[scene][0])

    with staged(tmp_path, scene, overwrite=over == "old") as publication:
        monkeypatch.setattr(renames, "renameat2", call)
        publication.commit()
    assert tried
    assert (state_of(found_in(tmp_path)[0], scene), found_in(tmp_path)[1]) == (("new", []), [])


# Systems that cannot exchange names


@pytest.fixture
def refusing(monkeypatch):
    """Return a function that makes exchanges of names fail with an error."""

    def refuse(number):
        real = renames.renameat2

        def call(one, other, flags):
            if flags == renames.EXCHANGE:
                raise OSError(number, renames.REFUSALS.get(number, os.strerror(number)))
            return real(one, other, flags)

        monkeypatch.setattr(renames, "renameat2", call)

    return refuse


@pytest.mark.repeats(1)  # both errors are one case
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL], ids=errno.errorcode.get)
def test_files_are_kept_under_a_second_name_where_names_cannot_be_exchanged(
    tmp_path, refusing, number
):
    refusing(number)
    ended = Counter()
    for at in range(1, 100):
        folder = tmp_path / str(at)
        put(folder, files_of("files", "old"))
        died = killed(folder, "files", at, overwrite=True)
        state, torn = state_of(found_in(folder)[0], "files")
        ended[state] += 1
        assert torn == []
        with staged(folder, "files", overwrite=True) as publication:
            once_staged = state_of(found_in(folder)[0], "files")[0]
            assert once_staged == ("new" if state == "new" else "old")
            publication.commit()
        assert (state_of(found_in(folder)[0], "files"), found_in(folder)[1]) == (("new", []), [])
        if not died:
            break
    assert set(ended) == {"old", "mixed", "new"}


@pytest.mark.parametrize(
    "number", [errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EBUSY], ids=errno.errorcode.get
)
def test_a_folder_is_not_replaced_where_that_is_known_not_to_work(tmp_path, refusing, number):
    put(tmp_path, files_of("folder", "old"))
    refusing(number)
    with (
        pytest.raises(StorageError, match="cannot exchange two folders") as caught,
        staged(tmp_path, "folder", overwrite=True),
    ):
        pytest.fail("it was staged")
    assert caught.value.path == str(tmp_path / "out")
    assert (state_of(found_in(tmp_path)[0], "folder"), found_in(tmp_path)[1]) == (("old", []), [])


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EBUSY], ids=errno.errorcode.get)
@pytest.mark.parametrize("scene", ["files", "folders"])
def test_a_name_that_turns_out_not_to_be_exchanged_changes_nothing(
    tmp_path, refusing, scene, number
):
    put(tmp_path, files_of(scene, "old"))
    with (  # noqa: PT012
        pytest.raises(StorageError, match="what was there before is there again"),
        staged(tmp_path, scene, overwrite=True) as publication,
    ):
        refusing(number)
        publication.commit()
    assert (state_of(found_in(tmp_path)[0], scene), found_in(tmp_path)[1]) == (("old", []), [])


@pytest.mark.parametrize("scene", ["files", "folders"])
def test_new_names_need_no_exchange(tmp_path, refusing, scene):
    refusing(errno.ENOSYS)
    if scene == "folders":
        (tmp_path / "out").mkdir()  # an empty folder is replaced
    with staged(tmp_path, scene, overwrite=False) as publication:
        publication.commit()
    assert (state_of(found_in(tmp_path)[0], scene), found_in(tmp_path)[1]) == (("new", []), [])


# What is in a folder


FOREIGN = {
    "notes": ("out/notes.txt", b"mine"),
    "a hidden file": ("out/.mine", b"mine"),
    "a copy of a part": ("out/copy.parquet", None),
    "a marker with text": ("out/_SUCCESS", b"mine"),
    "a marker elsewhere": ("out/deep/_SUCCESS", b""),
}


@pytest.mark.parametrize(("name", "data"), FOREIGN.values(), ids=list(FOREIGN))
def test_a_folder_with_files_that_its_output_does_not_list_is_refused(tmp_path, name, data):
    put(tmp_path, files_of("folder", "old"))
    put(tmp_path, {name: data or (tmp_path / "out" / "a.parquet").read_bytes()})
    found = found_in(tmp_path)
    with (
        pytest.raises(StorageError, match="not listed by its output") as caught,
        staged(tmp_path, "folder", overwrite=True),
    ):
        pytest.fail("it was staged")
    assert caught.value.path == str(tmp_path / name)
    assert found_in(tmp_path) == found


def test_a_link_and_a_pipe_in_a_folder_are_refused_and_not_opened(tmp_path):
    put(tmp_path, files_of("folder", "old"))
    for make in (lambda path: os.symlink(tmp_path, path), os.mkfifo):
        make(tmp_path / "out" / "x.parquet")
        with pytest.raises(StorageError, match="not listed"):
            Publication(overwrite=True).check(tmp_path / "out", PARTS["new"])
        (tmp_path / "out" / "x.parquet").unlink()
    assert Publication(overwrite=True).check(tmp_path / "out", PARTS["new"]).replaces


def test_what_comes_into_a_folder_during_the_run_stops_the_commit(tmp_path):
    put(tmp_path, files_of("folder", "old"))
    with (  # noqa: PT012
        pytest.raises(StorageError, match="not listed by its output"),
        staged(tmp_path, "folder", overwrite=True) as publication,
    ):
        put(tmp_path, {"out/notes.txt": b"mine"})
        publication.commit()
    found = found_in(tmp_path)[0]
    assert found.pop("out/notes.txt") == b"mine"
    assert state_of(found, "folder") == ("old", [])


def test_one_output_does_not_lie_in_another_one(tmp_path):
    checks = Publication(overwrite=False)
    checks.check(tmp_path / "out", ["a.parquet"])
    with pytest.raises(StorageError, match="lies in another one"):
        checks.check(tmp_path / "out" / "means.parquet")


@pytest.mark.parametrize("place", [".", "..", "in/.."])
def test_the_current_folder_is_no_output(tmp_path, monkeypatch, place):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    if place == "in/..":
        monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="current folder"):
        Publication(overwrite=False).check(place, ["a.parquet"])


# Rights


@pytest.mark.parametrize("scene", ["file", "folder"])
def test_a_replaced_output_keeps_its_rights(tmp_path, scene):
    put(tmp_path, files_of(scene, "old"))
    rights = {"out": 0o711, "out/a.parquet": 0o604, "out.parquet": 0o640}
    rights = {name: mode for name, mode in rights.items() if (tmp_path / name).exists()}
    for name, mode in rights.items():
        (tmp_path / name).chmod(mode)
    with staged(tmp_path, scene, overwrite=True) as publication:
        publication.commit()
    assert state_of(found_in(tmp_path)[0], scene) == ("new", [])
    assert {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in rights} == rights


def test_a_folder_without_rights_is_replaced_and_removed(tmp_path):
    put(tmp_path, files_of("folder", "old"))
    (tmp_path / "out" / "deep").chmod(0o500)
    (tmp_path / "out").chmod(0o500)
    with staged(tmp_path, "folder", overwrite=True) as publication:
        publication.commit()
    assert os.listdir(tmp_path) == ["out"]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o500
    (tmp_path / "out").chmod(0o700)


def test_a_dead_process_changes_nothing_more(tmp_path):
    """The simulated kill, which the tests above rely on."""
    counted = Counted(fails(1, forever=True, error=Killed))
    counted.start()
    try:
        for call in (os.unlink, os.rmdir, os.mkdir):
            with pytest.raises(Killed):
                call(tmp_path / "x")
    finally:
        counted.stop()
