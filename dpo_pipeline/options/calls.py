"""Which command takes which groups of options."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from dpo_pipeline.options.data import Contract, Pairs, Reference
from dpo_pipeline.options.figures import (
    Batches,
    BestOf,
    Gates,
    Objective,
    StatisticsOptions,
    Subsets,
)
from dpo_pipeline.options.running import Execution
from dpo_pipeline.options.selecting import Selection
from dpo_pipeline.options.texts import Models
from dpo_pipeline.options.writing import OnInvalid, Outputs, Scored

_READ: Final = {"pairs": Pairs, "reference": Reference, "contract": Contract, "loss": Objective}
_RUN: Final = {"on_invalid": OnInvalid, "outputs": Outputs, "execution": Execution}
_GROUPED: Final = {"by": Subsets, "batches": Batches}
_SURE: Final = {"statistics": StatisticsOptions}

CALLS: Final[Mapping[str, Mapping[str, type[Any]]]] = MappingProxyType(
    {
        "check": _READ | _RUN,
        "evaluate": _READ | _GROUPED | _SURE | _RUN | {"gates": Gates},
        "sweep": _READ | _GROUPED | _RUN,
        "score": _READ | _GROUPED | {"scored": Scored} | _RUN | {"gates": Gates},
        "select": _READ | {"by": Subsets, "selection": Selection} | _RUN,
        "logps": {"data": Pairs, "models": Models, "outputs": Outputs, "execution": Execution},
        "rank": _READ | {"by": Subsets, "best_of": BestOf} | _RUN,
        "convert": {"pairs": Pairs, "outputs": Outputs, "execution": Execution},
        "compare": _READ | {"by": Subsets} | _SURE | _RUN | {"gates": Gates},
    }
)
"""Command to its groups of options, by the parameter of the call."""
