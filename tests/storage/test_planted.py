"""What others put beside an output decides nothing: hidden files, journals, links, devices."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from dpo_pipeline import StorageError
from dpo_pipeline.cli.program import main
from dpo_pipeline.storage import locks, renames
from dpo_pipeline.storage.locks import hidden_name, identity, journal_name, place
from dpo_pipeline.storage.publication import Publication


@pytest.fixture
def stranger(monkeypatch):
    """Return a function that makes a file another user's, as this process sees it."""
    theirs = set()

    def is_mine(found):
        return (found.st_dev, found.st_ino) not in theirs

    for module in (renames, locks):
        monkeypatch.setattr(module, "is_mine", is_mine)

    def give(path):
        found = os.lstat(path)
        theirs.add((found.st_dev, found.st_ino))

    return give


def published(target, text="new", *, overwrite=False):
    with Publication(overwrite=overwrite) as publication:
        with open(publication.stage(target), "w") as file:
            file.write(text)
        publication.commit()


@pytest.mark.parametrize("mode", [0o666, 0o600])
def test_a_hidden_file_of_another_user_is_an_error(tmp_path, stranger, mode):
    target = tmp_path / "out.json"
    hidden = hidden_name(str(target))
    with open(hidden, "w") as file:
        file.write("planted")
    os.chmod(hidden, mode)
    stranger(hidden)
    for attempt in (Publication(overwrite=False).check, published):
        with pytest.raises(StorageError, match=r"another user, or a link, has taken .*remove it"):
            attempt(target)
    assert Path(hidden).read_text() == "planted"
    assert not target.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can chown")
def test_a_hidden_file_that_really_is_another_users(tmp_path):
    target = tmp_path / "out.json"
    with open(hidden_name(str(target)), "w"):
        pass
    os.chown(hidden_name(str(target)), 65534, 65534)
    with pytest.raises(StorageError, match="another user"):
        published(target)


def test_a_hidden_link_is_an_error_and_is_not_followed(tmp_path):
    target, precious = tmp_path / "out.json", tmp_path / "precious"
    precious.write_text("mine")
    os.symlink(precious, hidden_name(str(target)))
    with pytest.raises(StorageError, match="or a link, has taken"):
        published(target)
    assert precious.read_text() == "mine"


def test_what_a_dead_run_left_is_made_anew_with_the_umask(tmp_path):
    target = tmp_path / "out.json"
    hidden = hidden_name(str(target))
    with open(hidden, "w") as file:
        file.write("a dead run's")
    os.chmod(hidden, 0o666)  # noqa: S103  as planted
    with open(hidden) as opened:  # whoever opened it before sees nothing of this run
        before = os.umask(0o027)
        try:
            published(target)
        finally:
            os.umask(before)
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
        assert opened.read() == "a dead run's"


@pytest.mark.parametrize("fault", ["another user's", "open to others", "a second name", "a link"])
def test_a_planted_journal_removes_nothing(tmp_path, stranger, fault):
    target, bait = tmp_path / "out.json", tmp_path / "bait"
    target.write_text("mine")
    bait.write_text("x")
    facts = [
        [place(str(bait)), place(str(target)), False, identity(str(target)), None],
        [place(str(bait)), place(str(target)), False, identity(str(bait)), None],
    ]
    journal = journal_name(str(target))
    with open(journal, "w") as file:
        json.dump(facts, file)
    os.chmod(journal, 0o600)
    if fault == "another user's":
        stranger(journal)
    elif fault == "open to others":
        os.chmod(journal, 0o666)  # noqa: S103  as planted
    elif fault == "a second name":
        os.link(journal, tmp_path / "second")
    else:
        os.rename(journal, tmp_path / "elsewhere")
        os.symlink(tmp_path / "elsewhere", journal)
    for attempt in (Publication(overwrite=False).check, published):
        with pytest.raises(StorageError, match="remove it"):
            attempt(target)
    assert target.read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{", "[]", "[[1]]", '{"last": 3}', "null"])
def test_a_journal_that_was_cut_short_undoes_nothing(tmp_path, text):
    target = tmp_path / "out.json"
    target.write_text("mine")
    with open(journal_name(str(target)), "w") as file:
        file.write(text)
    os.chmod(journal_name(str(target)), 0o600)
    with pytest.raises(StorageError, match="exists already"):
        published(target)
    assert target.read_text() == "mine"
    assert os.listdir(tmp_path) == ["out.json"]


# Links and devices as outputs


@pytest.mark.parametrize("kind", ["link", "dangling link", "link to a folder"])
@pytest.mark.parametrize("relatives", [None, ["a.parquet"]], ids=["file", "folder"])
def test_a_link_is_no_output(tmp_path, kind, relatives):
    real, link = tmp_path / "real", tmp_path / "link"
    if kind == "link":
        real.write_text("mine")
    elif kind == "link to a folder":
        real.mkdir()
    link.symlink_to(real)
    with pytest.raises(StorageError, match="is a link to|is a folder|is a file"):
        Publication(overwrite=True).check(link, relatives)
    assert link.is_symlink()


@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/null", "/dev/fd/1"])
def test_a_device_is_no_output_and_stays(capsys, tmp_path, pairs, place):
    pairs.write_parquet(tmp_path / "pairs.parquet")
    before = os.lstat("/dev/null"), os.readlink("/dev/stdout")
    words = ["evaluate", str(tmp_path / "pairs.parquet"), "--summary", place, "--overwrite"]
    assert main(words) == 3
    err = capsys.readouterr().err
    assert f"error: {place}: is a " in err
    assert (os.lstat("/dev/null"), os.readlink("/dev/stdout")) == before


@pytest.mark.parametrize("relatives", [None, ["a.parquet"]], ids=["file", "folder"])
def test_a_mount_point_is_no_output(tmp_path, monkeypatch, relatives):
    place = tmp_path / "mount"
    place.mkdir() if relatives else place.write_text("mine")
    monkeypatch.setattr(renames.os.path, "ismount", lambda path: path == str(place))
    with pytest.raises(StorageError, match="is a mount point"):
        Publication(overwrite=True).check(place, relatives)


def test_mount_points_are_found_in_the_list_of_mounts():
    assert renames.is_mounted("/proc")
    assert not renames.is_mounted("/proc/self")
