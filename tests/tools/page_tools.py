"""A page as a parser sees it, and text that would break one."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import polars as pl

EVIL = ["<script>alert(1)</script>", "</script>", "<!--", '"><img src=x onerror=alert(1)>', "&lt;"]
EMPTY = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """What a page holds: its elements with their attributes, and the text in each kind."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], {}, []
        self.feed(text)
        self.close()
        assert self.open == [], "elements that do not end"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in {*self.open}:
            self.texts[tag][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def specs(self):
        scripts = zip(self.all("script"), self.texts["script"], strict=True)
        return {
            attributes["id"].removeprefix("spec-"): json.loads(text)
            for attributes, text in scripts
            if attributes.get("type") == "application/json"
        }


def values_of(spec, *names):
    """Return the first data of a chart that have all these fields."""
    return next(
        rows
        for rows in spec["datasets"].values()
        if rows and all(set(names) <= set(row) for row in rows)
    )


def of_margins(margins, **columns):
    """Return pairs whose log-ratio differences are these, ten times the margin at beta 0.1."""
    n = len(margins)
    return pl.DataFrame(
        {
            "policy_chosen_logps": [-50.0 - i % 5 + 10.0 * m for i, m in enumerate(margins)],
            "policy_rejected_logps": [-60.0 - i % 3 for i in range(n)],
            "ref_chosen_logps": [-50.0 - i % 5 for i in range(n)],
            "ref_rejected_logps": [-60.0 - i % 3 for i in range(n)],
            **columns,
        }
    )
