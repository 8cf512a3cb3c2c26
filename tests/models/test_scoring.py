"""Log-probs under small models: by hand, between batches, in parts, and over kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import polars as pl
import pytest

import dpo_pipeline
import model_tools
from dpo_pipeline import Execution, Outputs
from dpo_pipeline.cli.program import main
from dpo_pipeline.errors import Cancelled, StorageError, UsageError
from dpo_pipeline.models import loading, scoring_tokens
from dpo_pipeline.models.scoring_tokens import Scorer
from dpo_pipeline.models.texts import shape_of
from dpo_pipeline.models.tokenizing import Tokenizer
from dpo_pipeline.options import Models

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("default")]
torch = pytest.importorskip("torch")

PAIRS = pl.DataFrame(model_tools.plain_pairs())
SIDES = ("chosen", "rejected")
KEYS = [f"{model}_{side}_logps" for model in ("policy", "ref") for side in SIDES]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folders of a policy and a reference."""
    return model_tools.save_models(tmp_path_factory.mktemp("models"))


def sums_of(model, *, budget=8192, max_length=None, tokenizer=None):
    shape = shape_of(PAIRS.schema, "texts")
    made = Tokenizer(tokenizer or model_tools.make_tokenizer(), shape, max_length=max_length)
    tokens = [made.row(row) for row in PAIRS.iter_rows(named=True)]
    sequences = [each for row in tokens for each in row.sequences]
    return sequences, Scorer(model, pad=0, budget=budget).sums(sequences)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])  # the last caps its logits
def test_log_probs_are_those_by_hand(kind):
    model = model_tools.make_model(3, kind)
    sequences, found = sums_of(model)
    for tokens, value in list(zip(sequences, found, strict=True))[:12]:
        expected = model_tools.by_hand(model, list(tokens.ids), tokens.start)
        assert value == pytest.approx(expected, rel=2e-6)
        assert expected < -5  # nothing is compared with zeros


def test_a_head_that_gives_other_logits_is_noticed():
    model = model_tools.make_model(3)
    head = model.get_output_embeddings()

    class Doubled(torch.nn.Module):
        def forward(self, **given):
            made = inner(**given)
            made.logits = made.logits * 2
            return made

    inner, model.forward = model.forward, Doubled()
    sequences, found = sums_of(model)
    assert head is model.get_output_embeddings()
    expected = model_tools.by_hand(model, list(sequences[0].ids), sequences[0].start)
    assert found[0] == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("budget", [1, 64, 300])
def test_batches_change_no_log_prob(budget):
    model = model_tools.make_model(3)
    alone, found = sums_of(model, budget=1)[1], sums_of(model, budget=budget)[1]
    assert found == pytest.approx(alone, abs=1e-4)


def test_the_side_that_a_tokenizer_pads_changes_nothing():
    model, tokenizer = model_tools.make_model(3), model_tools.make_tokenizer()
    tokenizer.padding_side = "left"
    assert sums_of(model, tokenizer=tokenizer)[1] == sums_of(model)[1]


def test_slices_change_no_log_prob(monkeypatch):
    model = model_tools.make_model(3)
    whole = sums_of(model)[1]
    monkeypatch.setattr(scoring_tokens, "SLICE", 3)
    assert sums_of(model)[1] == pytest.approx(whole, abs=1e-4)


def test_sums_are_made_in_float64(monkeypatch):
    """4,000 log-probs of -1 - 2^-20: in Float32 their sum is off by far more than 1e-9."""
    value, n = -1.0 - 2.0**-20, 4000
    monkeypatch.setattr(Scorer, "_of_tokens", lambda *_: torch.full((n,), value))
    model = model_tools.make_model(3, n_positions=n + 1)
    text = scoring_tokens.Completion(tuple([1] * (n + 1)), 1)
    (found,) = Scorer(model, pad=0, budget=n).sums([text])
    assert found == pytest.approx(n * value, abs=1e-9)


def test_a_model_is_left_as_it_was():
    model = model_tools.make_model(3).train()
    with loading.Loaded(model=model, facts={}).in_use() as used:
        assert not used.training
    assert model.training


def test_a_text_beyond_the_places_of_a_model_is_refused():
    model = model_tools.make_model(3, n_positions=8)
    with pytest.raises(UsageError, match="places for 8: give --max-length 8"):
        sums_of(model)


def scored(sink, saved, data=PAIRS, **more):
    policy, reference = saved
    result = dpo_pipeline.logps(data, sink, policy=policy, reference=reference, **more)
    return result, pl.read_parquet(sink)


def test_the_file_has_all_columns_and_the_log_probs_of_each_row(tmp_path, saved):
    result, made = scored(tmp_path / "out.parquet", saved)
    assert made.columns == [*PAIRS.columns, "chosen_num_tokens", "rejected_num_tokens", *KEYS]
    assert made.select(PAIRS.columns).equals(PAIRS)
    assert result.counts["merged"] == PAIRS.height  # each prompt ends in a space
    assert os.listdir(tmp_path) == ["out.parquet"]
    ids = model_tools.make_tokenizer()(made["prompt"][3] + made["rejected"][3] + "<|endoftext|>")
    n = made["rejected_num_tokens"][3]
    expected = model_tools.by_hand(
        model_tools.make_model(2), ids["input_ids"], len(ids["input_ids"]) - n
    )
    assert made["ref_rejected_logps"][3] == pytest.approx(expected, rel=2e-6)


def test_metadata_say_what_made_the_file(tmp_path, saved):
    scored(tmp_path / "out.parquet", saved, models=Models(max_length=30))
    told = json.loads(pl.read_parquet_metadata(tmp_path / "out.parquet")["dpo_pipeline"])
    assert told["models"]["policy"]["name"] == saved[0]
    assert told["models"]["policy"]["weights"] != told["models"]["ref"]["weights"]
    assert told["models"]["ref"]["dtype"] == "float32"
    assert (told["max_length"], told["template"]) == (30, None)
    assert set(told["versions"]) == {"dpo_pipeline", "torch", "transformers"}
    assert len(told["tokenizer"]) == 32
    own = model_tools.make_tokenizer()
    digest = loading.digest_of_tokenizer(own)
    own(["a", "a b"], padding=True, truncation=True, max_length=9)
    assert loading.digest_of_tokenizer(own) == digest == told["tokenizer"]
    own.add_tokens(["fox and dog"])
    assert loading.digest_of_tokenizer(own) != digest


def test_a_row_per_completion(tmp_path, saved):
    rows = PAIRS.select("prompt", completion="chosen")
    _, made = scored(tmp_path / "out.parquet", saved, rows)
    assert made.columns == ["prompt", "completion", "num_tokens", "policy_logps", "ref_logps"]
    _, pairs = scored(tmp_path / "pairs.parquet", saved)
    # Its prompt ends where this completion alone has it end, as in KTOTrainer: a pair's ends at
    # the earlier place of two.
    is_same = made["num_tokens"] == pairs["chosen_num_tokens"]
    assert 0 < (made["num_tokens"] < pairs["chosen_num_tokens"]).sum() < 3
    off = (made["policy_logps"] - pairs["policy_chosen_logps"]).abs()
    assert off.filter(is_same).max() < 1e-4
    assert off.filter(~is_same).min() > 1


def test_what_the_longest_length_cuts_is_counted_by_side(tmp_path, saved, capsys):
    rows = pl.DataFrame(
        {
            "prompt": ["Tell me", "Tell me a story about a fox and", None],
            "chosen": [" a", " of course", " x"],
            "rejected": [" a story about a fox", " no", " y"],
        }
    )
    result, made = scored(tmp_path / "a.parquet", saved, rows, models=Models(max_length=4))
    expected = {"null": 1, "cut rejected": 1, "away chosen": 1, "away rejected": 1}
    assert {name: n for name, n in result.counts.items() if n} == expected
    assert made["policy_chosen_logps"].is_null().to_list() == [False, True, True]
    assert "in 1 row the longest length cuts the rejected completion short" in str(result)
    result, made = scored(
        tmp_path / "b.parquet", saved, rows, models=Models(max_length=4, dialect="trl")
    )
    assert result.counts["dropped"] == 1
    assert "in 1 row the prompt alone has the longest length: left out, as TRL does" in str(result)
    assert made["prompt"].to_list() == ["Tell me", None]
    assert capsys.readouterr() == ("", "")


def test_a_reference_whose_tokens_have_other_numbers_is_refused(tmp_path, saved):
    other = model_tools.make_tokenizer()
    rules = json.loads(other.backend_tokenizer.to_str())
    words = rules["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    from tokenizers import Tokenizer as Rules
    from transformers import PreTrainedTokenizerFast

    model_tools.make_model(2).save_pretrained(tmp_path / "other")
    PreTrainedTokenizerFast(tokenizer_object=Rules.from_str(json.dumps(rules))).save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(UsageError, match="2 of .* tokens have other numbers than in the policy's"):
        scored(tmp_path / "out.parquet", (saved[0], str(tmp_path / "other")))


def test_a_model_that_is_not_there_is_a_storage_error(tmp_path, saved):
    with pytest.raises(StorageError, match="holds no model of transformers"):
        scored(tmp_path / "out.parquet", (saved[0], str(tmp_path)))


def test_loaded_models_and_adapters(tmp_path, saved):
    """The reference of a policy with adapters is the model below them."""
    peft = pytest.importorskip("peft")
    model, tokenizer = model_tools.make_model(1), model_tools.make_tokenizer()
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights=False)
    )
    dpo_pipeline.logps(
        PAIRS, tmp_path / "a.parquet", policy=adapted, models=Models(tokenizer=tokenizer)
    )
    found = pl.read_parquet(tmp_path / "a.parquet")
    _, plain = scored(tmp_path / "b.parquet", saved)
    assert found["ref_chosen_logps"].to_list() == plain["policy_chosen_logps"].to_list()
    assert (found["policy_chosen_logps"] - plain["policy_chosen_logps"]).abs().min() > 1e-3
    model.peft_config["default"].base_model_name_or_path = saved[0]
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    dpo_pipeline.logps(PAIRS, tmp_path / "c.parquet", policy=tmp_path / "adapter")
    assert pl.read_parquet(tmp_path / "c.parquet").equals(found)


# Parts


@pytest.mark.parametrize("kind", ["frame", "parquet", "jsonl"])
@pytest.mark.parametrize("size", [5, 24])
def test_parts_hold_each_row_once_and_in_its_place(tmp_path, saved, kind, size):
    PAIRS.write_parquet(tmp_path / "texts.parquet", row_group_size=7)
    PAIRS.write_ndjson(tmp_path / "texts.jsonl")
    data = PAIRS if kind == "frame" else tmp_path / f"texts.{kind}"
    result, made = scored(tmp_path / "a.parquet", saved, data, models=Models(part_rows=size))
    _, whole = scored(tmp_path / "b.parquet", saved)
    assert result.n_rows == PAIRS.height
    assert made.select(PAIRS.columns).equals(PAIRS)
    for name in KEYS:
        assert made[name].to_list() == pytest.approx(whole[name].to_list(), abs=1e-4)


def test_a_stopped_run_goes_on_at_the_next_part(tmp_path, saved):
    """The bytes are those of a run that nobody stopped."""
    PAIRS.write_parquet(tmp_path / "texts.parquet")
    models = Models(part_rows=5, batch_tokens=64)
    scored(tmp_path / "whole.parquet", saved, tmp_path / "texts.parquet", models=models)
    stop, steps = threading.Event(), []

    def after(progress):
        steps.append(progress)
        if progress.rows > 11:  # within the third part
            stop.set()

    run = Execution(cancel=stop, progress=after)
    sink = tmp_path / "out.parquet"
    with pytest.raises(Cancelled):
        scored(sink, saved, tmp_path / "texts.parquet", models=models, execution=run)
    assert not sink.exists()
    assert steps[-1].tokens > 0
    parts = tmp_path / ".out.parquet.parts"
    done = sorted(p.name for p in parts.glob("part-*"))
    assert done == ["part-000000.parquet", "part-000001.parquet"]
    before = {name: (parts / name).stat().st_mtime_ns for name in done}

    def look(_progress):
        assert before == {name: (parts / name).stat().st_mtime_ns for name in done}

    run = Execution(progress=look)
    scored(sink, saved, tmp_path / "texts.parquet", models=models, execution=run)
    assert sink.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not parts.exists()


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[4])
import polars as pl
import dpo_pipeline
from dpo_pipeline.models.parts import Parts
from dpo_pipeline.options import Execution, Models
write, n = Parts.write, [0]
def dying(self, number, rows, metadata):
    if number == 2 and sys.argv[5] == "between":
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, number, rows, metadata)
Parts.write = dying
def progress(each):
    if each.rows > 11 and sys.argv[5] == "within":
        os.kill(os.getpid(), signal.SIGKILL)
dpo_pipeline.logps(sys.argv[1], sys.argv[2], policy=sys.argv[3],
    models=Models(part_rows=5, batch_tokens=64), execution=Execution(progress=progress))
"""


@pytest.mark.parametrize("moment", ["between", "within"])
def test_a_killed_run_goes_on_at_the_next_part(tmp_path, saved, moment):
    PAIRS.write_parquet(tmp_path / "texts.parquet")
    sink, tools = tmp_path / "out.parquet", os.path.dirname(model_tools.__file__)
    words = [str(tmp_path / "texts.parquet"), str(sink), saved[0], tools, moment]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    parts = tmp_path / ".out.parquet.parts"
    assert len(list(parts.glob("part-*.parquet"))) == 2
    models = Models(part_rows=5, batch_tokens=64)
    for each in (sink, tmp_path / "whole.parquet"):
        dpo_pipeline.logps(tmp_path / "texts.parquet", each, policy=saved[0], models=models)
    assert sink.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["out.parquet", "texts.parquet", "whole.parquet"]


def test_parts_of_other_settings_or_texts_are_refused(tmp_path, saved):
    stop = threading.Event()
    run = Execution(cancel=stop, progress=lambda each: each.rows > 6 and stop.set())
    sink, models = tmp_path / "out.parquet", Models(part_rows=5, batch_tokens=64)
    with pytest.raises(Cancelled):
        scored(sink, saved, models=models, execution=run)
    with pytest.raises(StorageError, match=r"a run with other settings \(max_length\)"):
        scored(sink, saved, models=Models(part_rows=5, batch_tokens=64, max_length=99))
    with pytest.raises(StorageError, match="part 0 was made of other texts"):
        scored(sink, saved, PAIRS.with_columns(chosen=pl.lit("else")), models=models)


# The command


def test_two_commands_from_texts_to_figures(tmp_path, saved, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PAIRS.write_ndjson("texts.jsonl")
    given = ["--policy", saved[0], "--reference", saved[1]]
    assert main(["logps", "texts.jsonl", "pairs.parquet", *given, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "texts: pairs, plain text, the prompt in 'prompt'" in out
    assert "tokens are scored: ' " in out  # the space belongs to the completion
    assert "'<|endoftext|>'" in out
    assert not os.path.exists("pairs.parquet")
    assert main(["logps", "texts.jsonl", "pairs.parquet", *given]) == 0
    assert capsys.readouterr().out.startswith("pairs.parquet: 24 rows")
    assert main(["evaluate", "pairs.parquet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["n_valid"] == 24
    assert main(["logps", "texts.jsonl", "pairs.parquet", *given]) == 3  # it exists
    assert main(["logps", "texts.jsonl", "p.parquet", *given, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["merged"] == 24


def test_outputs_are_replaced_where_that_is_asked_for(tmp_path, saved):
    scored(tmp_path / "out.parquet", saved)
    with pytest.raises(StorageError, match="exists"):
        scored(tmp_path / "out.parquet", saved)
    scored(tmp_path / "out.parquet", saved, PAIRS[:3], outputs=Outputs(overwrite=True))
    assert pl.read_parquet(tmp_path / "out.parquet").height == 3
