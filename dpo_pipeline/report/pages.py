"""The pages and charts of results, each by its kind, and how a page becomes a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from dpo_pipeline.comparison import Comparison
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation import Evaluation, Reported, Statistics
from dpo_pipeline.policies import Leaderboard
from dpo_pipeline.report import (
    comparison_page,
    completions_page,
    evaluation_charts,
    evaluation_page,
    policies_page,
)
from dpo_pipeline.report.charts import LIGHT
from dpo_pipeline.storage import Outputs as Publication, final_name, reading
from dpo_pipeline.unpaired import CompletionComparison, CompletionEvaluation


def charts_of(result: Reported) -> dict[str, Any]:
    """Return the charts of a result by name, as altair objects with titles, in light colours.

    Raises:
        UsageError: The result has no charts, or it is an evaluation without statistics.
    """
    if isinstance(result, Comparison):
        figures = comparison_page.figures_of(result, LIGHT)
    elif isinstance(result, Leaderboard):
        figures = policies_page.figures_of(result, LIGHT)
    elif isinstance(result, Evaluation):
        figures = evaluation_charts.figures_of(result, _statistics(result, "charts()"), LIGHT)
    else:
        raise UsageError(f"there are no charts of {type(result).__name__}")
    return {each.name: each.titled() for each in figures}


def page_of(result: Reported) -> str:
    """Return the report of a result as one HTML document.

    Raises:
        UsageError: The result has no report, or it is an evaluation without statistics.
    """
    if isinstance(result, Comparison):
        return comparison_page.page_of(result)
    if isinstance(result, Leaderboard):
        return policies_page.page_of(result)
    if isinstance(result, Evaluation):
        return evaluation_page.page_of(result, _statistics(result, "report()"))
    if isinstance(result, (CompletionEvaluation, CompletionComparison)):
        return completions_page.page_of(result)
    raise UsageError(f"there is no report of {type(result).__name__}")


def _statistics(evaluation: Evaluation, what: str) -> Statistics:
    if evaluation.statistics is None:
        raise UsageError(f"{what} needs the statistics: call evaluate with statistics=True")
    return evaluation.statistics


def write_page(text: str, hidden: str) -> None:
    """Write a page to where it was staged."""
    with reading(final_name(hidden)), open(hidden, "w", encoding="utf-8") as file:
        file.write(text)


def publish_page(
    result: Reported,
    path: str | os.PathLike[str],
    *,
    overwrite: bool,
    protected: Sequence[str] = (),
) -> None:
    """Write the report of a result to a file of its own, which is none of the `protected`.

    Raises:
        StorageError: The file exists and is not to be replaced, or cannot be written.
    """
    with Publication(overwrite=overwrite, protected=protected) as publication:
        hidden = publication.stage(path)
        write_page(page_of(result), hidden)
        publication.commit()
