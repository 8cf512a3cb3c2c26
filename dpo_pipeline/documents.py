"""Plain data as one JSON document."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def as_json(document: Mapping[str, Any]) -> str:
    """Return JSON that every parser reads: NaN and infinities are null, dates are text."""
    return json.dumps(_finite(document), indent=2, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
