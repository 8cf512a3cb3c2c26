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
from dpo_pipeline.models import LogProbsCallback
from dpo_pipeline.models.scoring_tokens import Scorer
from dpo_pipeline.options import Models

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("default")]
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

KEYS = [f"{m}_{side}_logps" for m in ("policy", "ref") for side in ("chosen", "rejected")]


def trainer_of(folder, *, model=None, ref_model=None, new=None):
    rows = datasets.Dataset.from_list(model_tools.plain_pairs(16))
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
        eval_dataset=rows,
        **(new or {}),
    )


def test_each_step_leaves_the_log_probs_of_its_checkpoint(tmp_path, monkeypatch):
    passes = []
    sums = Scorer.sums
    monkeypatch.setattr(Scorer, "sums", lambda *args: passes.append(1) or sums(*args))
    trainer = trainer_of(tmp_path, ref_model=model_tools.make_model(2))
    trainer.add_callback(LogProbsCallback(trainer, tmp_path / "logps"))
    trainer.train()
    assert sorted(os.listdir(tmp_path / "logps")) == ["step=1", "step=2"]
    assert len(passes) == 3  # the policy twice, the reference once
    texts = pl.DataFrame(model_tools.plain_pairs(16))
    for step in (1, 2):
        found = pl.read_parquet(
            tmp_path / "logps" / f"step={step}" / "rank-00000.parquet", hive_partitioning=False
        )
        model_tools.make_model(2).save_pretrained(tmp_path / "ref")
        out = tmp_path / f"own-{step}.parquet"
        dpo_pipeline.logps(
            texts,
            out,
            policy=tmp_path / "run" / f"checkpoint-{step}",
            reference=tmp_path / "ref",
            models=Models(max_length=24, dialect="trl", tokenizer=model_tools.make_tokenizer()),
        )
        own = pl.read_parquet(out)
        assert found["pair_id"].to_list() == own["pair_id"].to_list()
        assert found["chosen_num_tokens"].to_list() == own["chosen_num_tokens"].to_list()
        for name in KEYS:
            assert (found[name] - own[name]).abs().max() < 1e-4, name
    logged = [each for each in trainer.state.log_history if "eval_loss" in each]
    ours = dpo_pipeline.evaluate(tmp_path / "logps" / "step=2").to_metrics("eval_")
    assert logged[-1]["eval_logps/chosen"] == pytest.approx(ours["eval_logps/chosen"], rel=1e-5)
    assert dpo_pipeline.compare(tmp_path / "logps" / "step=1", tmp_path / "logps" / "step=2")


@pytest.mark.parametrize("from_start", [True, False])
def test_the_reference_of_adapters_is_that_of_trl(tmp_path, from_start):
    """The model below new adapters; of a policy that came with adapters, a copy of these."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights=False)
    model, new = model_tools.make_model(1), {"peft_config": config}
    if from_start:
        model, new = peft.get_peft_model(model, config), {}
    trainer = trainer_of(tmp_path, model=model, new=new)
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
