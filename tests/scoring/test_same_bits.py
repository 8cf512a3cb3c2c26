"""The same bits every time: in any run, with any threads, however the rows lie in files."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys

import polars as pl
import pyarrow.parquet as pq
import pytest

from dpo_pipeline import Outputs, score_parquet
from dpo_pipeline.defaults import OUTPUT_ROWS_PER_GROUP
from pair_tools import LOGPS

# Rows, rows of a row group of an output (more than one), and files. The slow tests repeat it as it
# is.
FEW, MANY = (1_500, 1_000, 3), (80_000, OUTPUT_ROWS_PER_GROUP, 12)
# Threads of Polars and rows of a shard, 0 for those of the library.
FEW_RUNS, MANY_RUNS = ((1, 0), (4, 801)), ((1, 0), (2, 30_011), (8, 17_011))
# Of few rows each run has its own layouts; the slow tests have all of them in each.
HALVES = (("fine_large", "coarse_image"), ("fine_small",))

RUN = """
import hashlib, json, pathlib, sys
import polars as pl
from dpo_pipeline import Batches, OnInvalid, evaluate, score_parquet
from dpo_pipeline.evaluation import measuring
from dpo_pipeline.scoring import pair_writer
from dpo_pipeline.sums import batches

def table(path):
    # Rows and types, whatever the files; `source_row` starts anew in each.
    frame = pl.read_parquet(path).drop("source_row", strict=False)
    bits = hashlib.sha256(repr(frame.schema).encode())
    for column in frame:
        if column.dtype.is_nested():
            column = column.list.join(",")
        if column.dtype.is_float():  # the bits of the number, so that NaN and the sign count
            bits.update(column.is_null().to_numpy().tobytes())
            bits.update(column.fill_null(0.0).to_numpy().tobytes())
        else:
            text = column.cast(pl.String).fill_null("\\0").str.join("\\n").item()
            bits.update(text.encode())
    return bits.hexdigest()

def digest(data):
    return hashlib.sha256(data).hexdigest()

sources, out, shard, pair_writer.OUTPUT_ROWS_PER_GROUP = json.loads(sys.argv[1])
if shard:
    measuring.SHARD_ROWS = batches.SHARD_ROWS = shard
found = {}
for name, source in sources.items():
    target = pathlib.Path(out, name)
    by = ["subset", "flag"]
    held = evaluate(source, on_invalid="exclude", by=by, batches=777)
    by_value = evaluate(source, on_invalid="exclude", batches=Batches(by="subset"))
    ending = "" if pathlib.Path(source).is_dir() else ".parquet"
    scored, apart, means = (f"{target}-{n}{ending}" for n in ("scored", "apart", "means"))
    means = f"{target}-means.parquet"
    filed = score_parquet(
        source,
        scored,
        by=by,
        batches=Batches(777, file=means),
        on_invalid=OnInvalid("quarantine", file=apart),
    )
    excluded = f"{target}-excluded{ending}"
    score_parquet(source, excluded, on_invalid="exclude")
    found[name] = {
        # repr of a float tells every bit, also the sign of zero.
        "summary": [repr(r.summary.to_dict()) for r in (held, by_value, filed)],
        "subsets": [digest(repr(r.subsets.rows()).encode()) for r in (held, filed)],
        "batches": [digest(repr(r.batches.rows()).encode()) for r in (held, by_value)],
        "invalid": repr(
            [(r.name, r.count, [o.value for o in r.offenders]) for r in held.invalid.broken]
        ),
        "means": digest(pathlib.Path(means).read_bytes()),
        "tables": [table(p) for p in (scored, apart, excluded)],
        "bytes": None if not ending else [
            digest(pathlib.Path(p).read_bytes()) for p in (scored, apart, excluded)
        ],
    }
print(json.dumps({"threads": pl.thread_pool_size(), "found": found}))
"""


def made_up(n_rows):
    """Rows with faults, text, lists and nulls; log-probs with all 53 bits of a Float64."""
    row = pl.int_range(n_rows, dtype=pl.UInt64)
    frame = pl.select(
        pair_id=row,
        subset=pl.lit("s") + (row.hash(seed=1) % 7).cast(pl.String),
        flag=(row.hash(seed=2) % 3).replace({2: None}),
        text=pl.lit("text ") + (row.hash(seed=3) % 99_991).cast(pl.String),
        tags=pl.concat_list(pl.lit("t"), (row % 11).cast(pl.String)),
        **{
            name: -400.0 * (row.hash(seed=10 + i).cast(pl.Float64) / 2.0**64) - 1e-3
            for i, name in enumerate(LOGPS)
        },
    )
    faults = pl.when(row % 997 == 3).then(None).when(row % 1009 == 5).then(float("nan"))
    return frame.with_columns(
        policy_chosen_logps=faults.otherwise(LOGPS[0]),
        ref_rejected_logps=pl.when(row % 20_011 == 7).then(0.5).otherwise(LOGPS[3]),
    )


@pytest.fixture(
    scope="module", params=["few", pytest.param("as many as in use", marks=pytest.mark.slow)]
)
def scale(request):
    """Rows of the input, rows of a row group of the output, and the runs."""
    return (*FEW, FEW_RUNS) if request.param == "few" else (*MANY, MANY_RUNS)


@pytest.fixture(scope="module")
def sources(tmp_path_factory, scale):
    folder = tmp_path_factory.mktemp("sources")
    n_rows, _, n_files, _ = scale
    fine = made_up(n_rows)
    coarse = fine.with_columns(pl.col(LOGPS).cast(pl.Float32))
    image = coarse.with_columns(pl.col(LOGPS).cast(pl.Float64))
    groups = 80 if n_rows > 10_000 else 20
    fine.write_parquet(folder / "fine_small.parquet", row_group_size=n_rows // groups)
    fine.write_parquet(folder / "fine_large.parquet", row_group_size=1_000_000)
    coarse.write_parquet(folder / "coarse_float32.parquet", row_group_size=n_rows // 8 + 7)
    image.write_parquet(folder / "coarse_image.parquet")
    (folder / "fine_files").mkdir()
    # Files of different lengths, whose ends fall on no batch's and no shard's.
    ends = [n_rows * i * (i + 1) // (n_files * (n_files + 1)) for i in range(n_files + 1)]
    for i, (start, stop) in enumerate(itertools.pairwise(ends)):
        part = fine[start:stop]
        part.write_parquet(
            folder / "fine_files" / f"{i:02}.parquet", row_group_size=n_rows // groups + 37 * i
        )
    return {p.stem: str(p) for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def found(sources, scale, tmp_path_factory):
    """What several processes found, under `threads, shard, layout`."""
    results = {}
    _, rows_per_group, _, runs = scale
    for i, (threads, shard) in enumerate(runs):
        out = tmp_path_factory.mktemp("out")
        own = {k: v for k, v in sources.items() if runs is MANY_RUNS or k in HALVES[i]}
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps([own, str(out), shard, rows_per_group])],
            env={**os.environ, "POLARS_MAX_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stderr
        said = json.loads(done.stdout)
        assert said["threads"] == threads
        results |= {f"{threads}, {shard}, {name}": f for name, f in said["found"].items()}
    return results


# Few rows have the coarse ones in one layout: Float32 is widened by the scan of any layout.
@pytest.mark.parametrize("rows", ["fine", pytest.param("coarse", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "what", ["summary", "subsets", "batches", "invalid", "means", "tables", "bytes"]
)
def test_the_same_rows_give_the_same_bits(found, scale, rows, what):
    each = {name: f[what] for name, f in found.items() if f", {rows}_" in name and f[what]}
    if rows == "coarse" and scale[3] is FEW_RUNS:
        pytest.skip("it has one layout")
    layouts = 3 if rows == "fine" and what != "bytes" and scale[3] is MANY_RUNS else 2
    assert len(each) == layouts * (len(scale[3]) if scale[3] is MANY_RUNS else 1)
    reference, *others = each
    assert {name: each[name] == each[reference] for name in others} == dict.fromkeys(others, True)


def test_every_call_gives_the_same_summary(found):
    assert all(len(set(f["summary"])) == 1 for f in found.values())


def test_row_groups_of_an_output_do_not_follow_those_of_the_input(tmp_path):
    rows = 70_000
    logps = {name: -1.0 - (pl.int_range(rows) % (90 + i)) for i, name in enumerate(LOGPS)}
    written = []
    for size in (1_000, 1_000_000):
        pl.select(**logps).write_parquet(tmp_path / "in.parquet", row_group_size=size)
        score_parquet(
            tmp_path / "in.parquet", tmp_path / "out.parquet", outputs=Outputs(overwrite=True)
        )
        footer = pq.read_metadata(tmp_path / "out.parquet")
        groups = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        assert groups == [65_536, rows - 65_536]
        written.append((tmp_path / "out.parquet").read_bytes())
    assert written[0] == written[1]


def test_other_rows_give_other_bits(found):
    # The comparisons above are of something: rounding to Float32 shows in every one of them.
    fine, coarse = (found[f"1, 0, {name}"] for name in ("fine_large", "coarse_image"))
    assert not [what for what in fine if what != "invalid" and fine[what] == coarse[what]]
    assert fine["invalid"].count("not_nan") == 1


def test_what_a_mean_is_stands_in_the_summary(found, sources):
    # By another route: Python's exact sums, over the valid rows.
    rows = pl.read_parquet(sources["coarse_image"])
    good = pl.all_horizontal(pl.col(LOGPS).is_between(-1e6, 0).fill_null(value=False))
    valid = rows.filter(good)
    mean = math.fsum(valid["policy_chosen_logps"]) / valid.height
    assert f"'n_valid': {valid.height}," in found["1, 0, coarse_image"]["summary"][0]
    # Float32 values of this size are whole quanta, so the sum has no error at all.
    assert f"'policy_chosen_logps': {mean!r}," in found["1, 0, coarse_image"]["summary"][0]
