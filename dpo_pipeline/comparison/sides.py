"""The tables of a comparison, each bound to the contract by itself, and what they lend each other.

A side that has no reference log-probs, or no token counts where the loss asks for them, takes
those of the other side, or of a reference that is given for both: they belong to the pair and not
to the policy. The lender's rules judge what is borrowed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.columns import (
    ADDED_TO,
    COUNT_ROLES,
    LABEL,
    PAIR_ID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    ROLES,
    TOKENS_OF,
    Needs,
    Role,
    did_you_mean,
    resolve,
)
from dpo_pipeline.contract import Binding, Offences, Places, bind, listed
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import ColumnError, UsageError
from dpo_pipeline.evaluation import (
    Groups,
    max_logp_of,
    refuse_completions,
)
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.layouts import refuse_rows_of_completions
from dpo_pipeline.options import Contract, Pairs, Reference, Subsets
from dpo_pipeline.sources import KEY, Dataset, reference_columns_of
from dpo_pipeline.storage import reading
from dpo_pipeline.tables import without_secrets

_GENERIC: Final = frozenset(
    {
        *("data", "dataset", "eval", "logps", "model", "output", "outputs", "pairs", "policy"),
        *("results", "scored", "test", "train"),
    }
)
"""Names of files that say nothing of a policy, where its folder can."""
_LONGEST_NAME: Final = 32
_VALID: Final = "valid"
_REFERENCE: Final = (REF_CHOSEN, REF_REJECTED)
_POLICY: Final = (POLICY_CHOSEN, POLICY_REJECTED)
_SOUND: Final = {"logp": pl.lit(-1.0), "count": pl.lit(1), "label": pl.lit(value=True)}
"""Valid stand-ins for borrowed columns, so that a table's own columns are judged alone."""


def named(pairs: Pairs) -> tuple[str, Pairs]:
    """Return NAME of a source that is NAME=PATH, and the pairs at PATH; empty without a name."""
    source = pairs.source
    if isinstance(source, str) and "=" in source and not os.path.exists(source):
        name, _, path = source.partition("=")
        if name and "://" not in name:
            return name, replace(pairs, source=path)
    return "", pairs


def names_of(sources: Sequence[Any]) -> tuple[str, ...]:
    """Return what policies are called: the stems of their paths, or what tells the paths apart.

    A stem that many files have (`pairs`) has its folder before it, if the folders differ. Empty
    for what is no path.
    """
    paths = [_parts(each) for each in sources]
    stems = [path[-1] if path else "" for path in paths]
    is_told = len({*stems} - {""}) == len(stems) and not _GENERIC & {*map(str.lower, stems)}
    if not is_told and all(paths):
        begin = _shared(paths)
        paths = [path[begin:] for path in paths]
        end = _shared([path[::-1] for path in paths])
        apart = [path[: len(path) - end] for path in paths]
        told = apart if all(apart) else paths
        stems = ["/".join(path) for path in told]
    return tuple(_shortened(stem) for stem in stems)


def _parts(source: Any) -> list[str]:
    """Return the folders and the stem of a path, without wildcards; nothing if it is no path."""
    if not isinstance(source, (str, os.PathLike)):
        return []
    path = without_secrets(os.fspath(source)).replace("\\", "/").partition("?")[0]
    parts = [part for part in path.rstrip("/").split("/") if part and not set(part) & set("*?[")]
    while parts and (stem := os.path.splitext(parts[-1]))[1][1:].isalpha() and stem[0]:
        parts[-1] = stem[0]
    return parts


def _shared(paths: Sequence[Sequence[str]]) -> int:
    """Return how many first parts all paths have, leaving one of each."""
    most = min(map(len, paths)) - 1
    return next((i for i in range(most) if len({path[i] for path in paths}) > 1), max(most, 0))


def _shortened(name: str) -> str:
    half = _LONGEST_NAME // 2 - 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}...{name[-half:]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of a comparison."""

    letter: str  # `a`, `b`, or `r` for the reference of both
    dataset: Dataset
    binding: Binding  # the contract, bound to it
    lacks: tuple[str, ...]  # canonical columns that it borrows
    lender: Table | None = None  # the table that they come from; None if it borrows nothing

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.dataset.name

    @property
    def columns(self) -> pl.Schema:
        """Its own columns, under canonical names."""
        there = self.binding.columns
        return pl.Schema({n: dtype for n, dtype in there.items() if n not in self.lacks})

    @property
    def valid(self) -> str:
        """The column of joined pairs that says whether its own columns keep their rules."""
        return self.column(_VALID)

    def column(self, name: str) -> str:
        """Return the name that a column of this table has in joined pairs."""
        return f"__dpo_pipeline_{self.letter}_{name}"

    def source_of(self, name: str) -> str:
        """Return the name, in joined pairs, of the column that this table has or borrows."""
        if name in self.lacks and self.lender is not None:
            return self.lender.column(name)
        return self.column(name)

    def prepared(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """Return rows of the dataset under canonical names."""
        return self.binding.prepare(_filled(frame, self.lacks))

    def keyed(
        self,
        key: pl.Expr,
        names: Sequence[str] = (),
        *,
        rows: pl.LazyFrame | None = None,
        also: str | None = None,
        is_judged: bool = True,
        has_key: bool = True,
    ) -> pl.LazyFrame:
        """Return all rows for a join: `KEY`, `valid` and some columns, as a plan.

        `rows` are those of a longer table with its columns, and `also` one more column of it.
        Without `is_judged` there is no `valid`, and without `has_key` no `KEY`.
        """
        prepared = self.prepared(self.dataset.whole if rows is None else rows)
        return prepared.select(
            *([key.alias(KEY)] if has_key else []),
            *([self.binding.rules.valid.alias(self.valid)] if is_judged else []),
            *(pl.col(name).alias(self.column(name)) for name in names),
            *([] if also is None else [also]),
        )

    def column_read(self, name: str) -> str:
        """Return what one of its columns is called where it is read."""
        return self.binding.mapping.get(name, name)

    def judged(self, rows: pl.DataFrame, names: Sequence[str]) -> pl.Series:
        """Return `valid` of joined pairs, by rules on these columns alone."""
        own = {name: pl.col(self.column(name)) for name in names if name in self.columns}
        pairs = _filled(rows.lazy().select(**own), self.lacks)
        return pairs.select(self.binding.rules.valid.alias(self.valid)).collect().to_series()

    def taken_from(self, rows: pl.DataFrame, other: Table, names: Sequence[str]) -> pl.DataFrame:
        """Return rows that another table `keyed` as those of this one."""
        names = (_VALID, *names)
        return rows.select(KEY, *(pl.col(other.column(n)).alias(self.column(n)) for n in names))

    def report(self, n_pairs: int, watch: Watch) -> InvalidReport:
        """List which rows break the contract, reading all rows once more."""
        rules = self.binding.rules
        found = Offences(rules)
        places = Places((file.relative, file.rows) for file in self.dataset.files)
        for shard in self.dataset.shards():
            pairs, read_from = self.prepared(shard.frame), self.dataset.read_from
            part = listed(pairs, rules, places, read_from=read_from, first_row=shard.first_row)
            found.join(part)
            watch.step("listing", shard.rows or 0, self.dataset.rows)
        return InvalidReport(
            source=self.name, n_pairs=n_pairs, n_invalid=found.n_invalid, broken=found.broken()
        )


def bound_tables(
    datasets: tuple[Dataset, Dataset],
    columns: tuple[Mapping[str, str] | None, Mapping[str, str] | None],
    reference: Dataset | None,
    reference_columns: Mapping[str, str] | None,
    *,
    on: str,
    needs: Needs,
    contract: Contract,
) -> tuple[Table, ...]:
    """Return A, B and the reference of both, if there is one; no data is read."""
    if datasets[0].name == datasets[1].name:
        a, b = (
            replace(each, name=f"{each.name} ({side})")
            for each, side in zip(datasets, "AB", strict=True)
        )
        datasets = (a, b)
    lacks = [
        lacking(dataset, mapping, needs) for dataset, mapping in zip(datasets, columns, strict=True)
    ]
    third = None
    if reference is not None:
        taken = [dataset.name for dataset in datasets]
        third = _reference(
            reference, reference_columns, on, needs=needs, contract=contract, taken=taken
        )
        _refuse_second(datasets, lacks, third)
    own = [
        Table(
            letter=letter,
            dataset=dataset,
            binding=_bound(dataset, mapping, lent, needs, contract),
            lacks=lent,
        )
        for letter, dataset, mapping, lent in zip(
            "ab", datasets, columns, _lent(lacks, third), strict=True
        )
    ]
    lenders = (own[1], own[0]) if third is None else (third, third)
    tables = [
        replace(table, lender=lender if table.lacks else None)
        for table, lender in zip(own, lenders, strict=True)
    ]
    return tuple(tables) if third is None else (*tables, third)


def place_of(name: str, argument: str, tables: Sequence[Table]) -> Table:
    """Return the first table that has a column, which must be plain."""
    for table in tables:
        found = table.columns.get(name)
        if found is not None:
            if found.is_nested():
                raise UsageError(f"{argument}: {name!r} is a {found}, not a plain value")
            return table
    there = list(dict.fromkeys(n for table in tables for n in table.columns))
    raise UsageError(
        f"{argument}: {name!r} is a column of neither side{did_you_mean(name, there)}; "
        f"the columns are {', '.join(there)}"
    )


def places_of(names: Sequence[str], tables: Sequence[Table]) -> dict[str, list[Table]]:
    """Return the sides that each column is read from: those that have it."""
    there = [(t, t.dataset.frame.collect_schema().names()) for t in tables if names]
    found = {}
    for name in names:
        sides = [table for table, columns in there if name in columns]
        if not sides:
            near = did_you_mean(name, [n for _, columns in there for n in columns])
            raise UsageError(f"show: {name!r} is a column of neither side{near}")
        found[name] = sides
    return found


def _bound(
    dataset: Dataset,
    mapping: Mapping[str, str] | None,
    lacks: tuple[str, ...],
    needs: Needs,
    contract: Contract,
) -> Binding:
    if needs.row == "pair":
        refuse_rows_of_completions(dataset, mapping)
    with reading(dataset.name):
        return bind(
            _filled(dataset.frame, lacks),
            source=dataset.name,
            max_logp=max_logp_of(contract),
            columns=mapping,
            contract=contract.schema,
            # Scores in the data are computed again, whatever beta they had.
            adds=[added.name for added in ADDED_TO[needs.row]],
            replace=True,
            needs=needs,
        )


def _filled(frame: pl.LazyFrame, lacks: Sequence[str]) -> pl.LazyFrame:
    return frame.with_columns(**{name: _SOUND[ROLES[name].kind] for name in lacks})


def lacking(
    dataset: Dataset, mapping: Mapping[str, str] | None, needs: Needs
) -> tuple[tuple[str, ...], ...]:
    """Return the groups of columns that another table could lend, of which none is there."""
    with reading(dataset.name):
        names = dataset.frame.collect_schema().names()
    dataset.check_roles(mapping, needs)
    # Every alias counts, even an ambiguous one: the contract reports that.
    found = resolve(names, mapping, needs).mapping
    spelled = {*names, *(mapping or ()), *found}
    groups: list[tuple[Role, ...]] = []
    if needs.reference and not needs.has_token_arguments:
        groups.append(tuple(text.ref for text in needs.texts))
    if needs.tokens:
        groups.append(tuple(text.count for text in needs.texts))
    if LABEL.name in needs.extras:
        groups.append((LABEL,))
    return tuple(
        tuple(role.name for role in group)
        for group in groups
        if not any(_has(role, spelled) for role in group)
    )


def _has(role: Role, spelled: set[str]) -> bool:
    roles = [role]
    if role.kind == "count":
        side = role.name.partition("_")[0]
        roles += [each for each in TOKENS_OF.values() if f"_{side}_" in each.name]
    elif role.kind == "logp":
        roles.append(TOKENS_OF[role.name])
    return any(name in spelled for each in roles for name in (each.name, *each.aliases))


def _lent(
    lacking: Sequence[tuple[tuple[str, ...], ...]], third: Table | None
) -> Iterator[tuple[str, ...]]:
    """Yield the columns that each side borrows, if another table has them."""
    for mine, theirs in ((lacking[0], lacking[1]), (lacking[1], lacking[0])):
        lent: list[str] = []
        for group in mine:
            in_third = third is not None and all(name in third.columns for name in group)
            if in_third or (third is None and group not in theirs):
                lent += group
        yield tuple(lent)


def _reference(
    dataset: Dataset,
    mapping: Mapping[str, str] | None,
    on: str,
    *,
    needs: Needs,
    contract: Contract,
    taken: Sequence[str],
) -> Table:
    if not needs.reference:
        raise UsageError("reference: this loss has none, so there is nothing to take from it")
    if dataset.name in taken:
        dataset = replace(dataset, name=f"{dataset.name} (reference)")
    with reading(dataset.name):
        there = dataset.frame.collect_schema()
    found = reference_columns_of(there, mapping)
    if found.problems:
        raise ColumnError(dataset.name, found.problems, found.guesses)
    mine = [role.name for role in _REFERENCE]
    mine += [role.name for role in COUNT_ROLES if role.name in found.mapping]
    before = dataset.step

    # Other columns, such as the log-probs of a policy, are ignored.
    kept = {on: on} if on in there else {}
    kept |= {name: found.mapping[name] for name in mine}

    def step(rows: pl.LazyFrame, first: int, n: int | None) -> pl.LazyFrame:
        return before(rows, first, n).select(**kept)

    lacks = tuple(role.name for role in (*_POLICY, *COUNT_ROLES) if role.name not in mine)
    opened = replace(dataset, frame=dataset.frame.select(**kept), step=step)
    return Table(
        letter="r",
        dataset=opened,
        binding=_bound(opened, None, lacks, Needs(), replace(contract, schema=None)),
        lacks=lacks,
    )


def _refuse_second(
    datasets: Sequence[Dataset], lacking: Sequence[tuple[tuple[str, ...], ...]], third: Table
) -> None:
    wanted = tuple(role.name for role in _REFERENCE)
    for dataset, groups in zip(datasets, lacking, strict=True):
        if wanted not in groups:
            problem = f"it has reference log-probs, and {third.name} too; drop one"
            raise ColumnError(dataset.name, (problem,))


def own_reference(side: Pairs) -> Reference | None:
    """Return the reference of one side alone."""
    return None if side.reference is None else given(Reference, side.reference)


def refuse_options(groups: Groups, subsets: Subsets) -> None:
    """Raise a UsageError if these options make no comparison of pairs."""
    objective = groups.objective
    refuse_completions(objective, "a comparison of several policies")
    if objective.beta == 0.0:
        raise UsageError(
            "beta is 0, so every reward is 0 and nothing can be compared: give a beta above 0"
        )
    if objective.is_of_batches:
        raise UsageError(f"{objective} is a loss of batches, and has no value for a pair alone")
    if subsets.histogram:
        raise UsageError("a comparison has no histogram option: its report shows the changes")


def refuse_of_completions(groups: Groups, subsets: Subsets) -> None:
    """Raise a UsageError if these options make no comparison of completions."""
    objective, outputs = groups.objective, groups.outputs
    if objective.is_listwise:
        raise UsageError(
            f"{objective} is of all completions of a prompt: compare pairs of them with a loss of "
            "pairs (pairing=, --pairing), or evaluate each policy"
        )
    asked_for = {
        "by subset (--by): compare the rows of each": bool(subsets.names),
        "with a histogram (--histogram)": subsets.histogram,
        "with columns to show (--show)": bool(outputs.shown),
        "at a beta of 0, as every reward is 0": objective.beta == 0.0,
    }
    for what, is_asked in asked_for.items():
        if is_asked:
            raise UsageError(f"{objective}: completions are not compared {what}")
    if objective.is_of_batches:
        raise UsageError(
            f"{objective} estimates its KL term from batches, which a comparison does not keep: "
            "give the term itself, kl (--loss-arg kl=0), as evaluate says it"
        )


def key_asked(on: str | None, reference: Reference | None, usual: str = PAIR_ID.name) -> str:
    """Return the column of keys that was asked for, in one way or the other; or the usual one."""
    # No completion is told from all others by its pair.
    own, on = (
        usual if name == PAIR_ID.name else name
        for name in (PAIR_ID.name if reference is None else reference.on, on)
    )
    if on is None:
        return own or usual
    if own not in (on, usual):
        raise UsageError(f"on is given twice: on={on!r}, and {own!r} in Reference")
    return on
