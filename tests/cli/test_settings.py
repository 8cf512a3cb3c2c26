"""Settings: what a file may say, which of several places wins, and what is an error."""

from __future__ import annotations

import json
import os
import re

import click
import pytest

from dpo_pipeline.cli.program import cli, main
from dpo_pipeline.cli.settings import SettingOption, key_of


@pytest.fixture
def home(tmp_path, monkeypatch, pairs):
    """A project with pairs, and its subfolder as the working directory."""
    project = tmp_path / "pröject"
    (project / "sub").mkdir(parents=True)
    pairs.write_parquet(project / "sub" / "pairs.parquet")
    monkeypatch.chdir(project / "sub")
    return project


def write(place, text):
    place.write_text(text, encoding="utf-8")
    return place


def planned(capsys, *words, command="evaluate"):
    """Return what a command would do, as a document."""
    assert main([command, "pairs.parquet", *words, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def betas(capsys, *words, command="evaluate"):
    return [each["beta"] for each in planned(capsys, *words, command=command)["objectives"]]


def refused(capsys, *words, code=2):
    assert main(["evaluate", "pairs.parquet", *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


# Which place wins


def test_the_order_of_places(capsys, home, monkeypatch):
    write(home / "pyproject.toml", "[tool.dpo-pipeline]\nbeta = 0.2\n")
    assert betas(capsys) == [0.2]
    write(
        home / "pyproject.toml",
        "[tool.dpo-pipeline]\nbeta = 0.2\n[tool.dpo-pipeline.evaluate]\nbeta = 0.3\n",
    )
    assert betas(capsys) == [0.3]
    assert betas(capsys, command="sweep") == [0.2]
    monkeypatch.setenv("DPO_PIPELINE_BETA", "0.4")
    assert betas(capsys) == [0.4]
    monkeypatch.setenv("DPO_PIPELINE_EVALUATE_BETA", "0.5")
    assert betas(capsys) == [0.5]
    assert betas(capsys, command="sweep") == [0.4]
    assert betas(capsys, "--beta", "0.6") == [0.6]


def test_an_empty_variable_is_none(capsys, home, monkeypatch):  # noqa: ARG001
    monkeypatch.setenv("DPO_PIPELINE_BETA", "")
    assert betas(capsys) == [0.1]


def test_the_nearest_project_with_the_table_counts(capsys, home):
    write(home / "pyproject.toml", "[tool.dpo-pipeline]\nbeta = 0.2\n")
    assert betas(capsys) == [0.2]
    nearer = write(home / "sub" / "pyproject.toml", "[project]\nname = 'x'\n[tool.ruff]\n")
    assert betas(capsys) == [0.2]
    write(nearer, "[tool.dpo-pipeline]\n")
    assert betas(capsys) == [0.1]


def test_a_file_that_is_named_is_the_only_one(capsys, home, monkeypatch):
    write(home / "pyproject.toml", "[tool.dpo-pipeline]\nbeta = 0.2\nmax-logp = 0.125\n")
    own = write(home / "öwn.toml", "beta = 0.3\n")
    made = planned(capsys, "--config", str(own))
    assert (made["objectives"][0]["beta"], made["max_logp"]) == (0.3, 0.0)
    assert betas(capsys, "--config", "/dev/null") == [0.1]
    monkeypatch.setenv("DPO_PIPELINE_CONFIG", str(own))
    assert betas(capsys) == [0.3]
    assert betas(capsys, "--config", str(home / "pyproject.toml")) == [0.2]


def test_settings_with_a_byte_order_mark_and_crlf(capsys, home):
    (home / "own.toml").write_bytes(b"\xef\xbb\xbfbeta = 0.3\r\nmax-logp = 0.125\r\n")
    made = planned(capsys, "--config", "../own.toml")
    assert (made["objectives"][0]["beta"], made["max_logp"]) == (0.3, 0.125)


def test_a_working_directory_that_is_gone_has_no_settings(capsys, home, monkeypatch):
    write(home / "pyproject.toml", "[tool.dpo-pipeline]\nbeta = 0.2\n")
    monkeypatch.chdir(home)
    (home / "gone").mkdir()
    os.chdir(home / "gone")
    (home / "gone").rmdir()
    assert main(["check", str(home / "sub" / "pairs.parquet"), "--dry-run", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


# What values become


def test_values_are_what_flags_would_give(capsys, home):
    write(
        home / "pyproject.toml",
        """
        [tool.dpo-pipeline]
        loss = ["sigmoid=0.8", "hinge=0.2"]
        loss-arg = "label_smoothing=0.1"
        max-logp = 1
        [tool.dpo-pipeline.evaluate]
        by = ["subset", "pair_id"]
        batch-size = 4
        [tool.dpo-pipeline.sweep]
        loss = ["hinge", "ipo"]
        loss-arg = []
        beta = [0.1, 2]
        [tool.dpo-pipeline.check]
        max-invalid = "1%"
        quiet = true
        """,
    )
    flags = ["--loss", "sigmoid=0.8", "--loss", "hinge=0.2", "--loss-arg", "label_smoothing=0.1"]
    flags += ["--max-logp", "1", "--by", "subset", "--by", "pair_id", "--batch-size", "4"]
    assert planned(capsys) == planned(capsys, "--config", "/dev/null", *flags)
    assert betas(capsys, command="sweep") == [0.1, 2.0, 0.1, 2.0]
    assert planned(capsys, command="check")["max_logp"] == 1.0


def test_what_one_command_cannot_take_from_all_it_takes_from_its_own_table(capsys, home):
    text = "[tool.dpo-pipeline]\nbeta = [0.1, 0.2]\n"
    place = write(home / "pyproject.toml", text)
    said = f"{place}: beta (of evaluate): must be a number, found [0.1, 0.2]"
    assert said in refused(capsys)
    for command in ("check", "evaluate", "score", "compare"):
        text += f"[tool.dpo-pipeline.{command}]\nbeta = 0.3\n"
    write(place, text)
    assert betas(capsys) == [0.3]
    assert betas(capsys, command="sweep") == [0.1, 0.2]


def test_flags_of_a_file_can_be_taken_back_by_a_variable(capsys, home, monkeypatch):
    write(home / "pyproject.toml", "[tool.dpo-pipeline]\njson = true\n")
    main(["check", "pairs.parquet"])
    assert json.loads(capsys.readouterr().out)["invalid"] == []
    monkeypatch.setenv("DPO_PIPELINE_JSON", "0")
    main(["check", "pairs.parquet"])
    assert capsys.readouterr().out == "pairs.parquet: all 6 pairs keep the contract\n"


def test_a_path_is_below_the_folder_of_its_file(capsys, home):
    text = "[tool.dpo-pipeline.evaluate]\nsummary = 'süm.json'\n"
    write(home / "pyproject.toml", text)
    (output,) = planned(capsys)["outputs"]
    assert output["path"] == str(home / "süm.json")
    write(home / "sub" / "pyproject.toml", text)
    (output,) = planned(capsys)["outputs"]
    assert output["path"] == "süm.json"


def test_a_run_uses_them_as_a_dry_run_says(capsys, home):
    write(home / "pyproject.toml", "[tool.dpo-pipeline]\nbeta = 0.25\nsummary = 'sum.json'\n")
    assert main(["evaluate", "pairs.parquet", "--json"]) == 0
    out, err = capsys.readouterr()
    file = home / "pyproject.toml"
    *settings, wrote = err.splitlines()
    assert [line.rpartition(", from ")[2] for line in settings] == [str(file)] * 2
    assert wrote == f"wrote {home / 'sum.json'}: {(home / 'sum.json').stat().st_size:,} bytes"
    assert f"setting: beta = 0.25, from {file}" in err.splitlines()
    assert json.loads(out)["objective"]["beta"] == 0.25
    assert (home / "sum.json").read_text() == out


def test_several_values_of_a_variable_are_words(capsys, home, monkeypatch):  # noqa: ARG001
    monkeypatch.setenv("DPO_PIPELINE_SWEEP_BETA", "0.2 0.3")
    assert betas(capsys, command="sweep") == [0.2, 0.3]


# Mistakes


MISTAKES = [
    pytest.param("betta = 1", "betta: there is no such setting (did you mean 'beta'?)", id="key"),
    pytest.param(
        "max_logp = 1",
        "max_logp: there is no such setting (did you mean 'max-logp'?)",
        id="underscore",
    ),
    pytest.param(
        "[evaluate]\nbta = 1",
        "evaluate.bta: there is no such setting (did you mean 'beta'?)",
        id="key of a command",
    ),
    pytest.param(
        "[check]\nhistogram = true",
        "check.histogram: there is no such setting",
        id="of another command",
    ),
    pytest.param(
        "[evalute]\nbeta = 1",
        "evalute: there is no such command with settings (did you mean 'evaluate'?)",
        id="command",
    ),
    pytest.param("evaluate = 1", "evaluate: must be a table, found 1", id="no table"),
    pytest.param("pairs = 'x'", "pairs: is given on the command line", id="argument"),
    pytest.param(
        "[score]\nout = 'x'", "score.out: is given on the command line", id="argument of a command"
    ),
    pytest.param("config = 'x'", "config: is given on the command line", id="another file"),
    pytest.param("beta = 'x'", "beta (of evaluate): must be a number, found 'x'", id="text"),
    pytest.param("beta = true", "beta (of evaluate): must be a number, found True", id="true"),
    pytest.param("beta = [0.1]", "beta (of evaluate): must be a number, found [0.1]", id="list"),
    pytest.param(
        "batch-size = 1.5", "batch-size (of evaluate): must be an integer, found 1.5", id="float"
    ),
    pytest.param(
        "histogram = 1", "histogram (of evaluate): must be true or false, found 1", id="one"
    ),
    pytest.param("on = 3", "on (of evaluate): must be a string, found 3", id="number"),
    pytest.param(
        "by = [3]",
        "by (of evaluate): must be a string, or a list of such, found 3",
        id="list of numbers",
    ),
    pytest.param(
        "max-invalid = '1 %%'",
        "max-invalid (of evaluate): '1 %%' is neither a count (10) nor a share",
        id="share",
    ),
    pytest.param(
        "on-invalid = 'exclud'", "on-invalid (of evaluate): 'exclud' is not one of", id="choice"
    ),
    pytest.param("[sweep]\nbeta = 'x'", "sweep.beta: must be a number", id="of a command not run"),
    pytest.param("x = ", "is not TOML: Invalid value (at end of document)", id="syntax"),
    pytest.param("tool = 3", "tool must be a table", id="tool"),
    pytest.param(
        "[tool.dpo_pipeline]", "[tool.dpo_pipeline]: did you mean [tool.dpo-pipeline]?", id="table"
    ),
    pytest.param("[tool]\ndpo-pipeline = 1", "tool.dpo-pipeline must be a table, found 1", id="1"),
    pytest.param("[tool.ruff]", "there is no table [tool.dpo-pipeline] in it", id="no table here"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_mistakes_name_the_file_and_the_key(capsys, home, text, said):
    own = write(home / "own.toml", text)
    assert refused(capsys, "--config", str(own)).startswith(f"error: {own}: {said}")


def test_a_file_that_is_not_text(capsys, home):
    (home / "own.toml").write_bytes(b"\xff\xfe")
    assert "own.toml: is not TOML: 'utf-8'" in refused(capsys, "--config", "../own.toml")


@pytest.mark.parametrize(("place", "why"), [("nothing.toml", "No such file"), (".", "directory")])
def test_a_file_that_cannot_be_read_is_code_3(capsys, home, place, why):  # noqa: ARG001
    err = refused(capsys, "--config", place, code=3)
    assert err.startswith(f"error: {place}: settings cannot be read: ")
    assert why in err


def test_a_broken_project_file_is_an_error_with_a_way_out(capsys, home):
    place = write(home / "pyproject.toml", "[tool.dpo-pipeline\n")
    err = refused(capsys)
    assert f"error: {place}: is not TOML: " in err
    assert "--config FILE" in err
    assert betas(capsys, "--config", "/dev/null") == [0.1]
    assert main(["evaluate", "--help"]) == 0
    assert main(["losses"]) == 0


def test_a_variable_of_a_wrong_type_is_named(capsys, home, monkeypatch):  # noqa: ARG001
    for variable in ("DPO_PIPELINE_BETA", "DPO_PIPELINE_EVALUATE_BETA"):
        monkeypatch.setenv(variable, "x")
        err = refused(capsys)
        assert (
            f"Invalid value for '--beta': 'x' is not a valid float. It is from {variable}." in err
        )


def test_a_variable_that_names_no_option_is_an_error(capsys, home, monkeypatch):  # noqa: ARG001
    monkeypatch.setenv("DPO_PIPELINE_EVALUATE_BTA", "1")
    said = "DPO_PIPELINE_EVALUATE_BTA names no option (did you mean 'DPO_PIPELINE_EVALUATE_BETA'?)"
    assert said in refused(capsys)


def test_errors_of_the_library_say_where_values_are_from(capsys, home, monkeypatch):
    place = write(home / "pyproject.toml", "[tool.dpo-pipeline]\nloss = 'ipoo'\n")
    monkeypatch.setenv("DPO_PIPELINE_BETA", "-1")
    err = refused(capsys)
    assert "did you mean 'ipo'" in err
    assert f"setting: loss = ['ipoo'], from {place}\n" in err
    assert "setting: beta = -1.0, from DPO_PIPELINE_BETA\n" in err
    assert "setting:" not in refused(capsys, "--config", "/dev/null", "--loss", "x", "--beta", "1")


def test_what_two_commands_mean_by_one_flag_is_set_apart(capsys, home, monkeypatch):
    """`--keep` is columns for `score`, and how many pairs for `select`."""
    write(home / "pyproject.toml", '[tool.dpo-pipeline]\nkeep = ["pair_id"]\n')
    words = ("out.parquet", "--rule", "random")
    with_keep = planned(capsys, "--keep", "2", *words, command="select")
    assert with_keep["options"]["--keep"] == 2
    score = planned(capsys, "scored.parquet", command="score")
    assert score["options"]["--keep"] == ["pair_id"]
    monkeypatch.setenv("DPO_PIPELINE_KEEP", "subset")
    assert planned(capsys, "scored.parquet", command="score")["options"]["--keep"] == ["subset"]
    monkeypatch.setenv("DPO_PIPELINE_SELECT_KEEP", "50%")
    assert planned(capsys, *words, command="select")["options"]["--keep"] == 0.5
    monkeypatch.delenv("DPO_PIPELINE_SELECT_KEEP")
    write(home / "pyproject.toml", "[tool.dpo-pipeline.select]\nkeep = 3\n")
    assert planned(capsys, *words, command="select")["options"]["--keep"] == 3


# The rules that options keep, so that settings have them


def test_an_option_has_one_name_everywhere():
    with_settings = {
        name: [each for each in command.params if isinstance(each, click.Option)]
        for name, command in cli.commands.items()
        if any(key_of(each) == "config" for each in command.params)
    }
    assert {"check", "evaluate", "sweep", "score", "convert"} <= set(with_settings)
    for options in with_settings.values():
        for option in options:
            assert isinstance(option, SettingOption)
            assert option.name == key_of(option).replace("-", "_")
            assert re.fullmatch(r"[a-z-]+", key_of(option))
