"""Markup that escapes, and colours that everyone can tell apart."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dpo_pipeline.report import markup
from dpo_pipeline.report.charts import DARK, LIGHT
from page_tools import EVIL

# Markup


def test_text_is_escaped_and_markup_is_not():
    inner = markup.element("b", "<&>\"'", class_="x")
    assert markup.element("p", inner, " & ", data_x='"<', hidden=True, id=None) == (
        '<p data-x="&quot;&lt;" hidden><b class="x">&lt;&amp;&gt;&quot;&#x27;</b> &amp; </p>'
    )


@pytest.mark.parametrize("text", [*EVIL, "\u2028\u2029", "\\u003c", "]]>", "é\N{GRINNING FACE}"])
def test_data_for_scripts_come_back_as_they_were(text):
    block = markup.json_block({text: [text]}, id="x")
    inside = block.removeprefix('<script type="application/json" id="x">')
    inside = inside.removesuffix("</script>")
    assert not set(inside) & set("<>&\u2028\u2029")
    assert json.loads(inside) == {text: [text]}


def test_data_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        markup.json_block({"x": math.nan})


# Colours


def luminance(colour):
    """Return relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_is_enough_to_read(palette):
    for paper in (palette.paper, palette.panel):
        for text in (palette.ink, palette.muted):
            assert contrast(text, paper) >= 4.5
        for mark in (palette.chosen, palette.rejected, palette.neutral, palette.mark):
            assert contrast(mark, paper) >= 3.0


# G. Machado et al., "A Physiologically-based Model for Simulation of Color Vision
# Deficiency", 2009.
BLIND = {
    "protan": [
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ],
    "deutan": [
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.01182, 0.04294, 0.968881),
    ],
    "tritan": [
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.3039),
    ],
}


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("kind", BLIND)
def test_the_two_sides_stay_apart_without_a_cone(palette, kind):
    seen = []
    for colour in (palette.chosen, palette.rejected, palette.neutral):
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen.append(np.clip(np.array(BLIND[kind]) @ linear, 0, 1) ** (1 / 2.4))
    chosen, rejected, neutral = seen
    assert np.linalg.norm(chosen - rejected) > 0.35
    assert np.linalg.norm(chosen - neutral) > 0.12
    assert np.linalg.norm(rejected - neutral) > 0.12
