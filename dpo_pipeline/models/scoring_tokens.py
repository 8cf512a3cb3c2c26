"""Log-probs of completions under a model: Float32 by slices, sums in Float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from dpo_pipeline.errors import UsageError
from dpo_pipeline.models.tokenizing import Completion

SLICE: Final = 256
"""Positions whose log-softmax over the vocabulary is made at a time."""

_SCALED: Final = (
    *("final_logit_softcapping", "logit_scale", "output_multiplier"),
    *("lm_head_multiplier", "logits_scaling"),
)
"""Settings of a model that change what its head gives: then its own logits are taken."""

_LOOKED_AT: Final = 32
"""Tokens of the first text on which the head is compared with the model's own logits."""

_ALIKE: Final = 1e-2
"""Nats by which the head's log-probs may differ from those of the model's own logits (bf16)."""


def batches_of(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield places, longest first, whose padded tokens stay within a budget; one at least."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda each: (-lengths[each], each)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


class Scorer:
    """Sums log-probs of completions under a causal language model of transformers.

    Args:
        model: The model, in use for scoring.
        pad: What stands after shorter texts of a batch; it is neither read nor scored.
        budget: Tokens of a batch, padding included.
        after: Called after each batch with its completions and tokens.
    """

    def __init__(
        self, model: Any, *, pad: int, budget: int, after: Callable[[int, int], None] | None = None
    ) -> None:
        self._model = model
        self._pad = pad
        self._budget = budget
        self._after = after
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = inner.config.get_text_config()
        virtual = getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None)
        self._inner = inner
        self._longest = getattr(config, "max_position_embeddings", None)
        self._by_head = (
            not any(getattr(config, name, None) for name in _SCALED)
            and virtual is None
            and inner.get_output_embeddings() is not None
        )
        self._is_checked = False

    def sums(self, sequences: Sequence[Completion]) -> list[float | None]:
        """Return the log-prob of each completion in nats; None where no token is left of it."""
        found: list[float | None] = [None] * len(sequences)
        for place, logps in self._scored(sequences):
            found[place] = float(logps.double().sum())
        return found

    def by_token(self, sequences: Sequence[Completion]) -> list[list[float]]:
        """Return the log-prob of each token of the completions."""
        found: list[list[float]] = [[] for _ in sequences]
        for place, logps in self._scored(sequences):
            found[place] = logps.double().tolist()
        return found

    def _scored(self, sequences: Sequence[Completion]) -> Iterator[tuple[int, Any]]:
        """Yield the place of each completion that has tokens, and their log-probs."""
        scored = [i for i, each in enumerate(sequences) if each.n_tokens]
        for batch in batches_of([len(sequences[i].ids) for i in scored], self._budget):
            places = [scored[i] for i in batch]
            some = [sequences[i] for i in places]
            yield from zip(places, self._batch(some), strict=True)
            if self._after is not None:
                self._after(len(some), sum(len(each.ids) for each in some))

    def _batch(self, sequences: Sequence[Completion]) -> Sequence[Any]:
        import torch

        device = self._inner.get_input_embeddings().weight.device
        longest = max(len(each.ids) for each in sequences)
        if self._longest is not None and longest > self._longest:
            raise UsageError(
                f"a text has {longest:,} tokens, and the model places for {self._longest:,}: "
                f"give --max-length {self._longest}"
            )
        # Padded on the right, whatever the tokenizer does: positions then need no correction.
        ids = torch.full((len(sequences), longest), self._pad)
        attended = torch.zeros_like(ids)
        scored = torch.zeros_like(ids, dtype=torch.bool)
        for row, each in enumerate(sequences):
            ids[row, : len(each.ids)] = torch.tensor(each.ids)
            attended[row, : len(each.ids)] = 1
            scored[row, max(each.start, 1) : len(each.ids)] = True
        # The log-prob of a token stands at the position before it.
        targets, before = ids[:, 1:][scored[:, 1:]], scored[:, 1:]
        with torch.inference_mode():
            logps = self._of_tokens(*(each.to(device) for each in (ids, attended, before, targets)))
        return logps.cpu().split([each.n_tokens for each in sequences])  # type: ignore[no-any-return]

    def _of_tokens(self, ids: Any, attended: Any, before: Any, targets: Any) -> Any:
        if self._by_head and not self._is_checked:
            self._is_checked = True
            some = ids[:1, :_LOOKED_AT]
            every, mask = some[0, 1:], some[:, 1:] == some[:, 1:]
            own = _log_probs(self._logits(some, attended[:1, :_LOOKED_AT])[mask], every)
            head = self._through_head(some, attended[:1, :_LOOKED_AT], mask, every)
            self._by_head = bool((own - head).abs().max() <= _ALIKE)
        if self._by_head:
            return self._through_head(ids, attended, before, targets)
        return _log_probs(self._logits(ids, attended)[before], targets)

    def _logits(self, ids: Any, attended: Any) -> Any:
        logits = self._model(input_ids=ids, attention_mask=attended, use_cache=False).logits
        # Prompt learning puts virtual tokens before the real ones.
        return logits[:, -ids.shape[1] :][:, :-1]

    def _through_head(self, ids: Any, attended: Any, before: Any, targets: Any) -> Any:
        import torch

        backbone = self._inner.base_model
        hidden = backbone(input_ids=ids, attention_mask=attended, use_cache=False)[0]
        hidden = hidden[:, :-1][before]
        head = self._inner.get_output_embeddings()
        slices = range(0, len(targets), SLICE)
        return torch.cat(
            [_log_probs(head(hidden[i : i + SLICE]), targets[i : i + SLICE]) for i in slices]
        )


def _log_probs(logits: Any, targets: Any) -> Any:
    import torch

    return torch.cat(
        [
            torch.log_softmax(logits[i : i + SLICE].float(), dim=-1)
            .gather(1, targets[i : i + SLICE, None])
            .squeeze(1)
            for i in range(0, len(targets), SLICE)
        ]
    )
