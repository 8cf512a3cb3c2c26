"""The one place for column names: roles, their aliases, and the columns that the pipeline adds."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from dpo_pipeline.errors import UsageError

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A column that the pipeline adds to a table."""

    name: str
    description: str
    type: Literal["number", "integer", "string", "array"] = "number"
    unit: str | None = None
    nullable: bool = False


def _logp(model: Literal["policy", "ref"], side: Literal["chosen", "rejected"]) -> Role:
    # Only names that say whose log-prob it is. `chosen_logps` is the policy's in TRL and the
    # reference's in open-instruct's cache, so it is no alias of either: see AMBIGUOUS.
    long = "policy" if model == "policy" else "reference"
    name = f"{model}_{side}_logps"
    words = ("logps", "logprobs", "log_probs")
    spellings = [f"{spelled}_{side}_{word}" for spelled in (model, long) for word in words]
    spellings.append(f"log_probs_{side}_{model}")
    return Role(
        name=name,
        kind="logp",
        unit="nats",
        required=True,
        description=f"Log-probability of the {side} completion under the "
        f"{'policy' if model == 'policy' else 'frozen reference model'}, summed over its tokens",
        aliases=tuple(dict.fromkeys(s for s in spellings if s != name)),
    )


POLICY_CHOSEN: Final = _logp("policy", "chosen")
POLICY_REJECTED: Final = _logp("policy", "rejected")
REF_CHOSEN: Final = _logp("ref", "chosen")
REF_REJECTED: Final = _logp("ref", "rejected")
PAIR_ID: Final = Role(name="pair_id", kind="key", description="Names the pair")
PROMPT_ID: Final = Role(
    name="prompt_id", kind="key", description="Names the prompt; pairs of one prompt share it"
)
CHOSEN_TOKENS: Final = Role(
    name="chosen_num_tokens",
    kind="count",
    unit="tokens",
    description="Tokens of the chosen completion that its log-probability sums over",
)
REJECTED_TOKENS: Final = Role(
    name="rejected_num_tokens",
    kind="count",
    unit="tokens",
    description="Tokens of the rejected completion that its log-probability sums over",
)


def _tokens(model: Literal["policy", "ref"], side: Literal["chosen", "rejected"]) -> Role:
    long = "policy" if model == "policy" else "reference"
    words = ("token_logps", "token_logprobs", "per_token_logps")
    name = f"{model}_{side}_token_logps"
    spellings = [f"{spelled}_{side}_{word}" for spelled in (model, long) for word in words]
    return Role(
        name=name,
        kind="tokens",
        unit="nats",
        description=f"Log-probability of each token of the {side} completion under the "
        f"{'policy' if model == 'policy' else 'frozen reference model'}, instead of its sum",
        aliases=tuple(dict.fromkeys(s for s in spellings if s != name)),
    )


def _mask(side: Literal["chosen", "rejected"]) -> Role:
    return Role(
        name=f"{side}_token_mask",
        kind="mask",
        description=f"For each token of the {side} completion whether it counts (true or 1)",
        aliases=(f"{side}_completion_mask", f"{side}_loss_mask"),
    )


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
OTHER_SIDE: Final = {
    POLICY_CHOSEN.name: POLICY_REJECTED.name,
    POLICY_REJECTED.name: POLICY_CHOSEN.name,
    REF_CHOSEN.name: REF_REJECTED.name,
    REF_REJECTED.name: REF_CHOSEN.name,
}
"""The log-prob of the other completion under the same model."""
MASK_OF: Final = {
    POLICY_CHOSEN.name: CHOSEN_MASK,
    POLICY_REJECTED.name: REJECTED_MASK,
    REF_CHOSEN.name: CHOSEN_MASK,
    REF_REJECTED.name: REJECTED_MASK,
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
    """Which columns a loss asks for.

    Attributes:
        reference: Whether it needs reference log-probs; if not, such columns have no role.
        tokens: Whether it needs token counts, none of them null.
        ld_alpha: Weight of tokens beyond the length of the other completion (LD-DPO).
        humanline: Whether per-token log-ratios are clamped (HALOs).
    """

    reference: bool = True
    tokens: bool = False
    ld_alpha: float = 1.0
    humanline: bool = False

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
    f"{side}_{word}": f"{side!r} log-probs of the policy in TRL, of the reference in open-instruct"
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
    Added(
        name=CHOSEN_LOGRATIO,
        unit="nats",
        description="Policy minus reference log-probability of the chosen completion; without a "
        "reference, the policy's",
    ),
    Added(
        name=REJECTED_LOGRATIO,
        unit="nats",
        description="Policy minus reference log-probability of the rejected completion; without a "
        "reference, the policy's",
    ),
    Added(
        name=CHOSEN_REWARD,
        unit="nats",
        description="Implicit reward of the chosen completion: beta * chosen_logratio for the DPO "
        "loss, beta times what else the loss compares",
    ),
    Added(
        name=REJECTED_REWARD,
        unit="nats",
        description="Implicit reward of the rejected completion, likewise",
    ),
    Added(name=REWARD_MARGIN, unit="nats", description="Chosen minus rejected implicit reward"),
    Added(
        name=LOSS,
        unit="nats",
        description="Loss of the pair; the DPO loss is -log sigmoid(reward_margin)",
    ),
)

SOURCE_ROW: Final = "source_row"
BROKEN_RULES: Final = "broken_rules"
INVALID: Final = (
    Added(name=SOURCE_ROW, type="integer", description="Row of the pair in its input file, from 0"),
    Added(
        name=BROKEN_RULES,
        type="array",
        description="The rules that the pair breaks, as column.rule",
    ),
)

BATCH: Final = "batch"
N_PAIRS: Final = "n_pairs"
N_VALID: Final = "n_valid"
N_INVALID: Final = "n_invalid"
COUNTS: Final = (
    Added(name=N_PAIRS, type="integer", unit="pairs", description="Pairs read"),
    Added(name=N_VALID, type="integer", unit="pairs", description="Pairs that keep every rule"),
    Added(
        name=N_INVALID, type="integer", unit="pairs", description="Pairs that break a rule or more"
    ),
)
BATCH_MEANS: Final = (
    Added(name=BATCH, type="integer", description="Batch number, from 0"),
    *COUNTS,
    Added(name=LOSS, unit="nats", nullable=True, description="Mean loss of the valid pairs"),
    Added(
        name=REWARD_ACCURACY,
        nullable=True,
        description="Share of the valid pairs whose chosen reward is above the rejected one",
    ),
    Added(
        name=REWARD_MARGIN,
        unit="nats",
        nullable=True,
        description="Mean reward margin of the valid pairs",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Which input column plays which role, and what stands in the way.

    Attributes:
        mapping: Canonical name to input column, for the roles that were found.
        problems: One sentence for each role that could not be settled.
    """

    mapping: Mapping[str, str]
    problems: tuple[str, ...]


def resolve(
    names: Iterable[str],
    explicit: Mapping[str, str] | None = None,
    needs: Needs = ALL_LOGPS,
) -> Resolution:
    """Find the column of each role among `names`.

    An explicit mapping (role to column) wins over names and aliases. Roles that are not needed
    are not looked for.

    Raises:
        UsageError: The mapping names something that is not a role.
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
    problems: list[str] = []
    for role in filter(needs.have, ROLES.values()):
        if role.name in explicit:
            column = explicit[role.name]
            if column in names:
                mapping[role.name] = column
            else:
                problems.append(
                    f"{role.name}: it is mapped to {column!r}, which is not a column"
                    f"{did_you_mean(column, names)}; {_there(names)}"
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
            problems.append(_missing(role, names))
    doubled = {c for c in mapping.values() if list(mapping.values()).count(c) > 1}
    problems += [
        f"column {c!r} is mapped to {' and '.join(r for r in mapping if mapping[r] == c)}"
        for c in sorted(doubled)
    ]
    return Resolution(mapping=mapping, problems=tuple(problems))


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


def _missing(role: Role, names: list[str]) -> str:
    side = "chosen" if "chosen" in role.name else "rejected"
    of_reference = role in (REF_CHOSEN, REF_REJECTED)
    for name in names:
        if name in AMBIGUOUS and side in name:
            return (
                f"{role.name}: missing. {name!r} is not taken for it, being {AMBIGUOUS[name]}; "
                f"say which with {role.name}={name} ({MAPPING})"
            )
    close = [s for n in names for s in (role.name, *role.aliases) if _close(n, [s])]
    near = [n for n in names if any(_close(n, [s]) for s in close)]
    ask = f"; did you mean {near[0]!r}? If so, map it: {role.name}={near[0]}" if near else ""
    hint = ask or f"; if it has another name, map it: {role.name}=NAME"
    elsewhere = "; if in another file, give that as reference (--reference)" if of_reference else ""
    return f"{role.name}: missing{hint} ({MAPPING}){elsewhere}; {_there(names)}"


def _there(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the columns are {shown}{more}" if names else "there are no columns"


def _close(word: str, options: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(word, list(options), n=1, cutoff=0.85)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for a near miss, else an empty string."""
    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.7)
    return f" (did you mean {near[0]!r}?)" if near else ""
