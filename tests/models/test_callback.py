"""`LogProbsCallback` in a training of TRL: its files, and what `logps` says of the checkpoints."""

from __future__ import annotations

import inspect
import os
import time

import polars as pl
import pytest

import dpo_pipeline
import model_tools
from dpo_pipeline import UsageError
from dpo_pipeline.models import LogProbsCallback, loading
from dpo_pipeline.models.scoring_tokens import Scorer
from dpo_pipeline.options import Models

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("default")]
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

KEYS = [f"{m}_{side}_logps" for m in ("policy", "ref") for side in ("chosen", "rejected")]


def trainer_of(folder, *, model=None, ref_model=None, n=16, rows=None, **more):
    rows = rows or datasets.Dataset.from_list(model_tools.plain_pairs(n))
    return trl.DPOTrainer(
        model=model or model_tools.make_model(1),
        ref_model=ref_model,
        args=trl.DPOConfig(
            output_dir=str(folder / "run"),
            per_device_eval_batch_size=1,
            per_device_train_batch_size=8,
            max_steps=2,
            eval_strategy="steps",
            eval_steps=1,
            save_steps=1,
            learning_rate=1e-3,
            bf16=False,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            max_length=24,
        ),
        processing_class=model_tools.make_tokenizer(),
        train_dataset=rows,
        **{"eval_dataset": rows, **more},
    )


def own_of(folder, step, n):
    """Return what `logps` gives for the checkpoint of a step."""
    out = folder / f"own-{step}.parquet"
    dpo_pipeline.logps(
        pl.DataFrame(model_tools.plain_pairs(n)),
        out,
        policy=folder / "run" / f"checkpoint-{step}",
        reference=model_tools.make_model(2),
        models=Models(max_length=24, dialect="trl", tokenizer=model_tools.make_tokenizer()),
    )
    return pl.read_parquet(out)


def parts_of(folder, step):
    """Return the rows of each part of a step."""
    paths = sorted((folder / "logps" / f"step={step}").iterdir())
    return [pl.read_parquet(path, hive_partitioning=False) for path in paths]


def test_each_step_leaves_the_log_probs_of_its_checkpoint(tmp_path, monkeypatch):
    passes = []
    sums = Scorer.sums
    monkeypatch.setattr(Scorer, "sums", lambda *args: passes.append(1) or sums(*args))
    stale = tmp_path / "logps" / "step=1" / "rank-00001.parquet"  # of a run on more processes
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"PAR1")
    trainer = trainer_of(tmp_path, ref_model=model_tools.make_model(2))
    trainer.add_callback(LogProbsCallback(trainer, tmp_path / "logps"))
    trainer.train()
    assert sorted(os.listdir(tmp_path / "logps")) == ["step=1", "step=2"]
    assert len(passes) == 3  # the policy twice, the reference once
    for step in (1, 2):
        (found,) = parts_of(tmp_path, step)
        own = own_of(tmp_path, step, 16)
        assert found["pair_id"].to_list() == own["pair_id"].to_list()
        assert found["chosen_num_tokens"].to_list() == own["chosen_num_tokens"].to_list()
        for name in KEYS:
            assert (found[name] - own[name]).abs().max() < 1e-4, name
    logged = [each for each in trainer.state.log_history if "eval_loss" in each]
    ours = dpo_pipeline.evaluate(tmp_path / "logps" / "step=2").to_metrics("eval_")
    assert logged[-1]["eval_logps/chosen"] == pytest.approx(ours["eval_logps/chosen"], rel=1e-5)
    assert dpo_pipeline.compare(tmp_path / "logps" / "step=1", tmp_path / "logps" / "step=2")


ON_TWO = """
import sys
from pathlib import Path
from dpo_pipeline.models import LogProbsCallback, loading
import model_tools, test_callback
folder = Path(sys.argv[1])
trainer = test_callback.trainer_of(folder, ref_model=model_tools.make_model(2), n=21)
trainer.add_callback(LogProbsCallback(trainer, folder / "logps"))
trainer.train()
"""


def test_two_processes_write_a_part_each_and_every_pair_once(tmp_path, monkeypatch):
    """The last batch of 21 pairs is short: a sampler fills it with the first pairs again."""
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    model_tools.run_apart(ON_TWO, [tmp_path], processes=2)
    for step in (1, 2):
        parts = parts_of(tmp_path, step)
        assert [each.height for each in parts] == [10, 11]
        found, own = pl.concat(parts), own_of(tmp_path, step, 21)
        assert found["pair_id"].to_list() == list(range(21))
        for name in KEYS:
            assert (found[name] - own[name]).abs().max() < 1e-4, name
    result = dpo_pipeline.evaluate(tmp_path / "logps" / "step=2")
    assert result.summary.n_valid == 21


def test_of_several_datasets_each_is_scored_when_it_is_evaluated(tmp_path, monkeypatch):
    passes = []
    sums = Scorer.sums
    monkeypatch.setattr(Scorer, "sums", lambda *args: passes.append(1) or sums(*args))
    rows = {
        name: datasets.Dataset.from_list(model_tools.plain_pairs(n, seed=n))
        for name, n in (("a", 5), ("a_b", 7))
    }
    trainer = trainer_of(tmp_path, ref_model=model_tools.make_model(2), eval_dataset=rows)
    trainer.add_callback(LogProbsCallback(trainer, tmp_path / "logps"))
    for n_passes in (4, 6):  # the reference once
        trainer.evaluate()
        assert len(passes) == n_passes
    step = tmp_path / "logps" / "step=0"
    assert sorted(os.listdir(step)) == ["dataset=a", "dataset=a_b"]
    result = dpo_pipeline.evaluate(step, by="dataset")
    assert dict(result.subsets.select("dataset", "n_valid").rows()) == {"a": 5, "a_b": 7}


@pytest.mark.parametrize("changes", [True, False])
def test_a_reference_that_follows_the_policy_is_scored_each_time(tmp_path, monkeypatch, changes):
    passes = []
    sums = Scorer.sums
    monkeypatch.setattr(Scorer, "sums", lambda *args: passes.append(1) or sums(*args))
    trainer = trainer_of(tmp_path, ref_model=model_tools.make_model(2))
    trainer.args.sync_ref_model = changes
    callback = LogProbsCallback(trainer, tmp_path / "logps")
    for _ in range(2):
        callback.on_evaluate(trainer.args, trainer.state, trainer.control)
    assert len(passes) == (4 if changes else 3)


def test_weights_that_are_shared_out_among_processes_are_refused(tmp_path):
    trainer = trainer_of(tmp_path, ref_model=model_tools.make_model(2))
    trainer.add_callback(LogProbsCallback(trainer, tmp_path / "logps"))
    # What DeepSpeed leaves of a tensor whose values are on all processes.
    weight = trainer.model.transformer.wte.weight
    weight.ds_id, weight.data = 0, weight.data.new_empty(0)
    with pytest.raises(UsageError, match=r"shared out among processes \(DeepSpeed ZeRO-3\)"):
        trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, {})
    assert not (tmp_path / "logps").exists()


def test_what_fully_shard_makes_of_a_model_is_refused_before_its_weights_are_read(monkeypatch):
    class FSDPModule:  # as torch names what it puts before the class of a module
        pass

    model = model_tools.make_model(1)
    model.__class__ = type("FSDPGPT2", (FSDPModule, type(model)), {})
    monkeypatch.setattr(loading, "digest_of_weights", lambda _model: pytest.fail("was read"))
    with pytest.raises(UsageError, match=r"shared out among processes \(FSDP\)"):
        loading.loaded_of(model)


@pytest.mark.parametrize("from_start", [True, False])
def test_the_reference_of_adapters_is_that_of_trl(tmp_path, from_start):
    """The model below new adapters; of a policy that came with adapters, a copy of these."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights=False)
    model, new = model_tools.make_model(1), {"peft_config": config}
    if from_start:
        model, new = peft.get_peft_model(model, config), {}
    trainer = trainer_of(tmp_path, model=model, **new)
    trainer.add_callback(LogProbsCallback(trainer, tmp_path / "logps"))
    learns = {name for name, each in trainer.model.named_parameters() if each.requires_grad}
    trainer.train()
    assert learns == {n for n, each in trainer.model.named_parameters() if each.requires_grad}
    theirs = [each for each in trainer.state.log_history if "eval_loss" in each][-1]
    ours = dpo_pipeline.evaluate(tmp_path / "logps" / "step=2").to_metrics("eval_")
    assert theirs["eval_rewards/chosen"] == pytest.approx(ours["eval_rewards/chosen"], abs=1e-5)
    assert abs(ours["eval_rewards/chosen"]) > 1e-4


def test_the_cost_is_one_more_pass(tmp_path, record_property):
    """Seconds are recorded and not judged."""
    trainer = trainer_of(tmp_path, ref_model=model_tools.make_model(2))
    trainer.evaluate()
    began = time.process_time()
    trainer.evaluate()
    plain = time.process_time() - began
    trainer.add_callback(LogProbsCallback(trainer, tmp_path / "logps"))
    trainer.evaluate()
    began = time.process_time()
    trainer.evaluate()
    record_property("with_callback_over_plain", (time.process_time() - began) / plain)
    print("with callback over plain:", (time.process_time() - began) / plain)  # noqa: T201


def test_what_it_cannot_score_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, ref_model=model_tools.make_model(2))
    trainer.eval_dataset = trainer.eval_dataset.remove_columns("chosen_ids")
    trainer.add_callback(LogProbsCallback(trainer, tmp_path / "logps"))
    with pytest.raises(UsageError, match="LogProbsCallback scores datasets of pairs"):
        trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, {})
    trainer.eval_dataset = iter([])
    with pytest.raises(UsageError, match="LogProbsCallback scores datasets of pairs"):
        trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, {})


def test_no_private_part_of_a_trainer_is_used():
    text = inspect.getsource(inspect.getmodule(LogProbsCallback))
    assert "trainer._" not in text.replace("self._trainer.", "trainer.")
