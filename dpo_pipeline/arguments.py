"""Checks of arguments that more than one call takes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from numbers import Real
from typing import Final

from dpo_pipeline.defaults import LOGP_LIMIT
from dpo_pipeline.errors import ArgumentError, UsageError

_NEEDED: Final = ("altair", "vl_convert")


def check_extra() -> None:
    """Check that the libraries that draw charts are there, without importing them.

    Raises:
        UsageError: One is missing.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"charts and reports need {' and '.join(missing)}: pip install 'dpo_pipeline[report]'"
        )


def check_page_path(path: str | os.PathLike[str]) -> None:
    """Check that a report goes to a file and not to standard output.

    Raises:
        UsageError: The path is `-`.
    """
    if os.fspath(path) == "-":
        raise UsageError("a report is a page for a browser and goes to a file: name one, not '-'")


def checked_beta(beta: object) -> float:
    """Return beta as a float.

    Raises:
        ArgumentError: It is negative, not finite or not a number.
    """
    if isinstance(beta, bool) or not isinstance(beta, Real):
        raise ArgumentError("beta", f"must be a number, found {beta!r}", position=None, value=beta)
    value = as_float(beta)
    if not (math.isfinite(value) and value >= 0):
        problem = f"must be finite and at least 0, found {beta!r}"
        raise ArgumentError("beta", problem, position=None, value=beta)
    return value


def as_float(number: Real) -> float:
    """Return a number as a float; inf for an integer beyond every float."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def checked_names(argument: str, names: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return one name or several as a tuple, each once.

    Raises:
        UsageError: There is something that is no name among them.
    """
    if names is None:
        return ()
    several = [names] if isinstance(names, str) else names
    if not isinstance(several, Sequence) or not all(isinstance(name, str) for name in several):
        raise UsageError(f"{argument} must be a column name or several, found {names!r}")
    return tuple(dict.fromkeys(several))


def checked_max_logp(max_logp: object) -> float:
    """Return max_logp as a float.

    Raises:
        ArgumentError: It is not a number that a log-probability could be at most.
    """
    if isinstance(max_logp, Real) and not isinstance(max_logp, bool):
        nats = as_float(max_logp)
        if -LOGP_LIMIT <= nats <= LOGP_LIMIT:
            return nats
    problem = f"must be a number of nats within {LOGP_LIMIT:,.0f}, found {max_logp!r}"
    raise ArgumentError("max_logp", problem, position=None, value=max_logp)


def checked_choice(on_invalid: str, choices: Sequence[str], max_invalid: float | None) -> None:
    """Check that `on_invalid` is one of `choices` and goes with `max_invalid`.

    Raises:
        UsageError: It is not, or does not.
    """
    if on_invalid not in choices:
        raise UsageError(f"on_invalid must be one of {', '.join(choices)}, found {on_invalid!r}")
    if on_invalid == "raise" and max_invalid is not None:
        raise UsageError("max_invalid needs on_invalid to be something else than 'raise'")
    checked_limit(max_invalid)


def checked_limit(max_invalid: float | None) -> None:
    """Check that `max_invalid` is a count (int) or a share (float up to 1).

    Raises:
        UsageError: It is neither.
    """
    if max_invalid is None:
        return
    is_number = isinstance(max_invalid, (int, float)) and not isinstance(max_invalid, bool)
    is_share = isinstance(max_invalid, float)
    if not (is_number and max_invalid >= 0 and (max_invalid <= 1 or not is_share)):
        raise UsageError(
            "max_invalid must be a count (an integer from 0) or a share (a float from 0 to 1), "
            f"found {max_invalid!r}"
        )
