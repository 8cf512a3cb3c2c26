"""The sums of scored pairs that statistics are made from, by clusters, groups, bins and runs.

Columns are read block by block, so that a block stays in the cache of a core until all of its sums
are made. It needs numpy when it is imported, as `cells` does.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dpo_pipeline.columns import (
    CHOSEN_LOGRATIO,
    CHOSEN_REWARD,
    LOSS,
    N_PAIRS,
    N_VALID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    REJECTED_LOGRATIO,
    REJECTED_REWARD,
    REWARD_MARGIN,
    Needs,
)
from dpo_pipeline.exact import QUANTA_PER_NAT, SMALL
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.sums.cells import (
    MIX,
    MOST,
    ExactSums,
    Grid,
    Marked,
    Numbers,
    Whole,
    bins_of,
    blocks_of,
    mixed_array,
    quanta_of,
    size_of,
    whole_quanta,
)
from dpo_pipeline.sums.moments import LARGEST, SQUARED, near_quanta, square_sums, with_squares
from dpo_pipeline.sums.pair_sums import COARSE, PRECISIONS, VALID, longer_by
from dpo_pipeline.sums.sense import N_COMPARED, N_UNMOVED, compared, equal as equal_of

_SQUARED_LIMIT: Final = 2.0**25
"""Largest margin, in nats, whose square is summed for the line over length."""
_SPREAD: Final = (0.6180339887498949, 1.4142135623730951)
"""Irrational, so that sums of a few digits times these have all digits."""
KEY_BITS: Final = 24
"""Leading bits of a pair's hash that are those of its key."""
_SIDES: Final = (
    (POLICY_CHOSEN.name, REF_CHOSEN.name, CHOSEN_LOGRATIO, CHOSEN_REWARD),
    (POLICY_REJECTED.name, REF_REJECTED.name, REJECTED_LOGRATIO, REJECTED_REWARD),
)
_COUNTED: Final = {
    "n_correct": ["right"],
    "n_ties": ["tie"],
    "n_chosen_down": ["chosen_down"],
    "n_rejected_down": ["rejected_down"],
    "n_both_down": ["chosen_down", "rejected_down"],
    "n_policy_prefers": ["policy"],
}
_COUNTED_WITH_REFERENCE: Final = {
    "n_reference_prefers": ["reference"],
    "n_both_prefer": ["policy", "reference"],
    N_UNMOVED: ["unmoved"],
}
_COUNTED_WITH_LENGTHS: Final = {
    "n_sized": ["sized"],
    "n_longer": ["longer"],
    "n_shorter": ["shorter"],
    "n_correct_sized": ["right", "sized"],
}
_LINE: Final = ("x", "y", "xx", "xy", "yy")
_LOG_LOSS, _BRIER = "log_loss", "brier"


def same_numbers(one: Numbers, other: Numbers) -> NDArray[np.bool_]:
    """Return where two numbers are equal as Float32, as `sense.with_equal` does."""
    return np.equal(one.astype(np.float32), other.astype(np.float32))


class PairArrays:
    """The sums of valid, scored pairs, made block by block.

    Attributes:
        clusters: Sums and counts of each cluster.
        groups: Counts of log-probs by number format, and the sums for the line over length.
        margins: Pairs by group and bin of the margin.
        rewards: Pairs by coarse bins of both rewards.
        lengths: Pairs, correct pairs and the sum of margins by bin of the token difference.
        course: Pairs, correct pairs and the sums of losses and margins by point of the course.
        keys: A number for each pair, the same for those that have the same log-probs, also with
            chosen and rejected exchanged.
        equal: Counts of pairs with equal log-probs.
        squares: The sums of `square_sums`; None if they are not wanted.
    """

    def __init__(
        self,
        pairs: pl.DataFrame,
        needs: Needs,
        summed: Sequence[str],
        *,
        codes: Whole,
        n: int,
        group: Whole,
        n_groups: int,
        most: int,
        number: NDArray[np.uint64],
        rows_per_point: int,
        objective: CheckedObjective,
        has_lengths: bool,
        has_squares: bool,
    ) -> None:
        """Add up pairs, of which those of `summed` by cluster.

        `codes` are clusters from 0 to n - 1, each of `most` pairs at most, `group` is that of the
        cluster, `number` that of the row.
        """
        self._needs = needs
        self._objective = objective
        names = dict.fromkeys([*needs.logps, REWARD_MARGIN, LOSS, *summed])
        self._columns = pairs.select(pl.col(*names).cast(pl.Float64))
        log_loss = [] if objective.is_log_loss else [_LOG_LOSS]
        sums = ExactSums(n, [*summed, *log_loss, _BRIER], most=most)
        marked = Marked(n, {**_COUNTED, **(_COUNTED_WITH_REFERENCE if needs.reference else {})})
        self.margins, self.rewards = Grid.empty(), Grid.empty()
        formats, course = _Formats(needs, n_groups), _Course(rows_per_point)
        lengths = _Lengths(pairs, n, n_groups) if has_lengths else None
        self._compared = compared(needs)
        squares, equal = _Squares() if has_squares else None, dict.fromkeys(self._compared, 0)
        self.keys = np.empty(pairs.height, dtype=np.uint64)
        for at, of in blocks_of(self._columns):
            self._add_linear(of)
            margin, code, its_group = of[REWARD_MARGIN], codes[at], group[at]
            right = margin > 0.0
            for name in summed:
                sums.add(name, code, of[name])
            self._add_probabilities(sums, code, margin)
            same = self._same(of)
            marked.add(code, self._marks(of, right, same))
            self.margins = self.margins.with_rows(its_group, bins_of(margin))
            coarse = (bins_of(of[name], COARSE) for name in (CHOSEN_REWARD, REJECTED_REWARD))
            self.rewards = self.rewards.with_rows(*coarse)
            formats.add(its_group, of)
            course.add(number[at], right, (of[LOSS], margin))
            self.keys[at] = self._keys_of(of)
            for two in equal:
                equal[two] += int(np.count_nonzero(same[two]))
            if squares is not None:
                squares.add(of)
            if lengths is not None:
                lengths.add(at, code, its_group, margin, right)
        tables = [sums.table(), marked.table()]
        if objective.is_log_loss:
            tables[0] = tables[0].with_columns(pl.col(f"sum_{LOSS}").alias(f"sum_{_LOG_LOSS}"))
        self.groups, self.course, self.lengths = formats.table(), course.table(), _NO_LENGTHS
        if lengths is not None:
            tables.append(lengths.of_clusters.table())
            self.groups = self.groups.hstack(lengths.line())
            self.lengths = lengths.table()
        self.clusters = pl.concat(tables, how="horizontal")
        counts = {N_COMPARED: pairs.height} | {equal_of(*two): n for two, n in equal.items()}
        self.equal = pl.DataFrame(counts, schema=dict.fromkeys(counts, pl.Int64))
        self.squares = None if squares is None else squares.table()

    def _add_linear(self, of: dict[str, Numbers]) -> None:
        """Add log-ratios, and rewards that are multiples of them: faster than to read them."""
        for policy, reference, ratio, reward in _SIDES:
            of[ratio] = of[policy]
            if self._objective.reward_basis.reference:
                of[ratio] = of[policy] - of[reference]
            if self._objective.has_linear_rewards:
                of[reward] = self._objective.beta * of[ratio]

    def _add_probabilities(self, sums: ExactSums, code: Whole, margin: Numbers) -> None:
        with np.errstate(over="ignore"):
            shortfall = 1.0 / (1.0 + np.exp(margin))
        sums.add(_BRIER, code, shortfall * shortfall)
        if not self._objective.is_log_loss:
            loss = np.maximum(-margin, 0.0) + np.log1p(np.exp(-np.abs(margin)))
            sums.add(_LOG_LOSS, code, loss)

    def _same(self, of: Mapping[str, Numbers]) -> dict[tuple[str, str], NDArray[np.bool_]]:
        """Return where two log-probs are equal, as `same_numbers` says, casting each once."""
        names = dict.fromkeys(name for two in self._compared for name in two)
        singles = {name: of[name].astype(np.float32) for name in names}
        return {two: np.equal(*map(singles.__getitem__, two)) for two in self._compared}

    def _marks(
        self,
        of: Mapping[str, Numbers],
        right: NDArray[np.bool_],
        same: Mapping[tuple[str, str], NDArray[np.bool_]],
    ) -> dict[str, NDArray[np.bool_]]:
        marks = {
            "right": right,
            "tie": of[REWARD_MARGIN] == 0.0,
            "chosen_down": of[CHOSEN_LOGRATIO] < 0.0,
            "rejected_down": of[REJECTED_LOGRATIO] < 0.0,
            "policy": of[POLICY_CHOSEN.name] > of[POLICY_REJECTED.name],
        }
        if self._needs.reference:
            marks["reference"] = of[REF_CHOSEN.name] > of[REF_REJECTED.name]
            marks["unmoved"] = same[POLICY_CHOSEN.name, REF_CHOSEN.name]
            marks["unmoved"] = marks["unmoved"] & same[POLICY_REJECTED.name, REF_REJECTED.name]
        return marks

    def _keys_of(self, of: Mapping[str, Numbers]) -> NDArray[np.uint64]:
        chosen, rejected = (
            of[policy.name] * _SPREAD[0] + of[reference.name] * _SPREAD[1]
            if self._needs.reference
            else of[policy.name]
            for policy, reference in ((POLICY_CHOSEN, REF_CHOSEN), (POLICY_REJECTED, REF_REJECTED))
        )
        return (chosen * rejected + 1.0).view(np.uint64) * np.uint64(MIX[1])

    def hashes(self, rows: Whole) -> NDArray[np.uint64]:
        """Return a hash of some pairs; its last bit says which side came first.

        Pairs with the same log-probs share one, and pairs that have them with chosen and rejected
        exchanged share all but the last bit. The first `KEY_BITS` are those of the keys.
        """
        sides = []
        for policy, reference in ((POLICY_CHOSEN, REF_CHOSEN), (POLICY_REJECTED, REF_REJECTED)):
            side = mixed_array(self._bits(policy.name, rows))
            if self._needs.reference:
                side = mixed_array(side ^ self._bits(reference.name, rows))
            sides.append(side)
        chosen, rejected = sides
        both = mixed_array(np.minimum(chosen, rejected) * np.uint64(MIX[1]) ^ np.maximum(*sides))
        low = np.uint64(2 ** (64 - KEY_BITS) - 1)
        hashes = (self.keys[rows] & ~low) | (both & low)
        return (hashes & ~np.uint64(1)) | (chosen > rejected)

    def _bits(self, name: str, rows: Whole) -> NDArray[np.uint64]:
        values = self._columns[name].gather(rows).to_numpy()
        return (values + 0.0).view(np.uint64)  # so that -0 is 0


_CLASSES: Final = 4
"""Number formats that are told apart, and none."""


class _Formats:
    """Counts by group of which number formats keep log-probs, and which tell pairs' sides apart."""

    def __init__(self, needs: Needs, n_groups: int) -> None:
        self._logps = needs.logps
        self._models = {"policy": (POLICY_CHOSEN.name, POLICY_REJECTED.name)}
        if needs.reference:
            self._models["ref"] = (REF_CHOSEN.name, REF_REJECTED.name)
        self._n_groups = n_groups
        self._n_states = _CLASSES ** (len(self._models) + 1)
        self._cells = np.zeros(n_groups * self._n_states, dtype=np.int64)

    def add(self, group: Whole, of: Mapping[str, Numbers]) -> None:
        # Formats of fewer bits are part of those of more, so that their number says which.
        state = self._below(of)
        for chosen, rejected in self._models.values():
            state *= _CLASSES
            bits = of[chosen].view(np.int64) | of[rejected].view(np.int64)
            for significand in reversed(PRECISIONS.values()):
                # A format keeps a number if the bits beyond its own are 0.
                kept = bits & (2 ** (53 - significand) - 1) == 0
                if not kept.any():
                    break
                state += kept
        cells = group * self._n_states
        cells += state
        self._cells += np.bincount(cells, minlength=self._cells.size)

    def _below(self, of: Mapping[str, Numbers]) -> NDArray[np.uint8]:
        """Return of how many formats a step is more than the difference of the log-ratios."""
        found = np.zeros(of[REWARD_MARGIN].size, dtype=np.uint8)
        largest = np.abs(of[self._logps[0]])
        for name in self._logps[1:]:
            np.maximum(largest, np.abs(of[name]), out=largest)
        difference = np.abs(of[CHOSEN_LOGRATIO] - of[REJECTED_LOGRATIO])
        for significand in PRECISIONS.values():
            below = difference < largest * 2.0**-significand
            if not below.any():
                break
            found += below
        return found

    def table(self) -> pl.DataFrame:
        shape = [self._n_groups, *[_CLASSES] * (len(self._models) + 1)]
        cells = self._cells.reshape(shape)
        others = tuple(range(1, cells.ndim))
        counts: dict[str, Whole] = {N_VALID: cells.sum(axis=others)}
        for place, name in enumerate(PRECISIONS):
            for axis, model in enumerate(self._models, start=2):
                kept = np.moveaxis(cells, axis, -1)[..., len(PRECISIONS) - place :]
                counts[f"n_{model}_{name}"] = kept.sum(axis=others)
            counts[f"n_below_{name}"] = cells[:, place + 1 :].sum(axis=others)
        return pl.DataFrame(counts).cast(pl.Int64)


class _Lengths:
    """What is made of the difference of lengths: marks, the line of the margin over it, bins."""

    def __init__(self, pairs: pl.DataFrame, n: int, n_groups: int) -> None:
        longer = pairs.select(longer_by().cast(pl.Float64).fill_null(float("nan")))
        self._longer = longer.to_series()
        self.of_clusters = Marked(n, _COUNTED_WITH_LENGTHS)
        self._line = ExactSums(n_groups, _LINE, whole=("x", "xx"))
        self._sized = np.zeros(n_groups, dtype=np.int64)
        known = self._longer.drop_nans().to_numpy()
        ends = np.array([known.min(initial=0.0), known.max(initial=0.0)])
        self._low, high = bins_of(ends, COARSE).tolist()
        self._bins = Marked(high - self._low + 1, {N_PAIRS: ["sized"], "n_correct": ["right"]})
        self._margins = ExactSums(high - self._low + 1, [REWARD_MARGIN])

    def add(
        self, at: slice, code: Whole, group: Whole, margin: Numbers, right: NDArray[np.bool_]
    ) -> None:
        longer = self._longer[at].to_numpy()
        known = ~np.isnan(longer)
        marks = {"sized": known, "longer": longer > 0.0, "shorter": longer < 0.0, "right": right}
        self.of_clusters.add(code, marks)
        if not known.all():
            longer, margin = longer[known], margin[known]
            group, right = group[known], right[known]
        bins = bins_of(longer, COARSE) - self._low
        self._bins.add(bins, {"sized": np.ones_like(right), "right": right})
        self._margins.add(REWARD_MARGIN, bins, margin)
        fits = np.abs(margin) <= _SQUARED_LIMIT
        if not fits.all():
            longer, margin, group = longer[fits], margin[fits], group[fits]
        x, y = longer, margin
        for name, values in zip(_LINE, (x, y, x * x, x * y, y * y), strict=True):
            self._line.add(name, group, values)
        self._sized += np.bincount(group, minlength=self._sized.size)

    def line(self) -> pl.DataFrame:
        """Return the sums of the line by group."""
        sized = pl.DataFrame({"n_sized": pl.Series(self._sized, dtype=pl.Int64)})
        return sized.hstack(self._line.table())

    def table(self) -> pl.DataFrame:
        """Return pairs, correct pairs and the sum of margins by bin."""
        counts = self._bins.table()
        bins = pl.int_range(self._low, self._low + counts.height, eager=True, dtype=pl.Int64)
        table = pl.DataFrame({"length_bin": bins}).hstack(counts).hstack(self._margins.table())
        return table.filter(pl.col(N_PAIRS) > 0)


_COUNTS: Final = dict.fromkeys((N_PAIRS, "n_correct"), pl.Int64)
_NO_LENGTHS: Final = pl.DataFrame(
    schema={"length_bin": pl.Int64, **_COUNTS, f"sum_{REWARD_MARGIN}": pl.Int128}
)


class _Course:
    """Pairs, correct pairs and the sums of losses and margins by point: a run of rows."""

    def __init__(self, rows_per_point: int) -> None:
        self._size = rows_per_point
        self._found: dict[int, list[int]] = {}

    def add(
        self, number: NDArray[np.uint64], right: NDArray[np.bool_], values: Sequence[Numbers]
    ) -> None:
        first, last = (int(number[end]) // self._size for end in (0, -1))
        ends = np.arange(first + 1, last + 1, dtype=np.uint64) * np.uint64(self._size)
        borders = [0, *np.searchsorted(number, ends).tolist(), number.size]
        sums = [_WholeSums(each) for each in values]
        for point, (start, end) in enumerate(itertools.pairwise(borders), start=first):
            if start < end:
                found = [end - start, int(np.count_nonzero(right[start:end]))]
                found += [each.between(start, end) for each in sums]
                known = self._found.get(point, [0] * len(found))
                self._found[point] = [a + b for a, b in zip(known, found, strict=True)]

    def table(self) -> pl.DataFrame:
        sums = dict.fromkeys((f"sum_{LOSS}", f"sum_{REWARD_MARGIN}"), pl.Int128)
        rows = [(point, *found) for point, found in self._found.items()]
        return pl.DataFrame(rows, schema={"point": pl.Int64, **_COUNTS, **sums}, orient="row")


class _WholeSums:
    """Sums of runs of values, in quanta."""

    def __init__(self, values: Numbers) -> None:
        self._values, size = values, size_of(values)
        fits = size <= SMALL and size * QUANTA_PER_NAT * values.size < MOST
        self._quanta = quanta_of(values) if fits else None

    def between(self, start: int, end: int) -> int:
        """Return the sum of a run."""
        if self._quanta is not None:
            return int(self._quanta[start:end].sum())
        return sum(map(int, whole_quanta(self._values[start:end]).tolist()))


class _Squares:
    """The sums of `square_sums`, block by block."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(SQUARED, 0)
        self._largest = 0.0

    def add(self, of: Mapping[str, Numbers]) -> None:
        squares = {name: of[name] * of[name] for name in SQUARED}
        total = squares[LOSS] + squares[CHOSEN_REWARD]
        total += squares[REJECTED_REWARD]
        largest = float(total.max(initial=0.0))
        self._largest = max(self._largest, largest)
        for name, square in squares.items():
            # That of a margin is at most twice those of its rewards, but for rounding.
            near = near_quanta(square, 2.5 * largest)
            self._sums[name] += self._far(name, of) if near is None else near

    def _far(self, name: str, of: Mapping[str, Numbers]) -> int:
        rows = pl.DataFrame({each: of[each] for each in SQUARED}).with_columns(
            pl.lit(value=True).alias(VALID)
        )
        sums = with_squares(rows.lazy()).select(square_sums(is_wide=True)).collect()
        return int(sums[f"square_{name}"].item())

    def table(self) -> pl.DataFrame:
        sums = {f"square_{name}": [total] for name, total in self._sums.items()}
        table = pl.DataFrame(sums, schema=dict.fromkeys(sums, pl.Int128))
        return table.with_columns(pl.lit(self._largest).alias(LARGEST))
