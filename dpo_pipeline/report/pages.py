"""The pages and charts of results, each by its kind, and how a page becomes a file."""

from __future__ import annotations

import os
from typing import Any

from dpo_pipeline.comparison import Comparison
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation import Evaluation, Reported
from dpo_pipeline.report import comparison_page, evaluation_page
from dpo_pipeline.storage import Outputs, final_name, reading


def charts_of(result: Reported) -> dict[str, Any]:
    """Return the charts of a result by name, as altair objects."""
    if isinstance(result, Comparison):
        return comparison_page.charts_of(result)
    if isinstance(result, Evaluation):
        return evaluation_page.charts_of(result)
    raise UsageError(f"there are no charts of {type(result).__name__}")


def page_of(result: Reported) -> str:
    """Return the report of a result as one HTML document."""
    if isinstance(result, Comparison):
        return comparison_page.page_of(result)
    if isinstance(result, Evaluation):
        return evaluation_page.page_of(result)
    raise UsageError(f"there is no report of {type(result).__name__}")


def write_page(text: str, hidden: str) -> None:
    """Write a page to where it was staged."""
    with reading(final_name(hidden)), open(hidden, "w", encoding="utf-8") as file:
        file.write(text)


def publish_page(text: str, path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Write a page to a file of its own.

    Raises:
        StorageError: The file exists and is not to be replaced, or cannot be written.
    """
    with Outputs(overwrite=overwrite) as publication:
        write_page(text, publication.stage(path))
        publication.commit()
