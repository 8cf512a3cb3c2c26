"""The example from text to scored pairs, against TRL's own evaluation of the same models."""

from __future__ import annotations

import importlib.util

import pytest

from dpo_pipeline import Objective, evaluate
from pair_tools import EXAMPLES

EXAMPLE = EXAMPLES / "from_text.py"


@pytest.fixture(scope="module")
def example():
    for needed in ("torch", "transformers", "tokenizers"):
        pytest.importorskip(needed)
    spec = importlib.util.spec_from_file_location("from_text", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_example_runs(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example.main()
    assert "8 pairs, 0 invalid, sigmoid loss, beta 0.1" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "from_text.parquet",
        "from_text.scored.parquet",
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "apo_zero", "sigmoid_norm"])
def test_figures_are_those_of_trl(example, tmp_path, loss):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    tokenizer = example.make_tokenizer()
    policy, reference = example.make_models(tokenizer)
    pairs = example.log_probs(policy, reference, tokenizer)
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=trl.DPOConfig(
            output_dir=str(tmp_path),
            beta=0.1,
            loss_type=[loss],
            per_device_eval_batch_size=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
            max_length=None,
            disable_dropout=True,
        ),
        train_dataset=datasets.Dataset.from_list(example.PAIRS),
        eval_dataset=datasets.Dataset.from_list(example.PAIRS),
        processing_class=tokenizer,
    )
    theirs = trainer.evaluate()
    ours = evaluate(pairs, 0.1, loss=Objective(loss, dialect="trl")).to_metrics("eval_")
    assert len(ours) == 7
    for name, value in ours.items():
        # TRL sums float32 log-probs in another order, and its figures are rounded to float32.
        assert theirs[name] == pytest.approx(value, rel=2e-6, abs=2e-6), name
