"""Models and tokenizers of transformers, and what tells one from another."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any, Final

from dpo_pipeline.errors import StorageError, UsageError

_WEIGHTS: Final = (".safetensors", ".bin")
_BLOCK: Final = 1 << 16
_BLOCKS: Final = 64
_ADAPTER: Final = "adapter_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model with its tokenizer, and the facts that its outputs carry.

    Attributes:
        model: A causal language model of transformers, or one of peft.
        tokenizer: Its tokenizer.
        facts: Name, revision, digests, type and versions.
        is_base: Whether the adapters of a peft model are switched off: the model below them.
    """

    model: Any
    tokenizer: Any
    facts: Mapping[str, Any]
    is_base: bool = False

    @contextmanager
    def in_use(self) -> Iterator[Any]:
        """Give the model for scoring."""
        off = self.model.disable_adapter() if self.is_base else contextlib.nullcontext()
        with off:
            yield self.model


def library(name: str) -> Any:
    """Return torch, transformers or peft."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(
            f"log-probs of models need {name}: pip install '.[models]' in a checkout"
        ) from error


def load(
    name: Any, *, tokenizer: Any = None, revision: str | None, dtype: str, device: str
) -> Loaded:
    """Return the model of a folder or hub name, or a model that is loaded already.

    Args:
        name: A folder, the name of a model on a hub, or a model.
        tokenizer: The tokenizer of a model that is loaded.
        revision: Of a hub name.
        dtype: `auto` for that of the weights, or the name of a type of torch.
        device: `auto` for an accelerator if there is one, or a device of torch.

    Raises:
        UsageError: torch or transformers is missing, or there is no such type or device.
        StorageError: There is no such model.
    """
    torch, transformers = library("torch"), library("transformers")
    if not isinstance(name, (str, os.PathLike)):
        if tokenizer is None:
            raise UsageError("a model that is loaded needs its tokenizer (tokenizer=)")
        return Loaded(model=name, tokenizer=tokenizer, facts=_facts(name, tokenizer, None, None))
    path = os.fspath(name)
    wanted = dtype if dtype == "auto" else getattr(torch, dtype, None)
    if not (dtype == "auto" or isinstance(wanted, torch.dtype)):
        raise UsageError(f"dtype must be auto, float32, bfloat16 or float16, found {dtype!r}")
    place = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    given = {"revision": revision} if revision else {}
    is_adapter = os.path.exists(os.path.join(path, _ADAPTER))
    cause = library("peft").AutoPeftModelForCausalLM if is_adapter else None
    maker = cause or transformers.AutoModelForCausalLM
    try:
        model = maker.from_pretrained(path, dtype=wanted, **given).to(place)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **given)
    except (OSError, ValueError, RuntimeError) as error:
        raise StorageError(
            path, f"cannot be loaded as a language model: {_first(error)}"
        ) from error
    return Loaded(model=model, tokenizer=tokenizer, facts=_facts(model, tokenizer, path, revision))


def tokenizer_of(name: Any, tokenizer: Any, revision: str | None) -> Any:
    """Return the tokenizer of a model without loading the model."""
    if tokenizer is not None:
        return tokenizer
    transformers = library("transformers")
    given = {"revision": revision} if revision else {}
    try:
        return transformers.AutoTokenizer.from_pretrained(os.fspath(name), **given)
    except (OSError, ValueError) as error:
        raise StorageError(os.fspath(name), f"has no tokenizer: {_first(error)}") from error


def base_of(policy: Loaded) -> Loaded | None:
    """Return the model below the adapters of a policy, TRL's reference; None without adapters."""
    if not hasattr(policy.model, "disable_adapter"):
        return None
    name = f"{policy.facts['name']}, adapters off"
    facts = {**policy.facts, "name": name}
    return Loaded(model=policy.model, tokenizer=policy.tokenizer, facts=facts, is_base=True)


def _facts(model: Any, tokenizer: Any, path: str | None, revision: str | None) -> dict[str, Any]:
    template = tokenizer.chat_template
    return {
        "name": path or getattr(model.config, "_name_or_path", "") or type(model).__name__,
        "revision": revision or getattr(model.config, "_commit_hash", None),
        "weights": None if path is None or not os.path.isdir(path) else digest_of_weights(path),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "tokenizer": digest_of_tokenizer(tokenizer),
        "template": None if template is None else _digest(template),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def digest_of_tokenizer(tokenizer: Any) -> str:
    """Return what tells a tokenizer from another: its vocabulary, rules and special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab())
    special = json.dumps([tokenizer.eos_token, tokenizer.bos_token], default=str)
    return _digest(rules + special)


def digest_of_weights(folder: str) -> str:
    """Return a digest of the weights: names, sizes, and blocks throughout each file."""
    found = hashlib.sha256()
    for name in sorted(n for n in os.listdir(folder) if n.endswith((*_WEIGHTS, ".index.json"))):
        path = os.path.join(folder, name)
        size = os.path.getsize(path)
        found.update(f"{name}:{size};".encode())
        with open(path, "rb") as file:
            for i in range(min(_BLOCKS, size // _BLOCK + 1)):
                file.seek(i * max((size - _BLOCK) // _BLOCKS, _BLOCK) if i else 0)
                found.update(file.read(_BLOCK))
    return found.hexdigest()[:32]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
