"""`--as-trainer trl` against real runs of TRL: three batch sizes, and two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

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
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
import model_tools
rows = Dataset.from_list(model_tools.plain_pairs(int(sys.argv[3])))
trainer = DPOTrainer(
    model=model_tools.make_model(1),
    ref_model=model_tools.make_model(2),
    args=DPOConfig(output_dir=sys.argv[2], per_device_eval_batch_size=int(sys.argv[4]), bf16=False,
                   report_to=[], use_cpu=True, disable_tqdm=True),
    processing_class=model_tools.make_tokenizer(),
    train_dataset=rows, eval_dataset=rows,
)
found = trainer.evaluate()
if trainer.accelerator.is_main_process:
    with open(sys.argv[2] + "/found.json", "w") as file:
        json.dump({name: float(value) for name, value in found.items()}, file)
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


@pytest.mark.parametrize(("size", "processes"), [(1, 1), (4, 1), (8, 1), (4, 2), (8, 2)])
def test_averages_are_those_of_a_run(pairs, tmp_path, size, processes):
    (tmp_path / "run.py").write_text(RUN)
    launch = [] if processes == 1 else ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    launch += [] if processes == 1 else [f"--master_port={29500 + size}"]
    tools = os.path.dirname(model_tools.__file__)
    done = subprocess.run(
        [sys.executable, *launch, tmp_path / "run.py", tools, tmp_path, str(N), str(size)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads((tmp_path / "found.json").read_text())
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
