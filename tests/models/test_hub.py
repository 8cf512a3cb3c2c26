"""Models by their names on a hub: a cache in its layout, with two revisions, and no network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import polars as pl
import pytest

import dpo_pipeline
import model_tools
from dpo_pipeline import UsageError
from dpo_pipeline.cli.program import main
from dpo_pipeline.options import Models

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("default")]
pytest.importorskip("torch")

PAIRS = pl.DataFrame(model_tools.plain_pairs(6))
SHA = {each: hashlib.sha256(each.encode()).hexdigest()[:40] for each in ("main", "v1", "adapters")}
# The cache is found when the library is imported, so it takes a process of its own.
CALLS = """
import contextlib, io, json, sys
from dpo_pipeline.cli.program import main
made = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    made.append([code, out.getvalue(), err.getvalue()])
json.dump(made, sys.stdout)
"""


def put(cache, name, revision, folder):
    """Put a folder into a cache as `huggingface_hub` lays it out."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / SHA[revision]
    for each in (repository / "blobs", repository / "refs", snapshot):
        each.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(SHA[revision])
    for file in folder.iterdir():
        blob = hashlib.sha256(file.read_bytes()).hexdigest()
        (repository / "blobs" / blob).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{blob}")
    if not (folder / "config.json").exists():  # a library that asked for it leaves this
        missing = repository / ".no_exist" / SHA[revision]
        missing.mkdir(parents=True)
        (missing / "config.json").touch()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with texts, models and a cache: `main` is the policy, `v1` the reference."""
    import peft

    folder = tmp_path_factory.mktemp("hub")
    policy, reference = model_tools.save_models(folder)
    put(folder / "cache", "org/name", "main", folder / "policy")
    put(folder / "cache", "org/name", "v1", folder / "ref")
    asked = peft.LoraConfig(
        r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    adapted = peft.get_peft_model(model_tools.make_model(2), asked)
    asked.base_model_name_or_path, asked.revision = "org/name", "v1"
    adapted.save_pretrained(folder / "adapters", save_embedding_layers=False)
    model_tools.make_tokenizer().save_pretrained(folder / "adapters")
    put(folder / "cache", "org/adapted", "adapters", folder / "adapters")
    PAIRS.write_ndjson(folder / "texts.jsonl")
    for name, model in (("main", policy), ("v1", reference)):
        dpo_pipeline.logps(PAIRS, folder / f"own-{name}.parquet", policy=model)
    return folder


def test_a_revision_is_used_and_its_commit_recorded(place):
    names = {
        "v1.parquet": ["--policy", "org/name", "--revision", "v1"],
        "main.parquet": ["--policy", "org/name"],
        "commit.parquet": ["--policy", "org/name", "--revision", SHA["v1"]],
        "ref.parquet": [
            *("--policy", "policy", "--reference", "org/name", "--reference-revision", "v1")
        ],
        "adapted.parquet": ["--policy", "org/adapted", "--revision", "adapters"],
    }
    refused = {
        "org/name: is no folder here, and no model with revision v9 on the hub": (
            ["--policy", "org/name", "--revision", "v9"]
        ),
        "org/nobody: is no folder here, and no model on the hub or in its cache": (
            ["--policy", "org/nobody"]
        ),
        "./no/such/folder: is no folder here": ["--policy", "./no/such/folder"],
    }
    calls = [["logps", "texts.jsonl", sink, *words] for sink, words in names.items()]
    calls += [["logps", "texts.jsonl", "no.parquet", *words] for words in refused.values()]
    done = subprocess.run(
        [sys.executable, "-c", CALLS],
        check=True,
        capture_output=True,
        text=True,
        input=json.dumps(calls),
        cwd=place,
        env={**os.environ, "HF_HUB_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1"},
    )
    found = json.loads(done.stdout)
    assert [code for code, *_ in found] == [0] * len(names) + [3] * len(refused), found
    for words, (_, out, err) in zip(refused, found[len(names) :], strict=True):
        assert words in err
        assert (out, err.count("\n")) == ("", 1)  # a sentence, and no traceback
    assert f"policy: org/name at {SHA['v1'][:12]} (float32)" in found[0][1]
    told = {
        sink: json.loads(pl.read_parquet_metadata(place / sink)["dpo_pipeline"])["models"]
        for sink in names
    }
    assert {sink: each["policy"]["revision"] for sink, each in told.items()} == {
        "v1.parquet": SHA["v1"],
        "main.parquet": SHA["main"],
        "commit.parquet": SHA["v1"],
        "ref.parquet": None,
        "adapted.parquet": SHA["adapters"],
    }
    assert told["ref.parquet"]["ref"]["revision"] == SHA["v1"]
    made = {sink: pl.read_parquet(place / sink) for sink in names}
    own = {name: pl.read_parquet(place / f"own-{name}.parquet") for name in ("main", "v1")}
    for sink, name in (("v1", "v1"), ("main", "main"), ("commit", "v1")):
        assert made[f"{sink}.parquet"].equals(own[name]), sink
    assert not own["v1"].equals(own["main"])
    ours = own["v1"]["policy_chosen_logps"].to_list()
    assert made["ref.parquet"]["ref_chosen_logps"].to_list() == ours
    # The adapters name the commit of the model below them.
    assert made["adapted.parquet"]["ref_chosen_logps"].to_list() == ours


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "policy", "--revision", "v1"], "--revision is of a policy on a hub, and the"),
        (["--reference", "ref", "--revision", "v1"], "the policy is not given"),
        (["--policy", "policy", "--reference-revision", "v1"], "the reference is not given"),
    ],
)
def test_a_revision_of_what_is_on_no_hub_is_refused(place, words, said, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["logps", "texts.jsonl", "no.parquet", *words]) == 2
    assert said in capsys.readouterr().err
    assert main(["logps", "own-v1.parquet", "--verify", "3", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_revision_of_a_loaded_model_is_refused():
    asked = Models(model_tools.make_model(1), revision="v1")
    with pytest.raises(UsageError, match="the policy is loaded already"):
        dpo_pipeline.logps(PAIRS, "no.parquet", models=asked)
