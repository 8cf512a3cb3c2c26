"""What strangers put in a run's way: settings that run code, secrets, text for terminals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import polars as pl
import pytest

from dpo_pipeline import DpoPipelineError, StorageError, dry_run, evaluate
from dpo_pipeline.cli import program
from dpo_pipeline.cli.program import main
from dpo_pipeline.rendering import as_text
from dpo_pipeline.storage.read_errors import reading
from dpo_pipeline.tables import Column, Table, as_json, shown
from process_tools import PATIENCE

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\u202egnp\u2066\x9b31m\u200b"
SEEN = r"\x1b]0;owned\x07\x1b[2J\x0d\u202egnp\u2066\x9b31m\u200b"


@pytest.fixture
def home(tmp_path, monkeypatch, pairs):
    """A project with pairs, and its subfolder as the working directory."""
    (tmp_path / "project" / "sub").mkdir(parents=True)
    pairs.write_parquet(tmp_path / "project" / "sub" / "pairs.parquet")
    monkeypatch.chdir(tmp_path / "project" / "sub")
    return tmp_path / "project"


def settings(folder, text, name="pyproject.toml"):
    place = folder / name
    place.write_text(f"[tool.dpo-pipeline]\n{text}\n", encoding="utf-8")
    return place


# Settings that were found


CONSENT = {
    "contract": ("evaluate", "contract = 'evil:Schema'"),
    "credential-provider": ("evaluate", "credential-provider = 'evil:keys'"),
    "storage-option": ("evaluate", "storage-option = 'aws_endpoint_url=https://evil'"),
    "ray-address": ("evaluate", "ray-address = 'evil:6379'"),
    "overwrite": ("check", "summary = 'precious.json'\noverwrite = true"),
}


@pytest.mark.parametrize(("option", "text"), CONSENT.values(), ids=list(CONSENT))
@pytest.mark.parametrize("where", ["above", "here"])
def test_a_file_that_was_found_runs_no_code_and_replaces_nothing(
    capsys, home, request, option, text, where
):
    key = request.node.callspec.id.split("-", 1)[1]
    (home / "sub" / "evil.py").write_text("open('ran', 'w').close()\nSchema = keys = None\n")
    (home / "precious.json").write_text("mine")
    place = settings(home if where == "above" else home / "sub", text)
    assert main([option, "pairs.parquet"]) == 2
    err = capsys.readouterr().err
    assert f"error: {place}: {key}: needs consent" in err
    assert f"--config {place}" in err
    assert not (home / "sub" / "ran").exists()
    assert (home / "precious.json").read_text() == "mine"


def test_a_file_that_is_named_has_consent(capsys, home):
    (home / "sub" / "evil.py").write_text("open('ran', 'w').close()\nSchema = 3\n")
    place = settings(home, "contract = 'evil:Schema'")
    main(["evaluate", "pairs.parquet", "--config", str(place)])
    assert (home / "sub" / "ran").exists()
    capsys.readouterr()


def test_the_command_line_is_consent(capsys, home):
    settings(home, "summary = 'sum.json'\noverwrite = true")
    (home / "sum.json").write_text("old")
    assert main(["check", "pairs.parquet", "--overwrite"]) == 0
    assert json.loads((home / "sum.json").read_text())
    capsys.readouterr()


def test_an_option_of_another_command_needs_no_consent(capsys, home):
    settings(home, "[tool.dpo-pipeline.score]\noverwrite = true")
    assert main(["evaluate", "pairs.parquet", "--dry-run"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("stop", ["repository", "worktree", "home"])
def test_the_climb_stops(capsys, home, monkeypatch, stop):
    settings(home.parent, "beta = 0.2")
    assert planned(capsys) == 0.2
    if stop == "repository":
        (home / ".git").mkdir()
    elif stop == "worktree":
        (home / ".git").write_text("gitdir: elsewhere")
    else:
        monkeypatch.setenv("HOME", str(home))
    assert planned(capsys) == 0.1
    settings(home, "beta = 0.3")
    assert planned(capsys) == 0.3


def planned(capsys):
    assert main(["evaluate", "pairs.parquet", "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["objectives"][0]["beta"]


def test_a_run_says_where_its_settings_are_from(capsys, home):
    place = settings(home, "beta = 0.2")
    assert main(["evaluate", "pairs.parquet"]) == 0
    said = f"setting: beta = 0.2, from {place}\n"
    assert capsys.readouterr().err == said
    assert main(["evaluate", "pairs.parquet", "--config", str(place), "--quiet"]) == 0
    assert capsys.readouterr().err == said
    assert main(["evaluate", "pairs.parquet", "--beta", "0.3"]) == 0
    assert capsys.readouterr().err == ""


def test_the_current_folder_takes_no_modules_place(home):
    (home / "sub" / "polars.py").write_text("raise SystemExit('a stranger ran')\n")
    (home / "sub" / "own_schema.py").write_text("Schema = 3\n")
    command = ["evaluate", "pairs.parquet", "--contract", "own_schema:Schema"]
    script = f"import sys\nfrom dpo_pipeline.cli.program import main\nsys.exit(main({command!r}))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert "a stranger ran" not in done.stderr
    assert "own_schema" not in done.stderr
    assert done.returncode == 2  # 3 is no schema


@pytest.mark.parametrize("place", ["/dev/zero", "pipe"])
def test_a_device_is_no_file_of_settings(capsys, home, place):
    if place == "pipe":
        os.mkfifo(home / "sub" / "pipe")
    code = main(["evaluate", "pairs.parquet", "--config", place, "--dry-run"])
    err = capsys.readouterr().err
    assert code == (2 if place == "/dev/zero" else 0)
    assert ("is no file of settings" in err) == (place == "/dev/zero")


def test_settings_come_through_a_pipe_that_is_written_to(capsys, home):  # noqa: ARG001
    read, write = os.pipe()

    def later():
        with os.fdopen(write, "w") as file:
            file.write("beta = 0.4\n")

    thread = threading.Thread(target=later)
    thread.start()
    words = ["--config", f"/dev/fd/{read}", "--dry-run", "--json"]
    assert main(["evaluate", "pairs.parquet", *words]) == 0
    thread.join(PATIENCE)
    os.close(read)
    assert json.loads(capsys.readouterr().out)["objectives"][0]["beta"] == 0.4


# Secrets


SECRET = "hunter2"  # noqa: S105  it is made up
ADDRESSES = {
    "query": (f"https://host/pairs.csv?token={SECRET}", "https://host/pairs.csv?token=***"),
    "several": (
        f"s3://b/x.parquet?versionId={SECRET}&X-Amz-Signature={SECRET}",
        "s3://b/x.parquet?versionId=***&X-Amz-Signature=***",
    ),
    "password": (f"https://me:{SECRET}@host/pairs", "https://***@host/pairs"),
    "user": (f"https://{SECRET}@host/pairs", "https://***@host/pairs"),
    "fragment": (f"https://host/pairs#key={SECRET}", "https://host/pairs#key=***"),
    "no secret": ("abfss://box@account.dfs.core/x", "abfss://box@account.dfs.core/x"),
    "a glob": ("s3://b/part-?.parquet", "s3://b/part-?.parquet"),
    "no address": ("data/x?y=1", "data/x?y=1"),
}


@pytest.mark.parametrize(("address", "said"), ADDRESSES.values(), ids=list(ADDRESSES))
def test_an_address_is_shown_without_its_secrets(address, said):
    assert shown(address) == said
    assert shown(f"cannot read '{address}': no") == f"cannot read '{said}': no"
    assert str(StorageError(address, f"{address} is gone")) == f"{said}: {said} is gone"
    assert json.loads(as_json({"files": {address: 1}, "s": address})) == {
        "files": {said: 1},
        "s": said,
    }


def test_an_error_with_a_secret_has_no_cause_that_tells_it():
    address = ADDRESSES["query"][0]
    with pytest.raises(StorageError) as caught, reading(address):
        raise pl.exceptions.ComputeError(f"GET {address}: 403")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert SECRET not in str(caught.value)
    with pytest.raises(StorageError) as caught, reading("pairs.parquet"):
        raise pl.exceptions.ComputeError("no")
    assert caught.value.__cause__ is not None


def test_storage_options_are_said_by_name_alone(capsys, home):
    own = settings(home, f"storage-option = 'aws_secret_access_key={SECRET}'", "own.toml")
    words = ["evaluate", "pairs.parquet", "--config", str(own)]
    for more in (["--dry-run"], ["--dry-run", "--json"], ["--loss", "no_such"], ["--beta", "-1"]):
        main([*words, *more])
        out, err = capsys.readouterr()
        assert SECRET not in out + err
        assert "aws_secret_access_key" in out + err
    (home / "own.toml").write_text(f"storage-option = {{ key = '{SECRET}' }}\n")
    assert main(words) == 2
    assert SECRET not in capsys.readouterr().err


# Terminals


def test_nothing_reaches_a_terminal_that_it_would_act_upon():
    assert shown(HOSTILE) == SEEN
    assert shown("two\nlines, ünïcode, 日本語 and 👩‍💻") == "two\nlines, ünïcode, 日本語 and 👩‍💻"
    assert shown("a name that is not UTF-8: \udcff") == r"a name that is not UTF-8: \udcff"
    table = Table(columns=[Column("name")], rows=[(f"{HOSTILE}\nx",)])
    assert as_text([table]).split("\n")[1] == rf"{SEEN}\nx"


def test_the_longest_name_is_cut():
    name = "x" * 5_000_000
    assert len(shown(name)) < 10_000
    assert "(5,000,000 characters)" in shown(name)
    table = Table(columns=[Column(name), Column("n")], rows=[(name, 1), ("y", 2)])
    assert len(as_text([table])) < 10_000
    assert len(str(StorageError(name, "is gone"))) < 10_000


def test_hostile_columns_and_paths_on_the_command_line(capsys, home, pairs):
    path = home / "sub" / f"{HOSTILE}.parquet"
    pairs.rename({"subset": HOSTILE}).write_parquet(path)
    for words in (
        ["evaluate", str(path), "--by", HOSTILE],
        ["evaluate", str(path), "--by", HOSTILE, "--dry-run"],
        ["check", str(path)],
        ["score", str(path), str(path)],
        ["evaluate", str(path), "--by", f"{HOSTILE}x"],
        ["convert", str(path), str(path.with_name(f"{HOSTILE}2.parquet"))],
        ["evaluate", f"{HOSTILE}.csv"],
        ["evaluate", str(path), "--loss", HOSTILE],
        ["evaluate", str(path), "--config", f"{HOSTILE}.toml"],
        [HOSTILE],
        ["evaluate", str(path), f"--{HOSTILE}"],
    ):
        main(words)
        out, err = capsys.readouterr()
        assert not set(HOSTILE) & set("\x1b\x07\r\u202e\u2066\x9b\u200b") & set(out + err), words


def test_a_name_that_is_not_utf_8(capsys, home, pairs):
    path = os.path.join(os.fsencode(home / "sub"), b"\xff.parquet")
    with open(path, "wb") as file:
        pairs.write_parquet(file)
    for command in ("evaluate", "check"):
        assert main([command, os.fsdecode(path)]) == 3
        assert "its name is not UTF-8" in capsys.readouterr().err
    for out in (path, path.replace(b".parquet", b"/")):
        assert main(["score", "pairs.parquet", os.fsdecode(out), "--overwrite"]) in (2, 3)
        assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(DpoPipelineError):
        evaluate(os.fsdecode(path + b"x"))
    assert str(dry_run(evaluate, pairs))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        ImportError("libparquet.so: failed to map segment from shared object"),
    ],
    ids=["buffer", "thread", "library"],
)
def test_lack_of_memory_is_said_without_a_traceback(capsys, monkeypatch, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(program.cli, "main", fail)
    assert main(["evaluate", "pairs.parquet"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("error: there is not enough memory")
    assert "Traceback" not in err
