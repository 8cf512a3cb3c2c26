"""What `compare` returns, and its projections: dictionary, JSON, text, one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import polars as pl

from dpo_pipeline.columns import (
    CHOSEN_REWARD,
    LOSS,
    REJECTED_REWARD,
    REWARD_ACCURACY,
    REWARD_MARGIN,
    SHOWN,
)
from dpo_pipeline.comparison.compared import Compared
from dpo_pipeline.comparison.verdict import Accuracies, Difference, loss_sentence
from dpo_pipeline.defaults import FEWEST_CLUSTERS, POWER
from dpo_pipeline.invalid_report import Doubt, InvalidReport
from dpo_pipeline.statistics import (
    DifferencesTest,
    counted,
    heads_of_two,
    limit_columns,
    p_equation,
    percent,
    quoted_two,
)
from dpo_pipeline.sums import Summary
from dpo_pipeline.tables import (
    Column,
    Figure,
    Limits,
    Name,
    Part,
    Sentence,
    Table,
    Tone,
    Unit,
    key_columns,
    rows_by_key,
    warned,
    whole,
)

COMPARISON_VERSION: Final = 1
"""Changes when a field of the document is removed or changes its meaning."""

REWARD_ACCURACY_HALF: Final = "reward_accuracy_half"

COMPARED: Final = (
    *(REWARD_ACCURACY, REWARD_ACCURACY_HALF, LOSS),
    *(REWARD_MARGIN, CHOSEN_REWARD, REJECTED_REWARD),
)
"""The figures that are compared."""

SUBSET_FIGURES: Final = {
    "n_valid": "common pairs that are valid on both sides",
    "n_clusters": "clusters of them; null where they are in bags",
    "accuracy_a": "reward accuracy of A",
    "accuracy_b": "reward accuracy of B",
    "accuracy_difference": "B minus A",
    "accuracy_low": "lower limit of the difference",
    "accuracy_high": "upper limit of the difference",
    "p_value": "two-sided, of no difference in accuracy",
    "p_holm": "the same, adjusted so that the chance of any false alarm is kept (Holm)",
    "p_benjamini_hochberg": "the same, adjusted so that the share of false alarms is kept",
    "smallest_effect": "smallest difference of accuracy that could have been shown",
    "only_a": "pairs that A alone has right",
    "only_b": "pairs that B alone has right",
    "loss_difference": "mean loss, B minus A, nats",
    "loss_low": "lower limit of the difference, nats",
    "loss_high": "upper limit of the difference, nats",
    "margin_difference": "mean margin, B minus A, nats",
    "margin_low": "lower limit of the difference, nats",
    "margin_high": "upper limit of the difference, nats",
}
"""The columns of `Comparison.subsets` after those of `by`."""

FLIP_COLUMNS: Final = ("key", "margin_a", "margin_b", "change")

_UNITS: Final[Mapping[str, tuple[Unit, Unit, Unit]]] = dict.fromkeys(
    (REWARD_ACCURACY, REWARD_ACCURACY_HALF), ("share", "points", "effect")
)
"""How a figure, its difference and the smallest one are written, if not as numbers."""
_SHOWN_FLIPS: Final = 5
_MEANS: Final = (LOSS, CHOSEN_REWARD, REJECTED_REWARD)
"""Figures that are exactly equal where A and B are one policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two policies."""

    source: str  # where its pairs came from
    name: str  # what the policy is called; empty if nothing says
    n_pairs: int  # rows read
    n_alone: int  # rows whose key the other side does not have; they are left out
    n_invalid: int  # common pairs that break a rule on this side
    summary: Summary  # its figures over the common pairs that are valid on both sides
    invalid: InvalidReport | None  # broken rules of the whole source, if a common pair breaks one
    borrowed: Mapping[str, str]  # columns that it lacks, to the name of the source that lent them


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """Valid common pairs by who has them right (a margin above 0), and the tests of equal chances.

    The tests take pairs as independent. Where prompts repeat they are not: then `applies` is
    False, and the test of the difference is the one to read.
    """

    both_right: int
    only_a: int  # lost by going to B
    only_b: int  # gained
    neither: int  # wrong or tied in both
    exact: float | None  # two-sided p-value of the exact test; None if there is no verdict
    mid_p: float | None  # two-sided mid-p-value, likewise
    applies: bool


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Comparison(Compared):
    """Two policies on the same pairs. All differences are B minus A.

    Attributes:
        max_logp: Largest log-probability accepted, in nats.
        a: The side that B is compared with.
        b: The side that is compared with A.
        differences: `COMPARED` by name.
        mcnemar: Who has which pairs right.
        by: Columns of the subsets.
        subsets: One row a subset, in the order of its key: the columns of `by`, then
            `SUBSET_FIGURES`. None without `by`.
        heterogeneity: The test that B minus A is the same in all subsets. None without `by`, if
            nothing is tested, and with too few subsets that have enough clusters.
        gained: Pairs that B alone has right, up to 20 with the largest change: `key`, `margin_a`,
            `margin_b`, `change` = margin_b - margin_a, in nats.
        lost: Pairs that A alone has right, likewise.
        doubts: What is surely wrong with both sides or one; the title names it.
        findings: Sentences about what makes the comparison doubtful; doubts come first.
        changes: Histogram of the change of margin: `bin` (of `dpo_pipeline.exact`), its edges
            `lower` and `upper` in nats, `n_pairs`. Not in the document.
        margins: Pairs by both margins: `a_bin`, `b_bin` (ten bins of `dpo_pipeline.exact` each),
            `n_pairs`. Not in the document.
    """

    max_logp: float
    a: Side
    b: Side
    differences: Mapping[str, Difference]
    mcnemar: McNemar
    by: tuple[str, ...]
    subsets: pl.DataFrame | None
    heterogeneity: DifferencesTest | None
    gained: pl.DataFrame
    lost: pl.DataFrame
    doubts: tuple[Doubt, ...]
    findings: tuple[str, ...]
    changes: pl.DataFrame
    margins: pl.DataFrame

    @property
    def better(self) -> Literal["a", "b"] | None:
        """The side whose reward accuracy is shown to be higher; None if no difference is shown.

        Accuracy alone decides: one test, so that looking at several figures raises no false alarm.
        If there are ties, the accuracy that counts them half decides. None if the sides cannot be
        compared.
        """
        return self._accuracies.better if self.incomparable is None else None

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if self.incomparable is not None:
            return f"no verdict: {self.incomparable}"
        if self.differences[REWARD_ACCURACY].p_value is None:
            return f"no difference can be tested {self.on_pairs}: {self._why_untested()}"
        return self._accuracies.sentence(self.on_pairs)

    @property
    def heads(self) -> tuple[str, str]:
        """What heads of tables call the policies: `A: base`."""
        return heads_of_two(self.a.name, self.b.name)

    @property
    def quoted(self) -> tuple[str, str]:
        """What sentences call the policies: `A "base"`."""
        return quoted_two(self.a.name, self.b.name)

    @property
    def across_subsets(self) -> str:
        """What the test of one difference in all subsets says; empty without subsets or a test."""
        found, unit = self.heterogeneity, "prompt" if "prompt" in self.clusters else "pair"
        if self.subsets is None or self.subsets.height < 2 or self.no_verdict is not None:  # noqa: PLR2004
            return ""
        if found is None:
            return (
                "Whether B minus A differs between subsets is not tested: fewer than two have "
                f"{FEWEST_CLUSTERS} {unit}s."
            )
        within = found.degrees_of_freedom_within
        text = (
            f"Test that B minus A of the accuracy is the same in {found.n_groups:,} subsets "
            f"(Welch): F({found.degrees_of_freedom:,}, {within:.4g}) = {found.f:.3g}, "
            f"{p_equation(found.p_value)}."
        )
        if found.n_left_out:
            left = counted(found.n_left_out, "subset")
            text += f" Left out: {left} of fewer than {FEWEST_CLUSTERS} {unit}s."
        return text

    @property
    def sources(self) -> tuple[str, ...]:
        """Both sides, and where columns were borrowed from."""
        lent = (*self.a.borrowed.values(), *self.b.borrowed.values())
        return tuple(dict.fromkeys((self.a.source, self.b.source, *lent)))

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self.b.source} against {self.a.source}"

    @property
    def gated(self) -> tuple[str, ...]:
        """The figures whose differences a gate can have a mark for."""
        return COMPARED

    @property
    def no_verdict(self) -> str | None:
        """Why the figures decide nothing; None if they do, or show no difference."""
        untested = self.differences[REWARD_ACCURACY].p_value is None
        return self.verdict if self.incomparable is not None or untested else None

    def figure(self, name: str) -> tuple[float, tuple[float, float] | None]:
        """Return a difference, B - A, and its interval."""
        estimate = self.differences[name].estimate
        interval = estimate.interval
        return estimate.value, None if interval is None else (interval.low, interval.high)

    @property
    def loss_verdict(self) -> str | None:
        """The difference of loss in a sentence; None where the sides cannot be compared."""
        if self.incomparable is not None:
            return None
        return loss_sentence(self.differences[LOSS], self.objective.beta)

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `schemas/comparison.schema.json` describes."""
        return {
            **self.head(COMPARISON_VERSION),
            **_plain(self, "max_logp", "level", "verdict", "better"),
            "a": _side(self.a),
            "b": _side(self.b),
            **_plain(self, "n_common", "n_valid", "clusters", "n_clusters"),
            "differences": {name: asdict(each) for name, each in self.differences.items()},
            "mcnemar": asdict(self.mcnemar),
            "subsets": None if self.subsets is None else rows_by_key(self.subsets, self.by),
            "heterogeneity": None if self.heterogeneity is None else asdict(self.heterogeneity),
            "gained": self.gained.select(FLIP_COLUMNS).to_dicts(),
            "lost": self.lost.select(FLIP_COLUMNS).to_dicts(),
            "findings": list(self.findings),
            "incomparable": self.incomparable,
        }

    @property
    def tests(self) -> str:
        """What tested the figures, by the names of the document."""
        strict, half, mean = (
            self.differences[name].test for name in (REWARD_ACCURACY, REWARD_ACCURACY_HALF, LOSS)
        )
        ties = "" if half == strict else f"; with ties half: {half}"
        return f"accuracy: {strict}{ties}; others: {mean}"

    @property
    def _accuracies(self) -> Accuracies:
        return Accuracies(
            strict=self.differences[REWARD_ACCURACY],
            half=self.differences[REWARD_ACCURACY_HALF],
            ties_a=self.a.summary.n_ties,
            ties_b=self.b.summary.n_ties,
            n_pairs=self.n_valid,
            level=self.level,
            is_one=all(self.differences[name].estimate.value == 0.0 for name in _MEANS),
            names=self.quoted,
        )

    def _why_untested(self) -> str:
        if self.n_clusters == 1:
            return "they are of one prompt" if self.n_valid > 1 else "there is one pair"
        return "all clusters differ by the same amount"

    def to_frame(self) -> pl.DataFrame:
        """Return one row a subset with `by`, else one row a figure."""
        if self.subsets is not None:
            return self.subsets
        rows = [
            {
                "figure": name,
                "a": each.a,
                "b": each.b,
                "difference": each.estimate.value,
                **limit_columns("difference", each.estimate.interval),
                "p_value": each.p_value,
                "smallest_effect": each.smallest_effect,
            }
            for name, each in self.differences.items()
        ]
        return pl.DataFrame(rows, schema_overrides=dict.fromkeys(list(rows[0])[1:], pl.Float64))

    def to_parts(self) -> Iterator[Part]:
        """Yield what is surely wrong, the verdict, what makes it doubtful, and the figures."""
        doubts = {str(each): each for each in self.doubts}
        for text, doubt in doubts.items():
            if text != self.incomparable:
                advice = (doubt.advice,)
                yield Sentence(text=text, label="warning", tone="warning", more=advice)
        loss, decisive = self.loss_verdict, doubts.get(self.incomparable or "")
        tones: Mapping[str | None, Tone] = {"b": "good", "a": "bad", None: "warning"}
        tone: Tone = "bad" if self.no_verdict else tones[self.better]
        below = (decisive and decisive.advice, loss and f"{loss}.")
        more = tuple(text for text in below if text)
        yield Sentence(text=self.verdict, tone=tone, more=more, leads=True)
        said = {*doubts, self.incomparable}
        yield from warned([text for text in self.findings if text not in said], "note")
        for side in (self.a, self.b):
            if side.invalid is not None:
                pairs = f"{counted(side.n_invalid, 'common pair')} of {whole(side.source)}"
                text = f"{pairs} break the contract and count in no figure"
                yield Sentence(text=text, label="warning", tone="warning")
                yield from side.invalid.rule_parts()
        yield self._sides()
        yield self._difference_table()
        yield from self._who_is_right()
        if self.subsets is not None:
            yield self._subset_table(self.subsets)
        m = self.mcnemar
        for flips, who, n in ((self.gained, "only B", m.only_b), (self.lost, "only A", m.only_a)):
            if n and flips.height:
                names = [name for name in flips.columns if name.startswith(SHOWN)]
                most = flips.height if names else _SHOWN_FLIPS
                rows = [
                    (Name(key), *margins, *map(Name, texts))
                    for key, *rest in flips.head(most).rows()
                    for margins, texts in [(rest[:3], rest[3:])]
                ]
                columns = (
                    *map(Column, (self.on, "margin of A", "margin of B", "change")),
                    *(Column(name.removeprefix(SHOWN), wraps=True) for name in names),
                )
                title = f"right in {who}, the largest changes of {n:,}"
                yield Table(columns=columns, rows=rows, title=title)

    def _sides(self) -> Table:
        rows: list[tuple[Any, ...]] = []
        for name, side in zip(self.heads, (self.a, self.b), strict=True):
            rows.append((name, side.source, side.n_pairs, side.n_alone))
            for source in sorted(set(side.borrowed.values())):
                lent = ", ".join(n for n, place in side.borrowed.items() if place == source)
                rows.append(("", f"{lent} from {source}", "", ""))
        columns = (Column("side"), Column("pairs of", wraps=True), Column("pairs"))
        return Table(columns=(*columns, Column("there alone")), rows=rows)

    def _difference_table(self) -> Table:
        is_tested, rows = self.no_verdict is None, []
        for name, each in self.differences.items():
            value, differing, effect = _UNITS.get(name, ("number", "number", "number"))
            interval = each.estimate.interval
            ends = None if interval is None else (interval.low, interval.high)
            cells: list[Any] = [
                Figure(each.a, value),
                Figure(each.b, value),
                Figure(each.estimate.value, differing, ends),
                "" if ends is None else Limits(*ends, differing),
            ]
            if is_tested:
                smallest = each.smallest_effect
                large = None if smallest is None else Figure(smallest, effect, digits=2)
                cells += [Figure(each.p_value, "p"), large]
            rows.append((name, *cells))
        heads = ["figure", *self.heads, "B minus A", f"{percent(self.level)} interval"]
        note = f"intervals from {self.clusters}"
        if is_tested:
            heads += ["p", "smallest effect"]
            note = (
                f"intervals and p from {self.clusters}; p: two-sided, of no difference "
                f"({self.tests}); smallest effect: what could have been shown at {POWER:.0%} power"
            )
        return Table(columns=tuple(map(Column, heads)), rows=rows, title=self.title, note=note)

    def _who_is_right(self) -> Iterator[Sentence]:
        m = self.mcnemar
        yield Sentence(
            text=f"right: both {m.both_right:,}, only A {m.only_a:,}, only B {m.only_b:,}, "
            f"neither {m.neither:,}"
        )
        if m.exact is not None and m.mid_p is not None:
            text = f"McNemar: exact {p_equation(m.exact)}, mid-{p_equation(m.mid_p)}"
            if not m.applies:
                text += "; prompts repeat, so read the p of reward_accuracy instead"
            yield Sentence(text=text)

    def _subset_table(self, subsets: pl.DataFrame) -> Table:
        rows: list[tuple[Any, ...]] = []
        for row in subsets.iter_rows(named=True):
            low, high = row["accuracy_low"], row["accuracy_high"]
            ends = None if low is None or high is None else (low, high)
            rows.append(
                (
                    *(Name(row[name]) for name in self.by),
                    row["n_valid"],
                    Figure(row["accuracy_a"], "share"),
                    Figure(row["accuracy_b"], "share"),
                    Figure(row["accuracy_difference"], "points", ends),
                    "" if ends is None else Limits(*ends, "points"),
                    Figure(row["p_value"], "p"),
                    Figure(row["p_holm"], "p"),
                )
            )
        interval = f"{percent(self.level)} interval"
        heads = ["pairs", "accuracy of A", "accuracy of B", "B minus A", interval, "p", "p (Holm)"]
        note = f"p (Holm): adjusted for {counted(subsets.height, 'subset')}"
        note = ". ".join(filter(None, (note, self.across_subsets.removesuffix("."))))
        if self.no_verdict is not None:
            heads, rows, note = heads[:-2], [row[:-2] for row in rows], ""
        columns = (*key_columns(self.by), *map(Column, heads))
        return Table(columns=columns, rows=rows, title="by subset", note=note, n_keys=len(self.by))


def _plain(result: object, *names: str) -> dict[str, Any]:
    return {name: getattr(result, name) for name in names}


def _side(side: Side) -> dict[str, Any]:
    return {
        **_plain(side, "source", "name", "n_pairs", "n_alone", "n_invalid"),
        "summary": side.summary.to_dict(),
        "invalid": [] if side.invalid is None else side.invalid.to_dict()["invalid"],
        "borrowed": dict(side.borrowed),
    }
