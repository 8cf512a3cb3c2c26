"""Add scores to the rows of a Spark DataFrame.

Needs Java 17 and `pip install . pyspark "pandas<3"`. Spark hands over Arrow batches
and wants to know the schema of what comes back, which the stage tells from a table without rows.
"""

import os
import sys
from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import SparkSession, functions as sf
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

import dpo_pipeline

stage = dpo_pipeline.arrow_stage(beta=0.1)


def with_scores(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Score the batches of a partition."""
    for batch in batches:
        yield from stage(pa.Table.from_batches([batch])).to_batches()


def main() -> None:
    """Score the example pairs and print what Spark makes of the scores."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = (
        SparkSession.builder.master("local[1]")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    pairs = spark.read.parquet("examples/pairs.parquet")
    schema = from_arrow_schema(stage(to_arrow_schema(pairs.schema).empty_table()).schema)
    scored = pairs.mapInArrow(with_scores, schema)
    n_pairs, mean = scored.agg(sf.count("*"), sf.avg("loss")).first()
    print(f"{n_pairs} pairs, mean loss {mean:.6f}")
    print([(row["pair_id"], round(row["loss"], 4)) for row in scored.head(2)])
    spark.stop()


if __name__ == "__main__":
    main()
