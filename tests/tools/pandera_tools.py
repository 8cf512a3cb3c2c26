"""Pandera's own full validation, and the rows that our compiled rules mark."""

from __future__ import annotations

import math
import sys

import pandera.polars as pa
import polars as pl
from hypothesis import strategies as st
from pandera.config import ValidationDepth, config_context
from pandera.constants import CHECK_OUTPUT_KEY
from pandera.errors import SchemaErrors

from dpo_pipeline.contract.binding import bind
from pair_tools import COUNTS, LOGPS

OUR_COLUMNS = (*LOGPS, *COUNTS)
LIMIT = 4_194_304.0
BELOW_LIMIT = math.nextafter(-LIMIT, -math.inf)
ABOVE_EIGHTH = math.nextafter(0.125, 1.0)
HUGE = sys.float_info.max


# One value for each rule, and one that keeps them all.
LOGP_FAULTS = {
    "not_null": None,
    "not_nan": math.nan,
    "finite": -math.inf,
    "at_least": BELOW_LIMIT,
    "at_most": 0.5,
}


COUNT_FAULTS = {"at_least": 0}


def faults_of(column):
    return LOGP_FAULTS if column in LOGPS else COUNT_FAULTS


def clean(rows, **replaced):
    """Sound pairs, every column varied; `replaced` are whole columns."""
    columns = {
        name: [-20.0 - 3.0 * row - 0.5 * i for row in range(rows)] for i, name in enumerate(LOGPS)
    }
    columns |= {name: [7 + row + i for row in range(rows)] for i, name in enumerate(COUNTS)}
    dtypes = {name: pl.Float64 if name in LOGPS else pl.Int64 for name in OUR_COLUMNS}
    return pl.DataFrame(columns, schema=dtypes).with_columns(
        pl.Series(name, values, dtype=dtypes.get(name), strict=True)
        if isinstance(values, list)
        else values.alias(name)
        for name, values in replaced.items()
    )


def as_canonical(frame):
    """What pandera is shown: the casts that the contract promises, made by the test."""
    return frame.with_columns(pl.col(LOGPS).cast(pl.Float64), pl.col(COUNTS).cast(pl.Int64))


def pandera_errors(schema, frame):
    with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
        try:
            schema.validate(frame, lazy=True)
        except SchemaErrors as error:
            return error.schema_errors
    return []


def failed_rows(error):
    numbered = error.check_output.with_row_index("row")
    return frozenset(numbered.filter(pl.col(CHECK_OUTPUT_KEY).not_())["row"])


def name_of(error):
    check = error.check if isinstance(error.check, str) else error.check.name
    return error.column_name, check


def pandera_rows(*schemas, frame):
    """Rows by column (None for the whole frame) and check."""
    found = {}
    for schema in schemas:
        for error in pandera_errors(schema, frame):
            assert error.check_output is not None, f"pandera could not run it: {error}"
            found[name_of(error)] = failed_rows(error)
    return found


def our_rows(frame, *, contract=None, max_logp=0.0, engine="streaming"):
    """Rows by column and check, from the compiled rules; `valid` is held to their union."""
    binding = bind(frame.lazy(), source="pairs", max_logp=max_logp, contract=contract)
    rules = binding.rules
    marked = (
        binding.prepare(frame.lazy())
        .select(
            rules.valid.alias("valid"), *(r.keeps.alias(str(i)) for i, r in enumerate(rules.rules))
        )
        .collect(engine=engine)
    )
    assert marked.null_count().row(0) == (0,) * marked.width
    assert set(marked.dtypes) == {pl.Boolean}
    found = {
        (rule.column, rule.check): frozenset(marked[str(i)].not_().arg_true())
        for i, rule in enumerate(rules.rules)
    }
    assert frozenset(marked["valid"].not_().arg_true()) == frozenset().union(*found.values())
    return {name: rows for name, rows in found.items() if rows}


ANY_LOGP = st.one_of(
    st.sampled_from([*LOGP_FAULTS.values(), math.inf, 0.0, -0.0, 5e-324, 0.125, -LIMIT, -1e300]),
    st.floats(-1000.0, 0.0),
)


ANY_COUNT = st.sampled_from([None, -1, 0, 1, 2, 512])
ANY_EXTRA = st.sampled_from([None, math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 0.5, 3.0])


@st.composite
def frames(draw, **extra):
    """60 to 70 rows, most cells special."""
    rows = draw(st.integers(60, 70))
    cells = dict.fromkeys(LOGPS, ANY_LOGP) | dict.fromkeys(COUNTS, ANY_COUNT) | extra
    columns = {c: draw(st.lists(s, min_size=rows, max_size=rows)) for c, s in cells.items()}
    dtypes = {c: pl.Int64 if c in COUNTS else pl.Float64 for c in cells}
    return pl.DataFrame(columns, schema=dtypes)


def contract_of(check, column=None, **options):
    if column is None:
        return pa.DataFrameSchema(checks=check)
    return pa.DataFrameSchema({column: pa.Column(None, check, nullable=True, **options)})
