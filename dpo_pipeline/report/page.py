"""The shell of a page: one file with its style, scripts and charts, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from dpo_pipeline.report.charts import DARK, LIGHT, Figure, custom_properties
from dpo_pipeline.report.markup import Content, Markup, element, json_block

_LICENCES: Final = "licences.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a page with a heading of its own.

    Attributes:
        name: The anchor.
        title: The heading; also in the navigation.
        content: What is in it.
    """

    name: str
    title: str
    content: Content


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A figure that stands out."""

    title: str
    value: str
    note: str = ""


def page(
    *,
    title: str,
    verdict: str,
    lead: Content,
    tiles: Sequence[Tile],
    sections: Sequence[Section],
    made_by: str,
) -> str:
    """Return a whole page.

    Args:
        title: What was evaluated.
        verdict: The answer, in a sentence.
        lead: What else is to be known at once.
        tiles: The main figures.
        sections: In the order of reading.
        made_by: What made the page.
    """
    bundle, script = Markup(_bundle()), Markup(_asset("page.js"))
    colours = (
        f":root {{ {custom_properties(LIGHT)} }}\n@media screen and (prefers-color-scheme: dark) "
        f"{{ :root {{ {custom_properties(DARK)} }} }}\n"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        # The browser itself refuses whatever is not in this file, scripts of a dataset's text too.
        element("meta", http_equiv="Content-Security-Policy", content=_policy(bundle, script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(colours + _asset("style.css"))),
    )
    links = [element("li", element("a", each.title, href=f"#{each.name}")) for each in sections]
    body = element(
        "body",
        element("a", "Skip to the report", href="#report", class_="skip"),
        element(
            "header",
            element("h1", title),
            element("p", verdict, class_="verdict"),
            lead,
            element("dl", [_tile(each) for each in tiles], class_="tiles"),
        ),
        element("nav", element("ul", links), aria_label="Sections"),
        element(
            "main",
            element(
                "noscript",
                element("p", "Charts need scripts; the tables and sentences here do not."),
            ),
            [_section(each) for each in sections],
            id="report",
        ),
        element(
            "footer",
            element("p", made_by),
            element(
                "details",
                element("summary", "Licences of the scripts in this page"),
                element("pre", _asset(_LICENCES)),
            ),
        ),
        element("script", bundle, type="module"),
        element("script", script, type="module"),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def figure(of: Figure, *, more: Content = None) -> Markup:
    """Return a chart with its caption; `more` stands below, such as a table of the same."""
    spec = of.chart.to_dict()
    spec["width"] = "container"
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    chart = element(
        "div",
        class_="chart",
        data_spec=f"spec-{of.name}",
        role="img",
        aria_label=f"{of.title}. {of.description}",
        style=f"min-height: {spec['height']}px",
    )
    return element(
        "figure",
        chart,
        element("figcaption", of.caption),
        json_block(spec, id=f"spec-{of.name}"),
        more,
    )


def folded(summary: str, *content: Content) -> Markup:
    """Return content that shows when asked for."""
    return element("details", element("summary", summary), *content)


def _section(section: Section) -> Markup:
    heading = element("h2", section.title, id=f"{section.name}-title")
    return element(
        "section",
        heading,
        section.content,
        id=section.name,
        aria_labelledby=f"{section.name}-title",
    )


def _tile(tile: Tile) -> Markup:
    note = element("dd", tile.note, class_="note") if tile.note else None
    return element(
        "div", element("dt", tile.title), element("dd", tile.value, class_="value"), note
    )


def _policy(*scripts: str) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'"
        for each in scripts
    )
    # Vega turns the expressions of its charts into functions, which is what unsafe-eval allows.
    return (
        f"default-src 'none'; script-src {hashes} 'unsafe-eval'; "
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
