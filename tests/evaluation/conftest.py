"""Made-up pairs, and the tables that are gathered from them."""

from __future__ import annotations

import pytest

from gather_tools import frame_of, gathered_of, made_up


@pytest.fixture(scope="module")
def rows():
    return made_up()


@pytest.fixture(scope="module")
def gathered(rows):
    return gathered_of(frame_of(rows))
