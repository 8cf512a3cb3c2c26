"""`verify_logps`: planted faults are named, and clean pairs raise no alarm."""

from __future__ import annotations

import json
from types import SimpleNamespace

import polars as pl
import pytest

import dpo_pipeline
import model_tools
from dpo_pipeline import ColumnError, UsageError
from dpo_pipeline.cli.program import main
from dpo_pipeline.models.verifying import _Scored, verified
from dpo_pipeline.options import Models

# What an explanation holds for, by hand: no model is needed


def row(stored, tokens=(-1.0, -2.0, -4.0, -8.0), start=2, **more):
    """A prompt of two tokens, of which the first has no log-prob, and a completion of three."""
    given = {"beside": {}, "others": {}, **more}
    return _Scored(stored=stored, tokens=tokens, start=start, **given)


def test_columns_that_agree_are_alike():
    assert row(-14.0).new == -14.0
    found = verified("c", [row(-14.0), row(-14.0001)])
    assert (found.is_alike, found.is_exact, found.n_alike) == (True, True, 2)
    found = verified("c", [row(-14.0), row(-14.03)])
    assert (found.is_alike, found.is_exact) == (True, False)
    assert found.largest == pytest.approx(0.03)


def test_a_tail_of_rounding_is_no_alarm_and_a_few_far_rows_are():
    """By hand: of -14 nats, 0.05 + 0.005 * 14 = 0.12 is rounding, and 0.48 four times that."""
    good = [row(-14.0)] * 20
    for off, n_off, is_alike in ((0.4, 2, True), (0.4, 3, False), (0.6, 1, False), (0.1, 9, True)):
        found = verified("c", [*good[n_off:], *[row(-14.0 - off)] * n_off])
        assert found.is_alike == is_alike, (off, n_off)
        assert found.n_alike == (20 if off == 0.1 else 20 - n_off)


def test_a_cut_of_the_last_token_of_some_rows_is_no_missing_end():
    longer, shorter = (-1.0, -2.0, -4.0, -8.0), (-1.0, -2.0, -4.0)
    rows = [row(-6.0, tokens=longer)] * 3 + [row(-6.0, tokens=shorter)] * 2
    assert "texts cut to 4 tokens" in verified("c", rows).finding
    assert "without the end" in verified("c", rows[:3]).finding


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        pytest.param([row(0.0)] * 3 + [row(-14.0)] * 9, "in 3 of 12 rows, 0 is stored", id="zeros"),
        pytest.param([row(-5.0, beside={-1: -14.0})], "in the row before it", id="shifted up"),
        pytest.param([row(-5.0, beside={1: -14.0})], "in the row after it", id="shifted down"),
        pytest.param([row(-6.0)], "without the end of the completion", id="no end"),
        pytest.param([row(-15.0)], "count the prompt in", id="prompt"),
        pytest.param([row(-14 / 3)], "averages over tokens", id="averages"),
        pytest.param([row(-9.0, others={"other": -14.0})], "value stands in other", id="other"),
        pytest.param([row(-9.0)], "of another model, template or text", id="another model"),
        pytest.param([row(None)], "nothing is stored", id="null"),
        pytest.param(
            [row(-3.5, tokens=(-1.0, -0.5, -3.0, -4.0, -8.0, -9.0), start=2)] * 2
            + [row(-4.5, tokens=(-1.0, -0.5, -4.0), start=2)],
            "texts cut to 4 tokens",
            id="cut",
        ),
    ],
)
def test_a_fault_is_named(rows, words):
    found = verified("c", rows)
    assert words in found.finding
    assert not found.is_alike


# With models


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pairs with the log-probs of two models, in Float32, and the folders of these."""
    place = tmp_path_factory.mktemp("models")
    policy, reference = model_tools.save_models(place)
    pytest.importorskip("torch")
    texts = pl.DataFrame(model_tools.plain_pairs(60))
    dpo_pipeline.logps(texts, place / "pairs.parquet", policy=policy, reference=reference)
    return SimpleNamespace(
        place=place,
        policy=policy,
        reference=reference,
        pairs=pl.read_parquet(place / "pairs.parquet"),
    )


def again(made, **given):
    """Score the same texts in another way, and return the pairs."""
    sink = made.place / "again.parquet"
    sink.unlink(missing_ok=True)
    texts = made.pairs.select("prompt", "chosen", "rejected")
    dpo_pipeline.logps(texts, sink, reference=made.reference, **given)
    return pl.read_parquet(sink)


def without_end(made):
    tokenizer = model_tools.make_tokenizer()
    model = model_tools.make_model(2)
    texts = dict.fromkeys(("chosen", "rejected"))
    for side in texts:
        values = []
        for each in made.pairs.iter_rows(named=True):
            ids = tokenizer(each["prompt"] + each[side])["input_ids"]
            start = len(ids) + 1 - each[f"{side}_num_tokens"]
            values.append(model_tools.by_hand(model, ids, start))
        texts[side] = values
    return made.pairs.with_columns(
        ref_chosen_logps=pl.Series(texts["chosen"]), ref_rejected_logps=pl.Series(texts["rejected"])
    )


REFS = ["ref_chosen_logps", "ref_rejected_logps"]
FAULTS = {
    "none": (lambda made: made.pairs, None),
    "bfloat16": (lambda made: again(made, models=Models(dtype="bfloat16")), None),
    "other batches": (lambda made: again(made, models=Models(batch_tokens=64)), None),
    "wrong checkpoint": (
        lambda made: made.pairs.with_columns(
            ref_chosen_logps="policy_chosen_logps", ref_rejected_logps="policy_rejected_logps"
        ).drop("policy_chosen_logps", "policy_rejected_logps"),
        "another model",
    ),
    "shift by a row": (lambda made: made.pairs.with_columns(pl.col(REFS).shift(1)), "row after it"),
    "missing end token": (without_end, "without the end"),
    "zeros": (
        lambda made: made.pairs.with_columns(
            pl.when(pl.int_range(pl.len()) % 7 > 0).then(pl.col(REFS)).otherwise(0.0)
        ),
        "0 is stored",
    ),
    "truncation": (lambda made: again(made, models=Models(max_length=12)), "cut to 12 tokens"),
}


@pytest.mark.models
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_named_and_clean_pairs_pass(made, fault):
    plant, words = FAULTS[fault]
    found = dpo_pipeline.verify_logps(plant(made), reference=made.reference, rows=40)
    assert [each.column for each in found.columns] == REFS
    assert found.is_alike == (words is None), str(found)
    for each in found.columns:
        assert each.finding == "" if words is None else words in each.finding
    assert all(each.is_exact for each in found.columns) == (fault in ("none", "other batches"))


@pytest.mark.models
@pytest.mark.filterwarnings("default")
def test_the_command(made, capsys, monkeypatch):
    monkeypatch.chdir(made.place)
    words = ["logps", "pairs.parquet", "--verify", "20", "--reference", made.reference]
    assert main(words) == 0
    assert "the stored log-probs are the model's (20 rows of pairs.parquet)" in (
        capsys.readouterr().out
    )
    assert main([*words[:-1], made.policy, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["alike"], document["rows"]) == (False, 20)
    assert main([*words, "--dry-run"]) == 0
    assert "20 rows would be scored anew" in capsys.readouterr().out
    assert main([*words, "--policy", made.policy]) == 0


def test_what_cannot_be_verified_is_refused(capsys):
    pairs = pl.DataFrame({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    with pytest.raises(UsageError, match="there is no model: give --policy"):
        dpo_pipeline.verify_logps(pairs)
    with pytest.raises(ColumnError, match="there are no log-probs of ref to verify"):
        dpo_pipeline.verify_logps(pairs, reference="base")
    with pytest.raises(UsageError, match="rows must be a whole number"):
        dpo_pipeline.verify_logps(pairs, reference="base", rows=0)
    assert main(["logps", "pairs.parquet"]) == 2
    assert main(["logps", "pairs.parquet", "out.parquet", "--verify", "3"]) == 2
    assert "logps takes an OUT to write, or --verify N" in capsys.readouterr().err
