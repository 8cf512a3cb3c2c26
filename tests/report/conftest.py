"""One evaluation of real pairs, its page, and its rows by numpy."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from altair.utils import schemapi

import dpo_pipeline
from dpo_pipeline.report import evaluation_page
from page_tools import Page


@pytest.fixture
def without_charts(monkeypatch):
    """Leave the charts out of pages of evaluations: half of their cost, for tests of words."""
    monkeypatch.setattr(evaluation_page, "figures_of", lambda *_: iter(()))


@pytest.fixture(scope="session")
def evaluation(real_pairs):
    return dpo_pipeline.evaluate(real_pairs, by="turns", statistics=True)


@pytest.fixture(scope="session")
def text(evaluation):
    """The page of the evaluation, whose charts Altair checks as it does for users."""
    with schemapi.debug_mode(arg=True):
        return evaluation.report()


@pytest.fixture(scope="session")
def page(text):
    return Page(text)


@pytest.fixture(scope="session")
def rows(real_pairs):
    """Margins, rewards, losses and length differences of each pair, by numpy in Float64."""
    named = {name: real_pairs[name].to_numpy().astype(float) for name in real_pairs.columns[-6:]}
    chosen = 0.1 * (named["policy_chosen_logps"] - named["ref_chosen_logps"])
    rejected = 0.1 * (named["policy_rejected_logps"] - named["ref_rejected_logps"])
    margin = chosen - rejected
    return {
        "chosen": chosen,
        "rejected": rejected,
        "margin": margin,
        "loss": np.logaddexp(0.0, -margin),
        "tokens": named["chosen_num_tokens"] - named["rejected_num_tokens"],
    }


@pytest.fixture(scope="session")
def comparison(real_pairs):
    noise = pl.Series(np.random.default_rng(2).normal(-0.4, 1.0, real_pairs.height))
    other = real_pairs.with_columns((pl.col("policy_chosen_logps") + noise).clip(upper_bound=0))
    return dpo_pipeline.compare(real_pairs, other, by="turns")
