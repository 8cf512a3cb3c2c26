"""A frame for contracts."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

from pair_tools import LOGPS


@pytest.fixture
def frame():
    logps = {name: [-20.0 - 3.0 * row - i for row in range(6)] for i, name in enumerate(LOGPS)}
    return pl.DataFrame(
        {
            **logps,
            "x": [0.5, 1.5, 2.5, 3.5, None, float("nan")],
            "low": [0.0, 2.0, 0.0, 4.0, 0.0, 0.0],
            "high": [1.0, 3.0, None, 5.0, 1.0, 1.0],
            "n": [1, 2, 3, 4, None, -1],
            "text": ["en", "de", None, "", "english", "fr"],
            "digits": ["1", "20", "-3", "four", None, "0"],
            "flag": [True, False, None, True, True, False],
            "words": [["a"], [], None, ["b", "c"], ["d"], ["e"]],
            "when": [dt.date(2023 + year, 1, 31) for year in range(6)],
        }
    )
