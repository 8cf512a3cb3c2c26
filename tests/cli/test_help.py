"""Help, its examples, completion, and what a terminal is sent."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys

import click
import polars as pl
import pytest

from dpo_pipeline import errors as exit_codes
from dpo_pipeline.cli.program import cli, main
from dpo_pipeline.cli.running import Stopped
from dpo_pipeline.defaults import DIALECT_NAMES, LOSS_NAMES
from dpo_pipeline.errors import ContractError, StorageError, UsageError
from dpo_pipeline.losses.catalogue import LOSSES
from dpo_pipeline.sources.formats import FORMATS
from pair_tools import EXAMPLES

EXAMPLE_PAIRS = EXAMPLES / "pairs.parquet"
ESCAPE = "\x1b"


def help_of(*words):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*words, "--help"]) == 0
    return printed.getvalue()


def examples_of(*words):
    """Return the commands below `Examples:` in a help text, each in one line."""
    found = re.search(r"^ +Examples:\n((?: {4,}.*\n)+)", help_of(*words), re.MULTILINE)
    assert found is not None, f"{words} has no examples"
    return [line.strip() for line in re.sub(r"\\\n +", "", found[1]).splitlines()]


EVERY_HELP = [(), *((name,) for name in cli.commands)]
NEEDS_MODELS = ("logps",)  # tests/models runs its examples


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with all that examples name, made of real pairs."""
    pairs = pl.read_parquet(EXAMPLE_PAIRS)
    reference = [name for name in pairs.columns if name.startswith("ref_")]
    (tmp_path / "runs").mkdir()
    (tmp_path / "trained_dataset").mkdir()
    pairs.write_parquet(tmp_path / "pairs.parquet")
    pairs.write_parquet(tmp_path / "a.parquet")
    pairs.with_columns(pl.col("policy_chosen_logps") - 1.5).write_parquet(tmp_path / "b.parquet")
    pairs[:50].write_parquet(tmp_path / "runs" / "a.parquet")
    pairs[50:].write_parquet(tmp_path / "runs" / "b.parquet")
    pairs.write_csv(tmp_path / "pairs.csv")
    shutil.copy(EXAMPLE_PAIRS.parent / "completions.csv", tmp_path)
    pairs.drop(reference).write_parquet(tmp_path / "policy.parquet")
    pairs.select("pair_id", *reference).write_parquet(tmp_path / "reference.parquet")
    pairs.select(*reference).write_parquet(tmp_path / "trained_dataset" / "a.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("few_groups", "project")
@pytest.mark.parametrize("words", [w for w in EVERY_HELP if w != NEEDS_MODELS], ids=" ".join)
def test_the_examples_of_every_help_run(capsys, words):
    for line in examples_of(*words):
        program, *arguments = shlex.split(line)
        assert program == "dpo-pipeline"
        assert main(arguments) == 0, line
        out, err = capsys.readouterr()
        assert out or arguments[:2] == ["contract", "--to"], line
        assert all(said.startswith("wrote ") for said in err.splitlines()), line


@pytest.mark.parametrize("words", EVERY_HELP, ids=" ".join)
def test_every_command_shows_itself_in_its_examples(words):
    lines = examples_of(*words)
    assert len(lines) >= 2
    assert all(line.startswith(" ".join(["dpo-pipeline", *words])) for line in lines)


@pytest.mark.parametrize("words", EVERY_HELP, ids=" ".join)
def test_help_fits_60_columns(monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, help_of(*words).splitlines())) <= 60


def test_what_is_said_without_a_command_fits_60_columns(capsys):
    assert main([]) == 2
    said = capsys.readouterr().err.splitlines()
    assert max(map(len, said)) <= 60
    assert sum("dpo-pipeline" in line for line in said) == 5


def test_short_helps_are_not_cut_off():
    assert "..." not in help_of().partition("Commands:")[2]


def test_exit_codes_are_said_once_and_are_those_of_the_errors():
    assert [each.exit_code for each in (ContractError, UsageError, StorageError)] == [1, 2, 3]
    assert sorted(exit_codes.MEANINGS) == [0, 1, 2, 3, 4, 130, 143]
    text = help_of()
    for code, meaning in exit_codes.MEANINGS.items():
        assert re.search(rf"^ +{code} +{re.escape(meaning)}$", text, re.MULTILINE)
    assert Stopped(2).signum + exit_codes.SIGNALLED == 130


# Completion


def asking(words):
    """Return the environment in which a shell asks what it could offer for the last word."""
    return {
        "_DPO_PIPELINE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["dpo-pipeline", *words]),
        "COMP_CWORD": str(len(words)),
    }


def offered_in(printed):
    return [line.partition(",")[2] for line in printed.splitlines()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        pytest.param(["ev"], ["evaluate"], id="command"),
        pytest.param(["evaluate", "--batch-"], ["--batch-size", "--batch-by"], id="option"),
        pytest.param(["evaluate", "--loss", "ip"], ["ipo"], id="loss"),
        pytest.param(["sweep", "--loss", "kto"], ["kto_pair", "kto"], id="loss of a sweep"),
        pytest.param(["losses", "orpo"], ["orpo", "orpo_odds_ratio"], id="loss to list"),
        pytest.param(["score", "--dialect", ""], list(DIALECT_NAMES), id="dialect"),
        pytest.param(["check", "--format", ""], list(FORMATS), id="format"),
        pytest.param(["check", "--column", "pair"], ["pair_id="], id="role"),
        pytest.param(["completion", ""], ["bash", "zsh", "fish"], id="shell"),
        pytest.param(["score", "--on-invalid", "q"], ["quarantine"], id="choice"),
    ],
)
def test_completion_offers(capsys, monkeypatch, words, offered):
    for name, value in asking(words).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([])
    out, err = capsys.readouterr()
    assert (offered_in(out), err) == (offered, "")


def test_completion_imports_no_polars_and_no_settings(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.dpo-pipeline\n")
    code = (
        "import atexit, sys\nfrom dpo_pipeline.cli import main\natexit.register(lambda: "
        "print('x,' + str({'polars', 'pyarrow', 'pandera'} & set(sys.modules))))\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asking(["evaluate", "--loss", "ip"])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (offered_in(done.stdout), done.stderr) == (["ipo", "set()"], "")


def test_losses_to_complete_are_those_of_the_catalogue():
    assert tuple(LOSSES) == LOSS_NAMES


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_the_program(capsys, shell):
    assert main(["completion", shell]) == 0
    out, _ = capsys.readouterr()
    assert f"_DPO_PIPELINE_COMPLETE={shell}_complete" in out
    assert "dpo-pipeline" in out


BASH = shutil.which("bash")
ASK_BASH = """
eval "$(dpo-pipeline completion bash)"
COMP_WORDS=(dpo-pipeline sweep --loss hi)
COMP_CWORD=3
_dpo_pipeline_completion dpo-pipeline
echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_bash_completes_with_the_script_that_is_printed(tmp_path):
    program = tmp_path / "dpo-pipeline"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m dpo_pipeline "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        [BASH, "--norc", "-c", ASK_BASH],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "hinge\n", done.stderr


# Terminals


def on_a_terminal(words, **environment):
    """Run Python with a terminal as its stdout and stderr; return its code and what it sent."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    sent = b""
    with contextlib.suppress(OSError):  # how the end of a terminal is told
        while part := os.read(ours, 65_536):
            sent += part
    os.close(ours)
    return process.wait(), sent.decode()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        pytest.param(["evaluate", "--help"], 0, id="help"),
        # Figures and an error are also those of the next test.
        pytest.param(
            ["evaluate", str(EXAMPLE_PAIRS), "--bta"], 2, id="option", marks=pytest.mark.slow
        ),
        pytest.param(
            ["evaluate", str(EXAMPLE_PAIRS), "--by", "split"],
            0,
            id="figures",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["evaluate", str(EXAMPLE_PAIRS), "--loss", "x"], 2, id="loss", marks=pytest.mark.slow
        ),
    ],
)
def test_no_colours_are_sent_to_a_terminal(words, code):
    done, sent = on_a_terminal(["-m", "dpo_pipeline", *words], NO_COLOR="1")
    assert done == code
    assert sent
    assert ESCAPE not in sent


def test_without_colour_there_is_progress():
    code = (
        "import sys\nfrom dpo_pipeline.cli import main, running\n"
        "running._QUIET_SECONDS = 0.0\nassert main(['evaluate', '--bta']) == 2\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done, sent = on_a_terminal(["-c", code, "evaluate", str(EXAMPLE_PAIRS)], NO_COLOR="1")
    assert done == 0
    assert "evaluating: 200 of 200 pairs" in sent
    assert "--beta" in sent
    assert ESCAPE not in sent


def test_files_get_no_escapes_even_where_colour_is_forced(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    for words in (["--help"], ["evaluate", "--bta"], ["check", str(EXAMPLE_PAIRS)]):
        main(words)
        out, err = capsys.readouterr()
        assert out + err
        assert ESCAPE not in out + err


def test_options_are_not_abbreviated(capsys):
    """A prefix that means one option today could mean two tomorrow."""
    assert main(["evaluate", str(EXAMPLE_PAIRS), "--bet", "0.2"]) == 2
    assert "--beta" in capsys.readouterr().err
    assert isinstance(cli, click.Group)
