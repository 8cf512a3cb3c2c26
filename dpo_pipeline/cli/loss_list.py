"""The list of losses as text and JSON, made from `losses.catalogue`."""

from __future__ import annotations

from typing import Any

from dpo_pipeline.columns import did_you_mean
from dpo_pipeline.errors import UsageError
from dpo_pipeline.losses import F_DIVERGENCES, LOSSES, Loss
from dpo_pipeline.published import LEGEND, needs_of
from dpo_pipeline.tables import aligned, as_json


def as_text(name: str | None = None) -> str:
    """Return the list, or all about one loss."""
    if name is None:
        rows = [(loss.name, needs_of(loss), loss.formula) for loss in LOSSES.values()]
        return "\n".join([*aligned(("loss", "needs", "formula"), rows), "", LEGEND])
    facts = as_dict(_found(name))
    lines: list[tuple[str, Any]] = [
        (key, value) for key, value in facts.items() if not isinstance(value, (dict, list))
    ]
    lines += [
        (f"  {p['name']}", f"{p['default']:g}: {p['meaning']}, {p['range']}")
        for p in facts["parameters"]
    ]
    lines += [(f"  {system}", term) for system, term in facts["elsewhere"].items()]
    return "\n".join(aligned(("", ""), lines))


def as_json_text(name: str | None = None) -> str:
    """Return the same as JSON."""
    if name is None:
        return as_json({"losses": [as_dict(loss) for loss in LOSSES.values()]})
    return as_json(as_dict(_found(name)))


def as_dict(loss: Loss) -> dict[str, Any]:
    """Return one row with all that it says."""
    return {
        "name": loss.name,
        "formula": loss.formula,
        "needs": needs_of(loss),
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


def _found(name: str) -> Loss:
    if name not in LOSSES:
        raise UsageError(
            f"there is no loss {name!r}{did_you_mean(name, LOSSES)}; "
            f"the losses are {', '.join(LOSSES)}"
        )
    return LOSSES[name]
