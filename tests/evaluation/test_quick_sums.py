"""The quick form of sums and the sample of pairs: the same figures, whatever form a shard takes."""

from __future__ import annotations

import math

import polars as pl
import pytest

from dpo_pipeline import Contract, check, evaluate, sweep
from dpo_pipeline.evaluation import measuring, shards
from dpo_pipeline.sums import Form, sense
from option_tools import grouped
from pair_tools import LOGPS

ROWS = 400
OF_SAMPLE = {"warnings", "verdict"}  # parts of a document that may rest on fewer pairs
pytestmark = pytest.mark.filterwarnings("ignore::dpo_pipeline.errors.DataWarning")
FORMS = [
    pytest.param({"by": "subset"}, id="by subset"),
    pytest.param({"batch_size": 7}, id="batches"),
    pytest.param({"by": "subset", "histogram": True}, id="histogram"),
    pytest.param({"loss": "ipo"}, id="a loss that grows faster"),
    pytest.param({"beta": 3.0}, id="a large beta"),
]


@pytest.fixture
def small(monkeypatch):
    """Shards of 100 rows, of which the first is looked at, and then 10 of each 100."""
    monkeypatch.setattr(measuring, "SHARD_ROWS", 100)
    for module in (measuring, shards):
        monkeypatch.setattr(module, "NEIGHBOURS_ROWS", 20)
    monkeypatch.setattr(sense, "SENSE_WHOLE", 50)
    monkeypatch.setattr(sense, "SENSE_STEP", 100)
    monkeypatch.setattr(sense, "SENSE_ROWS", 10)


@pytest.fixture
def forms(monkeypatch):
    """Which forms were tried, shard by shard."""
    tried = []
    summed = shards.PartialSums.summed

    def recorded(self, pairs, **options):
        tried.append(options.get("form", Form.SMALL).value)
        return summed(self, pairs, **options)

    monkeypatch.setattr(shards.PartialSums, "summed", recorded)
    return tried


@pytest.fixture
def pairs_of_shards(real_pairs):
    # Real log-probs, below 0 and small ones.
    columns = [pl.col(name).cast(pl.Float64).clip(-2_000.0) - 0.001 for name in LOGPS]
    subsets = pl.Series("subset", ["a", "b", None, "c"] * (ROWS // 4))
    return real_pairs.head(ROWS).select(columns).with_columns(subsets)


def with_value(pairs, row, value, name=LOGPS[0]):
    here = pl.int_range(pl.len()) == row
    return pairs.with_columns(pl.when(here).then(pl.lit(value)).otherwise(name).alias(name))


def whole(pairs, tmp_path, **options):
    pairs.write_parquet(tmp_path / "in.parquet", row_group_size=64)
    made = evaluate(tmp_path / "in.parquet", **grouped(on_invalid="exclude", **options))
    return {name: part for name, part in made.to_dict().items() if name not in OF_SAMPLE}


C, S, A = "clean", "small", "any"
CASES = [
    pytest.param(None, None, [A, C, C, C, C], id="clean"),
    pytest.param(250, math.nan, [A, C, C, C, S, C], id="NaN"),
    pytest.param(250, None, [A, C, C, C, S, C], id="null"),
    pytest.param(250, -math.inf, [A, C, C, C, S, C], id="infinite"),
    pytest.param(250, 0.0, [A, C, C, C, S, A, C], id="zero"),
    pytest.param(250, -2048.5, [A, C, C, C, S, A, C], id="not small"),
    pytest.param(203, None, [A, C, C, S, C], id="null in the sample"),
    pytest.param(203, -2048.5, [A, C, C, A, C], id="not small in the sample"),
]


def check_forms(request, pairs, tmp_path, options):
    """Return which forms were tried, after comparing the figures with those of one shard."""
    one_shard = whole(pairs, tmp_path, **options)
    request.getfixturevalue("small")
    tried = request.getfixturevalue("forms")
    assert whole(pairs, tmp_path, **options) == one_shard
    return tried


@pytest.mark.repeats(3)  # values in each place of a shard
@pytest.mark.parametrize(("row", "value", "expected"), CASES)
def test_any_form_gives_the_figures_of_one_shard(
    request, pairs_of_shards, tmp_path, row, value, expected
):
    pairs = pairs_of_shards if row is None else with_value(pairs_of_shards, row, value)
    assert check_forms(request, pairs, tmp_path, {}) == expected


def test_a_broken_rule_of_another_column_is_seen(request, pairs_of_shards, tmp_path):
    counted = pairs_of_shards.with_columns(chosen_num_tokens=500, rejected_num_tokens=500)
    pairs = with_value(counted, 250, 0, "chosen_num_tokens")
    assert check_forms(request, pairs, tmp_path, {}) == [A, C, C, C, S, C]


@pytest.mark.repeats(1)  # the forms are chosen by rows alone
@pytest.mark.parametrize("options", FORMS)
def test_so_it_is_by_key_and_for_other_scores(request, pairs_of_shards, tmp_path, options):
    pairs = with_value(pairs_of_shards, 250, None)
    assert "clean" in check_forms(request, pairs, tmp_path, options)


@pytest.mark.usefixtures("small")
def test_a_sweep_takes_the_quick_form_for_any_beta(forms, pairs_of_shards, tmp_path):
    pairs_of_shards.write_parquet(tmp_path / "in.parquet")
    swept = sweep(tmp_path / "in.parquet", [0.1, 60.0])
    assert forms.count("clean") == 4
    for row in swept.table.to_dicts():
        alone = evaluate(tmp_path / "in.parquet", row["beta"]).summary
        assert {name: row[name] for name in alone.to_dict()} == alone.to_dict()


# ---- the sample


@pytest.mark.usefixtures("small")
def test_the_sample_is_of_fixed_rows_of_the_whole_input():
    assert sense.sampled(0, 400) == [(0, 50), (100, 10), (200, 10), (300, 10)]
    assert sense.sampled(0, 30) == [(0, 30)]
    assert sense.sampled(40, 65) == [(40, 10), (100, 5)]
    assert sense.sampled(105, 95) == [(105, 5)]
    assert sense.sampled(110, 90) == []
    for cut in range(1, 400, 7):
        both = sense.sampled(0, cut) + sense.sampled(cut, 400 - cut)
        rows = [row for first, n in both for row in range(first, first + n)]
        assert rows == [
            row for first, n in sense.sampled(0, 400) for row in range(first, first + n)
        ]


def rows_of(runs):
    return [row for first, n in runs for row in range(first, first + n)]


def sense_sums(monkeypatch, source, **options):
    seen, made = [], sense.Sense.of_sums
    with monkeypatch.context() as patched:
        record = staticmethod(lambda row: seen.append(row) or made(row))
        patched.setattr(sense.Sense, "of_sums", record)
        evaluate(source, **options)
    return seen[-1]


@pytest.mark.usefixtures("small")
def test_the_sample_does_not_depend_on_files_or_shards(pairs_of_shards, tmp_path, monkeypatch):
    source = tmp_path / "in"
    source.mkdir()
    for start, end in ((0, 33), (33, 210), (210, 400)):
        pairs_of_shards[start:end].write_parquet(source / f"{start:03}.parquet")
    expected = sense_sums(monkeypatch, source)
    assert expected["n_seen"] == 80
    rows = [*range(50), *range(100, 110), *range(200, 210), *range(300, 310)]
    lowest = pairs_of_shards[rows][LOGPS[0]].min()
    assert expected[f"min_{LOGPS[0]}"] == lowest
    monkeypatch.setattr(measuring, "SHARD_ROWS", 37)
    assert sense_sums(monkeypatch, source) == expected
    frame = sense_sums(monkeypatch, pairs_of_shards)
    assert {n: v for n, v in frame.items() if not n.endswith("lagged")}.keys() == {
        n for n in expected if not n.endswith("lagged")
    }
    assert frame["n_seen"] == 80
    by_subset = sense_sums(monkeypatch, source, by="subset")
    assert by_subset["n_compared"] == 80
    assert expected["n_compared"] == 400


@pytest.mark.usefixtures("small")
def test_doubts_of_a_sample_say_so(pairs_of_shards, tmp_path):
    constant = pairs_of_shards.with_columns(pl.lit(-3.25).alias(LOGPS[1]))
    constant.write_parquet(tmp_path / "in.parquet")
    (doubt,) = check(tmp_path / "in.parquet").doubts
    assert doubt.name == "constant"
    assert doubt.evidence.endswith("; seen in 80 of 400 valid pairs")
    (doubt,) = check(tmp_path / "in.parquet", contract=Contract(sense="all")).doubts
    assert "seen in" not in doubt.evidence


@pytest.mark.usefixtures("small")
def test_equal_log_probs_are_counted_in_all_rows(pairs_of_shards, tmp_path):
    here = pl.int_range(pl.len()).is_between(60, 95)
    copied = pairs_of_shards.with_columns(
        pl.when(here).then(LOGPS[2]).otherwise(LOGPS[0]).alias(LOGPS[0])
    )
    copied.write_parquet(tmp_path / "in.parquet")
    assert [each.name for each in check(tmp_path / "in.parquet").doubts] == ["copied"]


@pytest.mark.usefixtures("small")
def test_repeated_ids_are_looked_for_in_the_sample_or_in_all_rows(pairs_of_shards, tmp_path):
    ids = pl.int_range(pl.len(), dtype=pl.Int64).alias("pair_id")
    pairs = pairs_of_shards.with_columns(ids)
    for row, sees in ((305, True), (350, False)):
        here = pl.int_range(pl.len()) == row
        copied = pairs.with_columns(pl.when(here).then(7).otherwise("pair_id").alias("pair_id"))
        copied.write_parquet(tmp_path / "in.parquet")
        found = check(tmp_path / "in.parquet").doubts
        assert [each.name for each in found] == ["repeated_ids"] * sees
        if sees:
            assert "1 of 80 pairs has" in found[0].evidence
            assert "not all pairs were looked at" in found[0].evidence
        (doubt,) = check(tmp_path / "in.parquet", contract=Contract(sense="all")).doubts
        assert "1 of 400 pairs has" in doubt.evidence


@pytest.mark.parametrize("size", [4_095, 4_096, 10_000])
def test_batches_of_many_rows_are_summed_with_all_digits(tmp_path, monkeypatch, forms, size):
    # From 4,096 rows of a batch on, plain integers could not hold the sum.
    monkeypatch.setattr(sense, "SENSE_WHOLE", 5)
    values = zip(LOGPS, (-100.0, -900.0, -2047.75, -400.0), strict=True)
    pairs = pl.DataFrame({name: pl.repeat(value, 20_000, eager=True) for name, value in values})
    pairs.write_parquet(tmp_path / "in.parquet")
    means = evaluate(tmp_path / "in.parquet", batches=size).batches["reward_margin"]
    assert forms == ["clean"]
    assert means.unique().to_list() == pytest.approx([244.775])  # 0.1 (1947.75 + 500)
