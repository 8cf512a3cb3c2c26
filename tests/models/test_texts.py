"""Which texts a table has, and where a prompt ends: no model is needed to know."""

from __future__ import annotations

import polars as pl
import pytest

from dpo_pipeline import ColumnError, UsageError, logps
from dpo_pipeline.models.scoring_tokens import batches_of
from dpo_pipeline.models.texts import common_start, parts_of, shape_of
from dpo_pipeline.models.tokenizing import Tokenizer, common_prefix

MESSAGE = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
TEXT = pl.String()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}, "pairs, plain text, the prompt in"),
        ({"chosen": TEXT, "rejected": TEXT}, "pairs, plain text, the prompt is the start"),
        ({"chosen": MESSAGE, "rejected": MESSAGE}, "pairs, conversations, the prompt is the start"),
        ({"prompt": TEXT, "completion": TEXT}, "one completion a row, plain text"),
    ],
)
def test_the_shape_is_said(columns, said):
    assert str(shape_of(pl.Schema({"id": pl.Int64(), **columns}), "texts")).startswith(said)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"prompt": TEXT, "chosen": TEXT}, "texts are missing.*the columns are prompt, chosen"),
        ({"completion": TEXT}, "texts are missing"),
        ({"chosen": TEXT, "rejected": pl.Int64()}, "rejected: must be text as chosen is, found"),
        ({"chosen": MESSAGE, "rejected": TEXT}, "rejected: must be a conversation as chosen is"),
    ],
)
def test_what_holds_no_texts_is_refused(columns, problem):
    with pytest.raises(ColumnError, match=problem):
        shape_of(pl.Schema(columns), "texts")


@pytest.mark.parametrize(
    ("chosen", "rejected", "start"),
    [
        ("Human: hi Assistant: yes", "Human: hi Assistant: no", 20),  # its space is the answer's
        ("ab", "ac", 1),
        ("yes", "no", 0),
        ("yes ", "no ", 0),
        ("ab", "abc", 1),  # the shorter one keeps its last character
        ("", "a", 0),
    ],
)
def test_a_prompt_ends_where_texts_part(chosen, rejected, start):
    assert common_start(chosen, rejected) == start


def test_conversations_part_at_a_message():
    shape = shape_of(pl.Schema({"chosen": MESSAGE, "rejected": MESSAGE}), "texts")
    ask, good, bad = (
        {"role": role, "content": text}
        for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
    )
    row = {"chosen": [ask, {**good, "name": None}], "rejected": [ask, bad]}
    assert parts_of(row, shape) == ([ask], [good], [bad])
    assert parts_of({"chosen": None, "rejected": [ask]}, shape) is None


class Letters:
    """A tokenizer of letters that merges a space with the letter after it."""

    eos_token = "."  # noqa: S105  as tokenizers call it
    chat_template = None

    def __call__(self, text):
        ids, place = [], 0
        while place < len(text):
            size = 2 if text[place] == " " and place + 1 < len(text) else 1
            ids.append(text[place : place + size])
            place += size
        return {"input_ids": ids}


def tokens_of(prompt, chosen, rejected, max_length=None):
    shape = shape_of(pl.Schema({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}), "texts")
    tokenizer = Tokenizer(Letters(), shape, max_length=max_length)
    return tokenizer.row({"prompt": prompt, "chosen": chosen, "rejected": rejected})


def test_a_completion_starts_where_its_tokens_do():
    found = tokens_of("ab", "cd", "e.")
    assert [(each.ids, each.start) for each in found.sequences] == [
        (("a", "b", "c", "d", "."), 2),
        (("a", "b", "e", "."), 2),  # has its end already
    ]
    assert (found.n_merged, found.is_dropped) == (0, False)


def test_a_space_that_merges_is_of_the_completion():
    found = tokens_of("a ", "b", "c")
    assert [(each.ids, each.start) for each in found.sequences] == [
        (("a", " b", "."), 1),
        (("a", " c", "."), 1),
    ]
    assert found.n_merged == 1


def test_what_is_too_long_is_cut_and_counted():
    found = tokens_of("abc", "de", "f", max_length=4)
    assert [(e.ids, e.n_cut, e.n_tokens) for e in found.sequences] == [
        (("a", "b", "c", "d"), 2, 1),
        (("a", "b", "c", "f"), 1, 1),
    ]
    away = tokens_of("abc", "de", "f", max_length=3)
    assert away.is_dropped
    assert [each.n_tokens for each in away.sequences] == [0, 0]


def test_the_first_token_of_all_has_no_log_prob():
    assert [each.n_tokens for each in tokens_of("", "ab", "c").sequences] == [2, 1]


def test_prefixes_are_counted():
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([], [1]) == 0


def test_batches_hold_so_many_tokens_longest_first():
    assert list(batches_of([3, 9, 4, 4], 9)) == [[1], [2, 3], [0]]
    assert list(batches_of([3, 9, 4, 4], 12)) == [[1], [2, 3, 0]]
    assert list(batches_of([], 5)) == []


def test_a_call_without_a_policy_is_refused(tmp_path):
    texts = pl.DataFrame({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    with pytest.raises(UsageError, match="there is no model: give --policy"):
        logps(texts, tmp_path / "out.parquet")


def test_columns_that_would_be_added_twice_are_refused(tmp_path):
    texts = pl.DataFrame({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    twice = texts.with_columns(policy_chosen_logps=-1.0)
    with pytest.raises(ColumnError, match="policy_chosen_logps: the input has this column"):
        logps(twice, tmp_path / "out.parquet", policy="nowhere")


def test_tools_and_arguments_of_the_template_are_passed_on():
    class Chat:
        chat_template = "there"
        eos_token = None

        def apply_chat_template(self, messages, **given):
            made.append((messages, given))
            return {"input_ids": [1, 2, 3]}

    made = []
    columns = {"prompt": MESSAGE, "chosen": MESSAGE, "rejected": MESSAGE}
    message = [{"role": "user", "content": "q", "name": None}]
    row = dict.fromkeys(columns, message) | {
        "tools": [{"name": "sum", "description": None}],
        "chat_template_kwargs": {"thinking": False, "other": None},
    }
    tokenizer = Tokenizer(Chat(), shape_of(pl.Schema(columns), "texts"), max_length=None)
    tokenizer.row(row)
    tokenizer.row(row | {"tools": '[{"name": "sum", "description": null}]'})
    own = {"role": "user", "content": "q"}
    assert [messages for messages, _ in made] == 2 * [[own], [own, own], [own, own]]
    assert [given["tools"] for _, given in made[::3]] == [
        [{"name": "sum"}],
        [{"name": "sum", "description": None}],
    ]
    assert made[0][1].get("add_generation_prompt")
    assert not made[1][1].get("add_generation_prompt")
    assert all(given["thinking"] is False and "other" not in given for _, given in made)
