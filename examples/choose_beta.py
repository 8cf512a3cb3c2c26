"""Compare values of beta on stored log-probabilities, in one pass: no model is needed.

The log-ratios do not depend on beta, so every further beta is one more expression.
"""

import polars as pl

import dpo_pipeline
from dpo_pipeline.losses import sigmoid_loss

BETAS = (0.02, 0.05, 0.1, 0.2, 0.5)

difference = pl.col("chosen_logratio") - pl.col("rejected_logratio")
means = (
    pl.scan_parquet("examples/pairs.parquet")
    .pipe(dpo_pipeline.score)
    .select(sigmoid_loss(beta * difference).mean().alias(f"{beta:g}") for beta in BETAS)
    .collect()
)
for beta, loss in means.row(0, named=True).items():
    print(f"beta {beta:>4}: mean loss {loss:.4f}")
