"""`verify_logps`: whether stored log-probs are a model's, and what they look like if not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from statistics import median
from typing import Any, Final

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.columns import resolve
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import ColumnError, UsageError
from dpo_pipeline.models.loading import check_models_extra
from dpo_pipeline.models.scoring_rows import Pace, models_of, pad_of, tokenizer_for
from dpo_pipeline.models.scoring_texts import asked_models, opened_texts
from dpo_pipeline.models.scoring_tokens import Scorer
from dpo_pipeline.models.texts import SIDES, Shape
from dpo_pipeline.models.tokenizing import Completion, Tokenizer
from dpo_pipeline.options import Execution, Models, Pairs
from dpo_pipeline.plan import Facts, Input, Plan, planned
from dpo_pipeline.sources import Dataset
from dpo_pipeline.storage import Access, reading
from dpo_pipeline.tables import Column, Part, Printable, Sentence, Table, Tone, whole

ROWS: Final = 200
_ROW: Final = "__dpo_pipeline_row"
_EXACT: Final = (1e-3, 1e-5)
"""Nats, and share of the log-prob, by which Float32 runs of one model differ."""
_ROUNDED: Final = (0.05, 5e-3)
"""The same where weights or stored numbers are bfloat16."""
_FAR: Final = 4.0
"""How many times rounding a row may be off where it is one of a few."""
_FEW: Final = 0.02
"""Share of rows that may be that far off, or be null."""
_SOME: Final = 0.1
"""Share of rows that may be beyond rounding: that of a long text has a tail."""
_EXPLAINS: Final = 0.8
"""Share of the differing rows that an explanation must hold for."""
_SHIFTS: Final = (-1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What the stored log-probs of one column are.

    Attributes:
        column: The column.
        n_rows: Rows that were scored anew and have a stored value.
        n_alike: Those that agree within the rounding of bfloat16.
        is_exact: Whether all agree within the rounding of Float32.
        median: Median distance of stored and new, in nats.
        largest: Largest distance, in nats.
        finding: What the stored numbers look like where they do not agree; empty where they do.
    """

    column: str
    n_rows: int
    n_alike: int
    is_exact: bool
    median: float
    largest: float
    finding: str

    @property
    def is_alike(self) -> bool:
        """Whether they are the model's, up to rounding."""
        return not self.finding


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Verification(Printable):
    """Stored log-probs beside those of a model, for a sample of rows.

    Attributes:
        source: The pairs.
        n_sampled: Rows of the sample.
        columns: What each column of log-probs is.
    """

    source: str
    n_sampled: int
    columns: tuple[Verified, ...]

    @property
    def is_alike(self) -> bool:
        """Whether all columns are the models', up to rounding."""
        return all(each.is_alike for each in self.columns)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "source": self.source,
            "rows": self.n_sampled,
            "alike": self.is_alike,
            "columns": [{**asdict(each), "alike": each.is_alike} for each in self.columns],
        }

    def to_frame(self) -> pl.DataFrame:
        """Return it as a table of columns."""
        return pl.DataFrame([asdict(each) for each in self.columns])

    def to_parts(self) -> Iterator[Part]:
        """Yield the verdict, what differs, and the distances."""
        how = "" if self.is_alike else "not "
        what = f"the stored log-probs are {how}the model's"
        if self.is_alike and not all(each.is_exact for each in self.columns):
            what += (
                ", up to rounding of bfloat16; a checkpoint close by could give the same: score "
                "with the --dtype that they were made with"
            )
        tone: Tone = "good" if self.is_alike else "bad"
        text = f"{what} ({self.n_sampled:,} rows of {whole(self.source)})"
        yield Sentence(text=text, tone=tone, leads=True)
        for each in self.columns:
            if each.finding:
                yield Sentence(text=f"{each.column}: {each.finding}", label="problem", tone="bad")
        heads = ("column", "rows", "alike", "median distance", "largest")
        yield Table(
            columns=tuple(map(Column, heads)),
            rows=[(e.column, e.n_rows, e.n_alike, e.median, e.largest) for e in self.columns],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """One completion of a sampled row: what is stored, and what the model gives."""

    stored: float | None
    beside: Mapping[int, float | None]  # stored in rows before and after, by their distance
    others: Mapping[str, float | None]  # stored in the other columns of the row
    tokens: tuple[float, ...]  # log-probs of all tokens but the first, prompt included
    start: int  # where the completion starts, in the text

    @property
    def own(self) -> tuple[float, ...]:
        return self.tokens[max(self.start, 1) - 1 :]

    @property
    def new(self) -> float:
        return sum(self.own)

    def stored_is(self, other: float) -> bool:
        return _is_like(self.stored, other)


def _is_like(
    value: float | None,
    other: float,
    rounding: tuple[float, float] = _ROUNDED,
    *,
    times: float = 1.0,
) -> bool:
    if value is None:
        return False
    return abs(value - other) <= times * (rounding[0] + rounding[1] * abs(other))


def _zero(each: _Scored) -> bool:
    return each.stored == 0.0


def _shifted(by: int) -> Callable[[_Scored], bool]:
    return lambda each: _is_like(each.beside.get(by), each.new)


def _without_end(each: _Scored) -> bool:
    ends = (sum(each.own[:-n]) for n in (1, 2) if len(each.own) > n)
    return any(each.stored_is(end) for end in ends)


def _with_prompt(each: _Scored) -> bool:
    return each.start > 1 and each.stored_is(sum(each.tokens))


def _averaged(each: _Scored) -> bool:
    return len(each.own) > 1 and _is_like(each.stored, each.new / len(each.own), (1e-3, 2e-3))


def _cut_lengths(each: _Scored) -> set[int]:
    """Return the lengths of prompt and completion at which a cut gives what is stored."""
    first = max(each.start, 1)
    return {
        first + n for n, total in enumerate(accumulate(each.own), 1) if each.stored_is(total)
    } - {len(each.tokens) + 1}


_MISPLACED: Final[Mapping[str, Callable[[_Scored], bool]]] = {
    "0 is stored": _zero,
    **{
        f"the value of a row stands in the row {'before' if by < 0 else 'after'} it": _shifted(by)
        for by in _SHIFTS
    },
}
_OF_OTHER_TOKENS: Final[Mapping[str, Callable[[_Scored], bool]]] = {
    "the values are those without the end of the completion": _without_end,
    "the values count the prompt in": _with_prompt,
    "the values are averages over tokens": _averaged,
}


def _explained(rows: Sequence[_Scored], wrong: Sequence[_Scored]) -> str:
    """Say what the stored values look like that differ."""
    of = f"in {len(wrong):,} of {len(rows):,} rows"

    def holds(explains: Callable[[_Scored], bool]) -> bool:
        return sum(map(explains, wrong)) >= _EXPLAINS * len(wrong)

    named = [text for text, explains in _MISPLACED.items() if holds(explains)]
    # A limit that cuts the last token off some texts leaves the shorter texts whole.
    cut = _length_of_cut(rows, wrong)
    of_cut = [] if cut is None else [f"the values are those of texts cut to {cut:,} tokens"]
    named += of_cut if len(wrong) < len(rows) else []
    named += [text for text, explains in _OF_OTHER_TOKENS.items() if holds(explains)]
    named += of_cut
    named += [
        f"the model's value stands in {name}"
        for name in wrong[0].others
        if holds(lambda each, name=name: _is_like(each.others[name], each.new))  # type: ignore[misc]
    ]
    return f"{of}, {[*named, 'the values are of another model, template or text'][0]}"


def _length_of_cut(rows: Sequence[_Scored], wrong: Sequence[_Scored]) -> int | None:
    """Return the length to which texts were cut, if the rows that differ are the longer ones."""
    lengths = [_cut_lengths(each) for each in wrong]
    for length in sorted(set().union(*lengths)):
        explains = sum(length in some for some in lengths) >= _EXPLAINS * len(wrong)
        n_longer = sum(len(each.tokens) + 1 > length for each in rows)
        if explains and len(wrong) <= n_longer < len(wrong) / _EXPLAINS:
            return length
    return None


def verified(column: str, rows: Sequence[_Scored]) -> Verified:
    """Return what the stored values of a column are."""
    there = [each for each in rows if each.stored is not None and each.own]
    apart = [abs((each.stored or 0.0) - each.new) for each in there]
    wrong = [each for each in there if not each.stored_is(each.new)]
    n_far = sum(not _is_like(each.stored, each.new, times=_FAR) for each in there)
    n_null = sum(each.stored is None and bool(each.own) for each in rows)
    finding = ""
    if n_far > _FEW * len(there) or len(wrong) > _SOME * len(there):
        finding = _explained(there, wrong)
    elif n_null > _FEW * len(rows):
        finding = f"in {n_null:,} of {len(rows):,} rows, nothing is stored"
    return Verified(
        column=column,
        n_rows=len(there),
        n_alike=len(there) - len(wrong),
        is_exact=all(_is_like(each.stored, each.new, _EXACT) for each in there),
        median=median(apart) if apart else 0.0,
        largest=max(apart, default=0.0),
        finding=finding,
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class VerificationPlan(Plan[Verification]):
    """What `verify_logps` does."""

    dataset: Dataset
    shape: Shape
    columns: Mapping[str, str]  # role of a log-prob to its column
    rows: int
    models: Models
    execution: Execution
    options: Mapping[str, Any]

    @property
    def facts(self) -> Facts:
        """What the plan tells of itself."""
        files = tuple(Input(path=each.path, rows=each.rows) for each in self.dataset.files)
        return Facts(
            function="verify_logps",
            call="logps",
            source=self.dataset.name,
            inputs=files or (Input(path=self.dataset.name, rows=None),),
            rows=self.dataset.rows,
            columns=self.columns,
            options=self.options,
            notes=(*self.dataset.notes, f"{self.rows:,} rows would be scored anew"),
        )

    def run(self) -> Verification:
        """Score a sample anew, and compare."""
        asked, tokenizer = self.models, tokenizer_for(self.models)
        sample, stored = self._sampled()
        texts = Tokenizer(tokenizer, self.shape, max_length=asked.max_length)
        tokens = {
            row[_ROW]: found
            for row in sample.iter_rows(named=True)
            if (found := texts.row(row)) is not None
        }
        pace = Pace(self.execution.progress, Watch(cancel=self.execution.cancel))
        made = []
        for model, each in models_of(asked, tokenizer):
            names = {
                i: name
                for i, side in enumerate(self.shape.sides)
                if (name := self.columns.get(f"{model}_{side}_logps")) is not None
            }
            whole_texts = [
                Completion(t.sequences[i].ids, 1) for i in names for t in tokens.values()
            ]
            after = pace.of(len(tokens), len(whole_texts))
            with each.in_use() as used:
                scorer = Scorer(used, pad=pad_of(tokenizer), budget=asked.batch_tokens, after=after)
                logps = iter(scorer.by_token(whole_texts))
            for i, name in names.items():
                rows = [
                    self._row(stored, place, name, found.sequences[i], next(logps))
                    for place, found in tokens.items()
                ]
                made.append(verified(name, rows))
        return Verification(source=self.dataset.name, n_sampled=len(tokens), columns=tuple(made))

    def _row(
        self,
        stored: Mapping[int, Mapping[str, float | None]],
        place: int,
        name: str,
        text: Completion,
        logps: list[float],
    ) -> _Scored:
        here = stored[place]
        return _Scored(
            stored=here[name],
            beside={by: stored.get(place + by, {}).get(name) for by in _SHIFTS},
            others={other: value for other, value in here.items() if other != name},
            tokens=tuple(logps),
            start=text.start,
        )

    def _sampled(self) -> tuple[pl.DataFrame, dict[int, dict[str, float | None]]]:
        """Return sampled rows, and by row what is stored in them and in those beside them."""
        names = list(self.columns.values())
        with reading(self.dataset.read_from):
            n = self.dataset.rows
            if n is None:
                n = int(self.dataset.frame.select(pl.len()).collect(engine="streaming").item())
            chosen = sorted(random.Random(0).sample(range(n), min(self.rows, n)))  # noqa: S311  a sample
            beside = {place + by for place in chosen for by in (0, *_SHIFTS)}
            few = (
                self.dataset.frame.with_row_index(_ROW)
                .filter(pl.col(_ROW).is_in(sorted(beside)))
                .with_columns(pl.col(names).cast(pl.Float64))
                .collect(engine="streaming")
            )
        by_row = {row.pop(_ROW): row for row in few.select(_ROW, *names).to_dicts()}
        return few.filter(pl.col(_ROW).is_in(chosen)), by_row


@planned
def verify_logps(
    pairs: Any,
    *,
    policy: Any = None,
    reference: Any = None,
    rows: int = ROWS,
    models: Any = None,
    execution: Any = None,
) -> Plan[Verification]:
    """Say whether stored log-probs are those of a model, scoring a sample of the pairs anew.

    Where they are not, it says what they look like: 0, those of the row before or after, without
    the end of the completion, with the prompt, averages, of texts that were cut, or of another
    model.

    Args:
        pairs: `Pairs`, or their source, with texts as `logps` reads them, and log-probs.
        policy: The model that the policy's log-probs are said to be of, as in `logps`.
        reference: The model of the reference's log-probs; one of the two is enough.
        rows: How many rows are scored, taken at random, the same ones each time.
        models: `Models` with all options.
        execution: `Execution`, without an engine.

    Raises:
        UsageError: There is no model, or torch or transformers is missing.
        ColumnError: There are no texts, or no log-probs of these models.
        StorageError: A file or model cannot be read.
        Cancelled: The run was stopped.

    Examples:
        >>> import dpo_pipeline
        >>> dpo_pipeline.verify_logps("pairs.parquet", reference="base")  # doctest: +SKIP
    """
    asked = asked_models(models, policy, reference)
    wanted = {"policy": asked.policy, "ref": asked.reference}
    if not (isinstance(rows, int) and rows > 0):
        raise UsageError(f"rows must be a whole number from 1 on, found {rows!r}")
    source = pairs if isinstance(pairs, Pairs) else Pairs(pairs)
    run = given(Execution, execution)
    dataset, shape = opened_texts(source, Access.of(run), run)
    if shape.sides != SIDES:
        raise UsageError("pairs are verified, and these are single completions")
    found = resolve(dataset.columns, source.columns).mapping
    there = {
        role: found[role]
        for model in wanted
        for side in shape.sides
        if (role := f"{model}_{side}_logps") in found
    }
    asked_for = [role for role in there if wanted[role.partition("_")[0]] is not None]
    if not asked_for:
        names = " and ".join(n for n, each in wanted.items() if each is not None)
        raise ColumnError(dataset.name, (f"there are no log-probs of {names} to verify",))
    check_models_extra()
    return VerificationPlan(
        dataset=dataset,
        shape=shape,
        columns=there,
        rows=rows,
        models=asked,
        execution=run,
        options={"data": source, "models": asked, "execution": run},
    )
