"""`python -m dpo_pipeline` and the `dpo-pipeline` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    from dpo_pipeline.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
