"""The command line in this process."""

from __future__ import annotations

from dpo_pipeline.cli.program import main


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err
