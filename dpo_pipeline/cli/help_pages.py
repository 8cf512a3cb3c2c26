"""`--help` in sections, the most used options first; what is said without a command."""

from __future__ import annotations

from typing import Final

import click

from dpo_pipeline.cli.settings import OTHERS, SettingOption
from dpo_pipeline.columns import ROLES
from dpo_pipeline.sources import FORMATS

START: Final = """\
Evaluate preference data offline: is the policy good,
is another one better, how sure is that?

Three commands to start with:
  Can the data be used?
    dpo-pipeline check pairs.parquet
  How good is the policy?
    dpo-pipeline evaluate pairs.parquet
  Is policy B better than policy A?
    dpo-pipeline compare a.parquet b.parquet

All commands: dpo-pipeline --help
All options of one: dpo-pipeline evaluate --help"""

_MOST_USED: Final = (
    *("--beta", "--loss", "--by", "--statistics", "--report", "--reference", "--on", "--column"),
    *("--format", "--output", "--json"),
)


class GroupedCommand(click.Command):
    """A command whose options are listed in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options: those that are used most, then the others by what they are about."""
        sections: dict[str, list[tuple[str, str]]] = {"Most used": []}
        last: list[tuple[str, str]] = []
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is None or not isinstance(option, click.Option):
                continue
            name = max(option.opts, key=len)
            own = option.section if isinstance(option, SettingOption) else OTHERS
            section = "Most used" if name in _MOST_USED else own
            (last if section == OTHERS else sections.setdefault(section, [])).append(record)
        sections["Most used"].sort(key=_place)
        for title, records in (*sections.items(), (OTHERS, last)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        if any("--format" in option.opts for option in self.params):
            with formatter.section("Roles of --column"):
                formatter.write_text(", ".join(ROLES))
            with formatter.section("Formats"):
                formatter.write_dl([(row.name, row.description) for row in FORMATS.values()])


def _place(record: tuple[str, str]) -> int:
    return _MOST_USED.index(record[0].split(" ")[0].rstrip(","))
