"""Options of which pairs are kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from dpo_pipeline import arguments as kinds, defaults
from dpo_pipeline.arguments import NOTHING, Kind, checked_names, group, option
from dpo_pipeline.errors import UsageError


@group
class Selection:
    """Which pairs are kept, and by which rule."""

    SHORT: ClassVar[Mapping[Any, str]] = MappingProxyType({str: "rule"})

    rule: Any = option(
        "--rule",
        Kind("text", "RULE"),
        f"What ranks pairs: {', '.join(defaults.RULE_NAMES)} (`dpo-pipeline explain` says what "
        "each does); or SQL over the columns of scored pairs, whose smallest values come first.",
        default=None,
        shown="",
    )
    keep: int | float | None = option(
        "--keep",
        kinds.SHARE,
        "How many pairs are kept, of each subset with --by: a count (10000) or a share (0.5, 50%).",
        default=None,
        shown="",
        apart=True,
    )
    seed: int = option("--seed", kinds.WHOLE, "Of the rule `random`.", default=0)
    judge: str | tuple[str, ...] = option(
        "--judge",
        kinds.COLUMNS,
        "For `largest_margin`: a judge's score of chosen less rejected, or the two scores.",
        default=(),
    )
    losses: str | Sequence[str] = option(
        "--loss-column",
        kinds.COLUMNS,
        "For `easiest`: columns of losses by models that did not train on the pair.",
        default=(),
    )
    arguments: Mapping[str, float] = option(
        "--rule-arg",
        kinds.NUMBERS,
        "An argument of the rule: implicit_low=-2. Repeatable.",
        default=NOTHING,
    )
    compared: str | Sequence[str] = option(
        "--compare",
        Kind("text", "RULE", repeats=True),
        "Show what this rule would keep beside what --rule keeps. Repeatable.",
        default=(),
    )
    rest: str | os.PathLike[str] | None = option(
        "--rest", kinds.PATH, "Write the valid pairs that are left out to this file.", default=None
    )
    contradictions: str | os.PathLike[str] | None = option(
        "--contradictions",
        kinds.PATH,
        "Write pairs that contradict or repeat each other to this file.",
        default=None,
    )

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise UsageError(f"seed must be a whole number, at least 0, found {self.seed!r}")

    @property
    def judge_columns(self) -> tuple[str, ...]:
        """The columns of the judge's scores."""
        return checked_names("judge", self.judge)

    @property
    def loss_columns(self) -> tuple[str, ...]:
        """The columns of the held-out losses."""
        return checked_names("losses", self.losses)
