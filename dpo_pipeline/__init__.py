"""Offline evaluation of preference data: DPO losses, implicit rewards and reward accuracy.

    dpo_loss        lists of log-probabilities in, the loss and the rewards out
    score           LazyFrame to LazyFrame: adds rewards, margin and loss
    evaluate        the figures of a dataset: overall, by batch, by subset
    token_kl        estimates of the divergence from the reference, from tokens
    sweep           the same for several betas and losses
    rank            how rewards rank the completions of a prompt
    compare         two policies on the same pairs: is the second better, and where
    check           which rows break the contract
    read            pairs in other formats than Parquet
    convert         the same, written as Parquet
    arrow_stage     the same as `score` for an Arrow table, for engines of your own
    join_reference  policy and reference log-probs from separate tables
    score_parquet   Parquet in, Parquet out, with the figures as its result
    dry_run         what a call of these would read, compute and write

Names are imported when they are first used, so that importing the package costs nothing.
"""

from typing import Any

from dpo_pipeline.faces import face

_find, __dir__ = face(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    return _find(name)
