"""Runs one function of a module beside this file, with one argument, in a process of its own."""

from __future__ import annotations

import json
import sys
from importlib import import_module


def main() -> None:
    """Call `module.function` with an argument, and print what it returns as JSON."""
    module, function = sys.argv[1].split(".")
    sys.stdout.write(json.dumps(getattr(import_module(module), function)(sys.argv[2])))


if __name__ == "__main__":
    main()
