"""Text files as people have them: Python's NaN, marks, arrays, blank lines, any order."""

from __future__ import annotations

import json
import math
import random
from types import SimpleNamespace

import polars as pl
import pytest

from dpo_pipeline import ColumnError, DataWarning, Pairs, StorageError, check, evaluate, read
from dpo_pipeline.sources import text_files
from pair_tools import LOGPS

MARK = b"\xef\xbb\xbf"


def lines_of(frame):
    """Return JSON lines as Python's json writes them."""
    return [json.dumps(row) for row in frame.to_dicts()]


@pytest.fixture
def odd(pairs):
    """Pairs with numbers that JSON has not, beside text that says so."""
    first = [-20.0, math.nan, math.inf, -math.inf, -60.0, -70.0]
    return pairs.with_columns(
        policy_chosen_logps=pl.Series(first), note=pl.lit('NaN, "Infinity" and -Infinity: NaN')
    )


@pytest.mark.repeats(1)  # chunks are cut before lines are read, as `an_array_of_objects` has it
@pytest.mark.parametrize("chunk", [1, 7, 100, 2**20])
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_numbers_that_python_writes_are_invalid_pairs(tmp_path, odd, monkeypatch, ending, chunk):
    monkeypatch.setattr(text_files, "_CHUNK", chunk)
    path = tmp_path / f"pairs.{ending}"
    path.write_text("\n".join(lines_of(odd)) + "\n")
    assert {rule.name: [o.row for o in rule.offenders] for rule in check(path).broken} == {
        "policy_chosen_logps.not_nan": [1],
        "policy_chosen_logps.finite": [2, 3],
    }
    found = read(path).collect()
    assert found.select(odd.columns).equals(odd)
    assert evaluate(path, on_invalid="exclude").summary == (
        evaluate(odd, on_invalid="exclude").summary
    )


def test_token_lists_and_missing_keys_beside_such_numbers(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": [1.5, NaN], "b": {"c": -Infinity}}\n{"d": 1}\n{"a": [], "d": 2.5}\n')
    found = read(path).collect()
    assert found["d"].to_list() == [None, 1.0, 2.5]
    assert found["b"].to_list()[0] == {"c": -math.inf}
    assert found["a"].to_list()[1:] == [None, []]
    assert math.isnan(found["a"].to_list()[0][1])


def test_a_clean_file_is_read_by_the_engine_alone(tmp_path, pairs, monkeypatch):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines_of(pairs.with_columns(note=pl.lit("NaN")))))

    def never(*_args):
        raise AssertionError("Python read the lines")

    monkeypatch.setattr(text_files, "_json_chunks", never)
    monkeypatch.setattr(text_files, "json", SimpleNamespace(loads=never))
    assert evaluate(path).summary == evaluate(pairs).summary


def test_python_parses_only_the_chunks_that_need_it(tmp_path, pairs, monkeypatch):
    monkeypatch.setattr(text_files, "_CHUNK", 1_000)
    many = pl.concat([pairs] * 50).with_columns(pair_id=pl.int_range(300).cast(pl.String))
    last = many.with_columns(
        ref_chosen_logps=pl.when(pl.int_range(300) != 299)
        .then("ref_chosen_logps")
        .otherwise(math.nan)
    )
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines_of(last)))
    parsed = []
    loads = json.loads
    monkeypatch.setattr(text_files.json, "loads", lambda text: parsed.append(1) or loads(text))
    assert read(path).collect().select(last.columns).equals(last)
    assert 0 < len(parsed) < 12


ENDINGS = ["jsonl", pytest.param("ndjson", marks=pytest.mark.slow), "csv", "quoted.csv", "json"]


@pytest.mark.repeats(3)  # quoted or not, and lines
@pytest.mark.parametrize("ending", ENDINGS)  # ndjson is another name of jsonl
def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path, pairs, ending):
    path = tmp_path / f"x.{ending}"
    style = "always" if ending == "quoted.csv" else "necessary"
    is_csv = ending.endswith("csv")
    text = pairs.write_csv(quote_style=style) if is_csv else "\n".join(lines_of(pairs))
    path.write_bytes(MARK + text.encode())
    found = read(path)
    assert found.collect_schema().names() == pairs.columns
    assert found.collect().select(LOGPS).equals(pairs.select(LOGPS))
    second = tmp_path / f"y.{ending}"
    second.write_bytes(text.encode())
    both = evaluate(Pairs([path, second], format="csv" if is_csv else "ndjson"))
    assert both.summary.loss == evaluate(pairs).summary.loss
    assert both.summary.n_pairs == 12


@pytest.mark.repeats  # chunks and lines, each with or without marks and indents
@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(("chunk", "objects"), [(1, 1), (50, 2), (2**20, 5_000)])
def test_an_array_of_objects(tmp_path, odd, monkeypatch, indent, chunk, objects, mark):
    monkeypatch.setattr(text_files, "_CHUNK", chunk)
    monkeypatch.setattr(text_files, "_LINES", objects)
    path = tmp_path / "x.json"
    path.write_bytes(
        mark + ("\n" * (chunk > 1) + json.dumps(odd.to_dicts(), indent=indent)).encode()
    )
    assert read(path).collect().select(odd.columns).equals(odd)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1}, {"a": 2}', "an array of objects: Expecting value, after 2 objects"),
        ('[{"a": 1}, {"a" 2}]', "an array of objects: Expecting ':' delimiter, after 1 objects"),
        ("[]", "there is none"),
        ('{\n  "a": [1]\n}', "line 1 is no JSON"),
    ],
)
def test_json_of_another_shape_is_named(tmp_path, text, said):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(StorageError) as caught:
        evaluate(path)
    assert said in str(caught.value)


def test_a_folder_of_json(tmp_path, pairs):
    for name, rows in (("part-0.json", pairs[:2]), ("part-1.json", pairs[2:])):
        (tmp_path / name).write_text("\n".join(lines_of(rows)))
    assert evaluate(Pairs(tmp_path, format="ndjson")).summary == evaluate(pairs).summary
    # Beside files that end as lines do, they may be anything, and are named.
    (tmp_path / "only.jsonl").write_text(lines_of(pairs)[0])
    with pytest.warns(DataWarning, match=r"left out: part-0\.json, part-1\.json"):
        assert evaluate(Pairs(tmp_path, format="ndjson")).summary.n_pairs == 1


@pytest.mark.repeats  # each of the three is left out by itself
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("blank", ["", " \t "])
@pytest.mark.parametrize("first", ["pair_id", LOGPS[0]])
def test_blank_lines_of_csv_are_no_pairs(tmp_path, pairs, end, blank, first):
    head, *rows = pairs.select(first, pl.exclude(first)).write_csv().splitlines()
    path = tmp_path / "x.csv"
    path.write_bytes(end.join([head, *rows[:3], blank, *rows[3:], "", blank, ""]).encode())
    assert evaluate(path, by="subset").summary == evaluate(pairs).summary
    assert read(path).collect().height == 6
    (tmp_path / "y.csv").write_text("a\n1\n\n2\n\n")
    assert read(tmp_path / "y.csv").collect()["a"].to_list() == [1, 2]


def test_rows_of_csv_count_without_blank_lines(tmp_path, pairs):
    head, *rows = pairs.write_csv().splitlines()
    path = tmp_path / "x.csv"
    path.write_text("\n".join([head, "", rows[0], "", "9", rows[1]]))
    (rule, *_) = check(path).broken
    assert [each.row for each in rule.offenders] == [1]


def test_files_of_csv_may_have_their_columns_in_any_order(tmp_path, pairs):
    rng = random.Random(5)
    for i in range(3):
        columns = rng.sample(pairs.columns, k=len(pairs.columns))
        pairs[2 * i : 2 * i + 2].select(columns).write_csv(tmp_path / f"{i}.csv")
    found = evaluate(Pairs(tmp_path, format="csv"), by="subset")
    expected = evaluate(pairs, by="subset")
    assert found.summary == expected.summary
    assert found.subsets.equals(expected.subsets)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.drop(LOGPS[0]), f"{LOGPS[0]}: missing here, and "),
        (lambda p: p.with_columns(more=1), "more: it is here, and not in "),
    ],
)
def test_files_of_csv_with_other_columns_are_named(tmp_path, pairs, change, said):
    pairs.write_csv(tmp_path / "a.csv")
    change(pairs).select(pl.all().shuffle(0)).write_csv(tmp_path / "b.csv")
    with pytest.raises(ColumnError) as caught:
        evaluate(Pairs(tmp_path, format="csv"))
    assert caught.value.source == str(tmp_path / "b.csv")
    assert caught.value.problems[0].startswith(said)


def test_whole_floats_of_csv_are_counts(tmp_path, pairs):
    floats = pairs.with_columns(
        chosen_num_tokens=pl.Series([2.0, None, 4.0, 5.0, 6.0, 7.0]), rejected_num_tokens=3.0
    )
    floats.write_csv(tmp_path / "x.csv")
    found = evaluate(tmp_path / "x.csv", loss="simpo", on_invalid="exclude")
    assert {rule.name: rule.count for rule in found.invalid.broken} == {
        "chosen_num_tokens.not_null": 1
    }
    kept = floats.filter(pl.col("chosen_num_tokens").is_not_null())
    assert found.summary.loss == evaluate(kept, loss="simpo").summary.loss
