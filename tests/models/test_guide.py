"""The guide and the help of `logps`: every command runs, and prints what the page shows."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil

import polars as pl
import pytest

import model_tools
from dpo_pipeline.cli.program import main
from pair_tools import ROOT

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("default")]
pytest.importorskip("torch")

PAGE = ROOT / "examples" / "models.md"
BLOCK = re.compile(
    r"^```console\n\$ (?P<line>[^\n]*)\n(?P<shown>.*?)^```$", re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the guide names: two models, and texts of two kinds."""
    place = tmp_path_factory.mktemp("mine")
    model_tools.make_models_of_the_guide(place)
    return place


def printed(line):
    words = shlex.split(line)
    assert words[0] == "dpo-pipeline"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        main(words[1:])
    return out.getvalue()


def test_blocks_print_what_they_show(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COLUMNS", raising=False)
    blocks = list(BLOCK.finditer(PAGE.read_text()))
    assert len(blocks) >= 3
    for block in blocks:
        assert printed(block["line"]) == block["shown"], block["line"]


def test_the_command_of_the_front_page_works(folder, monkeypatch):
    (line,) = re.findall(r"`(dpo-pipeline logps [^`]*)`", (ROOT / "README.md").read_text())
    monkeypatch.chdir(folder)
    assert "24 rows" in printed(f"{line} --overwrite")


def test_the_examples_of_the_help_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(folder, tmp_path / "mine"))
    text = printed("dpo-pipeline logps --help")
    lines = re.findall(r"^ +(dpo-pipeline logps .*)$", re.sub(r"\\\n +", "", text), re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        assert "error" not in printed(f"{line} --overwrite").lower(), line
    assert pl.read_parquet("pairs.parquet").height == 24
