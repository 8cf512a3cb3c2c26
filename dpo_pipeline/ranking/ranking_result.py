"""The result of `rank`: figures over prompts, with their intervals, and by subset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import polars as pl

from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.ranking.prompt_sums import (
    SIZE,
    accuracy_of,
    drawn_up_to,
    mean_of_prompts,
)
from dpo_pipeline.ranking.rewardbench2 import RewardBench2
from dpo_pipeline.statistics import Estimate, share
from dpo_pipeline.tables import (
    Column,
    Figure,
    Limits,
    Name,
    Part,
    Printable,
    Sentence,
    Table,
    Unit,
    key_columns,
    rows_by_key,
    warned,
    whole,
)

TOP: Final = "top_one"
ACCURACY: Final = "pair_accuracy"
TAU: Final = "kendall_tau"
VARIANCE: Final = "reward_variance"
RANKING_FIGURES: Final[Mapping[str, tuple[str, Unit]]] = {
    TOP: (
        "Share of the prompts whose best completion has the highest reward; k at the top give 1/k",
        "share",
    ),
    ACCURACY: (
        "Share of the pairs of a prompt whose better completion has the higher reward",
        "share",
    ),
    TAU: ("Mean of Kendall's tau-b of reward and preference over prompts", "number"),
    VARIANCE: ("Mean over prompts of the variance of the reward, divisor N - 1", "number"),
}
"""Figure to what it is, and how it is written."""


def figures_in(row: Mapping[str, Any], level: float) -> dict[str, Estimate | None]:
    """Return the figures of a row of sums."""
    return {
        TOP: mean_of_prompts(row, "top", level, limits=(0.0, 1.0)),
        ACCURACY: accuracy_of(row, level),
        TAU: mean_of_prompts(row, "tau", level, limits=(-1.0, 1.0)),
        VARIANCE: mean_of_prompts(row, "variance", level, limits=(0.0, float("inf"))),
    }


def curve_of(
    sums: pl.DataFrame, drawn: int | None, level: float, *, is_share: bool
) -> tuple[dict[int, Estimate], int]:
    """Return the best of n for each n, and the prompts with enough completions for all of them.

    `sums` has a row for each size of prompts. Without `drawn`, the curve goes as far as half of
    the prompts do.
    """
    sizes = sums.group_by("size").agg(pl.col("n_prompts").sum()).sort("size")
    if not any(name.startswith("sum_best_of_") for name in sums.columns) or sizes.is_empty():
        return {}, 0
    if drawn is None:
        beyond = sizes["n_prompts"].sum() - sizes["n_prompts"].cum_sum() + sizes["n_prompts"]
        enough = sizes.filter(2 * beyond >= sizes["n_prompts"].sum())
        drawn = int(enough["size"].max())  # type: ignore[arg-type]
    rows = sums.filter(pl.col("size") >= drawn)
    total = rows.sum().row(0, named=True)
    limits = (0.0, 1.0) if is_share else (float("-inf"), float("inf"))
    curve = {
        n: mean_of_prompts(total, f"best_of_{n}", level, limits=limits) for n in drawn_up_to(drawn)
    }
    return {n: each for n, each in curve.items() if each is not None}, int(rows["n_prompts"].sum())


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Ranking(Printable):
    """How rewards rank the completions of each prompt. Each prompt is one sample.

    Attributes:
        source: What was ranked.
        objective: What the reward is that of.
        by_preference: The column that says which completion is better: rank, score or label.
        n_completions: Valid completions.
        n_prompts: Prompts of them.
        n_alone: Prompts with one completion, which say nothing.
        n_undecided: Prompts whose completions are all equally good; they have no top one.
        n_without_tau: Prompts without Kendall's tau-b, rewards or completions being all equal.
        figures: `top_one`, `pair_accuracy`, `kendall_tau`, `reward_variance` (divisor N - 1).
        best_of: n to the expected label or score of the completion with the highest reward of n
            that are drawn without replacement. Empty if ranks say which is better.
        n_drawn_from: Prompts with enough completions for all of that curve; no other is in it.
        subsets: The columns of `by`, `n_prompts`, each figure with its limits, and the last point
            of the curve over those prompts of the subset that have enough completions.
        rewardbench: The score of RewardBench 2, of that format.
        invalid: Which rules were broken.
        notes: What is to be said of the rewards.
    """

    source: str
    objective: CheckedObjective
    by_preference: str
    level: float
    n_completions: int
    n_prompts: int
    n_alone: int
    n_undecided: int
    n_without_tau: int
    figures: Mapping[str, Estimate | None]
    best_of: Mapping[int, Estimate]
    n_drawn_from: int
    subsets: pl.DataFrame | None
    rewardbench: RewardBench2 | None
    invalid: InvalidReport
    by: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "source": self.source,
            "objective": self.objective.to_dict(),
            "preference": self.by_preference,
            "level": self.level,
            "n_completions": self.n_completions,
            "n_invalid": self.invalid.n_invalid,
            "n_prompts": self.n_prompts,
            "n_alone": self.n_alone,
            "n_undecided": self.n_undecided,
            "n_without_tau": self.n_without_tau,
            "figures": {n: None if e is None else asdict(e) for n, e in self.figures.items()},
            "best_of": {str(n): asdict(each) for n, each in self.best_of.items()},
            "n_drawn_from": self.n_drawn_from,
            "subsets": None if self.subsets is None else rows_by_key(self.subsets, self.by),
            "rewardbench": None if self.rewardbench is None else self.rewardbench.to_dict(),
            "notes": list(self.notes),
            "not_looked_for": self.invalid.not_looked_for,
            "warnings": list(self.invalid.all_warnings),
            "invalid": self.invalid.to_dict()["invalid"],
        }

    def to_frame(self) -> pl.DataFrame:
        """Return the figures by subset, or a row for each figure."""
        if self.subsets is not None:
            return self.subsets
        every = {**self.figures, **{f"best_of_{n}": each for n, each in self.best_of.items()}}
        return pl.DataFrame(
            [(name, *_numbers(each)) for name, each in every.items()],
            schema={
                "figure": pl.String,
                "value": pl.Float64,
                "low": pl.Float64,
                "high": pl.Float64,
            },
            orient="row",
        )

    def to_parts(self) -> Iterator[Part]:
        """Yield the score of a benchmark, the figures, the curve, and the subsets."""
        yield Sentence(text=self._lead(), leads=True)
        yield from warned([*self.notes, *self._counts()], "note")
        yield from self.invalid.warning_parts()
        yield from self.invalid.rule_parts()
        if self.rewardbench is not None:
            yield from self._benchmark(self.rewardbench)
        title = (
            f"{whole(self.source)}: {self.n_completions:,} completions of {self.n_prompts:,} "
            f"prompts, {self.invalid.n_invalid:,} invalid, by {self.by_preference}"
        )
        yield Table(
            columns=(Column("figure"), Column("value"), Column(f"{100 * self.level:g}% interval")),
            rows=[
                (name, *_cells(each, RANKING_FIGURES[name][1]))
                for name, each in self.figures.items()
            ],
            title=title,
        )
        if self.best_of:
            unit: Unit = "share" if self.by_preference == "label" else "number"
            yield Table(
                columns=(
                    Column("best of"),
                    Column(f"mean {self.by_preference}"),
                    Column(f"{100 * self.level:g}% interval"),
                ),
                rows=[(str(n), *_cells(each, unit)) for n, each in self.best_of.items()],
                title="best of n, drawn without replacement: the "
                f"{self.n_drawn_from:,} prompts with at least {max(self.best_of)} completions",
            )
        if self.subsets is not None:
            yield self._subset_table(self.subsets)

    def _lead(self) -> str:
        if self.rewardbench is not None:
            return f"RewardBench 2: {self.rewardbench.score:.4f}"
        top = self.figures[TOP]
        if top is None:
            return "no prompt has completions of which one is better"
        return (
            f"the best completion has the highest reward in {share(top.value)} of "
            f"{top.n_clusters:,} prompts"
        )

    def _counts(self) -> Iterator[str]:
        odd = {
            "with one completion": self.n_alone,
            "whose completions are all equally good have no top one": self.n_undecided,
            "without Kendall's tau-b: all rewards or all completions are equal": self.n_without_tau,
        }
        yield from (f"{n:,} prompt{'' if n == 1 else 's'} {what}" for what, n in odd.items() if n)

    def _benchmark(self, made: RewardBench2) -> Iterator[Part]:
        if made.missing:
            text = f"no rows of {', '.join(made.missing)}: the score is the mean of the others"
            yield Sentence(text=text, label="note", tone="note")
        yield Table(
            columns=(Column("subset"), Column("score")),
            rows=[(Name(name), Figure(score)) for name, score in made.subsets.items()],
            title="RewardBench 2",
        )
        if made.ties:
            yield Table(
                columns=(Column("term of Ties"), Column("value")),
                rows=[(name, Figure(value)) for name, value in made.ties.items()],
            )

    def _subset_table(self, subsets: pl.DataFrame) -> Table:
        rows = []
        for row in subsets.iter_rows(named=True):
            cells = [Figure(row[n], unit) for n, (_, unit) in RANKING_FIGURES.items()]
            rows.append((*(Name(row[name]) for name in self.by), row["n_prompts"], *cells))
        heads = ("prompts", *RANKING_FIGURES)
        return Table(
            columns=[*key_columns(self.by), *map(Column, heads)],
            rows=rows,
            title="by subset",
            n_keys=len(self.by),
        )


def subset_table(
    sums: pl.DataFrame, by: Sequence[str], level: float, drawn: int | None, *, is_share: bool
) -> pl.DataFrame:
    """Return the figures of each subset."""
    made = []
    for keys, rows in sums.group_by(by, maintain_order=True):
        total = rows.sum().row(0, named=True)
        curve = curve_of(rows, drawn, level, is_share=is_share)[0] if drawn else {}
        row: dict[str, Any] = dict(zip(by, keys, strict=True))
        row |= {"n_prompts": int(total["n_prompts"]), SIZE: int(total[SIZE])}
        figures = {**figures_in(total, level)}
        figures |= {f"best_of_{drawn}": curve.get(drawn)} if drawn else {}
        for name, each in figures.items():
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), _numbers(each), strict=True))
        made.append(row)
    schema = {name: sums.schema[name] for name in by}
    others = {
        name: pl.Int64 if name in ("n_prompts", SIZE) else pl.Float64
        for name in made[0]
        if name not in by
    }
    return pl.DataFrame(made, schema={**schema, **others}).sort(by, nulls_last=True)


def _numbers(each: Estimate | None) -> tuple[float | None, float | None, float | None]:
    if each is None:
        return None, None, None
    interval = each.interval
    return (
        (each.value, None, None) if interval is None else (each.value, interval.low, interval.high)
    )


def _cells(each: Estimate | None, unit: Unit) -> tuple[Any, Any]:
    value, low, high = _numbers(each)
    limits = None if low is None or high is None else Limits(low, high, unit)
    return Figure(value, unit), limits
