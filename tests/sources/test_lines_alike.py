"""Large files of lines: a search tells that all are alike, and Polars the types of others."""

from __future__ import annotations

import json

import polars as pl
import pytest

from dpo_pipeline import read
from dpo_pipeline.sources.common_schema import lines_fit

ROW = {
    "pair_id": 'a"b',
    "chosen": [{"role": "user", "content": 'x\\y"é'}],
    "tokens": [-1.5, None, -2],
    "truth": True,
    "turns": 3,
    "policy_chosen_logps": -1,
    "a.b (c) #~&-": None,
}
LATER = {"pair_id": None, "tokens": [], "policy_chosen_logps": -1.5e-7}


def spelled(**options):
    return [json.dumps(row, **options) for row in (ROW, LATER, ROW)]


ALIKE = {
    "as Python writes": spelled(),
    "compact": spelled(separators=(",", ":")),
    "as they are": spelled(ensure_ascii=False),
    "a blank line": ['{"a":1}', "", '{"a":2}'],
    "ends of Windows": ['{"a":1}\r', '{"a":2}\r'],
}
OTHERS = {
    "a late key": ['{"a":1}', '{"a":2,"b":3}'],
    "a late key in place of another": ['{"a":1,"b":2}', '{"a":2,"c":3}'],
    "a late key inside": ['{"m":{"r":1}}', '{"m":{"r":1,"s":2}}'],
    "a fraction": ['{"a":1}', '{"a":2.5}'],
    "text": ['{"a":1}', '{"a":"x"}'],
    "a long number": ['{"a":1}', '{"a":12345678901234567890}'],
    "a value after nulls": ['{"a":null}', '{"a":1}'],
    "a list in a list": ['{"a":[1]}', '{"a":[[1]]}'],
    "text that looks like a key": ['{"a":"x"}', '{"a":"x\\",\\"b\\":1","c":1}'],
    "NaN": ['{"a":1.5}', '{"a":NaN}'],
    "another order": ['{"a":1,"b":2}', '{"b":1,"a":2}'],
    "a key twice": ['{"a":1}', '{"a":1,"a":2}'],
    "no object": ['{"a":1}', "[1]"],
    "a zero byte and its like": ['{"a":1}', '{"a":1}\x01'],
}


def written(tmp_path, lines):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def types(path, rows):
    return pl.scan_ndjson(path, infer_schema_length=rows).collect_schema()


@pytest.mark.parametrize("name", ALIKE)
def test_lines_of_one_writer_are_alike(tmp_path, name):
    path = written(tmp_path, ALIKE[name])
    assert lines_fit(str(path), types(path, None))


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_first_lines_do_not_tell_is_seen(tmp_path, name):
    path = written(tmp_path, OTHERS[name])
    assert not lines_fit(str(path), types(path, 1))


NO_TABLE = ("a list in a list", "NaN", "no object", "a zero byte and its like")


@pytest.mark.parametrize("name", sorted({*ALIKE, *OTHERS} - {*NO_TABLE}))
def test_a_large_file_has_the_types_that_polars_finds_in_all_lines(tmp_path, name, monkeypatch):
    path = written(tmp_path, (ALIKE | OTHERS)[name])
    expected = read(path)
    monkeypatch.setattr("dpo_pipeline.sources.text_files._LARGE", 0)
    monkeypatch.setattr("dpo_pipeline.sources.text_files.INFERRED_ROWS", 1)
    found = read(path)
    assert found.collect_schema() == expected.collect_schema()
    assert found.collect().equals(expected.collect())


def test_types_of_a_large_file_are_looked_for_once(tmp_path, monkeypatch):
    path = written(tmp_path, ALIKE["compact"])
    asked = []
    scan = pl.scan_ndjson

    def noted(*args, **kwargs):
        asked.append(kwargs.get("infer_schema_length", "none"))
        return scan(*args, **kwargs)

    monkeypatch.setattr("dpo_pipeline.sources.text_files._LARGE", 0)
    monkeypatch.setattr(pl, "scan_ndjson", noted)
    read(path).collect()
    assert None not in asked
