"""What can be asked of statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from dpo_pipeline.arguments import checked_names
from dpo_pipeline.columns import did_you_mean
from dpo_pipeline.defaults import CONFIDENCE_LEVEL
from dpo_pipeline.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

BENCHMARK_NAMES: Final = ("rewardbench", "rewardbench-with-prior-sets")
"""Benchmarks whose sections can be scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsOptions:
    """How the statistics of an evaluation are made.

    Errors are those between prompts: pairs with one `prompt_id` are one sample of them. A pair
    without one is taken as independent of all others.

    Attributes:
        level: Of every interval, above 0 and below 1.
        judge: A column with a judge's (or a human's) score of the chosen completion less that of
            the rejected one; or the two columns, chosen first.
        weights: What each subset counts in the weighted mean over subsets: its value (a tuple of
            values for several columns), or its text, to a number of at least 0. Every subset
            must be named.
        sections: A benchmark whose sections are to be scored: "rewardbench", or
            "rewardbench-with-prior-sets". Needs `by`, with the one column of its subsets.
    """

    level: float = CONFIDENCE_LEVEL
    judge: str | tuple[str, ...] = ()
    weights: Mapping[Any, float] = field(default_factory=lambda: MappingProxyType({}))
    sections: str | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.level, float) and 0.0 < self.level < 1.0):
            raise UsageError(f"level must be above 0 and below 1, found {self.level!r}")
        if len(self.judge_columns) > 2:  # noqa: PLR2004  a gap, or two scores
            raise UsageError(f"judge must be one column or two, found {self.judge!r}")
        if self.sections is not None and self.sections not in BENCHMARK_NAMES:
            near = did_you_mean(str(self.sections), BENCHMARK_NAMES)
            raise UsageError(
                f"sections: there is no benchmark {self.sections!r}{near}; "
                f"there are {', '.join(BENCHMARK_NAMES)}"
            )

    @property
    def judge_columns(self) -> tuple[str, ...]:
        """The columns of the judge's scores."""
        return checked_names("judge", self.judge)

    def check(self, columns: pl.Schema, by: Sequence[str]) -> None:
        """Raise a UsageError if they do not go with the columns, or the subsets that `by` makes."""
        if self.weights and not by:
            raise UsageError("weights are of subsets: say by which columns (by=)")
        if self.sections is not None and len(by) != 1:
            raise UsageError(
                f"sections of {self.sections} are made of subsets: say by which one column, "
                f"found by={list(by)!r}"
            )
        for name in self.judge_columns:
            if name not in columns:
                near = did_you_mean(name, columns)
                raise UsageError(f"judge: {name!r} is not a column{near}")
            if not columns[name].is_numeric():
                raise UsageError(f"judge: {name!r} is {columns[name]}, and must be a number")
