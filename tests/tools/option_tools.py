"""Options by flat names, for tests that are parametrised over them."""

from __future__ import annotations

from dpo_pipeline import (
    Batches,
    Contract,
    Execution,
    Objective,
    OnInvalid,
    Outputs,
    Reference,
    Scored,
    StatisticsOptions,
    Subsets,
)

PLACES = {  # flat name: the parameter of the call, its group, the field
    "loss": ("loss", Objective, "loss"),
    "loss_args": ("loss", Objective, "arguments"),
    "dialect": ("loss", Objective, "dialect"),
    "by": ("by", Subsets, "by"),
    "histogram": ("by", Subsets, "histogram"),
    "batch_size": ("batches", Batches, "size"),
    "batch_by": ("batches", Batches, "by"),
    "batches": ("batches", Batches, "file"),
    "contract": ("contract", Contract, "schema"),
    "max_logp": ("contract", Contract, "max_logp"),
    "on_invalid": ("on_invalid", OnInvalid, "action"),
    "max_invalid": ("on_invalid", OnInvalid, "at_most"),
    "invalid": ("on_invalid", OnInvalid, "file"),
    "keep": ("scored", Scored, "keep"),
    "replace": ("scored", Scored, "replace"),
    "part_rows": ("scored", Scored, "part_rows"),
    "summary": ("outputs", Outputs, "summary"),
    "report": ("outputs", Outputs, "report"),
    "overwrite": ("outputs", Outputs, "overwrite"),
    "engine": ("execution", Execution, "engine"),
    "storage_options": ("execution", Execution, "storage_options"),
    "credential_provider": ("execution", Execution, "credential_provider"),
    "progress": ("execution", Execution, "progress"),
    "cancel": ("execution", Execution, "cancel"),
    "level": ("statistics", StatisticsOptions, "level"),
}


def grouped(**flat):
    """Return the groups of options that a call takes for these fields; None is the default."""
    reference, columns = flat.pop("reference", None), flat.pop("reference_columns", None)
    made = {}
    for name in [name for name in flat if name in PLACES]:
        parameter, group, field = PLACES[name]
        value = flat.pop(name)
        if value is not None:
            made.setdefault(parameter, (group, {}))[1][field] = value
    made = {parameter: group(**fields) for parameter, (group, fields) in made.items()}
    if isinstance(reference, Reference):
        made["reference"] = reference
    elif reference is not None:
        keys = {"on": flat.pop("on")} if "on" in flat else {}
        made["reference"] = Reference(reference, columns=columns, **keys)
    return made | flat
