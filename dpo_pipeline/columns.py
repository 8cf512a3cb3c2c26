"""The one place for column names: roles, their aliases, and the columns that the pipeline adds."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Literal

from dpo_pipeline.errors import NoSuchColumn, UsageError

Kind = Literal["logp", "count", "key", "tokens", "mask"]

MAPPING: Final = "Pairs(columns={role: name}), or --column role=name"
"""How to map a column to a role, as errors say it."""

_SHOWN: Final = 20
"""Most columns that an error lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A meaning that an input column can have."""

    name: str
    kind: Kind
    description: str
    required: bool = False
    unit: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Added:
    """A column that the pipeline adds to a table."""

    name: str
    description: str
    _: KW_ONLY
    type: Literal["number", "integer", "string", "array"] = "number"
    unit: str | None = None
    nullable: bool = False


Model = Literal["policy", "ref"]
Completion = Literal["chosen", "rejected"]


def _of_model(model: Model, side: Completion, ending: str, words: Iterable[str]) -> dict[str, Any]:
    # Only names that say whose log-prob it is. `chosen_logps` is the policy's in TRL and the
    # reference's in open-instruct's cache, so it is no alias of either: see AMBIGUOUS.
    name = f"{model}_{side}_{ending}"
    long = "policy" if model == "policy" else "reference"
    spellings = [f"{spelled}_{side}_{word}" for spelled in (model, long) for word in words]
    aliases = tuple(dict.fromkeys(each for each in spellings if each != name))
    return {"name": name, "unit": "nats", "aliases": aliases}


def _under(model: Model) -> str:
    return f"under the {'policy' if model == 'policy' else 'frozen reference model'}"


def _logp(model: Model, side: Completion) -> Role:
    named = _of_model(model, side, "logps", ("logps", "logprobs", "log_probs"))
    named["aliases"] += (f"log_probs_{side}_{model}",)
    text = f"Log-probability of the {side} completion {_under(model)}, summed over its tokens"
    return Role(kind="logp", required=True, description=text, **named)


def _tokens(model: Model, side: Completion) -> Role:
    words = ("token_logps", "token_logprobs", "per_token_logps")
    named = _of_model(model, side, "token_logps", words)
    text = f"Log-probability of each token of the {side} completion {_under(model)}"
    return Role(kind="tokens", description=f"{text}, instead of its sum", **named)


def _count(side: Completion) -> Role:
    text = f"Tokens of the {side} completion that its log-probability sums over"
    return Role(name=f"{side}_num_tokens", kind="count", unit="tokens", description=text)


def _mask(side: Completion) -> Role:
    return Role(
        name=f"{side}_token_mask",
        kind="mask",
        description=f"For each token of the {side} completion whether it counts (true or 1)",
        aliases=(f"{side}_completion_mask", f"{side}_loss_mask"),
    )


POLICY_CHOSEN: Final = _logp("policy", "chosen")
POLICY_REJECTED: Final = _logp("policy", "rejected")
REF_CHOSEN: Final = _logp("ref", "chosen")
REF_REJECTED: Final = _logp("ref", "rejected")
PAIR_ID: Final = Role(name="pair_id", kind="key", description="Names the pair")
PROMPT_ID: Final = Role(
    name="prompt_id", kind="key", description="Names the prompt; pairs of one prompt share it"
)
CHOSEN_TOKENS: Final = _count("chosen")
REJECTED_TOKENS: Final = _count("rejected")
LOGP_ROLES: Final = (POLICY_CHOSEN, POLICY_REJECTED, REF_CHOSEN, REF_REJECTED)
LOGPS: Final = tuple(role.name for role in LOGP_ROLES)
COUNT_ROLES: Final = (CHOSEN_TOKENS, REJECTED_TOKENS)
CHOSEN_MASK: Final = _mask("chosen")
REJECTED_MASK: Final = _mask("rejected")
TOKENS_OF: Final = {
    POLICY_CHOSEN.name: _tokens("policy", "chosen"),
    POLICY_REJECTED.name: _tokens("policy", "rejected"),
    REF_CHOSEN.name: _tokens("ref", "chosen"),
    REF_REJECTED.name: _tokens("ref", "rejected"),
}
"""The token list that each log-prob can be summed from."""
_SAME_MODEL: Final = (
    (POLICY_CHOSEN.name, POLICY_REJECTED.name),
    (REF_CHOSEN.name, REF_REJECTED.name),
)
OTHER_SIDE: Final = {a: b for pair in _SAME_MODEL for a, b in (pair, pair[::-1])}
"""The log-prob of the other completion under the same model."""
MASK_OF: Final = {
    name: mask
    for pair in _SAME_MODEL
    for name, mask in zip(pair, (CHOSEN_MASK, REJECTED_MASK), strict=True)
}
"""The mask that says which tokens of each log-prob count."""
ROLES: Final = {
    role.name: role
    for role in (
        PAIR_ID,
        PROMPT_ID,
        *TOKENS_OF.values(),
        CHOSEN_MASK,
        REJECTED_MASK,
        *LOGP_ROLES,
        *COUNT_ROLES,
    )
}
"""Every role by name. Token lists stand before their sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Which columns a loss asks for."""

    reference: bool = True  # reference log-probs; without the need, such columns have no role
    tokens: bool = False  # token counts, none of them null
    ld_alpha: float = 1.0  # weight of tokens beyond the length of the other completion (LD-DPO)
    humanline: bool = False  # whether per-token log-ratios are clamped (HALOs)

    @property
    def logps(self) -> tuple[str, ...]:
        """The log-prob columns."""
        return tuple(role.name for role in LOGP_ROLES if self.have(role))

    def have(self, role: Role) -> bool:
        """Return whether the loss uses a column of this role."""
        of_reference = (REF_CHOSEN, REF_REJECTED)
        tokens = (TOKENS_OF[each.name] for each in of_reference)
        return self.reference or role not in (*of_reference, *tokens)

    def require(self, role: Role) -> bool:
        """Return whether a column of this role must be there."""
        return self.have(role) and (role.required or (self.tokens and role.kind == "count"))

    @property
    def has_token_arguments(self) -> bool:
        """Whether log-probs are no plain sums, and so must be made from tokens."""
        return self.ld_alpha != 1.0 or self.humanline


ALL_LOGPS: Final = Needs()
"""What the DPO loss needs."""

AMBIGUOUS: Final = {
    f"{side}_{word}": "the policy's in TRL, and the reference's in open-instruct"
    for side in ("chosen", "rejected")
    for word in ("logps", "logprobs", "log_probs")
}
"""Names that tools use for different models; never taken without an explicit mapping."""

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

OF_INPUT: Final = "__dpo_pipeline_input_"
"""Begins the name, in prepared pairs, of an input column that a scored one takes the name of."""

SOURCE_ROW: Final = "source_row"
BROKEN_RULES: Final = "broken_rules"
INVALID: Final = (
    Added(SOURCE_ROW, "Row of the pair in its input file, from 0", type="integer"),
    Added(BROKEN_RULES, "The rules that the pair breaks, as column.rule", type="array"),
)

BATCH: Final = "batch"
SHOWN: Final = "shown: "
"""What the name of a column that was asked for begins with in lists of the worst pairs."""
OF_SUBSET: Final = "subset: "
"""The same for a column of `by`."""
N_PAIRS: Final = "n_pairs"
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


def resolve(
    names: Iterable[str], explicit: Mapping[str, str] | None = None, needs: Needs = ALL_LOGPS
) -> Resolution:
    """Find the column of each role among `names`.

    An explicit mapping (role to column) wins over names and aliases. Roles that are not needed
    are not looked for.
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
    for role in filter(needs.have, ROLES.values()):
        if role.name in explicit:
            column = explicit[role.name]
            if column in names:
                mapping[role.name] = column
            else:
                problems.append(
                    NoSuchColumn(
                        f"{role.name}: it is mapped to {column!r}, which is not a column"
                        f"{did_you_mean(column, names)}; {_there(names)}"
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
            near = _near(role, names)
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
        side = role.name.partition("_")[0]
        return any(
            f"_{side}_" in tokens.name and tokens.name in mapping for tokens in TOKENS_OF.values()
        )
    return role.kind == "logp" and TOKENS_OF[role.name].name in mapping


def _near(role: Role, names: list[str]) -> str | None:
    """Return the column whose name is nearly that of a role."""
    close = [s for n in names for s in (role.name, *role.aliases) if _close(n, [s])]
    near = [n for n in names if n not in AMBIGUOUS and any(_close(n, [s]) for s in close)]
    if role.kind == "logp" and not near:
        near = _by_words(role, names)
    if role.kind == "count":
        side = role.name.partition("_")[0]
        near += [n for n in names if side in n.lower() and _COUNT.search(n.lower())]
    return near[0] if near else None


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
    if role.kind != "logp" or (of_reference and f"policy_{side}_logps" not in mapping):
        return None
    return next((name for name in names if name in AMBIGUOUS and name.startswith(side)), None)


def _missing(role: Role, names: list[str], near: str | None) -> str:
    """Return what is to be said of a missing role; `ColumnError` prints once what several say."""
    side = "chosen" if "chosen" in role.name else "rejected"
    of_reference = role in (REF_CHOSEN, REF_REJECTED)
    parts = [f"{role.name}: missing"]
    known = [name for name in names if name in AMBIGUOUS and side in name]
    if known:
        parts.append(f"{known[0]!r} may be it, a name that is {AMBIGUOUS[known[0]]}")
    if near:
        parts.append(f"did you mean {near!r}?")
    parts.append(f"if a column has another name, map it: {MAPPING}")
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
    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.7)
    return f" (did you mean {near[0]!r}?)" if near else ""
