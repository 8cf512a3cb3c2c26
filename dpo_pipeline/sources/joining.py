"""The reference's log-probs beside the policy's, from a table of their own, by a key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Final

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.columns import (
    COMPLETION_ID,
    COUNT_ROLES,
    ELSEWHERE,
    LOGPS,
    MAPPING,
    PAIR_ID,
    POLICY,
    REF,
    REF_CHOSEN,
    REF_REJECTED,
    TOKENS_OF,
    Resolution,
    resolve,
    row_of,
)
from dpo_pipeline.defaults import STATISTICS_ROWS
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import NO_GUESSES, ColumnError, UsageError
from dpo_pipeline.options import Execution, Pairs, Reference
from dpo_pipeline.sources.common_schema import Chunks
from dpo_pipeline.sources.dataset import Dataset, PairFile, Step, ranges_in_step
from dpo_pipeline.sources.frames import dumps_apart
from dpo_pipeline.sources.keys import (
    KEY,
    OrderedRows,
    OutOfStep,
    Partitions,
    checked_on,
    count_keys,
    in_step,
    joined,
    key_of,
    no_key,
)
from dpo_pipeline.sources.opening import open_pairs
from dpo_pipeline.sources.trainer_files import LENGTHS
from dpo_pipeline.storage import METADATA_KEY, Access, is_address, reading

_ROW: Final = "__dpo_pipeline_row"
_OURS: Final = ("__dpo_pipeline_chosen_tokens", "__dpo_pipeline_rejected_tokens")
_OTHER: Final = "__dpo_pipeline_other_key"
_BYTES: Final = 2**20  # of a file that are compared at a time
_REFERENCE: Final = (REF_CHOSEN.name, REF_REJECTED.name)
TOLD: Final = {
    "tokenizer": "tokenizer",
    "template": "chat template",
    "max_length": "longest length",
    "dialect": "dialect",
}
"""What `logps` writes into the metadata of its files on how texts became tokens, in words."""
_OF_REFERENCE: Final = "Reference(columns={role: name}), or --reference-column role=name"


def join_reference(
    pairs: Any, reference: Any, *, on: str | None = None, execution: Any = None
) -> pl.LazyFrame:
    """Return the policy's rows, in their order, with the reference's log-probs of the same key.

    The keys of both are read and compared at once; the join itself is lazy. Log-probs (in nats) are
    not checked: null and NaN pass. `evaluate`, `check`, `sweep` and `score_parquet` do the same
    with `reference=`.

    Args:
        pairs: `Pairs`, or their source: rows with the policy's log-probs.
        reference: `Reference`, or its source: rows with the reference's log-probs, in any order.
        on: The key: a column of both, each value once; `pair_id` if not given.
        execution: `Execution`, for how object stores are reached.

    Raises:
        UsageError: The key is no column's name, or a role is none of a reference.
        ColumnError: A column is missing, is on both sides, or the keys are of types that
            cannot be equal.
        JoinError: Keys are null, are there twice, or are on one side only.
        StorageError: A file cannot be read.

    Examples:
        >>> import dpo_pipeline, polars as pl
        >>> policy = pl.DataFrame({"pair_id": [2, 1], "policy_chosen_logps": [-1.0, -2.0]})
        >>> reference = pl.DataFrame({"pair_id": [1, 2], "ref_chosen_logps": [-2.5, -1.5],
        ...                           "ref_rejected_logps": [-3.0, -4.0]})
        >>> dpo_pipeline.join_reference(policy, reference).collect()["ref_chosen_logps"].to_list()
        [-1.5, -2.5]
    """
    source = pairs if isinstance(pairs, Pairs) else Pairs(pairs)
    other = given(Reference, reference, on=on)
    run = given(Execution, execution)
    access = Access.of(run)
    left = open_pairs(source, access=access, keys=[other.on], name="policy", cancel=run.cancel)
    # The join is lazy, so that the caller's plan finds each row's own, whatever changed meanwhile.
    left = replace(left, keeps_order=False)
    dataset = with_reference(left, other, columns=source.columns, access=access, cancel=run.cancel)
    dataset.refuse_unread("a join carries all columns: evaluate(..., reference=) skips these")
    dataset.check_keys()
    dataset.warn(stacklevel=3)
    return dataset.frame


def with_reference(
    policy: Dataset,
    reference: Reference,
    *,
    columns: Mapping[str, str] | None,
    access: Access,
    cancel: Event | None = None,
    by_shard: bool = False,
) -> Dataset:
    """Return the policy's dataset, whose rows get the reference's log-probs.

    No row is read: `check_keys` of the dataset reads and compares the keys. `columns` is role to
    the policy's column; `by_shard` says that shards are read by other processes.
    """
    on, other = checked_on(reference.on), open_reference(reference, access=access, cancel=cancel)
    if other.name == policy.name:
        other = replace(other, name=f"{other.name} (reference)")
    with reading(policy.name):
        left = policy.frame.collect_schema()
    with reading(other.name):
        right = other.frame.collect_schema()
    taken = reference_columns_of(right, reference.columns)
    if row_of(left.names(), columns) == "completion":
        # A completion's own id, where the user said no other key.
        on = COMPLETION_ID.name if on == PAIR_ID.name and on not in left else on
    _check_joinable(other.name, on, right, taken.problems, taken.guesses)
    _check_joinable(policy.name, on, left, _on_both_sides(left, columns, other.name))
    key = key_of(on, {other.name: right, policy.name: left}).alias(KEY)
    found = [pl.col(taken.mapping[name]).alias(name) for name in _wanted(right, reference.columns)]
    beside = _Beside(policy, other, key, found, Watch(cancel=cancel))

    def compare_keys() -> None:
        with reading(f"{policy.name} or {other.name}"):
            if on == PAIR_ID.name and LENGTHS[0] in right:
                _prove_row_numbers(policy, other, key, columns)
            beside.compare_keys(on, orders=not by_shard)

    step: Step = _ByShard(other, key, tuple(found)) if by_shard else beside.step
    return replace(
        policy,
        frame=step(policy.frame, 0, None),
        own_notes=(
            *policy.own_notes,
            *tokenised_apart(policy, other),
            *dumps_apart(policy, other),
        ),
        before=None if by_shard else policy.frame,
        step=step,
        can_cut=(lambda: True) if by_shard else beside.can_cut,
        reference=other,
        compare_keys=compare_keys,
    )


@dataclass(frozen=True, slots=True)
class _ByShard:
    """Puts the reference's log-probs beside the rows of one shard, in whatever process.

    Where both tables have the same keys in these rows, they are read side by side. Otherwise the
    whole reference is read, of which only the rows with keys of the shard are held.
    """

    reference: Dataset
    key: pl.Expr
    found: tuple[pl.Expr, ...]

    def __call__(self, rows: pl.LazyFrame, first: int, n: int | None) -> pl.LazyFrame:
        """Return the rows with the log-probs; keys are read for it if it is known how many."""
        if n is not None and first + n <= (self.reference.rows or 0):
            beside = self.reference.shard(first, n).frame
            keys = pl.concat(
                [rows.select(self.key), beside.select(self.key.alias(_OTHER))], how="horizontal"
            )
            is_same = pl.col(KEY).eq_missing(pl.col(_OTHER)).all()
            if keys.select(is_same).collect(engine="streaming").item():
                return pl.concat([rows, beside.select(self.found)], how="horizontal")
        keyed = rows.with_columns(self.key)
        found = self.reference.frame.select(self.key, *self.found)
        held = found.join(keyed.select(KEY), on=KEY, how="semi")
        return keyed.join(held, on=KEY, how="left", maintain_order="left").drop(KEY)


class _Beside:
    """Puts the reference's log-probs beside rows of the policy.

    Tables that have the same keys in one order need no join. For others, the reference's rows are
    brought into the order of the policy's once, when the keys are compared.
    """

    def __init__(
        self,
        policy: Dataset,
        reference: Dataset,
        key: pl.Expr,
        found: Sequence[pl.Expr],
        watch: Watch,
    ) -> None:
        self._policy, self._reference, self._key, self._found = policy, reference, key, found
        self._watch = watch
        self._ordered: Callable[[int, int | None], pl.LazyFrame] | None = None

    def step(self, rows: pl.LazyFrame, first: int, n: int | None) -> pl.LazyFrame:
        """Add the log-probs to rows of the policy, from the number of the first and how many."""
        if self._ordered is not None:
            return pl.concat([rows, self._ordered(first, n)], how="horizontal")
        found = self._reference.frame.select(self._key, *self._found)
        keyed = rows.with_columns(self._key)
        return keyed.join(found, on=KEY, how="left", maintain_order="left").drop(KEY)

    def can_cut(self) -> bool:
        """Return whether the step can be done shard by shard, once the keys are compared."""
        return self._ordered is not None

    def compare_keys(self, on: str, *, orders: bool) -> None:
        """Raise a JoinError if keys are null, twice, or on one side only."""
        if not (self._policy.keeps_order and self._is_in_step()):
            self._part(on, is_ordered=orders and self._policy.keeps_order)

    def _is_in_step(self) -> bool:
        policy, reference = self._policy, self._reference
        if None not in (policy.rows, reference.rows) and policy.rows != reference.rows:
            return False
        # Only of Parquet some rows can be read again without those before them.
        carried = [] if reference.files else self._found
        ordered = OrderedRows()
        try:
            for rows in in_step(self._runs(carried)):
                self._watch.check()
                if carried:
                    ordered.add(rows.drop(KEY))
        except OutOfStep:
            return False
        if carried and not ordered.n_rows:
            return False
        self._ordered = ordered.rows if carried else self._of_files
        return True

    def _runs(self, carried: Sequence[pl.Expr]) -> Iterator[list[pl.LazyFrame]]:
        for first, n in ranges_in_step([self._policy, self._reference]):
            mine, theirs = (each.shard(first, n).frame for each in (self._policy, self._reference))
            yield [mine.select(self._key), theirs.select(self._key, *carried)]

    def _of_files(self, first: int, n: int | None) -> pl.LazyFrame:
        if n == 0:
            return self._reference.frame.limit(0).select(self._found)
        n = self._reference.rows if n is None else n
        return self._reference.shard(first, n).frame.select(self._found)

    def _part(self, on: str, *, is_ordered: bool) -> None:
        """Compare keys that are in another order, and bring the reference into the policy's."""
        policy, reference = self._policy, self._reference
        mine = policy.frame.select(self._key)
        theirs = reference.frame.select(self._key, *(self._found if is_ordered else ()))
        frames = {policy.name: mine.with_row_index(_ROW), reference.name: theirs}
        with Partitions({name: each.collect_schema() for name, each in frames.items()}) as parts:
            for name, frame in frames.items():
                for rows in frame.collect_batches(maintain_order=False, chunk_size=STATISTICS_ROWS):
                    self._watch.check()
                    parts.add(name, rows)
            count_keys(on, [*frames], parts, must_match=True)
            if not is_ordered:  # the join is made by the plan that reads the rows
                return
            columns = pl.Schema({_ROW: pl.get_index_type(), **theirs.drop(KEY).collect_schema()})
            ordered, by = OrderedRows(), pl.col(_ROW) // STATISTICS_ROWS
            with Partitions({"": columns}, by=by) as in_order:
                for part in parts:
                    self._watch.check()
                    in_order.add("", joined(part.values()).select(list(columns)))
                for part in in_order:
                    ordered.add(part[""].sort(_ROW).drop(_ROW))
        self._ordered = ordered.rows


class EqualColumns:
    """Tells which columns two tables of files have alike, byte by byte, without decoding them."""

    def __init__(self, one: Dataset, other: Dataset) -> None:
        """Look at the footers alone."""
        self._files = list(zip(one.files, other.files, strict=False))
        self._schemas = [each.frame.collect_schema() for each in (one, other)]
        self._are_plain = len(one.files) == len(other.files) and all(
            not (each.has_step or each.in_batches or each.partitions)
            and not each.scanned.get("hive_partitioning")
            for each in (one, other)
        )
        self._chunks: dict[int, list[tuple[Chunks, ...]]] = {}
        self._known: dict[tuple[int, int, str], bool] = {}

    def among(self, names: Iterable[str], first: int, rows: int | None) -> set[str]:
        """Return which of these columns of the files are the same in some rows."""
        if rows is None or not self._are_plain:
            return set()
        groups = list(self._groups(first, first + rows))
        a, b = self._schemas
        return {
            name
            for name in names
            if name in a and a[name] == b.get(name) and all(self._is_same(*g, name) for g in groups)
        }

    def _groups(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the numbers of the files and of the row groups that have these rows."""
        for i, (one, _) in enumerate(self._files):
            begin = one.first_row
            for group, rows in enumerate(one.row_groups):
                if begin < end and first < begin + rows:
                    yield i, group
                begin += rows

    def _is_same(self, file: int, group: int, name: str) -> bool:
        place = (file, group, name)
        if place not in self._known:
            both = self._files[file]
            if file not in self._chunks:
                is_alike = both[0].row_groups == both[1].row_groups
                self._chunks[file] = [_chunks_of(f) if is_alike else () for f in both]
            found = [each[group].get(name) if each else None for each in self._chunks[file]]
            self._known[place] = _are_same([f.path for f in both], found)
        return self._known[place]


def _chunks_of(file: PairFile) -> tuple[Chunks, ...]:
    """Return where the columns of each row group are; a large footer is read once more."""
    if file.chunks or is_address(file.path):
        return file.chunks
    import pyarrow.parquet as pq

    found = pq.read_metadata(file.path)
    columns = [(i, str(found.schema.column(i))) for i in range(len(found.schema))]
    return tuple(
        {
            c.path_in_schema: (
                min(filter(None, (c.data_page_offset, c.dictionary_page_offset))),
                c.total_compressed_size,
                f"{said} {c.compression} {c.num_values}",
            )
            for c, said in ((group.column(i), said) for i, said in columns)
            if "." not in c.path_in_schema
        }
        for group in map(found.row_group, range(found.num_row_groups))
    )


def _are_same(paths: Sequence[str], chunks: Sequence[tuple[int, int, str] | None]) -> bool:
    """Return whether two columns of row groups have the same bytes, which mean the same."""
    places = [each for each in chunks if each is not None]
    if len(places) < len(paths) or places[0][1:] != places[1][1:]:
        return False
    left = places[0][1]
    with open(paths[0], "rb", buffering=0) as one, open(paths[1], "rb", buffering=0) as other:
        both = ((one, bytearray(_BYTES)), (other, bytearray(_BYTES)))
        for (file, _), (begin, *_) in zip(both, places, strict=True):
            file.seek(begin)
        while left > 0:
            if left < _BYTES:
                both = ((one, bytearray(left)), (other, bytearray(left)))
            read = {file.readinto(into) for file, into in both}
            if read != {min(left, _BYTES)} or both[0][1] != both[1][1]:
                return False
            left -= _BYTES
    return True


def tokenised_apart(policy: Dataset, reference: Dataset) -> tuple[str, ...]:
    """Say, if files of `logps` tell it, that a policy and its reference read other tokens.

    The footer of the first file of each is read, if it is on this machine.
    """
    ours, theirs = _tokens_of(policy), _tokens_of(reference)
    other = [name for name, each in ours.items() if each != theirs.get(name)] if theirs else []
    if not other:
        return ()
    what = f"the reference's log-probs ({reference.name}) were made with another"
    return (f"{what} {' and '.join(other)} than the policy's: they are not of the same tokens",)


def _tokens_of(dataset: Dataset) -> dict[str, Any]:
    """Return what a file of `logps` says of its tokens; nothing of other files."""
    path = dataset.files[0].path if dataset.files else ""
    if not path or is_address(path) or dataset.in_batches is not None:
        return {}
    with reading(path):
        kept = pl.read_parquet_metadata(path).get(METADATA_KEY)
    told = json.loads(kept) if kept else {}
    return {words: told.get(name) for name, words in TOLD.items()} if "tokenizer" in told else {}


def _check_joinable(
    name: str,
    on: str,
    columns: pl.Schema,
    problems: Iterable[str],
    guesses: Mapping[str, str] = NO_GUESSES,
) -> None:
    faults = [*problems, *([] if on in columns else [no_key(on, columns)])]
    if faults:
        raise ColumnError(name, tuple(faults), guesses)


def open_reference(reference: Reference, *, access: Access, cancel: Event | None = None) -> Dataset:
    """Return a reference as a dataset."""
    resolve((), reference.columns)  # refuses what is no mapping, or no role
    for role in reference.columns or ():
        if role not in (*_REFERENCE, REF.name):
            raise UsageError(f"reference columns: {role!r} is none of {' and '.join(_REFERENCE)}")
    pairs = Pairs(reference.source, format=reference.format, columns=reference.columns)
    return open_pairs(
        pairs,
        access=access,
        keys=[checked_on(reference.on)],
        name="reference",
        as_reference=True,
        again=True,
        cancel=cancel,
    )


def _prove_row_numbers(
    policy: Dataset, reference: Dataset, key: pl.Expr, columns: Mapping[str, str] | None
) -> None:
    """Raise if the lengths of completions do not show that row numbers name the same pairs."""
    mapping = resolve(policy.frame.collect_schema().names(), columns).mapping
    counts = [mapping.get(role.name) for role in COUNT_ROLES]
    remedy = (
        "carry an id: add a column pair_id to the dataset before TRL precomputes its log-probs, "
        "and write the same ids beside the policy's"
    )
    problem = f"{PAIR_ID.name}: the reference has none, and the number of a row is no identity"
    if None in counts:
        names = " and ".join(role.name for role in COUNT_ROLES)
        raise ColumnError(
            reference.name,
            (f"{problem}; {names} of the policy would prove it by their lengths. Or {remedy}",),
        )
    ours = [
        pl.col(str(name)).cast(pl.Int64).alias(n) for name, n in zip(counts, _OURS, strict=True)
    ]
    both = policy.frame.select(key, *ours).join(
        reference.frame.select(key, *LENGTHS), on=KEY, how="full", coalesce=True
    )
    is_alike = pl.all_horizontal(
        pl.col(one) == pl.col(other) for one, other in zip(_OURS, LENGTHS, strict=True)
    ).fill_null(value=False)
    n, n_other = both.select(pl.len(), is_alike.not_().sum()).collect(engine="streaming").row(0)
    if n_other:
        problem += (
            f": joined by it, {n_other:,} of {n:,} rows have completions of other lengths, or are "
            f"on one side only; {remedy}"
        )
        raise ColumnError(reference.name, (problem,))


def reference_columns_of(columns: pl.Schema, explicit: Mapping[str, str] | None) -> Resolution:
    """Return the columns of a reference by role, with what is wrong with its log-probs."""
    found = resolve(columns.names(), explicit)
    wanted = _wanted(columns, explicit)
    problems = [
        type(problem)(problem.replace(MAPPING, _OF_REFERENCE).replace(ELSEWHERE, ""))
        for problem in found.problems
        if problem.startswith(wanted)
    ]
    problems += [
        f"{name}: it is there token by token, and a reference is joined by sums; sum it before"
        for name in wanted
        if name not in found.mapping and not any(p.startswith(name) for p in problems)
    ]
    used = [found.mapping.get(name) for name in wanted]
    if len(used) > 1 and len(set(used)) == 1 and None not in used:
        problems.append(f"column {used[0]!r} is mapped to {' and '.join(wanted)}")
    # A script that scored two models may have called the columns of both the policy's.
    ours = LOGPS[:2] if wanted == _REFERENCE else (POLICY.name,)
    scored = {ref: found.mapping.get(role) for ref, role in zip(wanted, ours, strict=True)}
    guesses = {ref: name for ref, name in scored.items() if name and ref not in found.mapping}
    return replace(found, problems=tuple(problems), guesses={**guesses, **found.guesses})


def _wanted(columns: pl.Schema, explicit: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the log-probs of a reference, by the contract that its columns are of."""
    return (REF.name,) if row_of(columns.names(), explicit) == "completion" else _REFERENCE


def _on_both_sides(
    policy: pl.Schema, columns: Mapping[str, str] | None, reference_name: str
) -> Iterator[str]:
    mine = resolve(policy.names(), columns).mapping
    for role in (*_REFERENCE, REF.name):
        for name in (role, TOKENS_OF[role].name):
            if name in mine:
                yield f"{name}: it is here as {mine[name]!r}, and in {reference_name} too; drop one"
