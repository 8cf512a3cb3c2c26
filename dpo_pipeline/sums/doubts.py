"""Doubts: log-probs that no two models give for the same texts, and pairs that are none.

A doubt comes from sums over all valid pairs, so it needs no statistics. It says what is seen and
names causes only as questions. Thresholds come from simulated sound sets, of which none may raise
a doubt: `tests/evaluation/test_sound_sets.py` makes such sets and plants faults in real pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Final

import polars as pl

from dpo_pipeline.columns import (
    LOGPS,
    N_VALID,
    POLICY,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF,
    REF_CHOSEN,
    REF_REJECTED,
    RowOf,
)
from dpo_pipeline.defaults import SCORES_ABOVE, SENSE_FEWEST, SENSE_FROM
from dpo_pipeline.invalid_report import Doubt
from dpo_pipeline.sums.sense import N_UNMOVED, Repeats, Sense
from dpo_pipeline.sums.unit_doubts import OF_SUMS, averaged, constant, guessing, scaled

_C, _R, _REF_C, _REF_R = LOGPS
_OURS: Final = (_C, _R)
_EXCHANGED: Final = 0.6
_NEARLY_EXCHANGED: Final = 0.9
_SHIFTED: Final = 0.5
_NO_CLOSER: Final = 1.1
_OTHER_TEXTS: Final = 0.8
_FEW: Final = 20
"""Pairs from which on other texts are told by their spread: 0.71 in 1,500 sound sets of 8 to 49."""
_SOME_SPREAD: Final = 0.2
_SAME_AMOUNT: Final = 0.8
_MORE_ALIKE: Final = 0.4
_PROMPT_SPREAD: Final = 0.01
_LITTLE_SPREAD: Final = 0.02
_EVEN: Final = 0.5
_UNEVEN: Final = 0.4
_UNEVEN_SPREAD: Final = 0.05
_LESS_UNEVEN: Final = 0.65
_MORE_SPREAD: Final = 0.1
"""Sound sets whose log-ratios vary by more are even: 0.71 or more in 1,500 simulated ones."""
_FEW_OF_SPREAD: Final = 0.3
_ANY_SPREAD: Final = 0.004
"""Of 230 sound sets whose log-ratios vary by more, the least even one has 0.39."""
_OPPOSITE: Final = -0.6
_ONE_SIDED: Final = 0.6
_NEARLY_ALL: Final = 0.9
_UNRELATED: Final = 0.3
_AS_BEFORE: Final = 0.2
_SIZE: Final = 0.5
_COPIED: Final = 0.5
_PARTLY_COPIED: Final = 0.05
_UNMOVED: Final = 0.01
_ROUNDING: Final = 2.0**-8
"""Mean size of log-ratios, in nats, that a policy exceeds after its first step of training."""
_FEWEST: Final = 5
"""Equal pairs that are no chance: in a subset, or where only part of a column is equal."""
_SUBSETS_NAMED: Final = 5

_LOOK_CUT: Final = "Look whether texts were cut short for one model only."
_CHECK_JOIN: Final = "Compare the texts that both models scored, and what joined them, row by row."


def doubts_of(
    sense: Sense,
    *,
    max_logp: float,
    subsets: pl.DataFrame | None = None,
    repeats: Repeats | None = None,
    n_ties: int | None = None,
) -> tuple[Doubt, ...]:
    """Return what is surely wrong, gravest first.

    Args:
        sense: Of all valid pairs.
        max_logp: The largest log-prob accepted: scores of reward models can be far above 0, and
            of scores only equality says something.
        subsets: The columns of the subsets, `n_valid` and `n_unmoved`.
        repeats: What the ids show.
        n_ties: Pairs with equal rewards; None where beta is 0, or there are several objectives.
    """
    if sense.n_valid == 0:
        return ()
    are_logps = max_logp <= SCORES_ABOVE
    if not sense.is_of_pairs:
        return (*_of_completions(sense, are_logps=are_logps), *_repeated(repeats, "completion"))
    copies = [*_unmoved(sense, subsets, are_logps=are_logps), *_copies(sense)]
    seen = chain(averaged(sense), constant(sense)) if are_logps else ()
    found = [*copies, *_of_sample(sense, seen)] or list(_all_ties(sense, n_ties))
    if are_logps and not found:
        found += _of_sample(sense, _sums(sense))
    return (*found, *_repeated(repeats))


def not_looked_for(sense: Sense, *, max_logp: float) -> str | None:
    """Say what the doubts cannot tell of so few valid pairs; None if all was looked for."""
    n = sense.n_valid
    if not sense.has_reference or n == 0 or max_logp > SCORES_ABOVE:
        return None
    if not sense.is_of_pairs:
        what = "shifted rows and equal columns" if n >= SENSE_FROM else "equal columns"
        return f"of completions only {what} are looked for; pairs of them (--pairing) show more"
    if n >= SENSE_FROM:
        return None
    few = f"{n:,} valid pairs are" if n > 1 else "1 valid pair is"
    looked = "; only whole columns that are shifted, exchanged or equal would show"
    return (
        f"{few} too few to tell whether policy and reference are of the same texts"
        f"{looked if n >= SENSE_FEWEST else ''}"
    )


def _of_completions(sense: Sense, *, are_logps: bool) -> Iterator[Doubt]:
    """Yield that the policy's log-probs are the reference's, or those of a neighbouring row."""
    if not sense.has_reference or sense.n_valid < _FEWEST:
        return
    share = sense.share_equal(POLICY.name, REF.name)
    if share >= _COPIED:
        yield _copy(POLICY.name, REF.name, share, sense.n_compared, "completion")
    elif are_logps and sense.n >= SENSE_FROM and sense.lag < _SHIFTED:
        seen = f"the two correlate by {sense.correlation(POLICY.name, REF.name):.2f}"
        yield from _of_sample(sense, [_shifted_doubt(seen)])


def _of_sample(sense: Sense, found: Iterable[Doubt]) -> Iterator[Doubt]:
    """Yield doubts, saying how many pairs they rest on if these are a sample."""
    for each in found:
        rests_on = f"seen in {sense.n_seen:,} of {sense.n_valid:,} valid pairs"
        is_sample = sense.n_seen < sense.n_valid
        yield replace(each, evidence=f"{each.evidence}; {rests_on}") if is_sample else each


def _all_ties(sense: Sense, n_ties: int | None) -> Iterator[Doubt]:
    alike = [sense.share_equal(_C, _R)]
    alike += [sense.share_equal(_REF_C, _REF_R)] if sense.has_reference else []
    if n_ties == sense.n_valid or (min(alike) == 1.0 and sense.n_valid > 1):
        yield Doubt(
            "all_ties",
            "all pairs are ties",
            f"both rewards are equal in all {sense.n_valid:,} valid pairs",
            "Look whether chosen and rejected are two texts.",
            OF_SUMS,
        )


def _sums(sense: Sense) -> Iterator[Doubt]:
    """Yield that policy and reference are not of the same texts; the first fault that fits."""
    checks: tuple[Callable[[Sense], Doubt | None], ...] = ()
    if sense.n >= SENSE_FROM:
        of_both = (_exchanged, _shifted, scaled, _prompt)
        less_clear = (_one_side, _of_size, _other_texts, _cut_short, _some_pairs)
        checks = (*of_both, guessing, *less_clear) if sense.has_reference else (guessing,)
    elif sense.n >= SENSE_FEWEST and sense.has_reference:
        checks = (_exchanged, _shifted, *((_other_texts,) if sense.n >= _FEW else ()))
    yield from [found for check in checks if (found := check(sense)) is not None][:1]


def _doubt(name: str, title: str, evidence: str, advice: str = _CHECK_JOIN) -> Doubt:
    return Doubt(name, title, evidence, advice, OF_SUMS)


def _correlations(sense: Sense) -> str:
    chosen = sense.correlation(_C, _REF_C)
    return (
        f"their log-probs correlate by {chosen:.2f} (chosen) and "
        f"{sense.correlation(_R, _REF_R):.2f} (rejected)"
    )


def _exchanged(sense: Sense) -> Doubt | None:
    exchange = sense.exchange
    is_mirrored = (
        sense.n >= SENSE_FROM and exchange < _NEARLY_EXCHANGED and sense.same_move < -_SAME_AMOUNT
    )
    if not (exchange < _EXCHANGED or is_mirrored):
        return None
    return _doubt(
        "exchanged",
        "chosen and rejected of one model are exchanged",
        f"the policy's log-probs fit the reference's of the other completion better: "
        f"{_correlations(sense)}, and across by {sense.correlation(_C, _REF_R):.2f} and "
        f"{sense.correlation(_R, _REF_C):.2f}",
        "Exchange the two columns of the reference, or those of the policy.",
    )


def _shifted(sense: Sense) -> Doubt | None:
    return _shifted_doubt(_correlations(sense)) if sense.lag < _SHIFTED else None


def _shifted_doubt(seen: str) -> Doubt:
    return _doubt(
        "shifted",
        "the rows of policy and reference are shifted against each other",
        f"the policy's log-probs fit the reference of a neighbouring row better than that of their "
        f"own: {seen}",
        "Join by an id that both runs carried; a row number is none once a row was dropped.",
    )


def _prompt(sense: Sense) -> Doubt | None:
    is_in_all = _evenness(sense) > _EVEN
    if not (sense.same_move > _SAME_AMOUNT and _spread(sense) > _PROMPT_SPREAD and is_in_all):
        return None
    # Both sides of a pair are alike in one model too, and then move alike.
    own = min(sense.correlation(_C, _R), sense.correlation(_REF_C, _REF_R))
    if 1.0 - sense.same_move > _MORE_ALIKE * (1.0 - own):
        return None
    return _doubt(
        "one_amount",
        "one model's sums hold something that the other's do not",
        f"chosen and rejected of a pair differ from the reference by nearly the same amount "
        f"(correlation {sense.same_move:.2f}); {_means(sense)}",
        "Look whether the prompt is counted in one model's sums only.",
    )


def _one_side(sense: Sense) -> Doubt | None:
    """Chosen is lower, or rejected higher, by amounts that have nothing to do with the text.

    The other way round training does the same, and no sum can tell.
    """
    for ours, other, sign in ((_C, _R, -1.0), (_R, _C, 1.0)):
        is_apart = sign * sense.one_sidedness(ours) > _NEARLY_ALL
        amount = sense.moved(ours)
        if not (is_apart and sense.spread(ours) > _LITTLE_SPREAD):
            continue
        is_other_as_before = sense.variance_of_move(other) < _AS_BEFORE**2 * sense.size_of_move(
            ours
        )
        if (
            abs(sense.move_with_higher(ours)) < _UNRELATED
            and is_other_as_before
            and sign * (amount - sense.moved(other)) > 0.0
        ):
            side = "chosen" if ours == _C else "rejected"
            return _doubt(
                "one_side",
                f"{side} of one model holds something that the other columns do not",
                f"its log-ratios are {amount:.4g} nats on average, nearly all of one sign and "
                f"unrelated to the log-probs; those of the other side are "
                f"{sense.moved(other):.4g}",
                f"Look whether the prompt is counted in one model's sums of {side} alone.",
            )
    return None


def _of_size(sense: Sense) -> Doubt | None:
    sizes = [sense.size(ours) for ours in _OURS]
    if not (min(map(abs, sizes)) > _SIZE and sizes[0] * sizes[1] > 0.0):
        return None
    return _doubt(
        "size",
        "log-probs of policy and reference are of very different size",
        _means(sense),
        "Look whether one model's sums hold the prompt, are of unshifted labels, are averaged, or "
        "are of texts that were cut short.",
    )


def _other_texts(sense: Sense) -> Doubt | None:
    spread = _spread(sense)
    are_many = sense.n >= SENSE_FROM
    is_no_closer = are_many and (sense.lag < _NO_CLOSER or sense.exchange < _NO_CLOSER)
    if not (spread > _OTHER_TEXTS or (spread > _SOME_SPREAD and is_no_closer)):
        return None
    return _doubt(
        "other_texts",
        "policy and reference are not of the same texts",
        f"{_correlations(sense)}, and log-ratios vary by {spread:.0%} of what both log-probs do",
    )


def _some_pairs(sense: Sense) -> Doubt | None:
    spread, evenness = _spread(sense), _evenness(sense)
    seen = (
        f"few log-ratios make up most of their spread ({evenness:.2f} of the root mean square on "
        f"average), which is {spread:.1%} of that of both log-probs"
    )
    is_uneven = evenness < _LESS_UNEVEN and spread > _MORE_SPREAD
    is_very_uneven = evenness < _UNEVEN and spread > _LITTLE_SPREAD
    is_of_few = evenness < _FEW_OF_SPREAD and spread > _ANY_SPREAD
    if sense.same_move < _OPPOSITE and (is_uneven or is_very_uneven):
        return _doubt(
            "some_exchanged",
            "chosen and rejected of one model seem exchanged in some pairs",
            f"{seen}; chosen and rejected move against each other ({sense.same_move:.2f})",
        )
    if not (is_uneven or is_of_few or (is_very_uneven and spread > _UNEVEN_SPREAD)):
        return None
    lower = _lower(sense)
    if lower is not None:
        return _doubt(
            "some_lower", f"the {lower} is far below the other model in some pairs", seen, _LOOK_CUT
        )
    return _doubt(
        "some_other_texts", "policy and reference seem of other texts in some pairs", seen
    )


def _cut_short(sense: Sense) -> Doubt | None:
    """One model is lower throughout, by amounts that vary as log-probs of other lengths do."""
    lower, spread = _lower(sense), min(sense.spread(ours) for ours in _OURS)
    if lower is None or not spread > _SOME_SPREAD:
        return None
    return _doubt(
        "lower",
        f"the {lower} is far below the other model, by very different amounts",
        f"log-ratios vary by {spread:.0%} of what both log-probs do; {_means(sense)}",
        _LOOK_CUT,
    )


def _lower(sense: Sense) -> str | None:
    """Return the model that is the lower one on both sides, nearly everywhere."""
    sides = [sense.one_sidedness(ours) for ours in _OURS]
    if not (min(map(abs, sides)) > _ONE_SIDED and sides[0] * sides[1] > 0.0):
        return None
    return "policy" if sides[0] < 0.0 else "reference"


def _spread(sense: Sense) -> float:
    return max(sense.spread(ours) for ours in _OURS)


def _evenness(sense: Sense) -> float:
    return min(sense.evenness(ours) for ours in _OURS)


def _means(sense: Sense) -> str:
    means = [sense.mean(name) for name in LOGPS]
    return (
        f"mean log-probs are {means[0]:.4g} and {means[1]:.4g} (policy), {means[2]:.4g} and "
        f"{means[3]:.4g} (reference)"
    )


def _unmoved(sense: Sense, subsets: pl.DataFrame | None, *, are_logps: bool) -> Iterator[Doubt]:
    """Yield pairs that the policy scores as the reference does: all, some, or those of a subset.

    Coarse log-probs are equal by chance, on either side; pairs that were not scored anew are equal
    on both.
    """
    n, unmoved = sense.n_valid, sense.n_unmoved
    if not sense.has_reference:
        return
    sizes = [sense.mean_size(ours) for ours in _OURS] if sense.n >= _FEWEST and are_logps else [1.0]
    if unmoved < _COPIED * n and max(sizes) < _ROUNDING:
        yield Doubt(
            "unmoved",
            "policy and reference log-probs are equal but for rounding",
            f"log-ratios are {max(sizes):.1g} nats on average at most; was the same model scored "
            "twice, or were few digits stored?",
            "Score the pairs with the policy that was trained, and keep all digits.",
            OF_SUMS | {"repeats"},
        )
    if not unmoved:
        return
    if unmoved == n:
        yield Doubt(
            "unmoved",
            f"policy and reference log-probs are equal on all {n:,} valid pairs",
            "every reward is 0; was the same model scored twice?",
            "Score the pairs with the policy that was trained.",
            OF_SUMS | {"repeats"},
        )
        return
    sides = sense.share_equal(_C, _REF_C), sense.share_equal(_R, _REF_R)
    share, by_chance = unmoved / n, sides[0] * sides[1]
    is_by_pair = share - by_chance > 0.5 * (min(sides) - by_chance)
    where = "" if subsets is None else _where_unmoved(subsets)
    if unmoved >= _FEWEST and is_by_pair and (share >= _UNMOVED or where):
        yield Doubt(
            "unmoved",
            "policy and reference log-probs are equal on some pairs",
            f"both completions of {unmoved:,} pairs ({share:.1%}) have the same log-probs "
            f"under both models{where}",
            "Look whether these pairs were scored with the policy.",
            OF_SUMS if share >= _COPIED else frozenset(),
        )


def _where_unmoved(subsets: pl.DataFrame) -> str:
    share = pl.col(N_UNMOVED) / pl.col(N_VALID)
    are_many = (share >= _COPIED) & (pl.col(N_UNMOVED) >= _FEWEST)
    most = subsets.filter(are_many).sort(share, descending=True, maintain_order=True)
    if most.is_empty():
        return ""
    by = [name for name in subsets.columns if name not in (N_VALID, N_UNMOVED)]
    named = [
        f"{' / '.join(f'{name} {row[name]}' for name in by)} ({row[N_UNMOVED]:,} of "
        f"{row[N_VALID]:,})"
        for row in most.head(_SUBSETS_NAMED).iter_rows(named=True)
    ]
    more = most.height - len(named)
    return f"; mostly in {', '.join(named)}{f' and {more:,} more' if more else ''}"


def _copies(sense: Sense) -> Iterator[Doubt]:
    """Yield columns that repeat another one: all of it, or a share that no model gives."""
    if sense.n_valid < _FEWEST:
        return
    if sense.has_reference and sense.n_unmoved < sense.n_valid:
        for ours, other in ((_C, _R), (_R, _C)):
            share = sense.share_equal(ours, _theirs(ours))
            elsewhere = sense.share_equal(other, _theirs(other))
            if share >= max(_PARTLY_COPIED, _FEWEST / sense.n_compared) and elsewhere < share / 4.0:
                yield _copy(ours, _theirs(ours), share, sense.n_compared)
        for one, other in ((_C, _REF_R), (_R, _REF_C)):
            share = sense.share_equal(one, other)
            if share >= _COPIED:
                yield _copy(one, other, share, sense.n_compared)
    alike = {
        (one, other): sense.share_equal(one, other)
        for one, other in ((_C, _R), (_REF_C, _REF_R))
        if one in sense.lowest
    }
    # Equal in both models means equal texts, whose ties are said elsewhere.
    if not (sense.has_reference and min(alike.values()) >= _COPIED):
        for (one, other), share in alike.items():
            if share >= _COPIED:
                yield _copy(one, other, share, sense.n_compared)


def _theirs(ours: str) -> str:
    return {POLICY_CHOSEN.name: REF_CHOSEN.name, POLICY_REJECTED.name: REF_REJECTED.name}[ours]


def _copy(one: str, other: str, share: float, n: int, row: RowOf = "pair") -> Doubt:
    whole = share == 1.0
    return Doubt(
        "copied",
        f"{one} is {'a copy of' if whole else 'in part equal to'} {other}",
        f"the two are equal on {'all ' if whole else f'{share:.1%} of '}{n:,} valid {row}s",
        "Look which column was written there.",
        OF_SUMS,
    )


def _repeated(repeats: Repeats | None, row: RowOf = "pair") -> Iterator[Doubt]:
    if repeats is None or not repeats.n_repeated:
        return
    n, seen = repeats.n_repeated, repeats.n_looked_at
    is_one = "has" if n == 1 else "have"
    how = f"{n:,} of {seen:,} {row}s {is_one} the {row}_id of an earlier one"
    if not repeats.is_exact:
        how = (
            f"about {n / seen:.2%} of the {row}s, by a sample of {seen:,} ids, have that of another"
        )
    if not repeats.is_of_all:
        how += f"; not all {row}s were looked at"
    yield Doubt(
        "repeated_ids",
        f"{row}_id is there more than once",
        f"{how}; they count again in every mean",
        "Leave the copies out: padding of a last batch and joined shards bring them in.",
        frozenset({"repeats"}),
    )
