"""The README, the guides and the examples: every block is run, and prints what it says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_pipeline.cli.program import main
from pair_tools import ROOT

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {
    path.name: [(m[1], m[2]) for m in BLOCK.finditer(path.read_text())]
    for path in [ROOT / "README.md", *sorted((ROOT / "examples").glob("*.md"))]
    if path.parent == ROOT or path.name not in ("README.md", "models.md")
}
"""The guide of models has a test of its own, which needs some."""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the examples, to write into."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS")  # as wide as where there is no terminal
    return tmp_path


def python_blocks():
    for page, blocks in PAGES.items():
        for i, (kind, text) in enumerate(blocks):
            if kind == "python":
                following = blocks[i + 1] if i + 1 < len(blocks) else ("", "")
                yield pytest.param(text, following, id=f"{page}, block {i}")


@pytest.mark.parametrize(("code", "following"), list(python_blocks()))
def test_python_blocks_print_what_follows(checkout, code, following):  # noqa: ARG001
    kind, expected = following
    assert kind == "text", "each block of code is followed by its output"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "page", "exec"), {"__name__": "page"})  # noqa: S102
    assert printed.getvalue() == expected


def console_calls():
    for page, blocks in PAGES.items():
        for call in [
            call
            for kind, text in blocks
            if kind == "console"
            for call in text.removeprefix("$ ").split("\n$ ")
        ]:
            line, _, expected = call.partition("\n")
            yield pytest.param(shlex.split(line), expected, id=f"{page}: {line}")


@pytest.mark.parametrize(("words", "expected"), list(console_calls()))
def test_console_blocks_print_what_they_show(checkout, capsys, words, expected):  # noqa: ARG001
    assert words[0] == "dpo-pipeline"
    main(words[1:])
    out, err = capsys.readouterr()
    assert _sized(err + out) == _sized(expected)


def _sized(text):
    """Return text without the sizes of files, which other versions of Polars write otherwise."""
    return re.sub(r"[\d,]+ bytes", "... bytes", text)


def shell_blocks():
    for page, blocks in PAGES.items():
        for i, (kind, text) in enumerate(blocks):
            if kind == "bash":
                following = "" if "sbatch" in text else blocks[i + 1][1]
                yield pytest.param(text, following, id=f"{page}, block {i}")


SBATCH = """#!/bin/bash
# Stands for Slurm's: runs the script at once, for each number of an array.
for word in "$@"; do
  case $word in --array=*) IFS=- read -r first last <<< "${word#--array=}";; esac
done
for number in $(seq "${first:-0}" "${last:-0}"); do
  SLURM_ARRAY_TASK_ID=$number bash -c "${@: -1}" > /dev/null || exit 1
done
echo 7
"""


NOTES = """#!/bin/sh
# Stands for the program: notes its words, and when it ran, and prints where.
note=$(mktemp "$NOTES/XXXXXX")
for word in "$@"; do printf '%s\\0' "$word"; done > "$note"
echo "$note" >> "$NOTES.order"  # times of files may be the same
echo "<$note>"
"""


def test_a_shell_block_gives_commands_that_print_what_follows(checkout, capsys):
    """The shell says which commands the first block is made of. They run in this process."""
    script, expected = next(shell_blocks()).values
    for name in ("bin", "notes"):
        (checkout / name).mkdir()
    (checkout / "bin" / "dpo-pipeline").write_text(NOTES)
    (checkout / "bin" / "dpo-pipeline").chmod(0o755)
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-e", "-c", script],
        env={**os.environ, "PATH": path, "NOTES": str(checkout / "notes")},
        capture_output=True,
        text=True,
        check=True,
    )
    printed = done.stdout
    notes = list(map(Path, (checkout / "notes.order").read_text().split()))
    assert len(notes) > 2
    for note in notes:
        assert main(note.read_text().split("\0")[:-1]) == 0
        printed = printed.replace(f"<{note}>\n", capsys.readouterr().out)
    assert printed == expected


@pytest.mark.slow  # each command is a process, and a process costs a second
@pytest.mark.parametrize(("script", "expected"), list(shell_blocks()))
def test_shell_blocks_run_and_print_what_follows(checkout, script, expected):
    (checkout / "bin").mkdir()
    program = f'#!/bin/sh\nexec {sys.executable} -m dpo_pipeline "$@"\n'
    for name, text in (("dpo-pipeline", program), ("sbatch", SBATCH)):
        (checkout / "bin" / name).write_text(text)
        (checkout / "bin" / name).chmod(0o755)
    (checkout / "pairs").mkdir()
    shutil.copy(checkout / "examples" / "pairs.parquet", checkout / "pairs")
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-e", "-c", script],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if expected:
        assert done.stdout == expected
    else:
        assert json.loads((checkout / "figures.json").read_text())["summary"]["n_valid"] == 200
        assert (checkout / "scored" / "_SUCCESS").exists()


def test_there_are_blocks_of_each_kind_and_two_commands():
    kinds = [kind for blocks in PAGES.values() for kind, _ in blocks]
    assert {kinds.count("python") >= 5, kinds.count("console") >= 7} == {True}
    (commands,) = [text for blocks in PAGES.values() for kind, text in blocks if kind == "sh"]
    assert len(commands.splitlines()) == 2


def test_the_guides_are_linked_from_the_front_page():
    front = (ROOT / "README.md").read_text()
    assert len(front.splitlines()) <= 160
    for page in [*PAGES, "models.md"]:
        assert page == "README.md" or f"](examples/{page})" in front
    linked = re.findall(r"\]\(((?:examples|schemas|tests)/[^)]*)\)", front)
    assert [path for path in linked if not (ROOT / path.partition("#")[0]).exists()] == []


EXAMPLES = sorted(
    # Those that make a model, ask a server or run in an engine have tests of their own.
    path
    for path in (ROOT / "examples").glob("*.py")
    if path.name
    not in {"from_text.py", "ray_dataset.py", "score_with_a_server.py", "spark_dataframe.py"}
)


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_examples_run_as_they_are(script):
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mean loss") == 5
