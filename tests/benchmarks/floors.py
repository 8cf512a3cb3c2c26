"""What the same result costs in Polars with nothing around it: no check, no exact sum, no report.

The formulas are written out, so that a floor does not move when the package does.
"""

from __future__ import annotations

import json
import os

import polars as pl

BETA = 0.1
LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


def scored(source: str) -> pl.LazyFrame:
    """Return the pairs with the six columns that scoring adds."""
    return with_scores(pl.scan_parquet(source))


def with_scores(pairs: pl.LazyFrame) -> pl.LazyFrame:
    """Add the six columns that scoring adds."""
    margin = pl.col("reward_margin")
    return (
        pairs.with_columns(
            chosen_logratio=pl.col("policy_chosen_logps") - pl.col("ref_chosen_logps"),
            rejected_logratio=pl.col("policy_rejected_logps") - pl.col("ref_rejected_logps"),
        )
        .with_columns(
            chosen_reward=BETA * pl.col("chosen_logratio"),
            rejected_reward=BETA * pl.col("rejected_logratio"),
        )
        .with_columns(reward_margin=pl.col("chosen_reward") - pl.col("rejected_reward"))
        .with_columns(loss=(-margin).clip(lower_bound=0.0) + (-margin.abs()).exp().log1p())
    )


def six_means() -> list[pl.Expr]:
    """Return the means that every benchmark of means computes."""
    return [
        pl.col("loss").mean(),
        (pl.col("reward_margin") > 0.0).mean().alias("reward_accuracy"),
        pl.col("chosen_reward").mean(),
        pl.col("rejected_reward").mean(),
        pl.col("reward_margin").mean(),
        pl.col("policy_chosen_logps").mean(),
    ]


def scan(source: str) -> None:
    """Read and sum the four columns."""
    pl.scan_parquet(source).select(pl.col(LOGPS).sum()).collect(engine="streaming")


def sums_of_tokens(source: str) -> None:
    """Sum the four lists of every pair, and the sums."""
    names = [name.replace("_logps", "_token_logps") for name in LOGPS]
    lists = pl.scan_parquet(source).select(pl.col(names).list.sum())
    lists.select(pl.all().sum()).collect(engine="streaming")


def dump_of(source: str) -> str:
    """Return a dump of vLLM's answers with the policy's tokens, made in the first round."""
    path = f"{source}.dump.jsonl"
    if os.path.exists(path):
        return path
    sides = ("chosen", "rejected")
    names = [f"policy_{side}_token_logps" for side in sides]
    with open(path, "w", encoding="utf-8") as file:
        for i, lists in enumerate(pl.read_parquet(source, columns=names).iter_rows()):
            for side, logps in zip(sides, lists, strict=True):
                ids = [9, 9, *range(100, 100 + len(logps))]
                values = zip(ids[1:], (-1.0, *logps), strict=True)
                here = [
                    {str(token): {"logprob": x, "rank": 1, "decoded_token": "t"}}
                    for token, x in values
                ]
                given = {"prompt_token_ids": ids, "prompt_logprobs": [None, *here]}
                line = {"pair_id": i, "side": side, "prompt_tokens": 2, "choices": [given]}
                file.write(f"{json.dumps(line)}\n")
    return path


def made(source: str, name: str, rows: pl.LazyFrame, **options: int) -> str:
    """Return a file of these rows beside `source`, made in the first round.

    Its format is that of the name's ending.
    """
    path = f"{source}.{name}"
    sinks = {".csv": rows.sink_csv, ".jsonl": rows.sink_ndjson, ".parquet": rows.sink_parquet}
    if not os.path.exists(path):
        sinks[os.path.splitext(name)[1]](path, **options)
    return path


def lines_of(source: str, ending: str) -> str:
    """Return the log-probs and the key as text."""
    rows = pl.scan_parquet(source).select("pair_id", *LOGPS)
    return made(source, f"lines{ending}", rows)


def means_of_lines(source: str) -> None:
    """Six means of JSON lines."""
    rows = pl.scan_ndjson(lines_of(source, ".jsonl"))
    with_scores(rows).select(six_means()).collect(engine="streaming")


def means_of_csv(source: str) -> None:
    """Six means of CSV."""
    rows = pl.scan_csv(lines_of(source, ".csv"))
    with_scores(rows).select(six_means()).collect(engine="streaming")


def parse_dump(source: str) -> None:
    """Parse each line of a dump as JSON."""
    with open(dump_of(source), "rb") as file:
        for line in file:
            json.loads(line)


def completions_of(source: str) -> str:
    """Return completions, a prompt's together: both of each pair, made in the first round."""
    path = f"{source}.completions.parquet"
    if not os.path.exists(path):
        sides = [
            pl.scan_parquet(source).select(
                "prompt_id",
                policy_logps=f"policy_{side}_logps",
                ref_logps=f"ref_{side}_logps",
                score=pl.col("prompt_id").hash(i) % 5,
            )
            for i, side in enumerate(("chosen", "rejected"))
        ]
        pl.concat(sides).sort("prompt_id").sink_parquet(path)
    return path


def rank(source: str) -> None:
    """Figures of each prompt and their means, in one plan of two group-bys.

    It has no Kendall's tau, no best of n and no pairs but those of neighbours.
    """
    reward, score = pl.col("reward"), pl.col("score")
    rows = pl.scan_parquet(completions_of(source)).with_columns(
        reward=0.1 * (pl.col("policy_logps") - pl.col("ref_logps"))
    )
    top = (score.filter(reward == reward.max()) == score.max()).mean()
    prompts = rows.group_by("prompt_id").agg(
        top=top, variance=reward.var(), right=reward.sort_by("score").diff().gt(0).sum()
    )
    figures = pl.col("top", "variance", "right")
    prompts.select(figures.mean(), figures.std().name.suffix("_error")).collect(engine="streaming")


def means(source: str) -> dict[str, float]:
    """Six means of all pairs."""
    return scored(source).select(six_means()).collect(engine="streaming").row(0, named=True)


def policies(source: str) -> tuple[str, str]:
    """Return the files of two policies, of which the second differs by up to 0.2 nats a pair.

    One writer gave both the same row groups, as exports have them.
    """
    rows = pl.scan_parquet(source)
    moved = pl.col("policy_rejected_logps") - pl.col("pair_id") % 1000 / 5000
    both = {"a.parquet": rows, "b.parquet": rows.with_columns(moved)}
    a, b = (made(source, f"two-{n}", each, row_group_size=250_000) for n, each in both.items())
    return a, b


def paired_means(source: str) -> None:
    """Six means of two files, joined by a key."""
    sides = [scored(each) for each in policies(source)]
    pairs = sides[0].join(sides[1], on="pair_id", suffix="_b")
    of_b = [pl.col(f"{name}_b").mean() for name in ("loss", "reward_margin", *LOGPS)]
    pairs.select(*six_means(), *of_b).collect(engine="streaming")


def joined_means(source: str) -> None:
    """Six means of policy and reference from two tables, joined by a key."""
    ours = pl.scan_parquet(source).select("pair_id", *LOGPS[:2])
    theirs = pl.scan_parquet(source).select("pair_id", *LOGPS[2:])
    ours.join(theirs, on="pair_id").select(pl.col(LOGPS).mean()).collect(engine="streaming")


def means_by_subset(source: str) -> None:
    """Six means of each subset."""
    scored(source).group_by("subset").agg(six_means()).collect(engine="streaming")


def score(source: str) -> None:
    """Write the pairs with the added columns."""
    scored(source).sink_parquet("scored.parquet", engine="streaming")
