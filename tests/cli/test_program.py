"""The command line: what goes where, exit codes, and signals to a real process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import polars as pl
import pytest

from command_tools import run
from dpo_pipeline import evaluate
from dpo_pipeline.cli.program import cli, main
from pair_tools import LOGPS
from process_tools import ended, until


@pytest.fixture
def source(tmp_path, pairs):
    path = tmp_path / "pairs.parquet"
    pairs.write_parquet(path)
    return str(path)


@pytest.fixture
def broken(tmp_path, pairs):
    path = tmp_path / "broken.parquet"
    pairs.with_columns(ref_chosen_logps=pl.Series([-1.0, 2.0, None, -4, -5, -6])).write_parquet(
        path
    )
    return str(path)


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "dpo_pipeline", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_evaluate_prints_the_figures_and_nothing_else(capsys, source):
    code, out, err = run(capsys, "evaluate", source, "--by", "subset", "--batch-size", 4)
    assert (code, err) == (0, "")
    assert "rewards/accuracies" in out
    # A verdict; a title, a head and 8 figures; 3 subsets; 2 batches; three lines between.
    assert len(out.splitlines()) == 1 + 10 + (2 + 3) + (2 + 2) + 3


def test_json_is_one_document_with_the_librarys_figures(capsys, source):
    code, out, err = run(capsys, "evaluate", source, "--by", "subset", "--json", "--beta", "0.2")
    assert (code, err) == (0, "")
    document = json.loads(out)
    expected = evaluate(source, beta=0.2, by="subset")
    assert document["summary"] == expected.summary.to_dict()
    assert document["metrics"] == expected.to_metrics()
    assert document["subsets"] == expected.subsets.to_dicts()


def test_summary_keeps_the_document(capsys, source, tmp_path):
    kept = tmp_path / "summary.json"
    code, out, _ = run(capsys, "evaluate", source, "--summary", kept, "--json")
    assert code == 0
    assert kept.read_text() == out
    code, out, err = run(capsys, "evaluate", source, "--summary", kept)
    assert (code, out) == (3, "")
    assert "exists already" in err
    assert run(capsys, "evaluate", source, "--summary", kept, "--overwrite")[0] == 0


def test_score_writes_and_says_what_was_left_out(capsys, broken, tmp_path):
    out = tmp_path / "scored.parquet"
    code, text, err = run(capsys, "score", broken, out, "--on-invalid", "quarantine")
    assert code == 0
    apart = tmp_path / "scored.invalid.parquet"
    assert err.splitlines() == [
        f"wrote {path}: {rows} rows, {path.stat().st_size:,} bytes"
        for path, rows in ((apart, 2), (out, 4))
    ]
    quiet = ["--on-invalid", "exclude", "--overwrite", "-q"]
    assert run(capsys, "score", broken, out, *quiet)[2] == ""
    assert "no verdict: 2 of 6 pairs break the contract" in text
    assert "ref_chosen_logps.not_null  not null      1  row 2 (pair_id c): null" in text
    assert "2 invalid" in text
    assert pl.read_parquet(out).height == 4
    assert pl.read_parquet(tmp_path / "scored.invalid.parquet").height == 2


def test_check_prints_its_report(capsys, source, broken):
    assert run(capsys, "check", source) == (0, f"{source}: all 6 pairs keep the contract\n", "")
    code, out, err = run(capsys, "check", broken)
    assert (code, err) == (1, "")
    assert "breaks its contract in 2 of 6 rows" in out
    code, out, err = run(capsys, "check", broken, "--json")
    assert (code, err) == (1, "")
    assert [(r["rule"], r["count"]) for r in json.loads(out)["invalid"]] == [
        ("ref_chosen_logps.not_null", 1),
        ("ref_chosen_logps.at_most", 1),
    ]


@pytest.mark.parametrize(("limit", "code"), [("2", 0), ("1", 1), ("34%", 0), ("0.3", 1)])
def test_check_with_a_limit(capsys, broken, limit, code):
    assert run(capsys, "check", broken, "--max-invalid", limit)[0] == code


USAGE, DATA, FILES = 2, 1, 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(
            ["evaluate", "{broken}"],
            DATA,
            "on_invalid (--on-invalid) 'exclude'",
            id="invalid pairs",
        ),
        pytest.param(["check", "{empty}"], DATA, "holds no pairs", id="no pairs"),
        pytest.param(
            ["evaluate", "{text}"],
            DATA,
            "must be a number (any float or integer), found String",
            id="text",
        ),
        pytest.param(["evaluate", "{short}"], DATA, "ref_rejected_logps: missing", id="column"),
        pytest.param(["evaluate", "{typo}"], DATA, "did you mean 'ref_rejectd_logps'", id="typo"),
        pytest.param(["evaluate", "{source}", "--by", "subst"], USAGE, "did you mean", id="by"),
        pytest.param(["evaluate", "{source}", "--beta", "-1"], USAGE, "beta must be", id="beta"),
        pytest.param(["evaluate", "{source}", "--beta", "x"], USAGE, "not a valid float", id="x"),
        pytest.param(["evaluate", "{source}", "--bta", "1"], USAGE, "No such option", id="option"),
        pytest.param(["evaluate", "{source}", "--bta", "1"], USAGE, "--beta", id="near option"),
        pytest.param(["evaluat", "{source}"], USAGE, "did you mean 'evaluate'?", id="command"),
        pytest.param(["x", "{source}"], USAGE, "there are check, evaluate", id="no near command"),
        pytest.param(
            ["evaluate", "{source}", "--loss", "ipoo"], USAGE, "did you mean 'ipo'?", id="loss"
        ),
        pytest.param(
            ["evaluate", "{source}", "--loss-arg", "label_smoothng=0.1"],
            USAGE,
            "did you mean 'label_smoothing'?",
            id="argument of a loss",
        ),
        pytest.param(
            ["sweep", "{source}", "--loss-arg", "label_smoothng=0.1"],
            USAGE,
            "did you mean 'label_smoothing'?",
            id="argument of swept losses",
        ),
        pytest.param(
            ["evaluate", "{source}", "--column", "policy_chosn_logps=x"],
            USAGE,
            "did you mean 'policy_chosen_logps'?",
            id="near role",
        ),
        pytest.param(
            ["evaluate", "{short}", "--reference", "{source}", "--on", "pair_i"],
            USAGE,
            "did you mean 'pair_id'?",
            id="key",
        ),
        pytest.param(["losses", "ipoo"], USAGE, "did you mean 'ipo'?", id="loss to list"),
        pytest.param(
            ["contract", "scord_pairs"], USAGE, "did you mean 'scored_pairs'?", id="near contract"
        ),
        pytest.param(["evaluate"], USAGE, "Missing argument", id="no argument"),
        pytest.param(
            ["evaluate", "{source}", "--column", "x"], USAGE, "takes ROLE=NAME", id="no ="
        ),
        pytest.param(["evaluate", "{source}", "--column", "policy=x"], USAGE, "role", id="role"),
        pytest.param(["evaluate", "{source}", "--contract", "x"], USAGE, "MODULE:NAME", id="m"),
        pytest.param(["evaluate", "{source}", "--contract", "no:X"], USAGE, "no", id="module"),
        pytest.param(["check", "{source}", "--max-invalid", "x"], USAGE, "count", id="limit"),
        pytest.param(["contract", "nope"], USAGE, "there are preference_pairs", id="contract"),
        pytest.param(["evaluate", "{nothing}"], FILES, "no such file", id="no file"),
        pytest.param(
            ["evaluate", "{csv}", "--format", "parquet"], FILES, "convert", id="no Parquet"
        ),
        pytest.param(["score", "{source}", "{short}"], FILES, "exists already", id="overwrite"),
    ],
)
def test_mistakes_are_told_apart_without_a_traceback(
    capsys, tmp_path, pairs, source, broken, arguments, code, said
):
    places = {"source": source, "broken": broken, "nothing": tmp_path / "nothing.parquet"}
    for name, frame in {
        "empty": pairs.clear(),
        "text": pairs.with_columns(pl.col(LOGPS[0]).cast(pl.String)),
        "short": pairs.drop(LOGPS[3]),
        "typo": pairs.rename({LOGPS[3]: "ref_rejectd_logps"}),
    }.items():
        places[name] = tmp_path / f"{name}.parquet"
        frame.write_parquet(places[name])
    places["csv"] = tmp_path / "pairs.csv"
    places["csv"].write_text("a,b\n1,2\n")
    found, out, err = run(capsys, *(argument.format(**places) for argument in arguments))
    assert found == code
    assert said in err
    assert out == ""
    assert "Traceback" not in err


def test_columns_can_be_mapped(capsys, tmp_path, pairs):
    path = tmp_path / "odd.parquet"
    pairs.drop(LOGPS[2:]).rename({LOGPS[0]: "chosen_logps"}).write_parquet(path)
    words = ["evaluate", path, "--loss", "cpo"]
    code, _, err = run(capsys, *words)
    assert code == 1
    assert "the policy's in TRL, and the reference's in open-instruct" in err
    assert run(capsys, *words, "--column", f"{LOGPS[0]}=chosen_logps")[0] == 0


def test_a_contract_of_ones_own(tmp_path, source, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import pandera.polars as pa, polars as pl\n"
        "import dpo_pipeline\n"
        "class Mine(dpo_pipeline.PreferencePairs):\n"
        "    @pa.check('policy_chosen_logps')\n"
        "    def short(cls, data):\n"
        "        return data.lazyframe.select(pl.col(data.key) > -65)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", str(source), "--contract", "mine:Mine"]) == 1
    found = capsys.readouterr().out
    assert "policy_chosen_logps.short  short       1  row 5 (pair_id f): -70.0" in found


def test_warnings_are_part_of_the_result_with_a_switch_of_their_own(capsys, tmp_path, pairs):
    path = tmp_path / "same.parquet"
    pairs.with_columns(
        ref_chosen_logps="policy_chosen_logps", ref_rejected_logps="policy_rejected_logps"
    ).write_parquet(path)
    said = "policy and reference log-probs are equal on all 6"
    for more in ([], ["--quiet"], ["--no-warnings"]):
        code, out, err = run(capsys, "evaluate", path, "--json", *more)
        assert (code, err) == (0, "")
        assert len(json.loads(out)["warnings"]) == 1
    for more, is_said in (([], True), (["--quiet"], True), (["--no-warnings"], False)):
        out, err = run(capsys, "check", path, *more)[1:]
        assert (f"warning: {said}" in out, err) == (is_said, "")
    # A verdict that is withheld says why, whatever is switched off.
    assert run(capsys, "evaluate", path, "--no-warnings")[1].startswith(f"no verdict: {said}")


def test_a_warning_is_printed_once(capsys, tmp_path, pairs):
    path = tmp_path / "same.parquet"
    pairs.with_columns(
        ref_chosen_logps="policy_chosen_logps", ref_rejected_logps="policy_rejected_logps"
    ).write_parquet(path)
    for words in (["evaluate"], ["sweep", "--beta", "0.1"], ["check"]):
        _, out, err = run(capsys, words[0], path, *words[1:])
        assert (out + err).count("log-probs are equal on all 6") == 1


def test_help_names_defaults_and_imports_no_polars():
    code = (
        "import sys\nfrom dpo_pipeline.cli import main\n"
        "for name in sys.argv[1:]:\n    assert main([name, '--help']) == 0\n"
        "heavy = {'polars', 'pandera', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    names = ("check", "score", "evaluate", "contract")
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    texts = done.stdout.split("Usage: dpo-pipeline ")[1:]
    assert [text.split()[0] for text in texts] == list(names)
    words = [" ".join(text.split()) for text in texts]
    of_beta = ["[default: (0.1, or the dialect's)]" in text for text in words]
    assert of_beta == [name != "contract" for name in names]


def test_python_m_and_version():
    assert command("--version").stdout.startswith("dpo-pipeline, version ")
    assert command("evaluat").returncode == 2


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m dpo_pipeline contract | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == 'apiVersion: "v3.1.0"\n'
    assert done.stderr == ""


@pytest.mark.repeats(1)  # one handler for all signals and commands
@pytest.mark.parametrize(
    ("verb", "number", "code"),
    [
        ("score", signal.SIGINT, 130),
        ("evaluate", signal.SIGTERM, 143),
        # Each signal and each command once more: one handler serves them all.
        pytest.param("score", signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("evaluate", signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_a_run_and_leaves_nothing(tmp_path, real_pairs, verb, number, code):
    source = tmp_path / "pairs.parquet"
    real_pairs.write_parquet(source)
    outputs = [tmp_path / "out.parquet"] if verb == "score" else []
    process = subprocess.Popen(
        [sys.executable, "-c", AT_WORK, verb, source, *outputs, "--by", "pair_id"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "at work\n"
    process.send_signal(number)
    out, err = ended(process)
    assert process.returncode == code, err
    assert "nothing was published" in err
    assert out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.parquet"]


# The command, which says that it works, and goes on when it is told to stop.
AT_WORK = """
import os, sys
from dpo_pipeline.cli import main, running

plain = running.run_stoppable
sys.stderr.isatty = lambda: True  # else nobody sees the progress

def run(function):
    def work(cancel):
        def show(line, progress):
            if not cancel.is_set():
                os.write(1, b"at work\\n")
                cancel.wait()
        running.ProgressLine.show = show
        return function(cancel)
    return plain(work)

running.run_stoppable = run
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow  # the same of runs in the middle of much work, which take their time
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("verb", ["score", "evaluate"])
def test_a_signal_stops_much_work(tmp_path, real_pairs, verb, number, code):
    source = tmp_path / "pairs.parquet"
    pl.concat([real_pairs] * 8_000).write_parquet(source, compression="uncompressed")
    outputs = [tmp_path / "out.parquet"] if verb == "score" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "dpo_pipeline", verb, source, *outputs, "--by", "pair_id"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: "pairs.parquet" in files_of(process.pid) or process.poll() is not None)
    process.send_signal(number)
    _, err = ended(process)
    if process.returncode:  # else it was faster
        assert process.returncode == code, err
        assert "nothing was published" in err
        assert [p.name for p in tmp_path.iterdir()] == ["pairs.parquet"]


def files_of(pid):
    """Return the names of the files that a process has open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.add(os.path.basename(os.readlink(link)))
    return found


def test_ctrl_c_before_the_run_begins_is_130(monkeypatch):
    def interrupted(**_):
        raise click.Abort

    monkeypatch.setattr(cli, "main", interrupted)
    assert main(["evaluate", "pairs.parquet"]) == 130
