"""Types are asked for without pandera, and are those that pandera asks for."""

from __future__ import annotations

import subprocess
import sys

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

import dpo_pipeline
from dpo_pipeline.columns import Needs
from dpo_pipeline.contract.compiling import check_schema
from dpo_pipeline.contract.model import row_model
from dpo_pipeline.contract.row_rules import with_row_rules
from dpo_pipeline.contract.rules import check_types, rules_for
from dpo_pipeline.errors import ColumnError
from pair_tools import COUNTS, LOGPS, ROOT

TYPES = [pl.Float64, pl.Float32, pl.Int64, pl.Int32, pl.String, pl.Boolean, pl.List(pl.Float64)]


def what_is_wrong(check, frame, needs):
    try:
        check(frame, source="x", max_logp=0.0, contract=None, needs=needs)
    except ColumnError as error:
        return set(error.problems)
    return set()


@settings(max_examples=25)
@given(
    types=st.dictionaries(st.sampled_from([*LOGPS, *COUNTS, "more"]), st.sampled_from(TYPES)),
    needs=st.builds(Needs, reference=st.booleans(), tokens=st.booleans()),
)
def test_types_are_those_that_pandera_asks_for(types, needs):
    frame = pl.LazyFrame(schema=types)
    assert what_is_wrong(check_types, frame, needs) == what_is_wrong(check_schema, frame, needs)


@pytest.mark.parametrize("max_logp", [0.0, 0.125])
@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("tokens", [True, False])
def test_rules_without_pandera_are_the_checks_of_the_contract(max_logp, reference, tokens):
    needs = Needs(reference=reference, tokens=tokens)
    columns = row_model(max_logp, needs).to_schema().columns
    theirs = sorted((n, c.name, c.error) for n, column in columns.items() for c in column.checks)
    frame = pl.LazyFrame(schema={name: columns[name].dtype.type for name in columns})
    rules = rules_for(frame, max_logp=max_logp, contract=None, needs=needs)
    own = with_row_rules(rules, (), dict.fromkeys(columns), needs).rules
    assert theirs == sorted((rule.column, rule.check, rule.requirement) for rule in own)
    assert {name for name, _, _ in theirs} == {*columns}


def test_each_fault_has_its_words():
    frame = pl.LazyFrame(schema={**dict.fromkeys(LOGPS[:3], pl.Float64), COUNTS[0]: pl.String})
    found = what_is_wrong(check_types, frame, Needs())
    assert found == {
        f"{LOGPS[3]}: missing; the columns are {', '.join(LOGPS[:3])}, {COUNTS[0]}",
        f"{COUNTS[0]}: must be an integer, found String; cast it before",
    }
    with pytest.raises(ColumnError, match="must be a number"):
        dpo_pipeline.evaluate(pl.DataFrame({name: ["-1"] for name in LOGPS}))


@pytest.mark.slow  # `test_cost.py` has what calls import; these are three commands more
def test_pandera_is_loaded_for_a_contract_of_ones_own_alone():
    code = (
        "import sys\n"
        "from dpo_pipeline.cli.program import main\n"
        "for words in (['evaluate'], ['check'], ['sweep', '--beta', '0.1']):\n"
        f"    assert main([*words, {str(ROOT / 'examples/pairs.parquet')!r}]) == 0\n"
        "assert 'polars' in sys.modules and 'pandera' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
