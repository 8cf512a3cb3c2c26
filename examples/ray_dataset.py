"""Add scores to the rows of a Ray Dataset, where other steps of a pipeline come before or after.

Needs `pip install . "ray[data]"`. Ray hands over blocks as Arrow tables; columns that
need no cast are not copied. The order of rows is Ray's affair: it is kept here on request.
"""

import logging

import ray

import dpo_pipeline


def main() -> None:
    """Score the example pairs and print what Ray makes of the scores."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    scored = (
        ray.data.read_parquet("examples/pairs.parquet")
        .map_batches(
            dpo_pipeline.arrow_stage(beta=0.1),
            batch_format="pyarrow",
            batch_size=None,
            zero_copy_batch=True,
        )
        .select_columns(["pair_id", "reward_margin", "loss"])
        .materialize()
    )
    print(f"{scored.count()} pairs, mean loss {scored.mean('loss'):.6f}")
    print([(row["pair_id"], round(row["loss"], 4)) for row in scored.take(2)])


if __name__ == "__main__":
    main()
