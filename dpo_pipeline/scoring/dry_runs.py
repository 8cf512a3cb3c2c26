"""`dry_run`: what a call would read, compute and write, from footers and names alone.

The rows of the input are put aside before anything is planned, so that no data page can be read.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import polars as pl

from dpo_pipeline.arguments import checked_choice, checked_limit
from dpo_pipeline.columns import ALL_LOGPS, INVALID, SCORED, Needs, resolve
from dpo_pipeline.contract import Binding, bind
from dpo_pipeline.defaults import ON_INVALID, ON_INVALID_JOB
from dpo_pipeline.engine import executor_of
from dpo_pipeline.errors import ContractError, UsageError
from dpo_pipeline.evaluation import (
    ShardScorer,
    Wanted,
    check,
    evaluate,
    needs_of,
    objectives_of,
    refuse_elsewhere,
    refuse_join,
    statistics_asked,
    sweep,
)
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.options import StatisticsOptions
from dpo_pipeline.scoring.dry_run_report import DryRun, Input
from dpo_pipeline.scoring.part_outputs import PartOutputs
from dpo_pipeline.scoring.scoring_files import (
    beside,
    carried_columns,
    check_outside,
    checked_paths,
    score_parquet,
)
from dpo_pipeline.sources import (
    PARQUET,
    Dataset,
    as_dataset,
    checked_parquet_name,
    convert,
    guess,
    known_format,
    label_of,
    open_dataset,
    read,
    useful_mapping,
    with_reference,
)
from dpo_pipeline.storage import Access, OutputChecks, identity, is_address, reading
from dpo_pipeline.sums import Batching, BatchTable

_Call: TypeAlias = Mapping[str, Any]
"""The arguments of a call by their names, all of them."""


def dry_run(function: Callable[..., Any], *places: Any, **arguments: Any) -> DryRun:
    """Return what `function(*places, **arguments)` would read, compute and write.

    Of Parquet only footers are read. Other formats are opened as by a run, which reads what it
    takes to know their columns. Nothing is written. Whether the values keep the contract, whether
    the keys of a reference fit, and whether there is room for the outputs, only a run can tell.

    Args:
        function: `check`, `evaluate`, `sweep`, `score_parquet` or `convert`.
        places: Its positional arguments.
        arguments: Its keyword arguments.

    Raises:
        UsageError: It is none of these functions, or as the function.
        ContractError, StorageError: As the function, where footers and names tell.
        TypeError: The function takes no such arguments.
    """
    plan = _PLANS.get(function)
    if plan is None:
        names = ", ".join(each.__name__ for each in _PLANS)
        raise UsageError(f"dry_run takes one of {names}, found {function!r}")
    bound = inspect.signature(function).bind(*places, **arguments)
    bound.apply_defaults()
    return plan(bound.arguments)


def _check(call: _Call) -> DryRun:
    checked_limit(call["max_invalid"])
    dataset, inputs = _opened(call, _pairs(call))
    binding = _bound(call, dataset)
    _refuse_no_rows(dataset)
    return _report("check", dataset, inputs, binding)


def _evaluate(call: _Call) -> DryRun:
    checked_choice(call["on_invalid"], ON_INVALID, call["max_invalid"])
    objective = _objective(call)
    refuse_join(objective, call["reference"])
    refuse_elsewhere(executor_of(call["engine"]), call["reference"])
    dataset, inputs = _opened(call, _pairs(call))
    batching = _batching(call)
    adds = [added.name for added in SCORED]
    binding = _bound(call, dataset, needs=objective.needs, adds=adds, replace_them=True)
    outputs = OutputChecks(overwrite=call["overwrite"], inputs=dataset.inputs)
    _stage_documents(call, outputs)
    n_batches = _check_groups(call, binding, dataset, objective, batching)
    _refuse_no_rows(dataset)
    made = _report("evaluate", dataset, inputs, binding, (objective,))
    return _with_groups(call, made, batching, n_batches, outputs)


def _score(call: _Call) -> DryRun:
    checked_choice(call["on_invalid"], ON_INVALID_JOB, call["max_invalid"])
    quarantine = call["on_invalid"] == "quarantine"
    if call["invalid"] is not None and not quarantine:
        raise UsageError("invalid is the place of quarantined pairs: use on_invalid='quarantine'")
    objective = _objective(call)
    source, sink = call["source"], call["sink"]
    checked_paths(source, sink)
    refuse_join(objective, call["reference"])
    refuse_elsewhere(executor_of(call["engine"]), call["reference"])
    batching = _batching(call)
    dataset, inputs = _opened(call, open_dataset(source, call["columns"], _access(call)))
    for path in (source, call["reference"]):
        check_outside(path, (sink, call["invalid"], call["batches"]))
    adds = [added.name for added in (*SCORED, *(INVALID if quarantine else ()))]
    binding = _bound(call, dataset, needs=objective.needs, adds=adds, replace_them=call["replace"])
    carried = carried_columns(call["keep"], binding, dataset)
    parts = PartOutputs.of(dataset, call["part_rows"], executor_of(call["engine"]))
    outputs = OutputChecks(overwrite=call["overwrite"], inputs=dataset.inputs)
    if quarantine:
        parts.hidden(outputs, call["invalid"] or beside(sink))
    _stage_documents(call, outputs)
    parts.hidden(outputs, sink)
    n_batches = _check_groups(call, binding, dataset, objective, batching)
    _refuse_no_rows(dataset)
    made = _report("score_parquet", dataset, inputs, binding, (objective,))
    made = replace(made, carried=tuple(carried))
    return _with_groups(call, made, batching, n_batches, outputs)


def _sweep(call: _Call) -> DryRun:
    checked_choice(call["on_invalid"], ON_INVALID, call["max_invalid"])
    objectives = tuple(
        objectives_of(
            call["beta"], call["loss"], loss_args=call["loss_args"], dialect=call["dialect"]
        )
    )
    dataset, inputs = _opened(call, _pairs(call))
    binding = _bound(call, dataset, needs=needs_of(objectives))
    _refuse_no_rows(dataset)
    return _report("sweep", dataset, inputs, binding, objectives)


def _convert(call: _Call) -> DryRun:
    source, sink, format_name = call["source"], call["sink"], call["format_name"]
    if not isinstance(sink, (str, os.PathLike)):
        raise UsageError(f"sink must be a path, found {type(sink).__name__}")
    checked_parquet_name(sink)
    name = known_format(guess(source) if format_name is None else format_name)
    label = label_of(source)
    if name == PARQUET:
        dataset = open_dataset(source, call["columns"])
    else:
        dataset = Dataset(name=label, frame=read(source, name, columns=call["columns"]))
    with reading(label):
        names = dataset.frame.collect_schema().names()
    mapping = useful_mapping(label, names, resolve(names, call["columns"]))
    read_from = {label: identity(label)} if os.path.isfile(label) else None
    outputs = OutputChecks(overwrite=call["overwrite"], inputs=read_from)
    outputs.stage(sink)
    return DryRun(
        function="convert",
        source=label,
        inputs=_inputs(dataset),
        rows=dataset.rows,
        columns=mapping,
        outputs=tuple(outputs.outputs),
    )


_PLANS: Final[Mapping[Callable[..., Any], Callable[[_Call], DryRun]]] = MappingProxyType(
    {
        check: _check,
        evaluate: _evaluate,
        sweep: _sweep,
        score_parquet: _score,
        convert: _convert,
    }
)


def _pairs(call: _Call) -> Dataset:
    return as_dataset(call["pairs"], call["columns"], access=_access(call))


def _access(call: _Call) -> Access:
    options = call.get("storage_options"), call.get("credential_provider", "auto")
    outputs = (call.get(name) for name in ("sink", "invalid", "batches", "summary"))
    for each in filter(is_address, outputs):
        raise UsageError(f"{each}: a dry run checks outputs on this machine alone")
    return Access(storage_options=options[0], credential_provider=options[1])


def _objective(call: _Call) -> CheckedObjective:
    return CheckedObjective.of(
        call["loss"], call["beta"], loss_args=call["loss_args"], dialect=call["dialect"]
    )


def _batching(call: _Call) -> Batching | None:
    return Batching.of(
        batch_size=call["batch_size"],
        batch_by=call["batch_by"],
        to_file=call["batches"] is not None,
    )


def _opened(call: _Call, dataset: Dataset) -> tuple[Dataset, tuple[Input, ...]]:
    """Return the dataset without its rows, joined to the reference, and what both read."""
    reference, inputs = call["reference"], _inputs(dataset)
    if reference is not None:
        resolve((), call["reference_columns"])  # before a file of it is looked for
        other = as_dataset(
            reference, call["reference_columns"], name="reference", keys=(call["on"],)
        )
        inputs += _inputs(other, of_reference=True)
        reference = _without_rows(other)
    joined = with_reference(
        _without_rows(dataset),
        reference,
        on=call["on"],
        columns=call["columns"],
        reference_columns=call["reference_columns"],
    )
    return joined, inputs


def _without_rows(dataset: Dataset) -> Dataset:
    with reading(dataset.name):
        return replace(dataset, frame=pl.LazyFrame(schema=dataset.frame.collect_schema()))


def _inputs(dataset: Dataset, *, of_reference: bool = False) -> tuple[Input, ...]:
    files = tuple(
        Input(path=file.path, rows=file.rows, is_reference=of_reference) for file in dataset.files
    )
    return files or (Input(path=dataset.name, rows=None, is_reference=of_reference),)


def _bound(
    call: _Call,
    dataset: Dataset,
    *,
    needs: Needs = ALL_LOGPS,
    adds: Sequence[str] = (),
    replace_them: bool = False,
) -> Binding:
    with reading(dataset.name):
        return bind(
            dataset.frame,
            source=dataset.name,
            max_logp=call["max_logp"],
            columns=call["columns"],
            contract=call["contract"],
            adds=adds,
            replace=replace_them,
            needs=needs,
        )


def _stage_documents(call: _Call, outputs: OutputChecks) -> None:
    for path in (call["summary"], call.get("report"), call["batches"]):
        if path is not None:
            outputs.stage(path)


def _check_groups(
    call: _Call,
    binding: Binding,
    dataset: Dataset,
    objective: CheckedObjective,
    batching: Batching | None,
) -> int | None:
    """Check what is grouped by; return how many batches there are, where that is known."""
    wanted = Wanted.of(
        by=call["by"],
        batching=batching,
        batch_file=None,
        histogram=call["histogram"],
        statistics=_statistics(call),
    )
    ShardScorer(binding=binding, objective=objective, batching=batching)  # may want batches
    wanted.check(binding.columns)
    if batching is None:
        return None
    if call["batches"] is None:
        BatchTable(batching, objective=objective, n_rows=dataset.rows, file=None)
    if batching.size is None or dataset.rows is None:
        return None
    return -(-dataset.rows // batching.size)


def _statistics(call: _Call) -> StatisticsOptions | None:
    return statistics_asked(call.get("statistics", False), report=call.get("report"))


def _refuse_no_rows(dataset: Dataset) -> None:
    if dataset.rows == 0:
        raise ContractError(f"{dataset.name}: it holds no pairs, so nothing was evaluated")


def _report(
    function: str,
    dataset: Dataset,
    inputs: tuple[Input, ...],
    binding: Binding,
    objectives: tuple[CheckedObjective, ...] = (),
) -> DryRun:
    return DryRun(
        function=function,
        source=dataset.name,
        inputs=inputs,
        rows=dataset.rows,
        columns=dict(binding.mapping),
        max_logp=binding.max_logp,
        objectives=objectives,
    )


def _with_groups(
    call: _Call,
    made: DryRun,
    batching: Batching | None,
    n_batches: int | None,
    outputs: OutputChecks,
) -> DryRun:
    by = call["by"] or ()
    return replace(
        made,
        by=(by,) if isinstance(by, str) else tuple(by),
        statistics=_statistics(call) is not None,
        batch_size=None if batching is None else batching.size,
        batch_by=None if batching is None else batching.column,
        n_batches=n_batches,
        outputs=tuple(outputs.outputs),
    )
