"""What a user would write instead: the same six means, or the same output columns.

None of it checks the data, but for `duckdb_means_checked`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BETA = 0.1
LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")

SQL_LOGRATIOS = """
    select *,
        policy_chosen_logps - ref_chosen_logps as chosen_logratio,
        policy_rejected_logps - ref_rejected_logps as rejected_logratio
    from pairs
"""
SQL_SCORED = f"""
    select *,
        {BETA} :: double * chosen_logratio as chosen_reward,
        {BETA} :: double * rejected_logratio as rejected_reward,
        {BETA} :: double * chosen_logratio - {BETA} :: double * rejected_logratio as reward_margin,
        greatest(-reward_margin, 0) + ln(1 + exp(-abs(reward_margin))) as loss
    from ({SQL_LOGRATIOS})
"""
SQL_MEANS = """
    avg(loss) as loss,
    avg((reward_margin > 0) :: double) as reward_accuracy,
    avg(chosen_reward) as chosen_reward,
    avg(rejected_reward) as rejected_reward,
    avg(reward_margin) as reward_margin,
    avg(policy_chosen_logps) as policy_chosen_logps
"""
SQL_IS_VALID = " and ".join(f"coalesce(isfinite({name}) and {name} <= 0, false)" for name in LOGPS)


def _duckdb(source: str) -> Any:
    import duckdb

    connection = duckdb.connect()
    connection.read_parquet(source).create_view("pairs")
    return connection


def _row(relation: Any) -> dict[str, float]:
    return dict(zip(relation.columns, relation.fetchall()[0], strict=True))


def duckdb_means(source: str) -> dict[str, float]:
    """Six means in SQL."""
    return _row(_duckdb(source).sql(f"select {SQL_MEANS} from ({SQL_SCORED})"))


def duckdb_means_checked(source: str) -> dict[str, float]:
    """Six means of the valid pairs in SQL, and how many pairs are invalid."""
    connection = _duckdb(source)
    marked = f"select *, {SQL_IS_VALID} as is_valid from ({SQL_SCORED})"
    # A filter on each aggregate, as the invalid pairs have to be read to be counted.
    filtered = SQL_MEANS.replace(") as", ") filter (where is_valid) as")
    sql = f"select {filtered}, count(*) filter (where not is_valid) as n_invalid from ({marked})"
    means = _row(connection.sql(sql))
    del means["n_invalid"]
    return means


def duckdb_score(source: str) -> None:
    """Write the pairs with the added columns."""
    _duckdb(source).execute(
        f"copy ({SQL_SCORED}) to 'scored.parquet' (format parquet, compression zstd)"
    )


def _numpy_means(columns: Any) -> dict[str, float]:
    import numpy as np

    chosen = BETA * (columns["policy_chosen_logps"] - columns["ref_chosen_logps"])
    rejected = BETA * (columns["policy_rejected_logps"] - columns["ref_rejected_logps"])
    margin = chosen - rejected
    loss = np.maximum(-margin, 0.0) + np.log1p(np.exp(-np.abs(margin)))
    return {
        "loss": float(loss.mean()),
        "reward_accuracy": float((margin > 0.0).mean()),
        "chosen_reward": float(chosen.mean()),
        "rejected_reward": float(rejected.mean()),
        "reward_margin": float(margin.mean()),
        "policy_chosen_logps": float(columns["policy_chosen_logps"].mean()),
    }


def pyarrow_means(source: str) -> dict[str, float]:
    """Six means of the whole file in memory as numpy arrays."""
    import pyarrow.parquet as pq

    table = pq.read_table(source, columns=list(LOGPS))
    return _numpy_means({name: table[name].to_numpy() for name in LOGPS})


def pandas_means(source: str) -> dict[str, float]:
    """Six means of the whole file in memory as a pandas frame."""
    import pandas as pd

    return _numpy_means(pd.read_parquet(source, columns=list(LOGPS)))


def torch_loop_of_8(source: str) -> dict[str, float]:
    """Batches of 8, the default of Hugging Face's TrainingArguments."""
    return _torch_loop(source, 8)


def torch_loop_of_64(source: str) -> dict[str, float]:
    """Batches of 64."""
    return _torch_loop(source, 64)


def _torch_loop(source: str, batch_rows: int) -> dict[str, float]:
    """Six means as the evaluation loop of a trainer gets them: from a list of each batch's."""
    import pyarrow.parquet as pq
    import torch

    # On a busy machine more threads would only wait for each other, at many times the CPU.
    torch.set_num_threads(1)
    table = pq.read_table(source, columns=list(LOGPS))
    columns = [torch.tensor(table[name].to_numpy()) for name in LOGPS]
    metrics: dict[str, list[float]] = {}
    for batch in zip(*(column.split(batch_rows) for column in columns), strict=True):
        for name, value in _torch_means(*batch).items():
            metrics.setdefault(name, []).append(value.item())
    sizes = torch.tensor([len(batch) for batch in columns[0].split(batch_rows)])
    return {
        name: float((torch.tensor(values, dtype=torch.float64) * sizes).sum() / sizes.sum())
        for name, values in metrics.items()
    }


def _torch_means(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
) -> dict[str, torch.Tensor]:
    from torch.nn.functional import logsigmoid

    chosen = BETA * (policy_chosen - ref_chosen)
    rejected = BETA * (policy_rejected - ref_rejected)
    return {
        "loss": -logsigmoid(chosen - rejected).mean(),
        "reward_accuracy": (chosen > rejected).double().mean(),
        "chosen_reward": chosen.mean(),
        "rejected_reward": rejected.mean(),
        "reward_margin": (chosen - rejected).mean(),
        "policy_chosen_logps": policy_chosen.mean(),
    }
