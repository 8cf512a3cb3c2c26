"""`arrow_stage`: what `score` gives, on Arrow tables, without copies of what it need not touch."""

from __future__ import annotations

import pickle

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from dpo_pipeline import InvalidPairsError, Objective, Scored, UsageError, arrow_stage
from dpo_pipeline.errors import ColumnError
from pair_tools import LOGPS, reference_row

ADDED = ["chosen_logratio", "rejected_logratio", "chosen_reward", "rejected_reward"]
ADDED += ["reward_margin", "loss"]


@pytest.fixture
def table(pairs):
    """Columns as an engine gives them: strings that are not Polars', a type that Polars lacks."""
    columns = {name: pairs[name].to_arrow() for name in LOGPS}
    columns["pair_id"] = pa.array(pairs["pair_id"].to_list(), pa.string())
    columns["image"] = pa.ExtensionArray.from_storage(
        Blob(), pa.array([b"1", None, b"3", b"4", b"5", b"6"], pa.binary())
    )
    return pa.table(columns).replace_schema_metadata({b"owner": b"us"})


class Blob(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.binary(), "test.blob")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, _storage, _serialized):
        return cls()


def addresses(table, name):
    return [[b and b.address for b in c.buffers()] for c in table.column(name).chunks]


def test_scores_are_those_of_the_specification(table):
    scored = arrow_stage(beta=0.1)(table)
    assert scored.column_names == [*table.column_names, *ADDED]
    assert scored.schema.metadata == {b"owner": b"us"}
    rows = zip(*(table.column(name).to_pylist() for name in LOGPS), strict=True)
    expected = [reference_row(*row, 0.1) for row in rows]
    found = [scored.column(n).to_pylist() for n in ("chosen_reward", "rejected_reward", "loss")]
    assert [tuple(row) for row in zip(*found, strict=True)] == [
        pytest.approx(row, rel=1e-15, abs=0) for row in expected
    ]


def test_what_is_not_touched_is_not_copied(table):
    scored = arrow_stage()(table)
    for name in table.column_names:
        assert scored.schema.field(name) == table.schema.field(name)
        assert addresses(scored, name) == addresses(table, name)
        assert addresses(table, name) != [[None]]


def test_a_column_that_needs_a_cast_or_a_name_gets_it(table):
    half = table.set_column(
        0, "policy_chosen_logprobs", table.column(LOGPS[0]).cast(pa.float32())
    ).rename_columns({LOGPS[2]: "reference_chosen_logps"})
    scored = arrow_stage()(half)
    assert scored.column_names == [*table.column_names, *ADDED]
    assert scored.schema.field(LOGPS[0]).type == pa.float64()
    # One that has its type and another name is still not copied.
    assert addresses(scored, LOGPS[2]) == addresses(half, "reference_chosen_logps")
    assert scored.select(ADDED).equals(arrow_stage()(table).select(ADDED))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_any_cut_gives_the_same_bits(real_pairs, size):
    table = real_pairs.to_arrow()
    stage = arrow_stage(loss=Objective("ipo", arguments={"per_token": False}))
    whole = stage(table)
    cuts = range(0, table.num_rows, table.num_rows // size)
    pieces = [stage(table.slice(start, table.num_rows // size)) for start in cuts]
    assert pa.concat_tables(pieces).equals(whole)


def test_it_pickles_and_takes_no_rows(table):
    stage = pickle.loads(pickle.dumps(arrow_stage(columns={"pair_id": "pair_id"}, beta=0.3)))  # noqa: S301
    assert stage(table).equals(arrow_stage(beta=0.3)(table))
    empty = stage(table.slice(0, 0))
    assert empty.schema.equals(stage(table).schema)


@pytest.fixture
def broken(table):
    values = pa.array([-20.0, None, -40.0, float("nan"), 0.5, -70.0])
    return table.set_column(0, LOGPS[0], values)


def test_invalid_pairs_raise(broken):
    with pytest.raises(
        InvalidPairsError, match="the table breaks its contract in 3 of 6 rows"
    ) as e:
        arrow_stage()(broken)
    assert e.value.report.by_rule == {
        "policy_chosen_logps.not_null": 1,
        "policy_chosen_logps.not_nan": 1,
        "policy_chosen_logps.at_most": 1,
    }
    rows = [rule.offenders[0].row for rule in e.value.report.broken]
    assert rows == [1, 3, 4]


def test_invalid_pairs_are_left_out(broken):
    scored = arrow_stage(on_invalid="exclude")(broken)
    assert scored.column("pair_id").to_pylist() == ["a", "c", "f"]
    assert scored.num_columns == broken.num_columns + len(ADDED)
    assert pc.is_finite(scored.column("loss")).to_pylist() == [True] * 3


def test_a_contract_of_ones_own_is_kept(table):
    import pandera.polars as pa_

    import dpo_pipeline

    class Ours(dpo_pipeline.PreferencePairs):
        pair_id: str = pa_.Field(isin=["a", "b", "c", "d", "e"])

    stage = arrow_stage(contract=Ours, on_invalid="exclude")
    assert stage(table.drop_columns("image")).column("pair_id").to_pylist() == list("abcde")


def test_scores_out_of_range_are_invalid(table):
    wide = table.set_column(0, LOGPS[0], pa.array([-4e6] * 6))
    with pytest.raises(InvalidPairsError, match=r"chosen_reward\.in_range"):
        arrow_stage(beta=1e9, loss="ipo")(wide)


def test_what_cannot_be_is_said(table):
    with pytest.raises(UsageError, match="depends on batches"):
        arrow_stage(loss="aot")
    with pytest.raises(UsageError, match="on_invalid"):
        arrow_stage(on_invalid="quarantine")
    with pytest.raises(ColumnError, match="ref_chosen_logps: missing"):
        arrow_stage()(table.drop_columns("ref_chosen_logps"))
    scored = arrow_stage()(table)
    with pytest.raises(ColumnError, match="loss: the input has this column already"):
        arrow_stage()(scored)
    again = arrow_stage(beta=0.2, scored=Scored(replace=True))(scored)
    assert again.column_names == scored.column_names
    assert again.column("loss") != scored.column("loss")


def test_it_is_score_to_the_bit(real_pairs):
    import dpo_pipeline

    expected = dpo_pipeline.score(real_pairs, 0.1).collect()
    assert pl.DataFrame(arrow_stage(0.1)(real_pairs.to_arrow())).equals(expected)
