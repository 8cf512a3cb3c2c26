"""The published schemas, each read and checked once. `published/` holds them to what is made."""

from __future__ import annotations

import json
from functools import cache

from jsonschema.validators import validator_for

from pair_tools import ROOT


@cache
def schema(name):
    return json.loads((ROOT / "schemas" / f"{name}.schema.json").read_text())


@cache
def _validator(name):
    kind = validator_for(schema(name))
    kind.check_schema(schema(name))
    return kind(schema(name))


def validate(document, name):
    _validator(name).validate(document)
