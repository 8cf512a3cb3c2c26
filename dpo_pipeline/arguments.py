"""How arguments are declared (an option is a field of a group) and checked."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from importlib.util import find_spec
from numbers import Real
from types import MappingProxyType
from typing import Any, Final, TypeVar, dataclass_transform

from dpo_pipeline.columns import did_you_mean
from dpo_pipeline.defaults import BENCHMARK_NAMES, LOGP_LIMIT
from dpo_pipeline.errors import ArgumentError, UsageError

_NEEDED: Final = ("altair", "vl_convert")

G = TypeVar("G")

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Kind:
    """The kind of values that an option takes; `cli.flag_values` parses them.

    If it `repeats`, the option is given once for each value; if it `splits`, with commas between
    them too. A shell completes what it `completes` ("role" or "loss"). Values of a `secret` kind
    stay out of dry runs and messages.
    """

    name: str
    metavar: str | None = None
    repeats: bool = False
    choices: tuple[str, ...] = ()
    completes: str | None = None
    secret: bool = False
    splits: bool = False


FLAG: Final = Kind("flag")
NUMBER: Final = Kind("number")
WHOLE: Final = Kind("whole")
PATH: Final = Kind("path")
SHARE: Final = Kind("share")
FORMAT: Final = Kind("format")
COLUMN: Final = Kind("text", "COLUMN")
COLUMNS: Final = Kind("text", "COLUMN[,COLUMN]", repeats=True)
OBJECT: Final = Kind("object", "MODULE:NAME")
ROLE_COLUMNS: Final = Kind("roles", "ROLE=NAME", repeats=True, completes="role")
LOSSES: Final = Kind("losses", "NAME[=WEIGHT]", repeats=True, completes="loss")
VALUES: Final = Kind("values", "NAME=VALUE", repeats=True)
NUMBERS: Final = Kind("numbers", "NAME=VALUE", repeats=True)


def choice(*names: str) -> Kind:
    """Return the kind of an option that takes one of these names."""
    return Kind("choice", choices=names)


def check_choice(name: str, value: object, choices: Sequence[str | None]) -> None:
    """Raise a UsageError if a value is none of the choices."""
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(map(str, choices))}, found {value!r}")


def check_benchmark(name: str | None) -> None:
    """Raise a UsageError if there is no benchmark of this name."""
    if name is not None and name not in BENCHMARK_NAMES:
        near, there = did_you_mean(str(name), BENCHMARK_NAMES), ", ".join(BENCHMARK_NAMES)
        raise UsageError(f"sections: there is no benchmark {name!r}{near}; there are {there}")


@dataclass(frozen=True, slots=True)
class Option:
    """Metadata of a field that is an option.

    In settings it has the name of its flag without dashes. `shown` is the default as `--help` shows
    it, if that is not its value; `calls` are the commands that have it, and None means all that
    take its group; `varied` gives the help of a command, or all attributes that differ. What needs
    `consent` could run code, send keys or replace files: a settings file that was found cannot
    give it. One that stands `apart` means something else than that of another command with its
    flag: what sets the flag for all commands does not set it.
    """

    flag: str
    kind: Kind
    help: str
    shown: str | None = None
    calls: tuple[str, ...] | None = None
    varied: Mapping[str, str | Mapping[str, Any]] = field(default_factory=lambda: NOTHING)
    consent: bool = False
    apart: bool = False

    def of(self, call: str) -> Option:
        """Return the option as this command has it."""
        varied = self.varied.get(call, {})
        return replace(self, **({"help": varied} if isinstance(varied, str) else varied))


def option(flag: str, kind: Kind, help: str, *, default: Any, **more: Any) -> Any:  # noqa: A002  as in click
    """Return a field that is an option; `more` are attributes of `Option`."""
    metadata = {"option": Option(flag, kind, help, **more)}
    if default is NOTHING:  # unhashable, so dataclasses refuse it as a default
        return field(default_factory=lambda: NOTHING, metadata=metadata)
    return field(default=default, metadata=metadata)


def argument(help: str, *, default: Any = MISSING) -> Any:  # noqa: A002  as in click
    """Return a field that has no flag."""
    return field(default=default, metadata={"help": help})


@dataclass_transform(field_specifiers=(option, argument), frozen_default=True)
def group(cls: type[G]) -> type[G]:
    """Make a class a group of options: a frozen dataclass whose docstring lists its fields."""
    made = dataclass(frozen=True, slots=True)(cls)
    lines = []
    for each in fields(made):  # type: ignore[arg-type]
        declared = each.metadata.get("option")
        text = each.metadata["help"] if declared is None else f"{declared.help} ({declared.flag})"
        lines.append(f"    {each.name}: {text}")
    made.__doc__ = "\n".join([f"{made.__doc__}\n", "Attributes:", *lines])
    return made


def default_of(declared: Field[Any]) -> Any:
    """Return the default of a field; `MISSING` without one."""
    factory = declared.default_factory
    return declared.default if factory is MISSING else factory()


def options_of(group: type[Any], call: str | None = None) -> Iterator[tuple[Field[Any], Option]]:
    """Yield the option fields of a group with their options, as `call` has them if given."""
    for each in fields(group):
        found = each.metadata.get("option")
        if found is not None and (call is None or found.calls is None or call in found.calls):
            yield each, found if call is None else found.of(call)


def given(group: type[G], value: Any, **bare: Any) -> G:
    """Return the group that `value` stands for: itself, its short form, or None for all defaults.

    `bare` are fields that the call takes as parameters of their own, None if not given.
    """
    made: Any = value
    if value is None:
        made = group()
    elif not isinstance(value, group):
        short = getattr(group, "SHORT", {})
        names = [name for kind, name in short.items() if isinstance(value, kind)]
        made = group(**{names[0] if names else fields(group)[0].name: value})  # type: ignore[arg-type]
    for name, own in bare.items():
        there = getattr(made, name)
        if own is not None and there != default_of(type(made).__dataclass_fields__[name]):
            raise UsageError(
                f"{name} is given twice: {name}={own!r}, and {there!r} in {group.__name__}"
            )
        if own is not None:
            made = replace(made, **{name: own})
    return made  # type: ignore[no-any-return]


def differing(groups: Mapping[str, Any], call: str) -> dict[str, Any]:
    """Return flag to value of each option not at its default; of secrets, only the keys."""
    return {
        declared.flag: sorted(value) if declared.kind.secret else value
        for made in groups.values()
        if made is not None
        for each, declared in options_of(type(made), call)
        for value in [getattr(made, each.name)]
        # Dataframes, which a default is never, are equal to nothing.
        if value is not (usual := default_of(each)) and (usual is MISSING or value != usual)
    }


def imported(flag: str, place: str) -> Any:
    """Return what MODULE:NAME stands for."""
    from importlib import import_module

    module, colon, name = place.partition(":")
    if not colon:
        raise UsageError(f"{flag} takes MODULE:NAME, found {place!r}")
    # At the end: a file in the current folder takes no other module's place.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        raise UsageError(f"{flag} {place}: {type(error).__name__}: {error}") from error
    return found


def check_extra() -> None:
    """Check that the libraries that draw charts are there, without importing them."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"charts and reports need {' and '.join(missing)}: pip install altair vl-convert-python"
        )


def check_page_path(path: str | os.PathLike[str]) -> None:
    """Check that a report goes to a file and not to standard output."""
    if os.fspath(path) == "-":
        raise UsageError("a report is a page for a browser and goes to a file: name one, not '-'")


def checked_beta(beta: object) -> float:
    """Return beta as a float."""
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
    """Return one name or several as a tuple, each once."""
    if names is None:
        return ()
    several = [names] if isinstance(names, str) else names
    if not isinstance(several, Sequence) or not all(isinstance(name, str) for name in several):
        raise UsageError(f"{argument} must be a column name or several, found {names!r}")
    return tuple(dict.fromkeys(several))


def split_names(names: Sequence[str], there: Collection[str]) -> tuple[str, ...]:
    """Return column names of which some may be several with commas between them.

    A name that is there is taken whole, whatever is in it.
    """
    made: list[str] = []
    for name in names:
        parts = name.split(",")
        while parts:
            whole = (n for n in range(len(parts), 1, -1) if ",".join(parts[:n]) in there)
            n = next(whole, 1)
            found = ",".join(parts[:n])
            made.append(found if found in there else found.strip())
            parts = parts[n:]
    return tuple(dict.fromkeys(made))


def checked_max_logp(max_logp: object) -> float:
    """Return max_logp as a float."""
    if isinstance(max_logp, Real) and not isinstance(max_logp, bool):
        nats = as_float(max_logp)
        if -LOGP_LIMIT <= nats <= LOGP_LIMIT:
            return nats
    problem = f"must be a number of nats within {LOGP_LIMIT:,.0f}, found {max_logp!r}"
    raise ArgumentError("max_logp", problem, position=None, value=max_logp)


def checked_choice(on_invalid: str, choices: Sequence[str], at_most: float | None) -> None:
    """Check that `on_invalid` is one of `choices` and goes with `at_most`."""
    if on_invalid not in choices:
        raise UsageError(f"on_invalid must be one of {', '.join(choices)}, found {on_invalid!r}")
    if on_invalid == "raise" and at_most is not None:
        raise UsageError("at_most (--max-invalid) needs an on_invalid other than 'raise'")
    checked_limit(at_most)


def checked_limit(at_most: float | None) -> None:
    """Check that `at_most` is a count (int) or a share (float up to 1)."""
    if at_most is None:
        return
    is_number = isinstance(at_most, (int, float)) and not isinstance(at_most, bool)
    is_share = isinstance(at_most, float)
    if not (is_number and at_most >= 0 and (at_most <= 1 or not is_share)):
        raise UsageError(
            "at_most (--max-invalid) must be a count (an integer from 0) or a share (a float "
            f"from 0 to 1), found {at_most!r}"
        )
