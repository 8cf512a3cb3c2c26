"""The formats that pairs can be in, as data: no Polars here, so that `--help` can list them.

Their readers are registered in `opening.READERS`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from dpo_pipeline.defaults import LOGP_LIMIT, PARQUET_ENDINGS
from dpo_pipeline.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format and what is to be known before one reads it.

    `settings` are arguments of `evaluate` with which the figures are those of the tool.
    """

    name: str
    description: str
    endings: tuple[str, ...] = ()  # files whose names end so are in this format and in no other
    may_end: tuple[str, ...] = ()  # files whose names end so can be in it
    reference_only: bool = False  # whether it has the reference's log-probs, never the policy's
    has_reference: bool = True  # whether it can have the reference's log-probs at all
    settings: Mapping[str, Any] = field(default_factory=dict)


PARQUET: Final = "parquet"
NDJSON: Final = "ndjson"
CSV: Final = "csv"
IPC: Final = "ipc"
TRL: Final = "trl"
REWARDBENCH: Final = "rewardbench"
LM_EVAL: Final = "lm-eval"
OPEN_INSTRUCT: Final = "open-instruct"
OPEN_INSTRUCT_AVERAGED: Final = "open-instruct-averaged"
TOKEN_DUMP: Final = "token-dump"  # noqa: S105  tokens of a text
VLLM: Final = "vllm"

INDEX: Final = "index"
"""What open-instruct calls the number of a row, in its datasets and so of its cache."""

NDJSON_ENDING: Final = ".jsonl"


def _text(*endings: str) -> tuple[str, ...]:
    """Return endings of text, which may be compressed."""
    return tuple(ending + packed for ending in endings for packed in ("", ".gz", ".zst"))


_ROWS: Final = (
    Format(name=PARQUET, description="Parquet", endings=PARQUET_ENDINGS),
    Format(
        name=NDJSON, description="one JSON object a line", endings=_text(NDJSON_ENDING, ".ndjson")
    ),
    Format(name=CSV, description="commas, with a header", endings=_text(".csv")),
    Format(
        name=IPC,
        description="Arrow IPC, files (Feather) or streams",
        endings=(".arrow", ".feather", ".ipc"),
    ),
    Format(
        name=TRL,
        description="a dataset with TRL's precomputed reference log-probs: a folder of "
        "save_to_disk, an .arrow file of its cache, or Parquet",
    ),
    Format(
        name=REWARDBENCH,
        description="RewardBench's scores: _outputs.jsonl, _all.jsonl, eval-set-scores/*.json; of "
        "RewardBench 2 completions",
        may_end=(".json",),
        has_reference=False,
        # A score is the log-ratio itself, which can be above 0, or a policy's log-prob.
        settings={
            "dialect": "rewardbench",
            "max_logp": LOGP_LIMIT,
            "loss_args": {"reference_free": True},
        },
    ),
    Format(
        name=LM_EVAL,
        description="samples_*.jsonl of lm-evaluation-harness: the options of multiple choice, as "
        "completions",
    ),
    Format(
        name=OPEN_INSTRUCT,
        description="open-instruct's cache of reference log-probs (.pt; needs torch)",
        may_end=(".pt", ".pth"),
        reference_only=True,
    ),
    Format(
        name=OPEN_INSTRUCT_AVERAGED,
        description="the same, made for dpo_norm or simpo: averages over tokens",
        may_end=(".pt", ".pth"),
        reference_only=True,
    ),
    Format(
        name=TOKEN_DUMP,
        description="responses of a server with log-probs of tokens, one a line: vLLM, SGLang, "
        "OpenAI",
    ),
    Format(name=VLLM, description="another name of token-dump"),
)

FORMATS: Final[Mapping[str, Format]] = MappingProxyType({row.name: row for row in _ROWS})
"""Every format by its name."""


def guess(source: object) -> str:
    """Return the format that the ending of a path tells; Parquet where it tells none.

    A folder without Parquet is of the one text format that its files are in.
    """
    endings = {
        _format_in(path) if os.path.isdir(path) else _format_of(path) for path in _paths(source)
    }
    return endings.pop() if len(endings) == 1 else PARQUET


def _format_in(folder: str) -> str:
    try:
        names = [name for name in os.listdir(folder) if not name.startswith((".", "_"))]
    except OSError:  # which finding the files says
        return PARQUET
    are_files = all(os.path.splitext(name)[1] for name in names) and not _SAVED & set(names)
    formats = {_format_of(name) for name in names} if are_files else set()
    return formats.pop() if formats in ({CSV}, {NDJSON}) else PARQUET


def _paths(source: object) -> Iterator[str]:
    for path in source if isinstance(source, (list, tuple)) else [source]:
        if isinstance(path, (str, os.PathLike)):
            yield str(os.fspath(path))


def _format_of(path: str) -> str:
    found = (row.name for row in _ROWS if row.endings and path.lower().endswith(row.endings))
    return next(found, NDJSON if path.lower().endswith(_text(".json")) else PARQUET)


def layout_of(names: Collection[str]) -> str | None:
    """Return the format that columns show if they were read as plain rows; None if none does."""
    there = set(names)
    layouts: tuple[tuple[str, set[str], set[str]], ...] = (
        (REWARDBENCH, {"scores", "subset"}, {"results", "num_correct", "id"}),
        (REWARDBENCH, {"scores_chosen", "scores_rejected"}, {"scores_chosen"}),
        (LM_EVAL, {"doc_id", "resps"}, {"filtered_resps", "arguments"}),
        (TOKEN_DUMP, set(), {"prompt_logprobs", "choices", "meta_info"}),
    )
    return next((n for n, all_of, one_of in layouts if all_of <= there and one_of & there), None)


def looks_like_data(name: str, *, with_json: bool) -> bool:
    """Return whether pairs could be in a file of this name, in one format or another."""
    plain = name.lower()
    for packed in _PACKED:
        plain = plain.removesuffix(packed)
    return plain.endswith((*_DATA, ".json") if with_json else _DATA)


def not_parquet(path: str) -> str | None:
    """Say what a file that is not Parquet seems to be, by its ending or its bytes, and what to do.

    None if neither tells.
    """
    name = _format_of(path)
    if name != PARQUET:
        return (
            f"is {_CALLED[name]} by its ending, and this reads Parquet: `dpo-pipeline convert "
            f"{path} {_as_parquet(path)}` first; in Python, dpo_pipeline.read({path!r})"
        )
    ending = os.path.splitext(path)[1].lower()
    if ending in _UNKNOWN:
        return f"is {_UNKNOWN[ending]}"
    names = [row.name for row in _ROWS if ending in row.may_end]
    if names:
        return (
            f"is not Parquet, and its ending {ending} tells no format: say which (--format or "
            f"--reference-format: {', '.join(names)}; in Python, dpo_pipeline.read(path, format))"
        )
    return _by_bytes(path)


def _by_bytes(path: str) -> str | None:
    """Say what a file that is called Parquet holds instead; None of objects and where unclear."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 4, 0))
            tail = file.read()
    except OSError:
        return None
    if not head:
        return "is empty: write it again"
    if head.startswith(b"PAR1"):
        return None if tail == b"PAR1" else "begins as Parquet and is cut off: copy it again"
    known = (what for begin, what in _INSTEAD.items() if head.lstrip().lower().startswith(begin))
    is_text = not {*head} & {*range(9), *range(14, 27)}
    text = "is text, and Parquet is read: for CSV say --format csv" if is_text else None
    return next(known, text)


_INSTEAD: Final = {
    b"arrow1": "is Arrow IPC, and Parquet is read: say --format ipc",
    b"\x1f\x8b": "is packed by gzip: unpack it first",
    b"\x28\xb5\x2f\xfd": "is packed by zstd: unpack it first",
    b"pk\x03\x04": "is packed by zip: unpack it first",
    b"version https://git-lfs": "is a pointer of Git LFS and not the file: run `git lfs pull`",
    b"<!doctype": "is a web page: download the file itself",
    b"<html": "is a web page: download the file itself",
    b"{": "is text, and Parquet is read: for JSON lines say --format ndjson",
    b"[": "is text, and Parquet is read: for JSON say --format ndjson",
}
"""How files begin, in small letters, that are called Parquet and are none."""


def without_parquet(folder: str) -> str:
    """Say what a folder without Parquet seems to hold, and what to do."""
    names = [name.lower() for name in os.listdir(folder)]
    nothing = "no .parquet file in this folder" if names else "is an empty folder"
    if _SAVED & set(names) or any(name.endswith(".arrow") for name in names):
        return (
            f"{nothing}; it looks like a dataset of save_to_disk: if it has TRL's log-probs, say "
            "so (--reference-format trl; in Python, dpo_pipeline.read(path, 'trl'))"
        )
    found = (row.name for row in _ROWS if any(n.endswith(row.endings) for n in names))
    other = next(found, None)
    return nothing if other is None else f"{nothing}; for its other files say --format {other}"


def checked_parquet_name(sink: str | os.PathLike[str]) -> None:
    """Check that a file of Parquet is not named as one of another format."""
    path = os.fspath(sink)
    name = _format_of(path)
    if name != PARQUET:
        raise UsageError(
            f"{path}: Parquet is written, and this ending says {_CALLED[name]}: name it "
            f"{_as_parquet(path)}"
        )


def _as_parquet(path: str) -> str:
    ending = next(e for row in _ROWS for e in row.endings[::-1] if path.lower().endswith(e))
    return f"{path[: -len(ending)]}.parquet"


_PACKED: Final = (".gz", ".zst", ".bz2", ".xz", ".zip", ".lz4")
_DATA: Final = (*(e for row in _ROWS for e in row.endings), ".tsv", ".orc", ".avro")
_CALLED: Final = {CSV: "CSV", NDJSON: "NDJSON", IPC: "Arrow IPC"}
_SAVED: Final = {"dataset_info.json", "state.json", "dataset_dict.json"}
"""Files that save_to_disk leaves."""
_UNKNOWN: Final = {
    ".tsv": "separated by tabs by its ending, and of text CSV with commas is read: save it so",
    ".txt": "text by its ending: name it .csv or .jsonl, or say --format",
    **dict.fromkeys(_PACKED, "compressed: unpack it first"),
}
