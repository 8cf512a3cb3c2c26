"""How often `verify_logps` names what was planted, and how often it alarms where nothing was.

`python tests/models/test_verifying_counts.py 10` prints the table of the guide, of ten seeds.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest

sys.path += [str(Path(__file__).parents[1] / "tools")]  # where this file is run by itself

import dpo_pipeline
import model_tools
from dpo_pipeline.options import Models, Outputs

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("default")]
pytest.importorskip("torch")

KINDS = ("gpt2", "llama", "qwen2")
SIDES = ("chosen", "rejected")
REFS = [f"ref_{side}_logps" for side in SIDES]
N = 60


class Case:
    """Pairs with a reference's log-probs, and what else can stand in their place."""

    def __init__(self, kind, seed, folder):
        self.rng = random.Random(f"{kind} {seed}")
        self.tokenizer = model_tools.make_tokenizer(kind)
        self.model = model_tools.make_model(seed, kind)
        self._sink, self._kind, self._seed = Path(folder) / "pairs.parquet", kind, seed
        make = model_tools.chat_pairs if seed % 3 == 2 else model_tools.plain_pairs
        self.texts = pl.DataFrame(make(N, seed))
        self.is_chat = seed % 3 == 2
        self.clean = self.scored()

    def scored(self, model=None, texts=None, **options):
        """Return the texts with log-probs of the reference, or of another model."""
        asked = Models(reference=model or self.model, tokenizer=self.tokenizer, **options)
        data, over = self.texts if texts is None else texts, Outputs(overwrite=True)
        dpo_pipeline.logps(data, self._sink, models=asked, outputs=over)
        return pl.read_parquet(self._sink)

    def rounded(self, name):
        """Return what the model gives in another type of weights."""
        import torch

        model = model_tools.make_model(self._seed, self._kind).to(getattr(torch, name))
        return self.scored(model)

    def other_checkpoint(self):
        """Return what the model gives with weights that are off by some hundredths."""
        import torch

        model = model_tools.make_model(self._seed, self._kind)
        with torch.no_grad():
            for each in model.parameters():
                each.mul_(1 + self.rng.uniform(0.05, 0.2) * torch.randn_like(each))
        return self.scored(model)

    def shifted(self):
        by = self.rng.choice((-1, 1))
        return self.clean.with_columns(pl.col(REFS).shift(by)).with_columns(
            pl.col(REFS).fill_null(-20.0)
        )

    def without_end(self):
        """Return sums that a loop gives which forgets the end token, or the template's end."""
        made = {}
        for side in SIDES:
            sums = []
            for row in self.clean.iter_rows(named=True):
                if self.is_chat:
                    both = [*row["prompt"], *row[side]]
                    ids = list(self.tokenizer.apply_chat_template(both)["input_ids"])
                    cut = ids[: -len(self.tokenizer("<|im_end|>\n", add_special_tokens=False)[0])]
                else:
                    ids = [*self.tokenizer(row["prompt"] + row[side])["input_ids"], 0]
                    cut = ids[:-1]
                start = len(ids) - row[f"{side}_num_tokens"]
                sums.append(model_tools.by_hand(self.model, cut, start))
            made[f"ref_{side}_logps"] = pl.Series(sums)
        return self.clean.with_columns(**made)

    def zeros(self):
        share = self.rng.uniform(0.1, 1.0)
        held = pl.Series([self.rng.random() > share for _ in range(N)])
        return self.clean.with_columns(pl.when(held).then(pl.col(REFS)).otherwise(0.0))

    def truncated(self):
        """Cut the longer two fifths of the texts, or a few more or less."""
        lengths = []
        for row in self.texts.iter_rows(named=True):
            for side in SIDES:
                if self.is_chat:
                    both = [*row["prompt"], *row[side]]
                    lengths += [len(self.tokenizer.apply_chat_template(both)["input_ids"])]
                else:
                    lengths += [len(self.tokenizer(row["prompt"] + row[side])["input_ids"])]
        place = self.rng.uniform(0.5, 0.8)
        return self.scored(max_length=sorted(lengths)[int(place * len(lengths))])


FAULTS = {
    "another checkpoint": (Case.other_checkpoint, "another model"),
    "a shift by a row": (Case.shifted, "the value of a row stands in"),
    "a missing end token": (Case.without_end, "without the end"),
    "zeros": (Case.zeros, "0 is stored"),
    "truncation": (Case.truncated, "cut to"),
}
CLEAN = {
    "as they were made": lambda case: case.clean,
    "batches of 64 tokens": lambda case: case.scored(batch_tokens=64),
    "one text a batch": lambda case: case.scored(batch_tokens=1),
    "bfloat16": lambda case: case.rounded("bfloat16"),
    "float16": lambda case: case.rounded("float16"),
    "stored in float32": lambda case: case.clean.with_columns(pl.col(REFS).cast(pl.Float32)),
    "stored in bfloat16": lambda case: stored_in_bfloat16(case.clean),
    "two decimals": lambda case: case.clean.with_columns(pl.col(REFS).round(2)),
    "other order": lambda case: case.clean.sample(fraction=1.0, shuffle=True, seed=1),
    "half of the rows": lambda case: case.clean[::2],
    "in parts": lambda case: case.scored(part_rows=7),
    "a column of nulls beside": lambda case: case.clean.with_columns(
        policy_chosen_logps=pl.lit(None, pl.Float64), policy_rejected_logps=pl.lit(None, pl.Float64)
    ),
}


def stored_in_bfloat16(pairs):
    import torch

    return pairs.with_columns(
        pl.Series(name, torch.tensor(pairs[name].to_list()).bfloat16().double().tolist())
        for name in REFS
    )


def counts(cases, *, shown=False):
    """Count, by what was done to pairs: columns, alarms, and alarms that name it."""
    found = {name: Counter() for name in [*FAULTS, *CLEAN]}
    for kind, seed in cases:
        with TemporaryDirectory() as folder:
            case = Case(kind, seed, folder)
            for name, (plant, words) in FAULTS.items():
                tell(found[name], case, plant(case), words, shown and f"{kind} {seed} {name}")
            for name, make in CLEAN.items():
                tell(found[name], case, make(case), "", shown and f"{kind} {seed} {name}")
    return found


def tell(count, case, pairs, words, shown):
    asked = Models(reference=case.model, tokenizer=case.tokenizer)
    for each in dpo_pipeline.verify_logps(pairs, rows=40, models=asked).columns:
        is_named = bool(each.finding) and words in each.finding
        count.update(columns=1, alarms=bool(each.finding), named=is_named)
        if shown and (bool(each.finding), is_named) != (bool(words), bool(words)):
            print(shown, each)  # noqa: T201


def test_faults_are_named_and_clean_pairs_pass():
    found = counts(zip(KINDS, (1, 2, 3), strict=True))  # the second has conversations
    for name, count in found.items():
        n = count["columns"]
        assert n == len(KINDS) * len(SIDES), name
        expected = n if name in FAULTS else 0
        assert (count["alarms"], count["named"]) == (expected, expected), name


if __name__ == "__main__":
    table = counts(product(KINDS, range(int(sys.argv[1]))), shown=True)
    for title, names in (("planted", FAULTS), ("clean", CLEAN)):
        print(title)  # noqa: T201
        for name in names:
            print(f"| {name} | {table[name]['columns']} | {table[name]['alarms']} | ", end="")  # noqa: T201
            print(f"{table[name]['named']} |")  # noqa: T201
