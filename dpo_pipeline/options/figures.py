"""Options of what is computed: losses, subsets, batches, statistics, and marks for figures."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, replace
from types import MappingProxyType
from typing import Any, ClassVar

from dpo_pipeline import arguments as kinds, defaults
from dpo_pipeline.arguments import (
    NOTHING,
    Kind,
    Option,
    check_benchmark,
    check_choice,
    checked_names,
    choice,
    group,
    option,
    split_names,
)
from dpo_pipeline.errors import UsageError


@group
class Objective:
    """What is computed of a pair."""

    loss: Any = option(
        "--loss",
        kinds.LOSSES,
        "A loss (`dpo-pipeline losses` lists them). Repeated: their weighted sum.",
        default=defaults.LOSS_NAME,
        shown=defaults.LOSS_NAME,
        varied={
            "sweep": {
                "kind": Kind("text", "NAME[,NAME]", repeats=True, completes="loss", splits=True),
                "help": "Losses (`dpo-pipeline losses` lists them). Repeatable.",
            }
        },
    )
    _: KW_ONLY
    beta: Any = option(
        "--beta",
        kinds.NUMBER,
        "KL strength of the loss, at least 0.",
        shown=f"{defaults.BETA:g}, or the dialect's",
        varied={
            "sweep": {
                "kind": Kind("number", "NUMBER[,NUMBER]", repeats=True, splits=True),
                "help": "KL strengths of the losses, at least 0. Repeatable.",
            }
        },
        default=None,
    )
    arguments: Mapping[str, float | bool | str] = option(
        "--loss-arg",
        kinds.VALUES,
        "An argument of the loss: label_smoothing=0.1, per_token=true. Repeatable.",
        default=NOTHING,
    )
    dialect: str | None = option(
        "--dialect",
        choice(*defaults.DIALECT_NAMES),
        "The conventions of a system, where systems disagree.",
        default=None,
    )


@group
class Subsets:
    """Figures by subset."""

    by: str | Sequence[str] = option(
        "--by", kinds.COLUMNS, default=(), help="Figures by subset, of one column or several."
    )
    _: KW_ONLY
    histogram: bool = option(
        "--histogram",
        kinds.FLAG,
        "Also the histogram of margins (with --json).",
        default=False,
        calls=("evaluate", "score"),
    )

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, each once."""
        return checked_names("by", self.by)

    def within(self, columns: Collection[str]) -> Subsets:
        """Return the same for these columns: names with commas between them are taken apart."""
        split = split_names(self.names, columns)
        return self if split == self.names else replace(self, by=split)


@group
class Batches:
    """Means of batches."""

    SHORT: ClassVar[Mapping[Any, str]] = MappingProxyType({str: "file", os.PathLike: "file"})

    size: int | None = option(
        "--batch-size", kinds.WHOLE, "Means of so many consecutive rows.", default=None
    )
    _: KW_ONLY
    by: str | None = option(
        "--batch-by", kinds.COLUMN, help="Means by the value of a column.", default=None
    )
    file: str | os.PathLike[str] | None = option(
        "--batches",
        kinds.PATH,
        "Write the batch means to this Parquet file; needed beyond "
        f"{defaults.MAX_BATCHES_HELD:,} batches.",
        default=None,
    )
    as_trainer: str | None = option(
        "--as-trainer",
        choice(*defaults.TRAINERS),
        "Also the figures as TRL averages them, with --batch-size pairs on each of --processes; "
        "the rows must be in the trainer's order.",
        calls=("evaluate",),
        default=None,
    )
    processes: int = option(
        "--processes", kinds.WHOLE, "Processes of --as-trainer.", calls=("evaluate",), default=1
    )

    def __post_init__(self) -> None:
        check_choice("as_trainer", self.as_trainer, (None, *defaults.TRAINERS))
        if not (isinstance(self.processes, int) and self.processes >= 1):
            raise UsageError(
                f"processes must be a whole number, at least 1, found {self.processes!r}"
            )
        if self.as_trainer is None and self.processes != 1:
            raise UsageError("processes are those of a trainer: give as_trainer (--as-trainer)")
        if self.as_trainer is not None and (self.by is not None or self.file is not None):
            raise UsageError(
                "as_trainer goes with the size of a batch alone, no column and no file"
            )


@group
class StatisticsOptions:
    """How statistics are made.

    Standard errors are clustered: pairs with the same `prompt_id` are one cluster. A pair without
    one is taken as independent of all others.
    """

    ASKED_BY: ClassVar[Option] = Option(
        "--statistics",
        kinds.FLAG,
        "Also intervals, baselines, calibration, length and findings. Pairs of one prompt_id "
        "are taken as one sample, pairs without it as independent.",
        calls=("evaluate",),
    )

    _: KW_ONLY
    level: float = option(
        "--level",
        kinds.NUMBER,
        "Of the intervals. Asks for statistics, as do the next three.",
        default=defaults.CONFIDENCE_LEVEL,
        varied={"compare": "Of the intervals; a p-value below 1 - level is a difference shown."},
    )
    baseline: str | None = option(
        "--baseline",
        kinds.Kind("text", "NAME"),
        "The policy that the others are tested against, of three or more; else each two are.",
        calls=("compare",),
        default=None,
    )
    judge: str | tuple[str, ...] = option(
        "--judge",
        kinds.COLUMNS,
        "A judge's score of chosen less rejected, or the two scores, chosen first.",
        default=(),
        calls=("evaluate",),
    )
    weights: Mapping[Any, float] = option(
        "--weight",
        Kind("numbers", "SUBSET=NUMBER", repeats=True),
        "What a subset of --by counts in the weighted mean; of several columns "
        "VALUE,VALUE=NUMBER. Repeatable, for every subset.",
        default=NOTHING,
        calls=("evaluate",),
    )
    sections: str | None = option(
        "--sections",
        Kind("text", "BENCHMARK"),
        "Score the sections of rewardbench, or rewardbench-with-prior-sets, by --by.",
        calls=("evaluate",),
        default=None,
    )

    def __post_init__(self) -> None:
        if not (isinstance(self.level, float) and 0.0 < self.level < 1.0):
            raise UsageError(f"level must be above 0 and below 1, found {self.level!r}")
        if len(self.judge_columns) > 2:  # noqa: PLR2004  a gap, or two scores
            raise UsageError(f"judge must be one column or two, found {self.judge!r}")
        check_benchmark(self.sections)

    @property
    def judge_columns(self) -> tuple[str, ...]:
        """The columns of the judge's scores."""
        return checked_names("judge", self.judge)

    def within(self, columns: Collection[str], by: Sequence[str]) -> StatisticsOptions:
        """Return the same for these columns and subsets: what has commas is taken apart."""
        weights = self.weights
        if len(by) > 1:
            weights = {
                tuple(key.split(",")) if isinstance(key, str) else key: weight
                for key, weight in weights.items()
            }
        judge = split_names(self.judge_columns, columns)
        return replace(self, judge=judge, weights=weights)


@group
class BestOf:
    """How far the curve of a best of n goes."""

    n: int | None = option(
        "--best-of",
        kinds.WHOLE,
        "Largest n of the best of n; only prompts with so many completions are in the curve.",
        shown="the most that half of the prompts have",
        default=None,
    )
    _: KW_ONLY
    level: float = option(
        "--level", kinds.NUMBER, "Of the intervals.", default=defaults.CONFIDENCE_LEVEL
    )

    def __post_init__(self) -> None:
        is_count = isinstance(self.n, int) and not isinstance(self.n, bool)
        if self.n is not None and not (is_count and 1 <= self.n <= defaults.MOST_DRAWN):
            raise UsageError(f"best_of must be from 1 to {defaults.MOST_DRAWN}, found {self.n!r}")
        if not (isinstance(self.level, float) and 0.0 < self.level < 1.0):
            raise UsageError(f"level must be above 0 and below 1, found {self.level!r}")


@group
class Gates:
    """Marks that figures must reach. A run that misses one still prints and writes its result."""

    _: KW_ONLY
    under: Mapping[str, float] = option(
        "--fail-under",
        kinds.NUMBERS,
        "Exit code 4 if a figure is smaller, after all is printed and written. Names are "
        "TRL's (rewards/accuracies) or the library's (reward_accuracy, advantage/longer, macro); "
        "0.6 can be 60%. Repeatable.",
        default=NOTHING,
        varied={
            "compare": "Exit code 4 if B - A of a figure is smaller (reward_accuracy or TRL's "
            "rewards/accuracies, loss), after all is printed and written. Repeatable."
        },
    )
    over: Mapping[str, float] = option(
        "--fail-over",
        kinds.NUMBERS,
        "The same if a figure is larger (loss, n_invalid). Repeatable.",
        default=NOTHING,
    )
    by_interval: bool = option(
        "--fail-on-interval",
        kinds.FLAG,
        "Compare the end of the interval that is nearer to failing, not the value. Asks for "
        "statistics.",
        default=False,
    )
    no_verdict: bool = option(
        "--fail-on-no-verdict",
        kinds.FLAG,
        "Exit code 4 if the policies cannot be compared, or no test can be made.",
        default=False,
        calls=("compare",),
    )
