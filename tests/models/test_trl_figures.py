"""Figures of `logps` and `evaluate`, against DPOTrainer.evaluate on the same models and texts."""

from __future__ import annotations

import polars as pl
import pytest

import dpo_pipeline
import model_tools
from dpo_pipeline.options import Models

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("default")]
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

ROWS = {
    "plain": model_tools.plain_pairs(),
    "implicit": model_tools.implicit_pairs(),
    "chat": model_tools.chat_pairs(),
    "implicit chat": model_tools.chat_pairs(implicit=True),
}


def figures_of_trl(rows, folder, *, max_length, kind):
    made = datasets.Dataset.from_list(rows)
    tokenizer = model_tools.make_tokenizer()
    tokenizer.padding_side = "left"  # as many have it
    trainer = trl.DPOTrainer(
        model=model_tools.make_model(1, kind),
        ref_model=model_tools.make_model(2, kind),
        args=trl.DPOConfig(
            output_dir=str(folder),
            per_device_eval_batch_size=1,
            bf16=False,
            report_to=[],
            max_length=max_length,
            use_cpu=True,
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        train_dataset=made,
        eval_dataset=made,
    )
    return trainer.evaluate(), len(trainer.eval_dataset)


@pytest.mark.parametrize("max_length", [1024, 24])
@pytest.mark.parametrize(("texts", "kind"), [(t, "gpt2") for t in ROWS] + [("chat", "llama")])
def test_all_seven_figures_are_those_of_trl(tmp_path, texts, kind, max_length):
    theirs, n_kept = figures_of_trl(ROWS[texts], tmp_path, max_length=max_length, kind=kind)
    result = dpo_pipeline.logps(
        pl.DataFrame(ROWS[texts]),
        tmp_path / "pairs.parquet",
        policy=model_tools.make_model(1, kind),
        reference=model_tools.make_model(2, kind),
        models=Models(tokenizer=model_tools.make_tokenizer(), max_length=max_length, dialect="trl"),
    )
    ours = dpo_pipeline.evaluate(tmp_path / "pairs.parquet").to_metrics("eval_")
    assert len(ours) == 7
    assert 24 - result.counts["dropped"] == n_kept
    if max_length == 24:  # each is put to the test
        assert result.counts["cut chosen"] > 0
        assert (result.counts["dropped"] > 0) == (texts in ("implicit", "chat", "implicit chat"))
    for name, value in ours.items():
        # TRL sums Float32, of which a reward is a small difference of large sums.
        least = 1e-6 * abs(theirs["eval_logps/chosen"]) * (0.1 if "reward" in name else 1)
        assert theirs[name] == pytest.approx(value, rel=1e-6, abs=least), name


def test_completions_start_where_ktotrainer_has_them(tmp_path):
    """The tokens of a row per completion are those that KTOTrainer makes."""
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in ROWS["plain"]
        for side in ("chosen", "rejected")
    ]
    made = datasets.Dataset.from_list(rows)
    trainer = trl.KTOTrainer(
        model=model_tools.make_model(1),
        ref_model=model_tools.make_model(2),
        args=trl.KTOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            bf16=False,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        processing_class=model_tools.make_tokenizer(),
        train_dataset=made,
    )
    counts = [len(row["completion_ids"]) for row in trainer.train_dataset]
    dpo_pipeline.logps(
        pl.DataFrame(rows),
        tmp_path / "out.parquet",
        policy=model_tools.make_model(1),
        models=Models(tokenizer=model_tools.make_tokenizer()),
    )
    assert pl.read_parquet(tmp_path / "out.parquet")["num_tokens"].to_list() == counts
