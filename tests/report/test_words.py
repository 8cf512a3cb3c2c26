"""Words of the page: numbers, intervals, verdicts, and what cannot be said."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import polars as pl
import pytest

import dpo_pipeline
from dpo_pipeline.report import evaluation_charts, page_of
from dpo_pipeline.report.charts import LIGHT
from dpo_pipeline.report.evaluation_page import verdict
from dpo_pipeline.statistics import words
from dpo_pipeline.statistics.intervals import Interval
from page_tools import Page, of_margins
from pair_tools import EXAMPLES

pytestmark = pytest.mark.usefixtures("few_groups")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param(words.share(0.65585), "65.6%", id="share"),
        pytest.param(words.share(0.0), "0.0%", id="none"),
        pytest.param(words.share(1.0), "100.0%", id="all"),
        pytest.param(words.share(0.0001), "<0.1%", id="hardly any"),
        pytest.param(words.share(0.99999), ">99.9%", id="nearly all"),
        pytest.param(words.share(None), "–", id="no share"),  # noqa: RUF001
        pytest.param(words.number(0.62084), "0.6208", id="number"),
        pytest.param(words.number(-0.62084), "−0.6208", id="minus"),  # noqa: RUF001
        pytest.param(words.number(196.0123), "196.0", id="hundreds"),
        pytest.param(words.number(12345.6), "12,346", id="thousands"),
        pytest.param(words.number(0.0), "0", id="zero"),
        pytest.param(words.number(1.5e9), "1.500e+09", id="huge"),
        pytest.param(words.number(2e-7, 3), "2.00e−07", id="tiny"),  # noqa: RUF001
        pytest.param(words.number(math.nan), "nan", id="not a number"),
        pytest.param(words.as_written(-0.12345678), "-0.12345678", id="as it is"),
        pytest.param(words.number(None), "–", id="no number"),  # noqa: RUF001
        pytest.param(words.points(-0.0063), "−0.6 points", id="points"),  # noqa: RUF001
        pytest.param(words.p_value(9.9e-5), "<0.0001", id="small p"),
        pytest.param(words.p_value(1e-4), "0.0001", id="smallest p"),
        pytest.param(words.p_value(0.0213), "0.021", id="p"),
        pytest.param(words.p_value(0.0496), "0.0496", id="p just below a level"),
        pytest.param(words.p_value(0.0504), "0.0504", id="p just above a level"),
        pytest.param(words.p_value(0.05), "0.05", id="p at a level"),
        pytest.param(words.number(3.24198e-09), f"3.242e{words.MINUS}09", id="digits known"),
        pytest.param(words.number(3.24198e-11), f"3.2e{words.MINUS}11", id="two digits known"),
        pytest.param(words.number(3.2e-13), f"<1e{words.MINUS}12", id="no digit known"),
        pytest.param(words.short_number(3.24198e-12), "3e-12", id="one digit known"),
        pytest.param(words.p_equation(9.9e-5), "p < 0.0001", id="small p in a sentence"),
        pytest.param(words.p_equation(0.0213), "p = 0.021", id="p in a sentence"),
        pytest.param(words.as_written(None), "(null)", id="null"),
        pytest.param(words.as_written("  "), "(empty)", id="blank"),
        pytest.param(words.counted(1, "pair"), "1 pair", id="one"),
        pytest.param(words.counted(2000, "pair"), "2,000 pairs", id="many"),
    ],
)
def test_numbers_are_written_as_people_do(written, expected):
    assert written == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        pytest.param(0.5, 0.7, "62.8%", id="20 points"),
        pytest.param(0.62, 0.6301, "62.8%", id="1 point"),
        pytest.param(0.627, 0.6281, "62.77%", id="a tenth of a point"),
        pytest.param(0.6276, 0.62771, "62.765%", id="a hundredth"),
        pytest.param(0.627653, 0.627653 + 1e-12, "62.7653%", id="nothing"),
        pytest.param(0.6, 0.6, "62.8%", id="no width"),
    ],
)
def test_a_share_has_the_digits_that_are_known(low, high, expected):
    interval = Interval(low=low, high=high, level=0.95, method="")
    assert words.share_within(interval)(0.627653) == expected


def test_an_interval_in_words():
    interval = Interval(low=0.5, high=0.625, level=0.975, method="")
    assert words.between(interval, words.share) == "50.0% to 62.5%"
    assert words.between(None) == "–"  # noqa: RUF001


def without_doubts(evaluation):
    """What made-up log-probs of two models are doubted for is not what these tests are about."""
    return replace(evaluation, invalid=replace(evaluation.invalid, doubts=()))


@pytest.mark.parametrize(
    ("right", "told"),
    [
        pytest.param(90, "better than a coin toss", id="better"),
        pytest.param(10, "worse than a coin toss", id="worse"),
        pytest.param(52, "not told apart from a coin toss", id="open"),
    ],
)
def test_the_verdict(right, told):
    signs = [1.0 if i < right else -1.0 for i in range(100)]
    evaluation = without_doubts(dpo_pipeline.evaluate(of_margins(signs), statistics=True))
    said = verdict(evaluation, evaluation.statistics)
    assert said.startswith(f"The chosen completion has the higher reward in {right}.0% (95% int")
    assert said.endswith(f"of 100 pairs: {told}.")


@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")
@pytest.mark.parametrize(
    ("n", "beta", "said"),
    [
        pytest.param(30, 0.1, "All 30 pairs are ties", id="equal models"),
        pytest.param(30, 0.0, "All 30 pairs are ties", id="beta 0"),
        pytest.param(1, 0.1, "The pair is a tie", id="one pair"),
    ],
)
def test_rewards_that_are_all_ties_prefer_nothing(n, beta, said):
    pairs = of_margins([0.0 if beta else 0.5] * n)
    evaluation = dpo_pipeline.evaluate(pairs, beta=beta, statistics=True)
    assert verdict(evaluation, evaluation.statistics) == f"{said}: the rewards prefer nothing."
    if n > 1 and beta:  # one page shows it
        page = Page(evaluation.report())
        assert "rewards" not in page.specs()
        assert not any("best rule without rewards" in text for text in page.texts["p"])


@pytest.mark.usefixtures("without_charts")
@pytest.mark.repeats(1)  # the words of the verdict are in `evaluation`
@pytest.mark.parametrize("tie", [True, False])
def test_the_lead_says_how_the_rewards_stand(tie):
    # The models' own log-probs prefer the rejected completion of all pairs but one.
    margins = [0.3] * 38 + [0.0 if tie else -0.3] * 2
    chosen = [-70.0 + 20.0 * (i == 0) for i in range(40)]
    pairs = of_margins(margins).with_columns(
        ref_chosen_logps=pl.Series(chosen),
        policy_chosen_logps=pl.Series([c + 10.0 * m for c, m in zip(chosen, margins, strict=True)]),
    )
    evaluation = without_doubts(dpo_pipeline.evaluate(pairs, statistics=True))
    page = Page(evaluation.report())
    (lead,) = [text for text in page.texts["p"] if text.startswith("The best rule")]
    # 38 of 40 are right, and 1 of 40 under the reference alone.
    assert 'The best rule without rewards, "prefer: reference", is right in 2.5% (' in lead
    assert "); the rewards differ from it by +92.5 points (+" in lead
    assert lead.endswith(" A tie counts as wrong.") == tie


@pytest.mark.usefixtures("without_charts")
def test_the_lead_does_not_say_what_a_finding_says():
    # The reference prefers the chosen completion of every pair.
    evaluation = dpo_pipeline.evaluate(of_margins([0.3, 0.4] * 20), statistics=True)
    page = Page(without_doubts(evaluation).report())
    assert not any("best rule without rewards" in text for text in page.texts["p"])
    assert any("the rewards differ from it by" in text for text in page.texts["p"])


@pytest.mark.usefixtures("without_charts")
def test_advice_that_findings_share_is_read_once():
    evaluation = dpo_pipeline.evaluate(EXAMPLES / "pairs.parquet", statistics=True)
    findings = [each for each in evaluation.findings if each.name == "baseline"]
    assert len(findings) > 1
    assert len({each.advice for each in findings}) == 1
    assert Page(evaluation.report()).texts["p"].count(findings[0].advice) == 1
    assert " ".join(str(evaluation).split()).count(findings[0].advice) == 1


@pytest.mark.repeats(2)  # one with a unit, one without
@pytest.mark.parametrize(
    ("loss", "title", "in_table"),
    [
        pytest.param("sigmoid", "Mean loss (nats)", "mean loss, nats", id="DPO"),
        pytest.param("simpo", "Mean loss (nats)", "mean loss, nats", id="SimPO"),
        pytest.param("ipo", "Mean loss", "mean loss", id="IPO"),
        # A second one without a unit, as IPO.
        pytest.param("hinge", "Mean loss", "mean loss", id="hinge", marks=pytest.mark.slow),
    ],
)
def test_a_loss_has_a_unit_where_it_is_a_log_likelihood(loss, title, in_table):
    tokens = {f"{side}_num_tokens": [7, 9] * 40 for side in ("chosen", "rejected")}
    pairs = of_margins([0.1, -0.2] * 40, **tokens)
    evaluation = dpo_pipeline.evaluate(pairs, loss=loss, statistics=True)
    page = Page(evaluation.report())
    assert in_table in page.texts["td"]
    assert title in page.texts["dt"]
    course = json.dumps(page.specs()["course"])
    assert ("mean loss (nats)" in course) == (title != "Mean loss")
    (said,) = [t for t in page.texts["figcaption"] if t.startswith("Mean loss of")]
    assert ("nats" in said) == (title != "Mean loss")


@pytest.mark.usefixtures("without_charts")
def test_the_best_beta_is_of_the_dpo_loss(page):
    assert any(text.startswith("Best beta (0.1") for text in page.texts["dt"])
    evaluation = dpo_pipeline.evaluate(
        of_margins([0.1, 0.3, -0.2] * 20), loss="ipo", statistics=True
    )
    ipo = Page(evaluation.report())
    assert any(text.startswith("Best beta of the DPO loss (0.1") for text in ipo.texts["dt"])


@pytest.mark.repeats(3)  # the sentence is chosen by signs
@pytest.mark.parametrize(
    ("margins", "said"),
    [
        pytest.param(
            [0.1, 0.5], "every margin is above 0, so the loss keeps falling as beta grows"
        ),
        pytest.param([0.0, 0.5], "no margin is below 0, so the loss keeps falling as beta grows"),
        pytest.param([-0.1, -0.5], "every margin is below 0, so the loss keeps falling as beta n"),
        pytest.param([-0.1, 0.0], "no margin is above 0, so the loss keeps falling as beta nears"),
        pytest.param([-0.5, 0.1], "margins are below 0 on the whole, so the loss keeps falling as"),
        pytest.param([0.0, 0.0], "all margins are 0, so beta changes nothing"),
    ],
)
@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")
def test_it_is_said_why_no_beta_is_best(margins, said):
    found = dpo_pipeline.evaluate(of_margins(margins), statistics=True).statistics
    figure = evaluation_charts._betas(0.1, found, LIGHT)  # noqa: SLF001
    assert figure.caption.startswith(f"No beta is best: {said}")


def test_one_run_is_no_course():
    page = Page(dpo_pipeline.evaluate(of_margins([0.1, -0.2]), statistics=True).report())
    assert "course" not in page.specs()
    assert "(empty)" not in page.texts["td"]


@pytest.mark.usefixtures("without_charts")
def test_no_finding_is_no_praise(evaluation, monkeypatch):
    monkeypatch.setattr(type(evaluation), "findings", ())
    page = Page(evaluation.report())
    assert "No check found anything wrong with these figures." in page.texts["p"]


@pytest.mark.usefixtures("without_charts")
def test_a_page_has_no_secrets_of_its_sources():
    address = "s3://key:hushhush@bucket/pairs.parquet?token=mum"
    found = dpo_pipeline.evaluate(of_margins([1.0, -1.0, 2.0] * 20), statistics=True)
    result = replace(found, source=address, invalid=replace(found.invalid, source=address))
    for text in (page_of(result), result._repr_html_()):
        assert "***@bucket/pairs.parquet" in text
        assert "hushhush" not in text
        assert "=mum" not in text
