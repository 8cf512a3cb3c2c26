"""Real faults: full disks, corrupt files, rights, signals, two runs at once. Nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from conftest import DATA
from dpo_pipeline import Cancelled, DpoPipelineError, StorageError, evaluate, score_parquet
from dpo_pipeline.cli.program import main
from dpo_pipeline.cli.running import ProgressLine
from dpo_pipeline.engine.progress import Progress
from dpo_pipeline.storage.publication import Publication
from dpo_pipeline.storage.read_errors import reading

TOOL = Path(__file__).parent / "fault_tools.py"
PATIENCE = 60  # seconds until a process counts as hung
NOBODY = 65534


@pytest.fixture
def source(tmp_path, real_pairs):
    path = tmp_path / "pairs.parquet"
    real_pairs.with_columns(
        policy_chosen_logps=pl.when(pl.int_range(pl.len()) == 7)
        .then(1.0)
        .otherwise("policy_chosen_logps")
    ).write_parquet(path)
    return path


@pytest.fixture
def large(tmp_path, real_pairs):
    path = tmp_path / "pairs.parquet"
    pl.concat([real_pairs] * 2_000).write_parquet(path, compression="uncompressed")
    return path


def everything(folder):
    """Return all files, hidden ones as well."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def arguments(folder, **more):
    return {
        "on_invalid": "quarantine",
        "invalid": folder / "apart.parquet",
        "batch_size": 100,
        "batches": folder / "means.parquet",
        **more,
    }


def tool(verb, order, **options):
    return subprocess.Popen(
        [sys.executable, str(TOOL), verb, json.dumps(order)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ended(process):
    try:
        return process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail("the process hangs")


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
def test_a_full_disk_is_said_with_the_outputs_path(small_disk, tmp_path, large, full):
    options = {}
    out = small_disk / "out.parquet" if full == "scored" else tmp_path / "out.parquet"
    blamed = out
    pairs = large
    if full == "invalid":
        blamed = small_disk / "apart.parquet"
        pl.read_parquet(large).with_columns(
            policy_chosen_logps=pl.when(pl.int_range(pl.len()) % 2 == 0)
            .then(1.0)
            .otherwise("policy_chosen_logps"),
            noise=pl.int_range(pl.len()).hash(),
        ).write_parquet(pairs)
        options = {"on_invalid": "quarantine", "invalid": blamed}
    elif full == "batches":
        blamed = small_disk / "means.parquet"
        options = {"batch_size": 3, "batches": blamed}
    elif full == "folder":
        pairs, out = [large], small_disk / "out"
        blamed = out / "pairs.parquet"
    before = large.read_bytes()
    with pytest.raises(StorageError, match="No space left on device") as caught:
        score_parquet(pairs, out, **options)
    assert caught.value.path == str(blamed)
    assert list(small_disk.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir() if path != small_disk] == ["pairs.parquet"]
    assert large.read_bytes() == before


def test_a_full_disk_in_the_command_line(small_disk, large, capsys):
    out = small_disk / "out.parquet"
    assert main(["score", str(large), str(out)]) == 3
    assert f"error: {out}: No space left on device" in capsys.readouterr().err
    assert list(small_disk.iterdir()) == []


def test_a_file_that_may_not_grow_is_said(tmp_path, large):
    out = tmp_path / "out.parquet"
    done = subprocess.run(
        f"ulimit -f 64; exec {sys.executable} -m dpo_pipeline score {large} {out}",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 3, done.stderr
    assert f"error: {out}: File too large" in done.stderr
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
    score_parquet(source, tmp_path / "first.parquet", **arguments(tmp_path))  # imports are done
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
    monkeypatch.setattr("dpo_pipeline.evaluation.metadata.version", lambda _name: "0")
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
        score_parquet(pairs, out, on_invalid="exclude", **options)
    assert caught.value.path == str(blamed)
    assert everything(public) == before


# Inputs that go away or change


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

    expected = r"no such file|changed while it was read"
    with pytest.raises(StorageError, match=expected) as caught:
        score_parquet(source, tmp_path / "out.parquet", progress=meddle, **arguments(tmp_path))
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
        score_parquet(source, **places, overwrite=True)
    assert caught.value.path == str(place)
    assert source.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.parquet", place.name}


def test_an_output_inside_an_output_folder_is_not_stale(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"on_invalid": "exclude", "overwrite": True}
    score_parquet([source], "out", **options)
    score_parquet([source], "out", batch_size=5, batches="./out/../out/means.parquet", **options)
    assert sorted(os.listdir("out")) == ["_SUCCESS", "means.parquet", "pairs.parquet"]


# Two runs at once


@pytest.mark.parametrize("shape", ["file", "folder", "file in the folder", "folder in the folder"])
def test_a_second_run_for_the_same_output_is_refused(tmp_path, source, shape):
    first, second = {
        "file": ((source, "out.parquet"), (source, "./out.parquet")),
        "folder": (([source], "out"), ([source], "./out")),
        "file in the folder": (([source], "out"), (source, "out/pairs.parquet")),
        "folder in the folder": (([source], "out"), ([source], "out/pairs")),
    }[shape]
    waiting, go_on = threading.Event(), threading.Event()

    def wait(_progress):
        waiting.set()
        assert go_on.wait(PATIENCE)

    outcome = []
    options = {"on_invalid": "exclude", "overwrite": True}
    thread = threading.Thread(
        target=lambda: outcome.append(
            score_parquet(first[0], tmp_path / first[1], progress=wait, **options)
        )
    )
    thread.start()
    try:
        assert waiting.wait(PATIENCE)
        with pytest.raises(StorageError, match="another run is writing") as caught:
            score_parquet(second[0], f"{tmp_path}/{second[1]}", **options)
        assert caught.value.path == f"{tmp_path}/{second[1]}"
    finally:
        go_on.set()
        thread.join(PATIENCE)
    assert outcome[0].summary.n_valid == 697
    target = "out.parquet" if shape == "file" else "out/pairs.parquet"
    assert pl.read_parquet(tmp_path / target).height == 697
    assert not any(Path(name).name.startswith(".") for name in everything(tmp_path))


def test_many_runs_at_once_and_one_output(tmp_path, source):
    order = {
        "source": str(source),
        "sink": str(tmp_path / "out.parquet"),
        "arguments": {"on_invalid": "exclude", "overwrite": True},
    }
    processes = [tool("job", order) for _ in range(3)]
    errors = [ended(process)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert 0 in codes
    for code, error in zip(codes, errors, strict=True):
        assert code == 0 or f"{order['sink']}: another run is writing it" in error
    assert pl.read_parquet(tmp_path / "out.parquet").height == 697
    assert len(everything(tmp_path)) == 2


def test_leftovers_of_dead_runs_go_and_other_files_stay(tmp_path, source):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    dead = [".pairs.parquet.dpo-pipeline.tmp", "deep/.old.parquet.dpo-pipeline.tmp"]
    for name in (*dead, ".mine.tmp", "notes.txt"):
        (out / name).write_text("left")
    score_parquet([source], out, on_invalid="exclude", overwrite=True)
    assert list(everything(out)) == [".mine.tmp", "_SUCCESS", "notes.txt", "pairs.parquet"]


def test_only_leftovers_are_no_content(tmp_path, source):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep" / ".pairs.parquet.dpo-pipeline.tmp").write_text("left")
    score_parquet([source], out, on_invalid="exclude")
    assert list(everything(out)) == ["_SUCCESS", "pairs.parquet"]


def test_a_part_that_another_run_is_writing_stops_the_sweep(tmp_path, source):
    out = tmp_path / "out"
    out.mkdir()
    other = out / ".other.parquet.dpo-pipeline.tmp"
    with other.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match=r"other\.parquet: another run is writing it"):
            score_parquet([source], out, on_invalid="exclude")
    assert list(everything(out)) == [other.name]


@pytest.mark.parametrize("shape", ["file", "folder"])
def test_without_locks_outputs_are_whole_all_the_same(tmp_path, source, monkeypatch, shape):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    pairs, out = (source, "out.parquet") if shape == "file" else ([source], "out")
    score_parquet(pairs, tmp_path / out, on_invalid="exclude")
    score_parquet(pairs, tmp_path / out, on_invalid="exclude", overwrite=True)
    assert len(everything(tmp_path)) == (2 if shape == "file" else 3)
    with Publication(overwrite=True) as one, Publication(overwrite=True) as other:
        target = tmp_path / "x.parquet"
        assert one.stage(target) != other.stage(target)


# Faults in the writer


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
        score_parquet(pairs, out, **options, beta=0.9)
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
            score_parquet(pairs, out, **options)
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
            score_parquet(pairs, out, **{**options, "beta": 0.9})
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
        score_parquet(pairs, Path(folder) / out.name, **elsewhere)
        return everything(folder)


def test_a_panic_of_the_engine_is_an_error_with_the_path():
    expected = r"^a\.parquet: cannot be read: index out of bounds$"
    with pytest.raises(StorageError, match=expected) as caught, reading("a.parquet"):
        raise pl.exceptions.PanicException("index out of bounds\nbacktrace")
    assert isinstance(caught.value.__cause__, pl.exceptions.PanicException)


# Corruption


@pytest.fixture(scope="session")
def victims(tmp_path_factory, real_pairs):
    """Real pairs as three writers and settings lay them out."""
    folder = tmp_path_factory.mktemp("victims")
    real_pairs.write_parquet(
        folder / "plain.parquet", compression="uncompressed", row_group_size=100
    )
    pq.write_table(
        real_pairs.to_arrow(),
        folder / "arrow.parquet",
        compression="snappy",
        row_group_size=300,
        data_page_version="2.0",
    )
    return [str(DATA / "hh_harmless_policy_a_test.parquet"), *map(str, sorted(folder.iterdir()))]


@pytest.mark.parametrize(
    "count",
    [pytest.param(150, id="some"), pytest.param(3_000, id="thousands", marks=pytest.mark.slow)],
)
def test_corruption_is_an_error_or_scored_as_it_is_read(tmp_path, victims, count):
    workers = 2
    processes = []
    for worker in range(workers):
        folder = tmp_path / str(worker)
        folder.mkdir()
        seeds = [count * worker // workers, count * (worker + 1) // workers]
        order = {"folder": str(folder), "sources": victims, "seeds": seeds}
        processes.append(tool("corrupt", order))
    tried = []
    for process in processes:
        out, err = ended(process)
        lines = [json.loads(line) for line in out.splitlines()]
        assert process.returncode == 0, f"it died of {lines[-1]}: {err[-2_000:]}"
        tried += [line for line in lines if line["outcome"] != "begun"]
    outcomes = Counter(line["outcome"] for line in tried)
    allowed = {"scored", "StorageError", "ContractError", "ColumnError", "InvalidPairsError"}
    assert [line for line in tried if line["outcome"] not in allowed] == []
    assert [line for line in tried if line["left"] or not line["untouched"]] == []
    assert [line for line in tried if not line.get("path_said", True)] == []
    assert len(tried) == count
    assert outcomes["scored"] >= count // 10  # or nothing was tested but refusals
    assert outcomes["StorageError"] >= count // 10


# Signals and cancelling


@pytest.mark.parametrize("phase", ["evaluating", "writing"])
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_the_main_thread_of_a_program(tmp_path, large, phase, times):
    """Polars can deliver one Ctrl-C twice, the second time while files are being removed."""
    for delay in (0.0, 0.02):
        order = {
            "source": str(large),
            "sink": str(tmp_path / "out.parquet"),
            "arguments": {"batch_size": 100, "batches": str(tmp_path / "means.parquet")},
            "shard_rows": 100_000,
        }
        process = tool("job", order)
        for line in process.stdout:
            if line.split()[1] == phase:
                break
        time.sleep(delay)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.001)
        _, err = ended(process)
        found = set(everything(tmp_path))
        if process.returncode == 0:  # it was faster
            assert found == {"pairs.parquet", "means.parquet", "out.parquet"}
            for name in ("means.parquet", "out.parquet"):
                (tmp_path / name).unlink()
        else:
            assert "KeyboardInterrupt" in err
            assert found == {"pairs.parquet"}


def test_an_interrupt_while_cleaning_up_does_not_stop_it(tmp_path, monkeypatch):
    real = os.unlink
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) < 3:
            raise KeyboardInterrupt
        real(*args)

    with pytest.raises(KeyboardInterrupt), Publication(overwrite=False) as publication:  # noqa: PT012
        for name in ("a", "b"):
            Path(publication.stage(tmp_path / name)).write_text("half")
        monkeypatch.setattr(os, "unlink", interrupted)
        raise ValueError
    assert everything(tmp_path) == {}


def test_an_interrupt_between_renamings_does_not_stop_them(tmp_path, monkeypatch):
    real = os.replace
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) % 2 == 0:
            raise KeyboardInterrupt
        real(*args)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Publication(overwrite=False) as publication:  # noqa: PT012
        for name in ("a", "b", "c"):
            Path(publication.stage(tmp_path / name)).write_text("whole")
        monkeypatch.setattr(os, "replace", interrupted)
        publication.commit()
    assert everything(tmp_path) == dict.fromkeys("abc", b"whole")


@pytest.mark.parametrize("phase", ["evaluating", "writing", "fsync"])
def test_cancel_stops_in_every_phase_and_leaves_nothing(tmp_path, source, monkeypatch, phase):
    cancel = threading.Event()
    real = os.fsync

    def cancelled(*args):
        cancel.set()
        real(*args)

    if phase == "fsync":
        monkeypatch.setattr(os, "fsync", cancelled)
    with pytest.raises(Cancelled, match="nothing was published"):
        score_parquet(
            source,
            tmp_path / "out.parquet",
            cancel=cancel,
            progress=lambda at: cancel.set() if at.phase == phase else None,
            **arguments(tmp_path),
        )
    assert list(everything(tmp_path)) == ["pairs.parquet"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_run_that_does_not_stop(tmp_path, source, number):
    order = {
        "source": str(source),
        "sink": str(tmp_path / "out.parquet"),
        "arguments": {"on_invalid": "exclude"},
        "wait_at": ["evaluating", 1],
    }
    process = tool("stoppable", order)
    assert any(line.startswith("waiting") for line in process.stdout)
    assert len(everything(tmp_path)) == 2
    process.send_signal(number)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(number)
    began = time.monotonic()
    _, err = ended(process)
    assert time.monotonic() - began < 10
    assert process.returncode == 128 + number, err
    assert list(everything(tmp_path)) == ["pairs.parquet"]


# Progress


class Stream(io.StringIO):
    def __init__(self, *, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


class Clock:
    def __init__(self):
        self.now = 1_000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr("dpo_pipeline.cli.running.time", fake)
    monkeypatch.setattr("dpo_pipeline.cli.running._QUIET_SECONDS", 2.0)
    return fake


def show_ten_seconds(line, clock):
    for rows in range(0, 1_001, 10):
        line.show(Progress(phase="writing", rows=rows, total=1_000))
        clock.now += 0.1


def test_progress_lines_in_a_file(clock):
    stream = Stream(terminal=False)
    with ProgressLine(stream, enabled=True) as line:
        show_ten_seconds(line, clock)
    assert stream.getvalue() == ("writing: 1,000 of 1,000 pairs, 100/s, computed; writing ...\n")


def test_progress_on_a_terminal_marks_the_estimate_and_clears_its_line(clock):
    stream = Stream(terminal=True)
    with ProgressLine(stream, enabled=True) as line:
        show_ten_seconds(line, clock)
    shown = stream.getvalue().split("\r")
    assert "writing: 500 of 1,000 pairs, 100/s, about 5 s to go (estimate)" in shown
    assert shown[-3].rstrip() == "writing: 1,000 of 1,000 pairs, 100/s, computed; writing ..."
    assert (shown[-2].strip(), shown[-1]) == ("", "")


def test_a_reader_of_progress_who_left_does_not_stop_the_run(tmp_path, source, clock):
    class Gone(Stream):
        def write(self, _text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    stream = Gone(terminal=True)
    with ProgressLine(stream, enabled=True) as line:
        clock.now += 60
        score_parquet(source, tmp_path / "out.parquet", on_invalid="exclude", progress=line.show)
    assert (tmp_path / "out.parquet").exists()


def test_evaluate_refuses_an_input_as_its_batches(source):
    with pytest.raises(DpoPipelineError, match="also an input"):
        evaluate(source, batch_size=2, batches=source, overwrite=True)
