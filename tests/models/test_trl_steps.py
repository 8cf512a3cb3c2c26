"""`--as-trainer trl` against real runs of TRL: three batch sizes, and two processes."""

from __future__ import annotations

import json
from functools import cache

import polars as pl
import pytest

import dpo_pipeline
import model_tools
from dpo_pipeline.options import Batches, Models

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("default")]
pytest.importorskip("trl")

N = 21  # the last step of each run is short, and on two processes it is filled
RUN = """
import json, sys
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
import model_tools
out, n, *sizes = sys.argv[1:]
rows = Dataset.from_list(model_tools.plain_pairs(int(n)))
made = {}
for size in sizes:
    trainer = DPOTrainer(
        model=model_tools.make_model(1),
        ref_model=model_tools.make_model(2),
        args=DPOConfig(output_dir=out, per_device_eval_batch_size=int(size), bf16=False,
                       report_to=[], use_cpu=True, disable_tqdm=True),
        processing_class=model_tools.make_tokenizer(),
        train_dataset=rows, eval_dataset=rows,
    )
    made[size] = {name: float(value) for name, value in trainer.evaluate().items()}
if trainer.accelerator.is_main_process:
    with open(out + "/found.json", "w") as file:
        json.dump(made, file)
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    dpo_pipeline.logps(
        pl.DataFrame(model_tools.plain_pairs(N)),
        out,
        policy=model_tools.make_model(1),
        reference=model_tools.make_model(2),
        models=Models(tokenizer=model_tools.make_tokenizer()),
    )
    return out


@pytest.fixture(scope="module")
def run_of_trl(tmp_path_factory):
    """Return what a run on so many processes prints, by batch size."""

    @cache
    def run(processes):
        folder = tmp_path_factory.mktemp("run")
        model_tools.run_apart(RUN, [folder, N, *SIZES[processes]], processes=processes)
        return json.loads((folder / "found.json").read_text())

    return run


SIZES = {1: (1, 4, 8), 2: (4, 8)}


@pytest.mark.parametrize(("processes", "size"), [(p, s) for p in SIZES for s in SIZES[p]])
def test_averages_are_those_of_a_run(pairs, run_of_trl, size, processes):
    theirs = run_of_trl(processes)[str(size)]
    asked = Batches(size, as_trainer="trl", processes=processes)
    found = dpo_pipeline.evaluate(pairs, batches=asked)
    exact, is_other = found.to_metrics(), set()
    for name, value in found.as_trainer.metrics.items():
        least = 2e-6 * abs(theirs["eval_logps/chosen"]) * (0.1 if "reward" in name else 1)
        assert theirs[f"eval_{name}"] == pytest.approx(value, rel=2e-6, abs=least), name
        if exact[name] != pytest.approx(value, rel=1e-4):
            is_other.add(name)
    # What TRL prints is no mean over pairs, but for the loss of one process.
    assert ("loss" in is_other) == (processes > 1)
    assert ("logps/chosen" in is_other) == (size > 1)
