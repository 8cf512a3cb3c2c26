"""The page as a value, and the templates that turn it into one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined

from dpo_pipeline.evaluation import Finding
from dpo_pipeline.rendering import with_minus
from dpo_pipeline.report.charts import DARK, LIGHT, Figure, custom_properties
from dpo_pipeline.report.page_tables import Table


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure that stands out at the top."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a page under a heading of its own, in the order of the fields."""

    name: str  # the anchor
    title: str
    figures: Sequence[Figure] = ()  # several have headings of their own
    findings: Sequence[Finding] = ()  # one without a title is its evidence alone
    parts: Sequence[Table | str] = ()  # texts are paragraphs


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A whole report."""

    title: str
    verdict: str  # the answer, in a sentence
    lead: Sequence[str]  # what else the reader must know at once, as paragraphs
    tiles: Sequence[Tile]
    sections: Sequence[Section]

    def html(self) -> str:
        """Return the page as one HTML document."""
        bundle, script = _bundle(), _asset("page.js")
        template = templates().get_template("page.html.j2")
        return template.render(
            page=self,
            policy=_policy(bundle, script),
            scripts=(bundle, script),
            style=_asset("style.css"),
            light=custom_properties(LIGHT),
            dark=custom_properties(DARK),
            licences=_asset("licences.txt"),
            version=version("dpo_pipeline"),
        )


@cache
def templates() -> Environment:
    """Return the templates of this room; they escape every text that is not marked as safe."""
    made = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["minus"] = with_minus
    # JSON has no NaN. Jinja's own policy is to sort keys, which is of no use here.
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return made


def _policy(*scripts: str) -> str:
    """Return the content security policy under which these scripts run, and no other."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'"
        for each in scripts
    )
    # No unsafe-eval: Vega's interpreter evaluates the expressions of charts (`ast` in page.js).
    return (
        f"default-src 'none'; script-src {hashes}; "
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )


@cache
def _bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, which takes two seconds to make."""
    from vl_convert import javascript_bundle

    bundle: str = javascript_bundle("window.vegaEmbed = vegaEmbed;")
    if "</script" in bundle.lower() or "<!--" in bundle:
        raise ValueError("the charts' script cannot stand in a page")
    return bundle


@cache
def _asset(name: str) -> str:
    return files("dpo_pipeline.report").joinpath(name).read_text(encoding="utf-8")
