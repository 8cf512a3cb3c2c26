"""The commands that read no pairs, and print what the package knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from dpo_pipeline import errors as exit_codes
from dpo_pipeline.cli.flags import completing
from dpo_pipeline.cli.printing import FORMS, print_result
from dpo_pipeline.columns import did_you_mean
from dpo_pipeline.defaults import COMPLETION_LOSS_NAMES, LOSS_NAMES
from dpo_pipeline.errors import UsageError


@click.command()
@click.argument("name", required=False)
@click.option(
    "--to", "folder", type=click.Path(file_okay=False), help="Write all of them to this folder."
)
def contract(name: str | None, folder: str | None) -> int:
    """Print a published contract.

    NAME is preference_pairs (the default), scored_pairs, invalid_pairs or batch_means, in the
    Open Data Contract Standard, or summary or comparison, a JSON Schema.

    \b
    Examples:
      dpo-pipeline contract scored_pairs
      dpo-pipeline contract --to contracts
    """  # noqa: D301  click takes the backspace itself
    from dpo_pipeline.published import published

    texts = published()
    if folder is not None:
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (place / file).write_text(text, encoding="utf-8")
        return exit_codes.DONE
    by_name = {file.split(".")[0]: text for file, text in texts.items()}
    wanted = name or next(iter(by_name))
    if wanted not in by_name:
        hint = did_you_mean(wanted, by_name)
        raise UsageError(f"no contract is named {wanted!r}{hint}; there are {', '.join(by_name)}")
    click.echo(by_name[wanted], nl=False)
    return exit_codes.DONE


@click.command(short_help="List the losses, or say all of one.")
@click.argument(
    "name", required=False, shell_complete=completing((*LOSS_NAMES, *COMPLETION_LOSS_NAMES))
)
@click.option("--output", type=click.Choice(FORMS), help="How it is printed.  [default: table]")
@click.option("--json", is_flag=True, help="Short for --output json.")
@click.option("--markdown", is_flag=True, help="Print losses and dialects as tables of Markdown.")
@click.pass_context
def losses(ctx: click.Context, /, name: str | None, *, markdown: bool, **_: Any) -> int:
    """List the losses, or say all of the one called NAME: formula, parameters, needs, source.

    \b
    Examples:
      dpo-pipeline losses
      dpo-pipeline losses ipo --json
    """  # noqa: D301  click takes the backspace itself
    from dpo_pipeline.cli import loss_list
    from dpo_pipeline.published import dialect_tables, loss_table

    if markdown:
        click.echo(f"{loss_table()}\n\n{dialect_tables()}")
        return exit_codes.DONE
    return print_result(loss_list.LossList(name), ctx)


@click.command(
    short_help="Say what a figure, rule, finding, loss or column is.",
    context_settings={"ignore_unknown_options": True},  # they are names too
)
@click.argument("name")
def explain(name: str) -> int:
    """Say what NAME is: a figure, column, rule, finding, loss, dialect, format or option.

    With its unit, formula and source, and what TRL calls it.

    \b
    Examples:
      dpo-pipeline explain rewards/accuracies
      dpo-pipeline explain displacement
    """  # noqa: D301  click takes the backspace itself
    from dpo_pipeline.published import explain as text_of

    click.echo(text_of(name))
    return exit_codes.DONE


@click.command(short_help="Print a script for completion by a shell.")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> int:
    """Print the script with which a shell completes commands, options and their values.

    No file is edited. In ~/.bashrc or ~/.zshrc, with the name of the shell, put
    eval "$(dpo-pipeline completion bash)"; for fish, write what is printed to
    ~/.config/fish/completions/dpo-pipeline.fish.

    \b
    Examples:
      dpo-pipeline completion bash
      dpo-pipeline completion fish
    """  # noqa: D301  click takes the backspace itself
    from click.shell_completion import get_completion_class

    root = ctx.find_root()
    program = root.info_name or ""
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()  # which click reads
    made = get_completion_class(shell)
    if made is None:
        raise UsageError(f"click has no completion for {shell}")
    click.echo(made(root.command, {}, program, variable).source())
    return exit_codes.DONE


CATALOGUE_COMMANDS: Final[tuple[click.Command, ...]] = (explain, losses, contract, completion)
"""In the order of `--help`."""
