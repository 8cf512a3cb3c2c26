"""Everything that has a name in outputs, explained from its declaration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from dpo_pipeline.arguments import Option, options_of
from dpo_pipeline.columns import BATCH_MEANS, CONTRADICTING, INVALID, ROLES, SCORED, SELECTED
from dpo_pipeline.comparison import SUBSET_FIGURES
from dpo_pipeline.errors import MEANINGS, UsageError
from dpo_pipeline.evaluation import BASELINES, words_of
from dpo_pipeline.losses import DIALECTS, EVERY_LOSS
from dpo_pipeline.options import CALLS
from dpo_pipeline.published.document_texts import (
    HEADS,
    NUMBERS,
    OTHER_HEADS,
    OTHER_KEYS,
    RESULTS,
)
from dpo_pipeline.published.explanations import DOUBTS, FINDINGS, OTHER_NAMES, RULES
from dpo_pipeline.ranking import RANKING_FIGURES
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

_OF_RANKINGS: Final = MappingProxyType(
    {"kendall_tau": ("tau_b", "tau-b", "Kendall's tau-b"), "top_one": ("credit",)}
)
_ENDS: Final = MappingProxyType(
    {
        "_low": "The lower limit of the interval of this:",
        "_high": "The upper limit of the interval of this:",
        "_difference": "The difference, B minus A, of this:",
        "_a": "Of policy A:",
        "_b": "Of policy B:",
    }
)
"""Endings of names, and what they say of the name before them."""
_BEST_OF: Final = re.compile(r"best_of_\d+")
_HEADS: Final = (
    (re.compile(r"[\d.]+% (?=interval|band)"), ""),
    (re.compile(r"^minus .+"), "minus NAME"),
    (re.compile(r"^(?:[\w ]+ of )?([AB])(?:$|: .*)"), r"of \1"),
)
"""Parts of heads of columns that are of the data or of an option, and what stands for them."""
_GUESSES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One name and what it stands for. Fields that say nothing are empty.

    Attributes:
        name: As outputs and options spell it.
        kind: Figure, column, rule, finding, loss, dialect, format, option, exit code, or part or
            number of a result.
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
        for name, text in texts.items():
            yield Entry(name=name, kind=kind, text=text, also=OTHER_NAMES.get(name, ()))
    for kind, texts in {"part of a result": RESULTS, "number of a result": NUMBERS}.items():
        for name, text in texts.items():
            yield Entry(name=name, kind=kind, text=text, also=OTHER_KEYS.get(name, ()))
    for name, text in HEADS.items():
        printed = OTHER_HEADS.get(name, ())
        yield Entry(name=name, kind="head of a column", text=text, also=printed)
    for code, text in MEANINGS.items():
        also = (f"exit {code}", f"{code}")
        yield Entry(name=f"exit code {code}", kind="exit code", text=_sentence(text), also=also)
    yield from _losses()
    yield from _arguments()
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
    yield from _options()


def _options() -> Iterator[Entry]:
    declared: dict[str, tuple[str, Option]] = {}
    for call, groups in CALLS.items():
        for group in groups.values():
            for field, each in options_of(group, call):
                declared.setdefault(each.flag, (f"{group.__name__}.{field.name}", each))
    for flag, (place, each) in declared.items():
        yield Entry(
            name=flag,
            kind="option",
            text=_sentence(each.help),
            facts=(("in Python", place),),
            also=(flag.removeprefix("--"), place),
        )


def _figures() -> Iterator[Entry]:
    for name, figure in FIGURES.items():
        yield Entry(
            name=name,
            kind="figure",
            text=_sentence(figure.text),
            facts=(
                ("unit", figure.unit),
                ("range", figure.limits),
                ("formula", figure.formula),
                ("read it", figure.reading),
                ("source", figure.source),
                ("in TRL", figure.trl),
            ),
            also=(figure.trl, *figure.also),
        )
    for name, (text, _) in RANKING_FIGURES.items():
        also = _OF_RANKINGS.get(name, ())
        yield Entry(name=name, kind="figure of a ranking", text=_sentence(text), also=also)
    for name, text in SUBSET_FIGURES.items():
        yield Entry(name=name, kind="column of compared subsets", text=_sentence(text))
    for rule in BASELINES:
        for name, also in (
            (f"prefer: {rule}", ()),
            (f"better than: {rule}", (f"advantage/{rule}",)),
        ):
            yield Entry(name=name, kind="figure", text=_sentence(words_of(name)), also=also)


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


def _arguments() -> Iterator[Entry]:
    """Yield the arguments of losses, each with the losses that have it."""
    found: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for loss in EVERY_LOSS.values():
        for p in loss.parameters:
            found.setdefault(p.name, []).append(loss.name)
            texts.setdefault(p.name, f"{p.meaning}, {p.range}")
    for name, losses in found.items():
        facts = (("losses", ", ".join(losses)), ("give it", f"--loss-arg {name}=..."))
        yield Entry(name=name, kind="argument of losses", text=_sentence(texts[name]), facts=facts)


def explain(name: str) -> str:
    """Return what a name of an output is: a figure, column, rule, finding, loss, key or option.

    Every entry of that name is said, however it is spelled (`mean loss`, `length_bias`). A rule is
    found with its column before it (`ref_chosen_logps.finite`), and a figure by TRL's name
    (`rewards/accuracies`).

    Args:
        name: The name, as outputs spell it.

    Raises:
        UsageError: Nothing has that name.

    Example:
        >>> print(dpo_pipeline.explain("tie_rate"))
        tie_rate (figure)
          Share of pairs with equal rewards.
          range: from 0 to 1
          formula: mean(z = 0)
          read it: many ties mean log-probs of a coarse format, or a policy that did not move
    """
    every = [(each, [each.name, *filter(None, each.also)]) for each in entries()]
    said, found = "", _named(name, every)
    for end, meaning in _ENDS.items():
        if not found and name.endswith(end):
            said, found = f"{meaning}\n\n", _named(name.removesuffix(end), every)
    if not found:
        known = [each for _, names in every for each in names]
        words = {*_plain(name).split()}
        near = get_close_matches(name, known)
        near += [each for each in known if words <= {*_plain(each).split()}]
        guesses = list({_plain(each): each for each in reversed(near)}.values())[
            : -_GUESSES - 1 : -1
        ]
        hint = f" (did you mean {' or '.join(map(repr, guesses))}?)" if guesses else ""
        raise UsageError(f"nothing is named {name!r}{hint}; schemas/README.md lists all names")
    return said + "\n\n".join(as_text([each.sentence()]) for each in found)


def _named(name: str, every: Sequence[tuple[Entry, Sequence[str]]]) -> list[Entry]:
    """Return the entries of this name, however it is spelled."""
    name = _BEST_OF.sub("best_of", name)
    for pattern, said in _HEADS:
        name = pattern.sub(said, name)
    wanted = {_plain(name), _plain(name.rpartition(".")[2])}
    found = [each for each, names in every if wanted & {*map(_plain, names)}]
    return found if found or not name.endswith("s") else _named(name[:-1], every)


def _plain(name: str) -> str:
    """Return a name as people may type it."""
    return " ".join(name.lower().lstrip("-").replace("_", " ").replace("-", " ").split())


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."
