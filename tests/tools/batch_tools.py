"""Losses of batches in plain Python, and pairs to try them on."""

from __future__ import annotations

import math
import random

import polars as pl
import pytest

from dpo_pipeline import score, score_parquet
from option_tools import grouped
from pair_tools import LOGPS

BATCH_LOSSES = ("aot", "aot_unpaired", "kto_pair")
N_ROWS = 151
SHARD = "dpo_pipeline.evaluation.shards.COUPLED_SHARD_ROWS"


def sp(x):
    """-log sigma(x)."""
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigma(x):
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def mean(values):
    return math.fsum(values) / len(values)


def smoothed(z, e):
    return (1.0 - e) * sp(z) + e * sp(-z)


def of_equal_rank(own, others):
    """For each own value the other one of its rank; equal ones are ranked as they come."""
    ranked = sorted(range(len(own)), key=own.__getitem__)
    matched = dict(zip(ranked, sorted(others), strict=True))
    return [matched[i] for i in range(len(own))]


def plain_aot(batch, beta, e):
    own = [c - r for c, r, _, _ in batch]
    matched = of_equal_rank(own, [ref_c - ref_r for _, _, ref_c, ref_r in batch])
    return [smoothed(beta * (u - v), e) for u, v in zip(own, matched, strict=True)]


def plain_aot_unpaired(batch, beta, e):
    chosen = [c - ref_c for c, _, ref_c, _ in batch]
    matched = of_equal_rank(chosen, [r - ref_r for _, r, _, ref_r in batch])
    return [smoothed(beta * (h - v), e) for h, v in zip(chosen, matched, strict=True)]


def plain_kto_pair(batch, beta, _e):
    chosen = [c - ref_c for c, _, ref_c, _ in batch]
    rejected = [r - ref_r for _, r, _, ref_r in batch]
    chosen_kl, rejected_kl = max(0.0, mean(chosen)), max(0.0, mean(rejected))
    return [
        ((1.0 - sigma(beta * (h_c - rejected_kl))) + (1.0 - sigma(beta * (chosen_kl - h_r)))) / 2.0
        for h_c, h_r in zip(chosen, rejected, strict=True)
    ]


PLAIN = {
    "aot": plain_aot,
    "aot_unpaired": plain_aot_unpaired,
    "kto_pair": plain_kto_pair,
}


def is_sound(row):
    return all(value is not None and value <= 0.0 for value in row)  # NaN is not


def plain(frame, loss, size, *, beta=0.1, e=0.0):
    """The loss of each row, None for an invalid one, which is as if it were not in its batch."""
    rows, losses = frame.select(LOGPS).rows(), []
    for first in range(0, len(rows), size):
        batch = rows[first : first + size]
        sound = [row for row in batch if is_sound(row)]
        found = iter(PLAIN[loss](sound, beta, e) if sound else ())
        losses += [next(found) if is_sound(row) else None for row in batch]
    return losses


def close(expected, tolerance=1e-11):
    """What equals a value, or each of a list, None alone being close to None."""
    # Means over a batch are made from whole quanta of 2**-40.
    if isinstance(expected, list):
        return [close(value, tolerance) for value in expected]
    return None if expected is None else pytest.approx(expected, rel=tolerance, abs=tolerance)


def made(n_rows=N_ROWS, *, step=None, seed=0):
    """Pairs whose log-probs have all bits of a Float64, or are few multiples of a step."""
    draw = random.Random(seed)
    values = {
        name: [
            -draw.uniform(0.0, 60.0) if step is None else -step * draw.randint(1, 12)
            for _ in range(n_rows)
        ]
        for name in LOGPS
    }
    return pl.DataFrame(
        {
            "pair_id": range(n_rows),
            **values,
            "subset": [draw.choice(["x", "y", None]) for _ in range(n_rows)],
            "tags": [[str(i), "t"][: i % 3] for i in range(n_rows)],
        }
    )


def with_faults(frame):
    """The same pairs with null, NaN and positive log-probs; rows 70 to 76 are all invalid."""
    rows = pl.int_range(pl.len())
    return frame.with_columns(
        policy_chosen_logps=pl.when(rows % 10 == 3).then(None).otherwise("policy_chosen_logps"),
        policy_rejected_logps=pl.when(rows % 23 == 5)
        .then(math.nan)
        .otherwise("policy_rejected_logps"),
        ref_chosen_logps=pl.when(rows % 31 == 30).then(0.5).otherwise("ref_chosen_logps"),
        ref_rejected_logps=pl.when(rows.is_between(70, 76))
        .then(math.inf)
        .otherwise("ref_rejected_logps"),
    )


def losses_of(frame, loss, size, engine="in-memory", **arguments):
    plan = score(frame, **grouped(loss=loss, batch_size=size, **arguments))
    return plan.collect(engine=engine)["loss"].to_list()


def written(source, folder, **options):
    """Scored rows, and the invalid ones if they were kept."""
    ending = "" if source.is_dir() else ".parquet"
    scored, apart = folder / f"scored{ending}", folder / f"apart{ending}"
    if options.get("on_invalid") == "quarantine":
        options["invalid"] = apart
    result = score_parquet(source, scored, **grouped(overwrite=True, **options))
    return result, *(pl.read_parquet(p) if p.exists() else None for p in (scored, apart))
