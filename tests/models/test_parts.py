"""Parts of a run that can stop, and what files say of their tokens: no model is needed."""

from __future__ import annotations

import json
import os
import warnings

import polars as pl
import pytest

import dpo_pipeline
from dpo_pipeline import DataWarning, Pairs, StorageError, UsageError
from dpo_pipeline.models import loading
from dpo_pipeline.models.parts import Parts, digest_of_rows
from dpo_pipeline.options import Execution, Models
from dpo_pipeline.sources import open_texts
from dpo_pipeline.storage import LOCAL

TEXTS = pl.DataFrame({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})


def test_a_part_is_there_once_it_is_whole(tmp_path):
    parts = Parts.beside(tmp_path / "out.parquet")
    parts.begin({"max_length": 8})
    assert os.path.dirname(parts.folder) == str(tmp_path)
    assert os.path.basename(parts.folder).startswith(".")  # hidden
    (tmp_path / ".out.parquet.parts" / "part-000000.parquet.unfinished").write_bytes(b"PAR1")
    assert not parts.is_done(0)  # what a killed run left
    parts.write(0, TEXTS, {"of": "this"})
    assert parts.is_done(0)
    assert parts.metadata(0)["of"] == "this"
    assert pl.read_parquet(parts.path(0)).equals(TEXTS)
    parts.remove()
    assert os.listdir(tmp_path) == []


def test_a_run_with_other_settings_is_refused(tmp_path):
    parts = Parts.beside(tmp_path / "out.parquet")
    parts.begin({"max_length": 8, "texts": "plain"})
    parts.begin({"texts": "plain", "max_length": 8})
    with pytest.raises(StorageError, match=r"with other settings \(max_length\).*remove the fold"):
        parts.begin({"max_length": 9, "texts": "plain"})


def test_rows_have_a_digest_of_their_values():
    rows = pl.DataFrame({"chosen": ["a"], "n": [1], "more": [[1]]})
    same = digest_of_rows(rows, ["chosen"])
    assert digest_of_rows(rows.clone(), ["chosen"]) == same
    for other in ({"chosen": ["b"]}, {"n": [2]}):
        assert digest_of_rows(rows.with_columns(**other), ["chosen"]) != same
    assert digest_of_rows(rows.with_columns(more=pl.lit(7)), ["chosen", "more"]) != same


def test_without_the_extra_the_call_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda _name: None)
    with pytest.raises(
        UsageError, match=r"needs torch and transformers: pip install torch transformers"
    ):
        dpo_pipeline.logps(TEXTS, tmp_path / "out.parquet", policy="tuned")


def test_parts_are_written_on_this_machine():
    with pytest.raises(UsageError, match="give a file on this machine"):
        dpo_pipeline.logps(TEXTS, "s3://bucket/out.parquet", policy="tuned")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": -1}, "max_length must be a whole number from 0 on, found -1"),
        ({"part_rows": 0}, "part_rows must be a whole number from 1 on"),
        ({"batch_tokens": 1.5}, "batch_tokens must be a whole number"),
        ({"dtype": "int8"}, "dtype must be one of auto, float32"),
        ({"dialect": "llama-factory"}, "dialect must be one of None, trl"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(UsageError, match=words):
        Models("tuned", **options)


def test_a_folder_of_datasets_is_read(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    TEXTS.write_ipc_stream(folder / "data-00000-of-00001.arrow")
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    )
    opened = open_texts(Pairs(folder), access=LOCAL, cancel=Execution().cancel)
    assert opened.frame.collect().equals(TEXTS)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(StorageError, match=r"holds several splits \(train, test\): name"):
        open_texts(Pairs(folder), access=LOCAL)


def written(path, columns, **told):
    """Write what looks like a file of `logps`."""
    made = {"tokenizer": "t", "template": None, "max_length": 1024, "dialect": None, **told}
    rows = pl.DataFrame({"pair_id": [1, 2, 3], **columns})
    rows.write_parquet(path, metadata={"dpo_pipeline": json.dumps(made)})
    return path


POLICY = {"policy_chosen_logps": [-10.0, -9.0, -8.5], "policy_rejected_logps": [-14.0, -8.0, -9.5]}
REFERENCE = {"ref_chosen_logps": [-11.0, -9.5, -8.0], "ref_rejected_logps": [-12.0, -9.0, -7.0]}


def notes_of(*call):
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", DataWarning)
        dpo_pipeline.evaluate(*call[:1], reference=call[1])
    return [str(each.message) for each in raised if "were made with" in str(each.message)]


def test_evaluate_warns_of_a_reference_with_other_tokens(tmp_path):
    policy = written(tmp_path / "policy.parquet", POLICY)
    same = written(tmp_path / "same.parquet", REFERENCE)
    assert notes_of(policy, same) == []
    other = written(tmp_path / "other.parquet", REFERENCE, tokenizer="u", max_length=512)
    (note,) = notes_of(policy, other)
    assert "other.parquet) were made with another tokenizer and longest length" in note
    pl.read_parquet(other).write_parquet(tmp_path / "plain.parquet")  # nobody knows of what
    assert notes_of(policy, tmp_path / "plain.parquet") == []


def test_compare_warns_of_a_lent_reference_with_other_tokens(tmp_path):
    a = written(tmp_path / "a.parquet", {**POLICY, **REFERENCE})
    b = written(tmp_path / "b.parquet", POLICY)
    plan = dpo_pipeline.dry_run(dpo_pipeline.compare, a, b)
    assert plan.facts.notes == ()
    b = written(tmp_path / "b.parquet", POLICY, template="chatml")
    (note,) = dpo_pipeline.dry_run(dpo_pipeline.compare, a, b).facts.notes
    assert "made with another chat template than the policy's" in note
