"""Errors as objects: their facts survive pickling, as between processes."""

from __future__ import annotations

import pickle

import polars as pl
import pytest

from dpo_pipeline import ArgumentError, DpoPipelineError, InvalidPairsError, dpo_loss, evaluate
from option_tools import grouped


def raised(call):
    with pytest.raises(DpoPipelineError) as caught:
        call()
    return caught.value


def test_errors_pickle_with_their_text_and_facts(pairs):
    broken = pairs.with_columns(ref_chosen_logps=pl.lit(1.0))
    for error in (
        raised(lambda: evaluate(broken)),
        raised(lambda: dpo_loss([-1.0], [-1.0], [-1.0], ["x"])),
        raised(lambda: evaluate("nothing.parquet")),
        raised(lambda: evaluate(pairs.drop("ref_chosen_logps"))),
    ):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_facts_are_attributes(pairs):
    error = raised(lambda: evaluate(pairs.with_columns(ref_chosen_logps=pl.lit(1.0))))
    assert isinstance(error, InvalidPairsError)
    assert error.report.by_rule == {"ref_chosen_logps.at_most": 6}
    error = raised(lambda: dpo_loss([-1.0], [-1.0], [-1.0], ["x"]))
    assert isinstance(error, ArgumentError)
    assert (error.argument, error.position, error.value) == ("log_probs_rejected_ref", 0, "x")


@pytest.mark.parametrize(
    ("value", "arguments", "told", "untold"),
    [
        pytest.param(0.125, {}, "bf16", "out of range", id="bf16"),
        pytest.param(7.0, {}, "Mend these rows", "bf16", id="far above 0"),
        pytest.param(None, {}, "Mend these rows", "bf16", id="null"),
        pytest.param(-4e6, {"beta": 1e30}, "out of range", "bf16", id="range"),
    ],
)
def test_advice_is_of_what_was_broken(pairs, value, arguments, told, untold):
    text = str(raised(lambda: evaluate(changed(pairs, value), **grouped(**arguments))))
    assert told in text
    assert untold not in text


def changed(pairs, value):
    row = pl.when(pl.int_range(pl.len()) == 0).then(value).otherwise("ref_chosen_logps")
    return pairs.with_columns(ref_chosen_logps=row)
