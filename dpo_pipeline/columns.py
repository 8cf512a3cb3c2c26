"""The one place for column names: roles, their aliases, and the columns that the pipeline adds."""

# ruff: noqa: PLC0414  the roles are handed on under their names
from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Final, Literal

from dpo_pipeline.errors import NoSuchColumn, UsageError
from dpo_pipeline.roles import (
    ALL_LOGPS as ALL_LOGPS,
    AMBIGUOUS as AMBIGUOUS,
    CHOSEN_MASK as CHOSEN_MASK,
    CHOSEN_TOKENS as CHOSEN_TOKENS,
    COMPLETION_ID as COMPLETION_ID,
    COUNT_OF as COUNT_OF,
    COUNT_ROLES as COUNT_ROLES,
    EXTRA_ROLES as EXTRA_ROLES,
    KL_POLICY as KL_POLICY,
    KL_REF as KL_REF,
    LABEL as LABEL,
    LOGP_ROLES as LOGP_ROLES,
    LOGPS as LOGPS,
    MASK_OF as MASK_OF,
    OFFSET as OFFSET,
    OTHER_SIDE as OTHER_SIDE,
    PAIR_ID as PAIR_ID,
    POLICY as POLICY,
    POLICY_CHOSEN as POLICY_CHOSEN,
    POLICY_REJECTED as POLICY_REJECTED,
    PREFERENCE_PROBABILITY as PREFERENCE_PROBABILITY,
    PREFERENCES as PREFERENCES,
    PROMPT_ID as PROMPT_ID,
    RANK as RANK,
    REF as REF,
    REF_CHOSEN as REF_CHOSEN,
    REF_REJECTED as REF_REJECTED,
    REJECTED_MASK as REJECTED_MASK,
    REJECTED_TOKENS as REJECTED_TOKENS,
    ROLES as ROLES,
    SCORE as SCORE,
    TEXTS as TEXTS,
    TOKEN_MASK as TOKEN_MASK,
    TOKENS as TOKENS,
    TOKENS_OF as TOKENS_OF,
    Completion as Completion,
    Kind as Kind,
    Model as Model,
    Needs as Needs,
    Role as Role,
    RowOf as RowOf,
    Texts as Texts,
)

MAPPING: Final = "Pairs(columns={role: name}), or --column role=name"
"""How to map a column to a role, as errors say it."""

_SHOWN: Final = 20
"""Most columns that an error lists."""


@dataclass(frozen=True, slots=True)
class Added:
    """A column that the pipeline adds to a table."""

    name: str
    description: str
    _: KW_ONLY
    type: Literal["number", "integer", "string", "array"] = "number"
    unit: str | None = None
    nullable: bool = False


CHOSEN_LOGRATIO: Final = "chosen_logratio"
REJECTED_LOGRATIO: Final = "rejected_logratio"
CHOSEN_REWARD: Final = "chosen_reward"
REJECTED_REWARD: Final = "rejected_reward"
REWARD_MARGIN: Final = "reward_margin"
LOSS: Final = "loss"
REWARD_ACCURACY: Final = "reward_accuracy"

SCORED: Final = (
    *(
        Added(
            name,
            f"Policy minus reference log-probability of the {side} completion; without "
            "a reference, the policy's",
            unit="nats",
        )
        for name, side in ((CHOSEN_LOGRATIO, "chosen"), (REJECTED_LOGRATIO, "rejected"))
    ),
    Added(
        CHOSEN_REWARD,
        "Implicit reward of the chosen completion: beta * chosen_logratio for the DPO "
        "loss, beta times what else the loss compares",
        unit="nats",
    ),
    Added(REJECTED_REWARD, "Implicit reward of the rejected completion, likewise", unit="nats"),
    Added(REWARD_MARGIN, "Chosen minus rejected implicit reward", unit="nats"),
    Added(LOSS, "Loss of the pair; the DPO loss is -log sigmoid(reward_margin)", unit="nats"),
)

LOGRATIO: Final = "logratio"
REWARD: Final = "reward"
KL: Final = "kl"
SCORED_COMPLETIONS: Final = (
    Added(
        LOGRATIO,
        "Policy minus reference log-probability of the completion; without a reference, the "
        "policy's",
        unit="nats",
    ),
    Added(REWARD, "Implicit reward of the completion: beta * logratio", unit="nats"),
    Added(
        KL,
        "KL term of the batch, before beta; null for a loss that has none",
        unit="nats",
        nullable=True,
    ),
    Added(
        LOSS,
        "Loss of the completion; of a listwise loss its term, so that those of a prompt add up "
        "to the loss of the prompt",
        nullable=True,
    ),
)
"""What `score` adds to completions."""

ADDED_TO: Final[Mapping[RowOf, tuple[Added, ...]]] = {
    "pair": SCORED,
    "completion": SCORED_COMPLETIONS,
}
"""What `score` adds to a row."""

OF_INPUT: Final = "__dpo_pipeline_input_"
"""Begins the name, in prepared pairs, of an input column that a scored one takes the name of."""

SOURCE_ROW: Final = "source_row"
BROKEN_RULES: Final = "broken_rules"
INVALID: Final = (
    Added(SOURCE_ROW, "Row of the pair in its input file, from 0", type="integer"),
    Added(BROKEN_RULES, "The rules that the pair breaks, as column.rule", type="array"),
)

SELECTION_VALUE: Final = "selection_value"
SELECTION_RANK: Final = "selection_rank"
SELECTED: Final = (
    Added(SELECTION_VALUE, "What the rule ranks pairs by"),
    Added(
        SELECTION_RANK,
        "Place of the pair among the ranked pairs of its subset, from 1",
        type="integer",
    ),
)
CONTRADICTION: Final = "contradiction"
CONTRADICTION_GROUP: Final = "contradiction_group"
CONTRADICTING: Final = (
    Added(CONTRADICTION, "duplicate, swap, cycle: all that it is", type="string"),
    Added(
        CONTRADICTION_GROUP,
        "Number of the pairs that contradict or repeat each other",
        type="integer",
    ),
)

BATCH: Final = "batch"
SHOWN: Final = "shown: "
"""What the name of a column that was asked for begins with in lists of the worst pairs."""
OF_SUBSET: Final = "subset: "
"""The same for a column of `by`."""
N_PAIRS: Final = "n_pairs"
N_CHOSEN: Final = "n_chosen"
N_VALID: Final = "n_valid"
N_INVALID: Final = "n_invalid"
COUNTS: Final = (
    Added(N_PAIRS, "Pairs read", type="integer", unit="pairs"),
    Added(N_VALID, "Pairs that keep every rule", type="integer", unit="pairs"),
    Added(N_INVALID, "Pairs that break a rule or more", type="integer", unit="pairs"),
)
BATCH_MEANS: Final = (
    Added(BATCH, "Batch number, from 0", type="integer"),
    *COUNTS,
    Added(LOSS, "Mean loss of the valid pairs", unit="nats", nullable=True),
    Added(
        REWARD_ACCURACY,
        "Share of the valid pairs whose chosen reward is above the rejected one",
        nullable=True,
    ),
    Added(REWARD_MARGIN, "Mean reward margin of the valid pairs", unit="nats", nullable=True),
)


ELSEWHERE: Final = "; if the reference's are in another file, give that as reference (--reference)"
"""What is said where the reference's log-probs are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Which input column plays which role, and what stands in the way."""

    mapping: Mapping[str, str]  # canonical name to input column, for the roles that were found
    guesses: Mapping[str, str]  # role that is missing to the column that may be it
    problems: tuple[str, ...]  # one sentence for each role that could not be settled


def is_spelled(role: Role, names: Collection[str], explicit: Mapping[str, str] | None) -> bool:
    """Return whether a column is named as a role is, or is mapped to it."""
    return role.name in (explicit or {}) or any(n in names for n in (role.name, *role.aliases))


def row_of(names: Collection[str], explicit: Mapping[str, str] | None = None) -> RowOf:
    """Return which contract columns are of: completions' if such log-probs stand alone."""
    found = {
        row: any(
            is_spelled(each, names, explicit)
            for text in texts
            for role in (text.policy, text.ref)
            for each in (role, TOKENS_OF[role.name])
        )
        for row, texts in TEXTS.items()
    }
    # A completion has an id of its own, whatever its log-probs are called.
    is_one = found["completion"] or is_spelled(COMPLETION_ID, names, explicit)
    return "completion" if is_one and not found["pair"] else "pair"


def needs_of_columns(
    names: Collection[str],
    explicit: Mapping[str, str] | None = None,
    *,
    extras: tuple[str, ...] | None = None,
) -> Needs:
    """Return what is asked of the columns that are there, by the contract that they are of.

    A reference is asked for of pairs, and of completions if its column is there. `extras` are
    further roles; if None, the prompt and the first of `preferred`, if they are there.
    """
    if row_of(names, explicit) == "pair":
        return ALL_LOGPS
    there = [each for each in PREFERENCES if is_spelled(each, names, explicit)]
    better = preferred(there, explicit)
    asked = (*(each for each in [PROMPT_ID] if is_spelled(each, names, explicit)), *better[:1])
    has_reference = any(is_spelled(r, names, explicit) for r in (REF, TOKENS_OF[REF.name]))
    return Needs(
        row="completion",
        reference=has_reference,
        extras=tuple(each.name for each in asked) if extras is None else extras,
    )


def preferred(there: Iterable[Role], explicit: Mapping[str, str] | None) -> list[Role]:
    """Return what can say which completion is better, first what the user mapped."""
    return sorted(there, key=lambda role: role.name not in (explicit or {}))


def resolve(
    names: Iterable[str],
    explicit: Mapping[str, str] | None = None,
    needs: Needs | None = None,
) -> Resolution:
    """Find the column of each role among `names`.

    An explicit mapping (role to column) wins over names and aliases. Roles that are not needed
    are not looked for; without `needs`, the columns decide which contract they are of.
    """
    names = list(names)
    if explicit is not None and not (
        isinstance(explicit, Mapping) and all(isinstance(c, str) for c in explicit.values())
    ):
        raise UsageError(f"columns must map roles to column names, found {explicit!r}")
    explicit = dict(explicit or {})
    for name in explicit:
        if name not in ROLES:
            raise UsageError(
                f"{name!r} is not a column role{did_you_mean(name, ROLES)}; "
                f"the roles are {', '.join(ROLES)}"
            )
    mapping: dict[str, str] = {}
    guesses: dict[str, str] = {}
    problems: list[str] = []
    needs = needs_of_columns(names, explicit) if needs is None else needs
    for role in filter(needs.have, ROLES.values()):
        if role.name in explicit:
            column = explicit[role.name]
            if column in names:
                mapping[role.name] = column
            else:
                free = [n for n in names if n not in explicit.values()]
                nearest = _nearest(column, free)
                guesses |= {role.name: nearest} if nearest else {}
                problems.append(
                    NoSuchColumn(
                        f"{role.name}: it is mapped to {column!r}, which is not a column"
                        f"{did_you_mean(column, free)}; {_there(names)}"
                    )
                )
            continue
        found = [n for n in (role.name, *role.aliases) if n in names and n not in explicit.values()]
        found = found or _policys_alone(role, [n for n in names if n not in explicit.values()])
        if len(found) == 1:
            mapping[role.name] = found[0]
        elif found:
            problems.append(
                f"{role.name}: {' and '.join(map(repr, found))} could both be it; "
                f"map one, for instance {role.name}={found[0]} ({MAPPING})"
            )
        elif needs.require(role) and not _can_be_made(role, mapping):
            near = _near(role, names) or _beside(role, names, {**mapping, **guesses})
            guess = near if near is not None else _ambiguous(role, names, mapping)
            guesses |= {} if guess is None else {role.name: guess}
            problems.append(_missing(role, names, near))
    doubled = {c for c in mapping.values() if list(mapping.values()).count(c) > 1}
    problems += [
        f"column {c!r} is mapped to {' and '.join(r for r in mapping if mapping[r] == c)}"
        for c in sorted(doubled)
    ]
    return Resolution(mapping=mapping, guesses=guesses, problems=tuple(problems))


def _policys_alone(role: Role, names: list[str]) -> list[str]:
    """Return ambiguous names that are the policy's, since the reference's stand beside them."""
    reference = {POLICY_CHOSEN: REF_CHOSEN, POLICY_REJECTED: REF_REJECTED}.get(role)
    if reference is None or not any(n in names for n in (reference.name, *reference.aliases)):
        return []
    side = "chosen" if role is POLICY_CHOSEN else "rejected"
    return [name for name in names if name in AMBIGUOUS and name.startswith(side)]


def _can_be_made(role: Role, mapping: Mapping[str, str]) -> bool:
    """Return whether this role can be made from token lists that are there."""
    if role.kind == "count":
        logps = (name for name, count in COUNT_OF.items() if count is role)
        return any(TOKENS_OF[name].name in mapping for name in logps)
    return role.kind == "logp" and TOKENS_OF[role.name].name in mapping


def _near(role: Role, names: list[str]) -> str | None:
    """Return the column whose name is nearly that of a role."""
    close = [s for n in names for s in (role.name, *role.aliases) if _close(n, [s])]
    taken = (*AMBIGUOUS, *ROLES)  # which say that they are something else
    near = [n for n in names if n not in taken and any(_close(n, [s]) for s in close)]
    if role in LOGP_ROLES and not near:
        near = _by_words(role, names)
    if role in COUNT_ROLES:
        side = role.name.partition("_")[0]
        near += [n for n in names if side in n.lower() and _COUNT.search(n.lower())]
    return near[0] if near else None


def _beside(role: Role, names: list[str], found: Mapping[str, str]) -> str | None:
    """Return the column that is called as the policy's is, and the reference: `lp_c_ref`."""
    ours = found.get(role.name.replace("ref", "policy", 1), "")
    if role not in LOGP_ROLES or not ours:
        return None
    bare = _words(ours) - {"policy"}
    like = [n for n in names if _words(n) in ({*bare, "ref"}, {*bare, "reference"})]
    return like[0] if len(like) == 1 else None


def _words(name: str) -> set[str]:
    return set(re.split(r"[\W_]+", name.lower()))


def _by_words(role: Role, names: list[str]) -> list[str]:
    """Return the one column whose name holds model, side and log-prob in another order."""
    model, side = role.name.split("_")[:2]
    held = [n for n in names if all(w in n.lower() for w in (model, side)) and _LOGP.search(n)]
    return held if len(held) == 1 else []


def _ambiguous(role: Role, names: list[str], mapping: Mapping[str, str]) -> str | None:
    """Return a name that tools use for either model, as a guess for the role.

    It is guessed to be the policy's, as in TRL, unless the policy has a column.
    """
    of_reference = role in (REF_CHOSEN, REF_REJECTED)
    side = "chosen" if "chosen" in role.name else "rejected"
    if role not in LOGP_ROLES or (of_reference and f"policy_{side}_logps" not in mapping):
        return None
    return next((name for name in names if name in AMBIGUOUS and name.startswith(side)), None)


def _missing(role: Role, names: list[str], near: str | None) -> str:
    """Return what is to be said of a missing role; `ColumnError` prints once what several say."""
    side = "chosen" if "chosen" in role.name else "rejected"
    of_reference = role in (REF_CHOSEN, REF_REJECTED, REF)
    parts = [f"{role.name}: missing"]
    known = [name for name in names if name in AMBIGUOUS and side in name]
    if known:
        parts.append(f"{known[0]!r} may be it, a name that is {AMBIGUOUS[known[0]]}")
    if near:
        parts.append(f"did you mean {near!r}?")
    parts.append(f"if a column has another name, map it: {MAPPING}")
    if role in (KL_POLICY, KL_REF):
        parts.append("or give the KL term itself (--loss-arg kl=0)")
    return "; ".join(parts) + (ELSEWHERE if of_reference else "") + f"; {_there(names)}"


def _there(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the columns are {shown}{more}" if names else "there are no columns"


_LOGP: Final = re.compile(r"log|lp|prob", re.IGNORECASE)
_COUNT: Final = re.compile(r"(?:^|_)(?:len|lens|length|lengths|n_?tok|num_?tok|tok_?cnt)|tokens?$")
"""Names that token counts may have."""


def _close(word: str, options: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(word, list(options), n=1, cutoff=0.85)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for a near miss, else an empty string."""
    near = _nearest(word, options)
    return f" (did you mean {near!r}?)" if near else ""


def _nearest(word: str, options: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(word, list(options), n=1, cutoff=0.7)), "")
