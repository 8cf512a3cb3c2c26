"""Made-up pairs, and the tables that are gathered from them."""

from __future__ import annotations

import pytest

from gather_tools import frame_of, gathered_of, made_up


@pytest.fixture
def tables_alone(monkeypatch):
    """Leave out the jackknife, which the gathered tables do not need."""
    monkeypatch.setattr("dpo_pipeline.evaluation.estimating.delete_a_group", lambda *_, **__: None)


@pytest.fixture(scope="module")
def rows():
    return made_up()


@pytest.fixture(scope="module")
def gathered(rows):
    return gathered_of(frame_of(rows))
