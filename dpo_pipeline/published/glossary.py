"""Everything that has a name in outputs, explained from its declaration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dpo_pipeline.columns import (
    BATCH_MEANS,
    CONTRADICTING,
    INVALID,
    ROLES,
    SCORED,
    SELECTED,
    did_you_mean,
)
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation import BASELINES
from dpo_pipeline.losses import DIALECTS, EVERY_LOSS
from dpo_pipeline.published.finding_texts import DOUBTS, FINDINGS, RULES
from dpo_pipeline.rendering import as_text
from dpo_pipeline.selection import RULES as SELECTION_RULES
from dpo_pipeline.sources import FORMATS
from dpo_pipeline.sums import FIGURES
from dpo_pipeline.tables import Sentence

LEGEND: Final = (
    "c, r: log-prob of the chosen, rejected completion under the policy; C, R: under the "
    "reference; h_c = c - C, h_r = r - R; z = beta (h_c - h_r), the margin; L: tokens; "
    "sp(x) = -log sigma(x); e: label_smoothing"
)
"""The letters of the formulas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One name and what it stands for. Fields that say nothing are empty.

    Attributes:
        name: As outputs and options spell it.
        kind: Figure, column, rule, finding, loss, dialect or format.
        text: What it is.
        facts: Further lines, each with its title: unit, formula, source, TRL's name.
        also: Other names that lead here.
    """

    name: str
    kind: str
    text: str
    facts: tuple[tuple[str, str], ...] = ()
    also: tuple[str, ...] = ()

    def sentence(self) -> Sentence:
        """Return it to be read: what it is and its facts stand below its name."""
        facts = (f"{title}: {fact}" for title, fact in self.facts if fact)
        return Sentence(text=f"{self.name} ({self.kind})", more=(self.text, *facts))


def entries() -> Iterator[Entry]:
    """Yield every entry; figures first, then columns, rules, findings, losses and the rest."""
    yield from _figures()
    yield from _columns()
    kinds = {"rule": RULES, "finding about the data": DOUBTS, "finding of statistics": FINDINGS}
    for kind, texts in kinds.items():
        yield from (Entry(name=name, kind=kind, text=text) for name, text in texts.items())
    yield from _losses()
    for chosen in SELECTION_RULES.values():
        yield Entry(
            name=chosen.name,
            kind="rule of selection",
            text=_sentence(f"Keeps {chosen.keeps}"),
            facts=(
                ("formula", chosen.formula),
                ("source", chosen.source),
                ("needs", chosen.needs),
                ("blind to", chosen.blind_to),
            ),
        )
    for each in DIALECTS.values():
        facts = (("beta", f"{each.beta:g}"), *each.sources.items())
        text = f"The conventions of {each.system}."
        yield Entry(name=each.name, kind="dialect", text=text, facts=facts)
    for form in FORMATS.values():
        endings = (("endings", " ".join(form.endings)),)
        text = _sentence(form.description)
        yield Entry(name=form.name, kind="format", text=text, facts=endings)


def _figures() -> Iterator[Entry]:
    for name, figure in FIGURES.items():
        yield Entry(
            name=name,
            kind="figure",
            text=_sentence(figure.text),
            facts=(
                ("unit", figure.unit),
                ("formula", figure.formula),
                ("source", figure.source),
                ("in TRL", figure.trl),
            ),
            also=(figure.trl,),
        )
    for name, words in BASELINES.items():
        yield Entry(name=f"prefer: {name}", kind="figure", text=_sentence(words))
        better = f"Reward accuracy less the {words}, on the same pairs."
        also = (f"advantage/{name}",)
        yield Entry(name=f"better than: {name}", kind="figure", text=better, also=also)


def _columns() -> Iterator[Entry]:
    for role in ROLES.values():
        yield Entry(
            name=role.name,
            kind="input column",
            text=_sentence(role.description),
            facts=(("unit", role.unit or ""), ("also called", ", ".join(role.aliases))),
            also=role.aliases,
        )
    tables = {
        "scored pairs": SCORED,
        "selected pairs": SELECTED,
        "contradicting pairs": CONTRADICTING,
        "invalid pairs": INVALID,
        "batch means": BATCH_MEANS,
    }
    for table, columns in tables.items():
        for added in columns:
            facts = (("unit", added.unit or ""), ("type", added.type))
            text = _sentence(added.description)
            yield Entry(name=added.name, kind=f"column of {table}", text=text, facts=facts)


def _losses() -> Iterator[Entry]:
    for loss in EVERY_LOSS.values():
        parameters = [
            (p.name, f"{p.shown} by default; {p.meaning}, {p.range}") for p in loss.parameters
        ]
        yield Entry(
            name=loss.name,
            kind="loss",
            text=loss.formula,
            facts=(
                ("source", loss.source),
                *parameters,
                *((f"in {system}", term) for system, term in loss.peers.items()),
                ("letters", LEGEND),
            ),
        )


def explain(name: str) -> str:
    """Return what a figure, column, rule, finding, loss, dialect or format is, as text.

    Every entry of that name is said. A rule is found with its column before it
    (`ref_chosen_logps.finite`), and a figure by TRL's name (`rewards/accuracies`).

    Args:
        name: The name, as outputs spell it.

    Raises:
        UsageError: Nothing has that name.

    Example:
        >>> print(dpo_pipeline.explain("brier"))
        brier (figure)
          Brier score of the chance that a margin claims.
          formula: mean((1 - sigmoid(z))^2)
    """
    every = list(entries())
    wanted = {name, name.rpartition(".")[2]}
    found = [each for each in every if {each.name, *each.also} & wanted]
    if not found:
        names = sorted({n for each in every for n in (each.name, *each.also) if n})
        raise UsageError(
            f"nothing is named {name!r}{did_you_mean(name, names)}; schemas/README.md lists all, "
            "and `dpo-pipeline losses` the losses"
        )
    return "\n\n".join(as_text([each.sentence()]) for each in found)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."
