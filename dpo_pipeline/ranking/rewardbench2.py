"""The score of RewardBench 2: the mean credit of each subset, and five terms for Ties.

Ties has prompts `tied:ID` with several right answers, and `ref:ID` with one. A prompt is right if
the lowest right score is above the highest wrong one. Over the ids that have both, the margin
between right and wrong is compared with the spread among the right ones of `tied:ID` (A. Malik et
al., "RewardBench 2", 2025, arXiv 2506.01937).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from dpo_pipeline.ranking.prompt_sums import PROMPT, REWARD
from dpo_pipeline.statistics import counted

SUBSETS: Final = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
"""The subsets of the benchmark."""
TIES: Final = "Ties"
SUBSET: Final = "subset"
WEIGHTS: Final[Mapping[str, float]] = {
    "tied accuracy": 0.3,
    "reference accuracy": 0.3,
    "margin above spread": 0.2,
    "both margins above spread": 0.2,
    "size of the margin": 0.01,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardBench2:
    """Scores by subset.

    Attributes:
        subsets: Subset to its score: mean credit, where k completions tied at the top give 1/k,
            or for Ties the weighted sum of `ties`.
        ties: The terms of Ties by name; empty without that subset.
        missing: Subsets of the benchmark that are not there.
        notes: What is odd with the ids of Ties, a sentence each.
    """

    subsets: Mapping[str, float]
    ties: Mapping[str, float]
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """The unweighted mean of the subsets that are there."""
        return math.fsum(self.subsets.values()) / len(self.subsets)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "score": self.score,
            "subsets": dict(self.subsets),
            "ties": dict(self.ties),
            "missing": list(self.missing),
        }


def is_ties(subset: object) -> bool:
    """Return whether a subset is that of ties."""
    return str(subset).lower() == TIES.lower()


def margins_of(rows: pl.DataFrame, better: str) -> pl.DataFrame:
    """Return the spread and the margin of each prompt of Ties, with its kind and id."""
    right, wrong = (pl.col(REWARD).filter(pl.col(better) == value) for value in (1.0, 0.0))
    parts = pl.col("prompt").str.split_exact(":", 1)
    made = rows.group_by(PROMPT, maintain_order=True).agg(
        pl.col("__dpo_pipeline_key").first().cast(pl.String).alias("prompt"),
        spread=pl.when(right.len() > 1).then(right.max() - right.min()),
        margin=right.min() - wrong.max(),
    )
    return made.select(
        parts.struct.field("field_0").alias("kind"),
        parts.struct.field("field_1").alias("id"),
        "spread",
        "margin",
    )


def scores(earned: Mapping[str, float], ties: pl.DataFrame | None) -> RewardBench2:
    """Return the scores, from the mean credit of each subset and the margins of Ties."""
    terms = {} if ties is None else ties_terms(ties)
    found = {
        name: math.fsum(WEIGHTS[term] * value for term, value in terms.items())
        if is_ties(name)
        else credit
        for name, credit in earned.items()
    }
    there = {name.lower() for name in found}
    missing = tuple(name for name in SUBSETS if name.lower() not in there)
    return RewardBench2(
        subsets=dict(sorted(found.items())),
        ties=terms,
        missing=missing,
        notes=() if ties is None else tuple(_odd_ids(ties)),
    )


def _odd_ids(margins: pl.DataFrame) -> Iterator[str]:
    """Yield which prompts of Ties have no counterpart, and so are in no term of both."""
    ids = {kind: margins.filter(pl.col("kind") == kind)["id"].to_list() for kind in _KINDS}
    for kind, other in (_KINDS, _KINDS[::-1]):
        alone = sorted({f"{kind}:{each}" for each in ids[kind] if each not in {*ids[other]}})
        if alone:
            yield (
                f"{_some(alone)} of Ties without {other}: they count in no term that compares both"
            )
        twice = sorted({f"{kind}:{each}" for each in ids[kind] if ids[kind].count(each) > 1})
        if twice:
            yield f"{_some(twice)} of Ties there more than once: each counts again"
    other_ids = margins.filter(~pl.col("kind").is_in(_KINDS) | pl.col("id").is_null())
    if other_ids.height:
        names = pl.concat_str("kind", "id", separator=":", ignore_nulls=True)
        few = sorted(other_ids.select(names).to_series().to_list())
        yield f"{_some(few)} of Ties neither ref: nor tied:, and so taken as tied"


def _some(names: Sequence[str]) -> str:
    few = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{counted(len(names), 'id')} ({few})"


_SHOWN: Final = 5


def ties_terms(margins: pl.DataFrame) -> dict[str, float]:
    """Return the five terms of Ties, from `margins_of` all its prompts."""
    kinds = {kind: margins.filter((pl.col("kind") == "ref") == (kind == "ref")) for kind in _KINDS}
    accurate = {kind: _mean((rows["margin"] > 0.0).to_list()) for kind, rows in kinds.items()}
    reference = kinds["ref"].select("id", pl.col("margin").alias("of_reference"))
    both = kinds["tied"].join(reference, on="id", how="inner").drop_nulls()
    least = both.select(pl.min_horizontal("margin", "of_reference")).to_series().to_list()
    spread, margin = both["spread"].to_list(), both["margin"].to_list()
    return {
        "tied accuracy": accurate["tied"],
        "reference accuracy": accurate["ref"],
        "margin above spread": _mean(m > s for m, s in zip(margin, spread, strict=True)),
        "both margins above spread": _mean(m > s for m, s in zip(least, spread, strict=True)),
        "size of the margin": _mean(_sized(m, s) for m, s in zip(least, spread, strict=True)),
    }


_KINDS: Final = ("ref", "tied")


def _sized(margin: float, spread: float) -> float:
    """Return tanh(margin / spread - 1); 0 where both are 0."""
    if spread == 0.0:
        return 0.0 if margin == 0.0 else math.copysign(1.0, margin)
    return math.tanh(margin / spread - 1.0)


def _mean(values: Sequence[float] | Any) -> float:
    found = [float(value) for value in values]
    return math.fsum(found) / len(found) if found else 0.0
