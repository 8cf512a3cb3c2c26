"""Options of what is written, and what happens to invalid pairs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY

from dpo_pipeline import arguments as kinds, defaults
from dpo_pipeline.arguments import (
    argument,
    check_choice,
    checked_names,
    choice,
    group,
    option,
)
from dpo_pipeline.errors import UsageError


@group
class OnInvalid:
    """What happens to pairs that break the contract."""

    action: str = option(
        "--on-invalid",
        choice(*defaults.ON_INVALID),
        "What to do with pairs that break the contract.",
        default="raise",
        calls=("evaluate", "sweep", "score", "rank", "compare"),
        varied={"score": {"kind": choice(*defaults.ON_INVALID_JOB)}},
    )
    _: KW_ONLY
    at_most: float | None = option(
        "--max-invalid",
        kinds.SHARE,
        "Fail if more pairs are invalid: a count (10) or a share (0.01, 1%).",
        default=None,
    )
    file: str | os.PathLike[str] | None = option(
        "--invalid",
        kinds.PATH,
        "Where quarantined pairs go.",
        shown="beside OUT, with .invalid before the ending",
        calls=("score",),
        default=None,
    )


@group
class Scored:
    """What scored pairs contain, and how they are cut into files."""

    keep: str | Sequence[str] | None = option(
        "--keep", kinds.COLUMNS, "Input columns to carry along.", default=None
    )
    _: KW_ONLY
    replace: bool = option(
        "--replace", kinds.FLAG, "Overwrite input columns named like an output's.", default=False
    )
    part_rows: int | None = option(
        "--part-rows",
        kinds.WHOLE,
        "Cut inputs, between row groups, into parts of at most so many rows: OUT is a folder.",
        default=None,
    )
    compression: str = option(
        "--compression",
        choice(*defaults.COMPRESSIONS),
        "Of scored and invalid pairs: snappy and none are written faster, and are larger.",
        default=defaults.COMPRESSIONS[0],
    )

    def __post_init__(self) -> None:
        check_choice("compression", self.compression, defaults.COMPRESSIONS)


@group
class Outputs:
    """Documents that a call writes, whole or not at all."""

    summary: str | os.PathLike[str] | None = option(
        "--summary",
        kinds.PATH,
        "Keep the JSON document in this file.",
        calls=("check", "evaluate", "sweep", "score", "rank", "compare"),
        default=None,
    )
    _: KW_ONLY
    report: str | os.PathLike[str] | None = option(
        "--report",
        kinds.PATH,
        "Write the report, an HTML page, to this file (extra `report`). Asks for statistics.",
        calls=("evaluate", "compare"),
        default=None,
    )
    overwrite: bool = option(
        "--overwrite", kinds.FLAG, default=False, help="Replace outputs that exist.", consent=True
    )
    show: str | Sequence[str] = option(
        "--show",
        kinds.COLUMNS,
        "Show these columns (prompt, chosen, rejected) of the worst pairs and of invalid rows. "
        "evaluate lists the worst pairs with its statistics, which this asks for.",
        calls=("check", "evaluate", "compare"),
        default=(),
    )
    worst: int = option(
        "--worst",
        kinds.WHOLE,
        f"List so many of the lowest margins, or flips: from 0 to {defaults.WORST_HELD}.",
        calls=("evaluate", "compare"),
        default=defaults.ROWS_SHOWN,
    )
    protected: tuple[str, ...] = argument(
        "Files that must never become outputs, such as those of settings.", default=()
    )
    typed: tuple[str, ...] = argument(
        "The command as it was typed, then the settings that it took; for the report.", default=()
    )

    def __post_init__(self) -> None:
        if not (isinstance(self.worst, int) and 0 <= self.worst <= defaults.WORST_HELD):
            raise UsageError(f"worst must be from 0 to {defaults.WORST_HELD}, found {self.worst!r}")

    @property
    def shown(self) -> tuple[str, ...]:
        """The columns that are shown."""
        return tuple(dict.fromkeys(checked_names("show", self.show)))
