"""The facts of a run that every output carries: no path, host or time, so that bytes repeat."""

from __future__ import annotations

import json
from importlib.metadata import version

from dpo_pipeline.contract import Binding
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.storage import METADATA_KEY


def run_facts(binding: Binding, objective: CheckedObjective) -> dict[str, str]:
    """Return the Parquet metadata of an output: version, loss, beta, contract, column mapping."""
    rules = binding.rules.with_scores_in_range(objective.columns_to_check(binding.max_logp))
    facts = {
        "version": version("dpo_pipeline"),
        "loss": str(objective),
        "beta": objective.beta,
        "objective": objective.to_dict(),
        "contract": {
            "max_logp": binding.max_logp,
            "rules": {rule.name: rule.requirement for rule in rules.rules},
        },
        "columns": dict(binding.mapping),
    }
    return {METADATA_KEY: json.dumps(facts, sort_keys=True)}
