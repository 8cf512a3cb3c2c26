"""The roles that input columns can have, by contract: pairs, and completions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal[
    "logp",
    "count",
    "key",
    "tokens",
    "mask",
    "label",
    "rank",
    "score",
    "offset",
    "probability",
    "kl_logp",
]
RowOf = Literal["pair", "completion"]
"""What a row is: there is a contract for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A meaning that an input column can have."""

    name: str
    kind: Kind
    description: str
    required: bool = False
    unit: str | None = None
    aliases: tuple[str, ...] = ()
    of: tuple[RowOf, ...] = ("pair",)  # the contracts that have it


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
_BOTH: Final[tuple[RowOf, ...]] = ("pair", "completion")
PAIR_ID: Final = Role(name="pair_id", kind="key", description="Names the pair", of=_BOTH)
PROMPT_ID: Final = Role(
    name="prompt_id",
    kind="key",
    description="Names the prompt; pairs or completions of one prompt share it",
    of=_BOTH,
)
CHOSEN_TOKENS: Final = _count("chosen")
REJECTED_TOKENS: Final = _count("rejected")
LOGP_ROLES: Final = (POLICY_CHOSEN, POLICY_REJECTED, REF_CHOSEN, REF_REJECTED)
LOGPS: Final = tuple(role.name for role in LOGP_ROLES)
COUNT_ROLES: Final = (CHOSEN_TOKENS, REJECTED_TOKENS)
OFFSET: Final = Role(
    name="offset",
    kind="offset",
    unit="nats",
    description="Margin that the pair is to reach, for the loss odpo; no other loss reads it",
)
PREFERENCE_PROBABILITY: Final = Role(
    name="preference_probability",
    kind="probability",
    description="Probability, from 0 to 1, that the chosen completion is the better one, for the "
    "loss soft_labels; no other loss reads it",
)


def _mismatched(model: Model) -> Role:
    return Role(
        name=f"kl_{model}_logps",
        kind="kl_logp",
        unit="nats",
        description="Log-probability of a completion of another prompt, to this one, "
        f"{_under(model)}: the loss kto estimates its KL term from it; no other loss reads it",
        of=("completion",),
    )


KL_POLICY: Final = _mismatched("policy")
KL_REF: Final = _mismatched("ref")
EXTRA_ROLES: Final = (OFFSET, PREFERENCE_PROBABILITY, KL_POLICY, KL_REF)
"""Columns that a loss must name to have. Without such a loss they have no role."""
CHOSEN_MASK: Final = _mask("chosen")
REJECTED_MASK: Final = _mask("rejected")


def _of_completion(model: Model, kind: Literal["logp", "tokens"], text: str) -> Role:
    """Return the role of a completion's log-prob, or of its list, spelled as those of pairs."""
    ending = "logps" if kind == "logp" else "token_logps"
    like = _logp(model, "chosen") if kind == "logp" else _tokens(model, "chosen")
    aliases = (each.replace("_chosen", "") for each in like.aliases)
    return Role(
        name=f"{model}_{ending}",
        kind=kind,
        required=kind == "logp",
        unit="nats",
        description=f"{text} {_under(model)}",
        aliases=tuple(each for each in aliases if not each.startswith("log_probs_")),
        of=("completion",),
    )


_SUM: Final = "Log-probability of the completion, summed over its tokens,"
_EACH: Final = "Log-probability of each token of the completion, instead of its sum,"
COMPLETION_ID: Final = Role(
    name="completion_id",
    kind="key",
    description="Names the completion",
    aliases=("response_id",),
    of=("completion",),
)
POLICY: Final = _of_completion("policy", "logp", _SUM)
REF: Final = _of_completion("ref", "logp", _SUM)
TOKENS: Final = Role(
    name="num_tokens",
    kind="count",
    unit="tokens",
    description="Tokens of the completion that its log-probability sums over",
    aliases=("completion_tokens", "n_tokens"),
    of=("completion",),
)
TOKEN_MASK: Final = Role(
    name="token_mask",
    kind="mask",
    description="For each token of the completion whether it counts (true or 1)",
    aliases=("completion_mask", "loss_mask"),
    of=("completion",),
)
LABEL: Final = Role(
    name="label",
    kind="label",
    description="Whether the completion is a good one: true or false, 1 or 0, chosen or rejected",
    aliases=("side", "is_correct", "correct", "is_chosen", "desirable"),
    of=("completion",),
)
RANK: Final = Role(
    name="rank",
    kind="rank",
    description="Place of the completion among those of its prompt; 1 is the best",
    aliases=("ranking",),
    of=("completion",),
)
SCORE: Final = Role(
    name="score",
    kind="score",
    description="How good the completion is: more is better",
    aliases=("overall_score", "rating", "gold_score"),
    of=("completion",),
)
PREFERENCES: Final = (RANK, SCORE, LABEL)
"""What can say which completion is better. The first that is mapped, or that is there, is taken."""

TOKENS_OF: Final = {
    POLICY_CHOSEN.name: _tokens("policy", "chosen"),
    POLICY_REJECTED.name: _tokens("policy", "rejected"),
    REF_CHOSEN.name: _tokens("ref", "chosen"),
    REF_REJECTED.name: _tokens("ref", "rejected"),
    POLICY.name: _of_completion("policy", "tokens", _EACH),
    REF.name: _of_completion("ref", "tokens", _EACH),
}
"""The token list that each log-prob can be summed from."""
_SAME_MODEL: Final = (
    (POLICY_CHOSEN.name, POLICY_REJECTED.name),
    (REF_CHOSEN.name, REF_REJECTED.name),
)
OTHER_SIDE: Final = {a: b for pair in _SAME_MODEL for a, b in (pair, pair[::-1])}
"""The log-prob of the other completion under the same model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The columns of one completion in a row: a pair has two such sets."""

    policy: Role
    ref: Role
    count: Role
    mask: Role


TEXTS: Final[Mapping[RowOf, tuple[Texts, ...]]] = {
    "pair": (
        Texts(policy=POLICY_CHOSEN, ref=REF_CHOSEN, count=CHOSEN_TOKENS, mask=CHOSEN_MASK),
        Texts(policy=POLICY_REJECTED, ref=REF_REJECTED, count=REJECTED_TOKENS, mask=REJECTED_MASK),
    ),
    "completion": (Texts(policy=POLICY, ref=REF, count=TOKENS, mask=TOKEN_MASK),),
}
"""The completions in a row of each contract."""
_EVERY_TEXT: Final = tuple(each for texts in TEXTS.values() for each in texts)
MASK_OF: Final = {r.name: each.mask for each in _EVERY_TEXT for r in (each.policy, each.ref)}
"""The mask that says which tokens of each log-prob count."""
COUNT_OF: Final = {r.name: each.count for each in _EVERY_TEXT for r in (each.policy, each.ref)}
"""The count of the tokens behind each log-prob."""
ROLES: Final = {
    role.name: role
    for role in (
        PAIR_ID,
        PROMPT_ID,
        COMPLETION_ID,
        *TOKENS_OF.values(),
        CHOSEN_MASK,
        REJECTED_MASK,
        TOKEN_MASK,
        *LOGP_ROLES,
        *(POLICY, REF),
        *COUNT_ROLES,
        TOKENS,
        *PREFERENCES,
        *EXTRA_ROLES,
    )
}
"""Every role by name. Token lists stand before their sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Which columns a loss asks for."""

    row: RowOf = "pair"  # what a row is
    reference: bool = True  # reference log-probs; without the need, such columns have no role
    tokens: bool = False  # token counts, none of them null
    ld_alpha: float = 1.0  # weight of tokens beyond the length of the other completion (LD-DPO)
    humanline: bool = False  # whether per-token log-ratios are clamped (HALOs)
    extras: tuple[str, ...] = ()  # further roles that must be there, such as `EXTRA_ROLES`

    @property
    def key(self) -> str:
        """The column of a row's own id."""
        return PAIR_ID.name if self.row == "pair" else COMPLETION_ID.name

    def keys(self, there: Collection[str]) -> tuple[str, ...]:
        """Return which of these columns tell a row from all others: none without an id."""
        within = (PROMPT_ID.name,) if self.row == "completion" else ()
        return (*(n for n in within if n in there), self.key) if self.key in there else ()

    @property
    def texts(self) -> tuple[Texts, ...]:
        """The columns of each completion in a row."""
        return TEXTS[self.row]

    @property
    def logps(self) -> tuple[str, ...]:
        """The log-prob columns."""
        return tuple(r.name for r in ROLES.values() if r.kind == "logp" and self.have(r))

    def have(self, role: Role) -> bool:
        """Return whether the loss uses a column of this role."""
        if role in EXTRA_ROLES and role.name not in self.extras:
            return False
        return self.row in role.of and (self.reference or not role.name.startswith("ref_"))

    def require(self, role: Role) -> bool:
        """Return whether a column of this role must be there."""
        asked = role.required or (self.tokens and role.kind == "count") or role.name in self.extras
        return self.have(role) and asked

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
