"""The table of losses as text, JSON and Markdown; all of it made from `losses.catalogue`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from dpo_pipeline.columns import did_you_mean
from dpo_pipeline.errors import UsageError
from dpo_pipeline.losses import DIALECTS, F_DIVERGENCES, LOSSES, OTHERS, Loss, Rewards
from dpo_pipeline.tables import Column, Part, Printable, Table

if TYPE_CHECKING:
    import polars as pl

LEGEND = (
    "c, r: log-prob of the chosen, rejected completion under the policy; C, R: under the "
    "reference; h_c = c - C, h_r = r - R; z = beta (h_c - h_r); L: tokens; "
    "sp(x) = -log sigma(x); e: label_smoothing"
)
"""The letters of the formulas."""


class LossList(Printable):
    """The losses, or all about one."""

    def __init__(self, name: str | None = None) -> None:
        self._found = None if name is None else _found(name)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        if self._found is not None:
            return as_dict(self._found)
        return {"losses": [as_dict(loss) for loss in LOSSES.values()]}

    def to_frame(self) -> pl.DataFrame:
        """Return one row a loss."""
        import polars as pl

        losses = LOSSES.values() if self._found is None else (self._found,)
        rows = [(loss.name, _needs(loss), loss.formula, loss.source) for loss in losses]
        return pl.DataFrame(rows, schema=["loss", "needs", "formula", "source"], orient="row")

    def to_parts(self) -> Iterator[Part]:
        """Yield the list, or the facts of one loss."""
        if self._found is None:
            rows = [(loss.name, _needs(loss), loss.formula) for loss in LOSSES.values()]
            columns = (Column("loss"), Column("needs", wraps=True), Column("formula", wraps=True))
            yield Table(columns=columns, rows=rows, note=LEGEND, most=None)
            return
        facts = as_dict(self._found)
        lines: list[tuple[str, Any]] = [
            (key, str(value)) for key, value in facts.items() if not isinstance(value, (dict, list))
        ]
        lines += [
            (p["name"], f"{p['default']:g}: {p['meaning']}, {p['range']}")
            for p in facts["parameters"]
        ]
        lines += list(facts["elsewhere"].items())
        yield Table(columns=(Column(""), Column("", wraps=True)), rows=lines, most=None)


def as_markdown() -> str:
    """Return the table in Markdown."""
    lines = [
        "| loss | formula | parameters | needs | source | elsewhere |",
        "|---|---|---|---|---|---|",
    ]
    for loss in LOSSES.values():
        parameters = ", ".join(f"`{p.name}` {p.default:g}" for p in loss.parameters)
        elsewhere = "; ".join(f"{system}: {term}" for system, term in loss.peers.items())
        cells = [f"`{loss.name}`", f"`{loss.formula}`", parameters, _needs(loss), loss.source]
        lines.append("| " + " | ".join([*cells, elsewhere]).replace("  ", " ") + " |")
    return "\n".join(lines)


def dialects_as_markdown() -> str:
    """Return the dialects, and the parameters that reproduce other systems, in Markdown."""
    lines = [
        "| dialect | beta | rewards are beta times | sets | refuses, having it not | read in |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for each in DIALECTS.values():
        sets = [f"`{loss}`: {_pairs(values)}" for loss, values in each.defaults.items()]
        refused = [f"`{name}`: {why}" for name, why in each.refused.items()]
        if each.lacks:
            refused.insert(0, f"the losses {', '.join(f'`{name}`' for name in each.lacks)}")
        read = [f"{topic}: {source}" for topic, source in each.sources.items()]
        cells = [f"`{each.name}` ({each.system})", f"{each.beta:g}", _REWARDS[each.rewards]]
        cells += ["; ".join(sets) or "nothing", "; ".join(refused), "; ".join(read)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| other system | what gives its conventions |", "|---|---|"]
    lines += [f"| {system} | {how} |" for system, how in OTHERS.items()]
    return "\n".join(lines)


_REWARDS: Final[Mapping[Rewards, str]] = MappingProxyType(
    {"score": "what the loss compares", "logratio": "the log-ratio of sums"}
)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in values.items())


def as_dict(loss: Loss) -> dict[str, Any]:
    """Return one row with all that it says."""
    return {
        "name": loss.name,
        "formula": loss.formula,
        "needs": _needs(loss),
        "source": loss.source,
        "parameters": [
            {"name": p.name, "default": p.default, "range": p.range, "meaning": p.meaning}
            for p in loss.parameters
        ],
        "reference_free": loss.reference,
        "per_token": loss.by_length,
        "f_divergence": ", ".join(F_DIVERGENCES) if loss.f_divergence else "reverse_kl",
        "elsewhere": dict(loss.peers),
    }


def _needs(loss: Loss) -> str:
    return loss.needs(reference=loss.reference != "never", per_token=loss.by_length == "always")


def _found(name: str) -> Loss:
    if name not in LOSSES:
        raise UsageError(
            f"there is no loss {name!r}{did_you_mean(name, LOSSES)}; "
            f"the losses are {', '.join(LOSSES)}"
        )
    return LOSSES[name]
