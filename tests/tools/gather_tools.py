"""Made-up pairs with prompts and a judge, and their scores and hashes in plain Python."""

from __future__ import annotations

import json
import math
import random
from dataclasses import fields

import numpy as np
import polars as pl
from polars.testing import assert_frame_equal

from dpo_pipeline import StatisticsOptions, evaluate
from page_tools import of_margins
from pair_tools import LOGPS

WORD = 2**64
BETA = 0.1
N = 600
SUMMED = ("loss", *LOGPS)


def splitmix(state):
    """SplitMix64's next output (Steele, Lea, Flood), with whole numbers."""
    z = (state + 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def hash_of(key):
    if isinstance(key, int):
        return splitmix(key % WORD)
    data = key.encode()
    state = splitmix(len(data))
    for start in range(0, len(data), 8):
        word = int.from_bytes(data[start : start + 8].ljust(8, b"\0"), "little")
        state = splitmix(state ^ word)
    return state


def quanta(value):
    return round(float(value) * 2.0**40)  # a power of two: only this rounding, half to even


def made_up(n=N, seed=5):
    """Pairs with prompts, subsets, lengths, a judge, copies and faults, as rows."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        lengths = [rng.randint(1, 60), rng.randint(1, 60)]
        logps = [-rng.uniform(1, 300) for _ in LOGPS]
        if i % 4 == 0:
            logps = [float(np.float32(x)) for x in logps]
        row = {
            "pair_id": f"p{i}",
            "prompt_id": None if rng.random() < 0.1 else f"prompt {rng.randint(0, 90)}",
            "subset": rng.choice(["a", "b", None]),
            "chosen_num_tokens": None if rng.random() < 0.1 else lengths[0],
            "rejected_num_tokens": lengths[1],
            "judge": rng.choice([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0, None, math.nan]),
            **dict(zip(LOGPS, logps, strict=True)),
        }
        if i % 37 == 5:
            row |= {name: rows[-3][name] for name in LOGPS}
        if i % 41 == 7:
            row["policy_chosen_logps"] = None if i % 2 else 0.5
        if i % 53 == 11:  # a tie
            row |= dict.fromkeys(LOGPS, -12.5)
        rows.append(row)
    return rows


SCHEMA = {
    "pair_id": pl.String,
    "prompt_id": pl.String,
    "subset": pl.String,
    "chosen_num_tokens": pl.Int32,
    "rejected_num_tokens": pl.Int64,
    "judge": pl.Float64,
    **dict.fromkeys(LOGPS, pl.Float64),
}


def frame_of(rows):
    return pl.DataFrame(rows, schema=SCHEMA)


def scored(rows):
    """The valid rows with their scores, row numbers and clusters, by plain Python."""
    for number, row in enumerate(rows):
        pc, pr, rc, rr = (row[name] for name in LOGPS)
        if pc is None or pc > 0:
            continue
        ratios = pc - rc, pr - rr
        rewards = [BETA * ratio for ratio in ratios]
        margin = rewards[0] - rewards[1]
        by_row = splitmix(number)
        prompt = row["prompt_id"]
        sizes = row["chosen_num_tokens"], row["rejected_num_tokens"]
        yield {
            **row,
            "row": number,
            "ratios": ratios,
            "rewards": rewards,
            "margin": margin,
            "loss": max(-margin, 0.0) + math.log1p(math.exp(-abs(margin))),
            "cluster": splitmix(by_row) if prompt is None else hash_of(prompt),
            "longer": None if None in sizes else sizes[0] - sizes[1],
        }


def gathered_of(frame, **options):
    result = evaluate(
        frame,
        beta=BETA,
        by="subset",
        statistics=StatisticsOptions(judge="judge", **options),
        on_invalid="exclude",
    )
    return result.statistics.gathered


def bin_number(value, per_doubling=256):
    """The bin of a value: its place on a line that bends at each power of two."""
    fraction, exponent = math.frexp(abs(value) + 2**-7)
    place = exponent + 6 + (2 * fraction - 1)
    return math.copysign(1, value) * math.floor(place * per_doubling + 0.5)


def coarse(value):
    return bin_number(value, 16)


def middle_of_coarse(number):
    doublings, rest = divmod(abs(number), 16)
    return math.copysign(2.0 ** (doublings - 7) * (1 + rest / 16) - 2**-7, number)


def tables_of(statistics):
    gathered = statistics.gathered
    return {
        "document": json.dumps(statistics.to_dict(), default=str),
        **{f.name: getattr(gathered, f.name) for f in fields(gathered)},
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, pl.DataFrame):
            assert_frame_equal(value, second[name], check_exact=True)
        else:
            assert value == second[name], name


def statistics_of(source):
    return evaluate(
        source,
        beta=BETA,
        by="subset",
        statistics=StatisticsOptions(judge="judge", weights={"a": 1, "b": 3, None: 0.5}),
        on_invalid="exclude",
    ).statistics


def mean_over_subsets():
    """Return the mean over ten subsets, whose prompts they share."""
    margins = [(7 * i % 11 - 5) / 3.0 for i in range(80)]
    kinds, prompts = [i // 8 for i in range(80)], list(range(40)) * 2
    pairs = of_margins(margins, kind=kinds, prompt_id=prompts)
    return evaluate(pairs, by="kind", statistics=True).statistics.macro
