"""Models and tokenizers of transformers, and what tells one from another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final

from dpo_pipeline.errors import StorageError, UsageError

_NEEDED: Final = ("torch", "transformers")
_SAMPLED: Final = 256
"""Values of each tensor that go into the digest of a model's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A causal language model of transformers or peft, with the facts that its outputs carry.

    Attributes:
        model: The model.
        facts: Name, revision, type, digest of its weights.
        is_base: Whether its adapters are switched off: the model below them.
        adapter: The adapter that is used instead of the active one.

    Raises:
        UsageError: The process has only a part of the model's weights.
    """

    model: Any
    facts: Mapping[str, Any]
    is_base: bool = False
    adapter: str | None = None

    def __post_init__(self) -> None:
        shared_out = _shared_out(self.model)
        if shared_out:
            raise UsageError(
                f"the model is shared out among processes ({shared_out}): each has a part of the "
                "weights. Save a checkpoint, and give its folder"
            )

    @contextmanager
    def in_use(self) -> Iterator[Any]:
        """Give the model for scoring, and leave it as it was."""
        was_training, active = self.model.training, getattr(self.model, "active_adapter", None)
        self.model.eval()
        try:
            if self.adapter is not None:
                self.model.set_adapter(self.adapter)
            with self.model.disable_adapter() if self.is_base else nullcontext():
                yield self.model
        finally:
            if self.adapter is not None:
                self.model.set_adapter(active)
            self.model.train(was_training)


def _shared_out(model: Any) -> str:
    """Say what shares the weights of a model out among processes; empty if nothing does."""
    if any(hasattr(each, "ds_id") and not each.numel() for each in model.parameters()):
        return "DeepSpeed ZeRO-3"
    kinds = {kind.__name__ for each in model.modules() for kind in type(each).__mro__}
    return "FSDP" if kinds & {"FSDPModule", "FullyShardedDataParallel"} else ""


def check_models_extra() -> None:
    """Raise a UsageError if the libraries that score texts are not there."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"scoring texts needs {' and '.join(missing)}: pip install torch transformers"
        )


def load(name: Any, *, revision: str | None, dtype: str, device: str) -> Loaded:
    """Return the model of a folder or hub name, or a model that is loaded already.

    Args:
        name: A folder, the name of a model on a hub, or a model.
        revision: A branch, tag or commit of a hub name.
        dtype: `auto` for that of the weights, or the name of a type of torch.
        device: `auto` for an accelerator if there is one, or a device of torch.

    Raises:
        UsageError: There is no such device, or peft is needed and missing.
        StorageError: There is no such model.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    if not isinstance(name, (str, os.PathLike)):
        return loaded_of(name)
    path, place = os.fspath(name), _place(device)
    commit, has_adapters = _found(path, revision)
    how: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    found: dict[str, Any] = {}
    try:
        with _no_bars():
            if has_adapters:
                model = _adapter_maker(path).from_pretrained(path, revision=commit, **how)
            else:
                model, found = transformers.AutoModelForCausalLM.from_pretrained(
                    path, revision=commit, output_loading_info=True, **how
                )
            model = model.to(place)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unloadable(path, error) from error
    missing = sorted(found.get("missing_keys", ()))
    if missing:
        raise StorageError(
            path,
            f"lacks {len(missing):,} of its weights, such as {missing[0]}, which would be random",
        )
    return loaded_of(model, path, commit)


def loaded_of(model: Any, path: str | None = None, commit: str | None = None) -> Loaded:
    """Return a model with its facts, once it is known to be whole."""
    return replace(Loaded(model=model, facts={}), facts=_facts_of(model, path, commit))


def _found(path: str, revision: str | None) -> tuple[str | None, bool]:
    """Return the commit of a model on a hub, None for a folder, and whether it is adapters."""
    from transformers.utils import cached_file, find_adapter_config_file

    is_folder = os.path.isdir(path)
    try:
        adapters = find_adapter_config_file(path, revision=revision)
        file = adapters or cached_file(path, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        if is_folder:
            raise _unloadable(path, error) from error
        at = f" with revision {revision}" if revision else ""
        raise StorageError(
            path, f"is no folder here, and no model{at} on the hub or in its cache: {_first(error)}"
        ) from error
    if file is None:
        raise StorageError(path, "holds no model of transformers: it has no config.json")
    # A cache keeps files in snapshots/COMMIT/: what is loaded next is of this commit.
    return None if is_folder else os.path.basename(os.path.dirname(file)), bool(adapters)


def _unloadable(path: str, error: BaseException) -> StorageError:
    return StorageError(path, f"cannot be loaded as a language model: {_first(error)}")


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers from drawing bars while weights are read."""
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


def _place(device: str) -> Any:
    """Return a device of torch that can be used."""
    import torch

    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        raise UsageError(f"device {device!r} cannot be used: {_first(error)}") from error


def _adapter_maker(path: str) -> Any:
    if find_spec("peft") is None:
        raise UsageError(f"{path} holds adapters, which need peft: pip install peft")
    import peft

    return peft.AutoPeftModelForCausalLM


def tokenizer_of(name: Any, tokenizer: Any, revision: str | None) -> Any:
    """Return the tokenizer that is given, or that of a folder or hub name.

    Raises:
        UsageError: A model that is loaded came without its tokenizer.
        StorageError: There is no tokenizer.
    """
    from transformers import AutoTokenizer

    if tokenizer is None and not isinstance(name, (str, os.PathLike)):
        raise UsageError("a model that is loaded needs its tokenizer: Models(tokenizer=...)")
    if tokenizer is not None and not isinstance(tokenizer, (str, os.PathLike)):
        return tokenizer
    path = os.fspath(name if tokenizer is None else tokenizer)
    own = revision if tokenizer is None else None
    try:
        made = AutoTokenizer.from_pretrained(path, revision=own)
    except (OSError, ValueError) as error:
        if tokenizer is None:
            _found(path, own)
        raise StorageError(path, f"has no tokenizer that loads: {_first(error)}") from error
    if not set(made.get_vocab()) - set(made.all_special_tokens):  # made of a config alone
        raise StorageError(path, "has no tokenizer: its files are missing")
    return made


def base_of(policy: Loaded) -> Loaded | None:
    """Return the model below the adapters of a policy, TRL's reference; None without adapters."""
    if not hasattr(policy.model, "disable_adapter"):
        return None
    facts = {**policy.facts, "name": f"{policy.facts['name']}, adapters off"}
    return Loaded(model=policy.model, facts=facts, is_base=True)


def check_vocabulary(reference: Any, tokenizer: Any, own: Any, name: str) -> None:
    """Check that a reference reads the tokens of the policy's tokenizer as the policy does.

    Both models are given the same tokens, as in TRL. Tokens that only one of the tokenizers has,
    such as one for padding, do no harm.

    Raises:
        UsageError: A token is another word there, or the reference has no row for it.
    """
    ours, theirs = tokenizer.get_vocab(), own.get_vocab() if own is not None else {}
    other = [word for word, place in theirs.items() if ours.get(word, place) != place]
    if other:
        raise UsageError(
            f"{name}: {len(other):,} of {len(theirs):,} tokens have other numbers than in the "
            f"policy's tokenizer, such as {other[0]!r}: it is no reference of this policy"
        )
    rows = reference.get_input_embeddings().weight.shape[0]
    shared = [place for word, place in ours.items() if not theirs or word in theirs]
    if max(shared, default=0) >= rows:
        raise UsageError(
            f"{name}: it has {rows:,} tokens and the policy's tokenizer {max(shared) + 1:,}: it "
            "is no reference of this policy"
        )


def _facts_of(model: Any, path: str | None, commit: str | None) -> dict[str, Any]:
    """Return what tells a model from others."""
    return {
        "name": path or getattr(model.config, "_name_or_path", "") or type(model).__name__,
        "revision": commit or getattr(model.config, "_commit_hash", None),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": next(model.parameters()).device.type,
        "weights": digest_of_weights(model),
    }


def tokenizer_facts(tokenizer: Any, *, with_template: bool) -> dict[str, Any]:
    """Return what tells a tokenizer from others, its template where conversations need it."""
    template = tokenizer.chat_template if with_template else None
    return {
        "tokenizer": digest_of_tokenizer(tokenizer),
        "template": None if template is None else _digest(json.dumps(template)),
    }


def digest_of_tokenizer(tokenizer: Any) -> str:
    """Return a digest of how texts become tokens: vocabulary, rules, and the end of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    for passing in ("truncation", "padding"):  # of the last call
        rules.pop(passing, None)
    special = [str(tokenizer.bos_token), str(tokenizer.eos_token)]
    return _digest(json.dumps([rules, special], sort_keys=True))


def digest_of_weights(model: Any) -> str:
    """Return a digest of some values throughout each tensor: training changes them."""
    import torch

    found = hashlib.sha256()
    with torch.no_grad():
        for name, each in model.named_parameters():
            flat = each.detach().flatten()
            some = flat[:: max(flat.numel() // _SAMPLED, 1)].double().cpu()
            found.update(f"{name}:{tuple(each.shape)}:{some.tolist()};".encode())
    return found.hexdigest()[:32]


def versions() -> dict[str, str]:
    """Return the versions of what computes log-probs."""
    return {name: version(name) for name in ("dpo_pipeline", *_NEEDED)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
