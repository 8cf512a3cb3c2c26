"""Pairs as lists of per-token log-probs, and the sums that they give."""

from __future__ import annotations

import math
import random

import polars as pl

from pair_tools import LOGPS

TOKENS = tuple(name.replace("_logps", "_token_logps") for name in LOGPS)
PC, PR, RC, RR = TOKENS
MASKS = ("chosen_token_mask", "rejected_token_mask")
LOWEST = -(2.0**22)
NAN, INF = math.nan, math.inf
LISTS = pl.List(pl.Float64)


def pairs_of_tokens(masks=None):
    """Four pairs whose tokens are eighths, so that sums have no error."""
    lists = {
        PC: [[-1.0, -2.0, -0.5], [-8.0, -4.0, -1.0], [-0.25], [-3.0, -3.0, -3.0, -3.0]],
        PR: [[-3.0, -1.0], [-2.0, -2.5, -6.0, -0.125], [-5.0, -0.5], [-7.0]],
        RC: [[-1.5, -2.0, -0.25], [-6.0, -4.0, -2.0], [-0.5], [-2.0, -4.0, -3.0, -3.5]],
        RR: [[-2.0, -1.0], [-2.0, -3.5, -5.0, -0.5], [-4.0, -0.5], [-9.0]],
    }
    kinds = dict.fromkeys(TOKENS, LISTS) | dict.fromkeys(MASKS, pl.List(pl.Int64))
    series = [
        pl.Series(n, v, dtype=kinds[n], strict=False) for n, v in (lists | (masks or {})).items()
    ]
    return pl.DataFrame(series)


SUMS = {
    "policy_chosen_logps": [-3.5, -13.0, -0.25, -12.0],
    "policy_rejected_logps": [-4.0, -10.625, -5.5, -7.0],
    "ref_chosen_logps": [-3.75, -12.0, -0.5, -12.5],
    "ref_rejected_logps": [-3.0, -11.0, -4.5, -9.0],
}


LENGTHS = {"chosen_num_tokens": [3, 3, 1, 4], "rejected_num_tokens": [2, 4, 2, 1]}


def with_list(frame, column, row, values):
    lists = frame[column].to_list()
    lists[row] = values
    return frame.with_columns(pl.Series(column, lists, dtype=frame.schema[column]))


def found(report):
    """Rows and values by rule."""
    return {rule.name: [(o.row, o.value) for o in rule.offenders] for rule in report.broken}


def of_frame(frame):
    return {name: frame[name].to_list() for name in frame.columns}


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def broken_of_tokens(tokens, mask, max_logp):
    """The rules that one list breaks; `mask` is False without one."""
    if tokens is None:
        return ["not_null"]
    if mask is None or (mask is not False and len(mask) != len(tokens)):
        return ["fits_mask"]
    kept = tokens if mask is False else [t for t, m in zip(tokens, mask, strict=True) if m]
    if not kept:
        return ["not_empty"]
    values = [t for t in kept if t is not None]
    finite = [t for t in values if math.isfinite(t)]
    breaks = {
        "no_null_token": len(values) < len(kept),
        "no_nan_token": any(math.isnan(t) for t in values),
        "finite_tokens": any(math.isinf(t) for t in values),
        "tokens_at_most": any(t > max_logp for t in finite),
    }
    return [name for name, is_broken in breaks.items() if is_broken]


def broken_of_row(row, max_logp):
    """The rules that a row breaks, in any order, from lists alone."""
    names = []
    for column in TOKENS:
        mask = row.get(MASKS["rejected" in column], False)
        names += [f"{column}.{rule}" for rule in broken_of_tokens(row[column], mask, max_logp)]
    for ours, theirs in ((PC, RC), (PR, RR)):
        both = row[ours] is not None and row[theirs] is not None
        if both and len(row[ours]) != len(row[theirs]):
            names.append(f"{ours}.same_length")
    of_lists = tuple(names)
    for column, name in zip(TOKENS, LOGPS, strict=True):
        if any(fault.startswith(f"{column}.") for fault in of_lists):
            continue  # its sum has no fault of its own
        mask = row.get(MASKS["rejected" in column]) or [1] * len(row[column])
        total = math.fsum(t for t, m in zip(row[column], mask, strict=True) if m)
        names += [f"{name}.at_least"] * (total < LOWEST) + [f"{name}.at_most"] * (total > max_logp)
    return names


BROKEN = {
    5: [f"{PC}.no_null_token", f"{PC}.no_nan_token"],
    11: [f"{RR}.not_null"],
    30: [f"{PR}.not_empty", f"{PR}.same_length"],
}


def many_tokens(n_rows, longest=400):
    """Lists of 1 to 400 tokens of 53 bits, one row in forty with a null or NaN."""
    rng = random.Random(8)
    rows = {name: [] for name in TOKENS}
    for i in range(n_rows):
        for ours, theirs in ((PC, RC), (PR, RR)):
            tokens = [-rng.expovariate(0.7) for _ in range(rng.randint(1, longest))]
            rows[theirs].append([t * rng.uniform(0.9, 1.1) for t in tokens])
            if i % 40 == 7:
                tokens[0] = None if i % 80 == 7 else NAN
            rows[ours].append(tokens)
    return pl.DataFrame(rows, schema=dict.fromkeys(TOKENS, LISTS)).with_row_index("pair_id")
