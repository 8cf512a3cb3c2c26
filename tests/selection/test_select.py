"""`select`: the pairs that a rule ranks first, against sorting in plain Python."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest

import dpo_pipeline
from dpo_pipeline import Pairs, Selection, StorageError, UsageError, select
from dpo_pipeline.cli.program import main
from pair_tools import EXAMPLES, LOGPS

PAIRS = EXAMPLES / "pairs.parquet"
BETA = 0.1


def margins(frame):
    """The margins by the formula of the specification."""
    columns = [frame[name].to_list() for name in LOGPS]
    return [BETA * (c - C) - BETA * (r - R) for c, r, C, R in zip(*columns, strict=True)]


def drawn(n, seed=1):
    """Pairs with ids, prompts of three, a judge and two losses; no two margins are equal."""
    rng = np.random.default_rng(seed)
    ref = rng.uniform(-90, -10, (2, n))
    policy = ref + rng.normal(0, 4, (2, n)).clip(-9, 9)
    return pl.DataFrame(
        {
            "pair_id": [f"p{i}" for i in range(n)],
            "prompt_id": [f"q{i // 3}" for i in range(n)],
            **dict(zip(LOGPS, (*policy, *ref), strict=True)),
            "chosen_num_tokens": rng.integers(5, 60, n),
            "split": rng.choice(["a", "b", None], n),
            "judge": rng.normal(0, 2, n),
            "loss_a": rng.uniform(0, 2, n),
            "loss_b": rng.uniform(0, 2, n),
        }
    )


@pytest.fixture(scope="module")
def made():
    return drawn(997)


def kept(frame, out, **more):
    result = select(frame, out, outputs=dpo_pipeline.Outputs(overwrite=True), **more)
    return result, pl.read_parquet(out)


BY_HAND = {
    "smallest_gap": lambda m: m,
    "nearest_tie": abs,
    "largest_margin": lambda m: -m,
}


@pytest.mark.repeats(3)  # ranks are kept by one function
@pytest.mark.parametrize("rule", BY_HAND)
@pytest.mark.parametrize(("keep", "n"), [(100, 100), (0.25, 249), (0.5, 499), (5_000, 997)])
def test_the_first_of_the_sorted_pairs_are_kept(made, tmp_path, rule, keep, n):
    result, found = kept(made, tmp_path / "out.parquet", rule=rule, keep=keep)
    values = margins(made)
    order = sorted(range(len(values)), key=lambda i: BY_HAND[rule](values[i]))
    assert result.n_kept == n == found.height
    assert found["pair_id"].to_list() == [f"p{i}" for i in sorted(order[:n])]
    rank = {f"p{i}": place for place, i in enumerate(order, 1)}
    assert found["selection_rank"].to_list() == [rank[name] for name in found["pair_id"]]
    shown = abs if rule == "nearest_tie" else float
    expected = [shown(values[i]) for i in sorted(order[:n])]
    assert found["selection_value"].to_list() == pytest.approx(expected, abs=1e-12)


def test_a_share_is_of_each_subset_to_the_nearest_pair(made, tmp_path):
    result, found = kept(made, tmp_path / "out.parquet", rule="nearest_tie", keep=0.105, by="split")
    values = made.with_columns(size=pl.Series(margins(made)).abs())
    for split in ("a", "b", None):
        some = values.filter(pl.col("split").eq_missing(split)).sort("size")
        n = math.floor(some.height * 105 / 1000 + 0.5)
        of = found.filter(pl.col("split").eq_missing(split))
        assert sorted(of["pair_id"]) == sorted(some["pair_id"][:n])
        assert sorted(of["selection_rank"]) == list(range(1, n + 1))
        row = result.groups.filter(pl.col("split").eq_missing(split)).row(0, named=True)
        assert (row["n_ranked"], row["n_kept"]) == (some.height, n)
        assert row["last"] == pytest.approx(some["size"][n - 1], abs=1e-12)


def test_equal_values_are_in_an_order_that_rows_do_not_change(made, tmp_path):
    tied = made.with_columns(
        policy_chosen_logps=pl.col("ref_chosen_logps") - 1.0,
        policy_rejected_logps=pl.col("ref_rejected_logps") - 1.0,
    )
    _, one = kept(tied, tmp_path / "one.parquet", rule="nearest_tie", keep=300)
    shuffled = tied.sample(fraction=1.0, shuffle=True, seed=3)
    _, other = kept(shuffled, tmp_path / "other.parquet", rule="nearest_tie", keep=300)
    assert sorted(one["pair_id"]) == sorted(other["pair_id"])
    assert one["pair_id"].to_list() != [f"p{i}" for i in range(300)]


def test_random_depends_on_the_seed_and_the_id_alone(made, tmp_path):
    def ids(frame, seed):
        _, found = kept(
            frame,
            tmp_path / "out.parquet",
            rule="random",
            keep=0.5,
            selection=Selection(seed=seed),
        )
        return set(found["pair_id"])

    one = ids(made, 0)
    assert ids(made.reverse(), 0) == one
    both = len(one & ids(made, 1))
    # Of 499 drawn twice from 997, the count of both is hypergeometric: 249.7, sd 7.9.
    assert abs(both - 249.7) < 5 * 7.9


def test_a_judge_is_fused_with_the_margin(made, tmp_path):
    limits = {"implicit_low": -0.5, "implicit_high": 0.6, "judge_low": -3.0, "judge_high": 2.0}
    asked = Selection(judge="judge", arguments=limits)
    _, found = kept(
        made, tmp_path / "out.parquet", rule="largest_margin", keep=100, selection=asked
    )

    def chance(value, low, high):
        return (min(max(value, low), high) - low) / (high - low)

    fused = {}
    for name, margin, gap in zip(made["pair_id"], margins(made), made["judge"], strict=True):
        p, q = chance(margin, -0.5, 0.6), chance(gap, -3.0, 2.0)
        if p * q + (1 - p) * (1 - q) > 0:
            fused[name] = p * q / (p * q + (1 - p) * (1 - q))
    least = sorted(fused.values(), reverse=True)[99]
    assert found["selection_value"].min() == pytest.approx(least, abs=1e-12)
    for name, value in zip(found["pair_id"], found["selection_value"], strict=True):
        assert value == pytest.approx(fused[name], abs=1e-12)


def test_what_two_sources_contradict_wholly_has_no_value():
    frame = drawn(2).with_columns(judge=pl.Series([-9.0, 9.0]))
    frame = frame.with_columns(policy_chosen_logps=pl.col("ref_chosen_logps") + 9.0)
    limits = {"implicit_low": -0.01, "implicit_high": 0.01, "judge_low": -1.0, "judge_high": 1.0}
    frame = frame.with_columns(policy_rejected_logps=pl.col("ref_rejected_logps"))
    result = select(
        frame,
        rule="largest_margin",
        keep=2,
        selection=Selection(judge="judge", arguments=limits),
    )
    assert (result.n_unranked, result.n_kept) == (1, 1)


def test_easiest_takes_the_mean_loss_and_the_first_pair_of_a_prompt(made, tmp_path):
    _, found = kept(
        made,
        tmp_path / "out.parquet",
        rule="easiest",
        keep=50,
        selection=Selection(losses=["loss_a", "loss_b"]),
    )
    means = [(a + b) / 2 for a, b in zip(made["loss_a"], made["loss_b"], strict=True)]
    firsts = range(0, made.height, 3)
    order = sorted(firsts, key=lambda i: means[i])[:50]
    assert found["pair_id"].to_list() == [f"p{i}" for i in sorted(order)]
    assert found["selection_value"].to_list() == pytest.approx([means[i] for i in sorted(order)])


def test_easiest_on_a_made_table():
    # Hand-made: prompts x, y, x, z; losses .4, .2, .1, .3. The second pair of x is dropped.
    frame = drawn(4).with_columns(
        prompt_id=pl.Series(["x", "y", "x", "z"]), mine=pl.Series([0.4, 0.2, 0.1, 0.3])
    )
    result = select(frame, rule="easiest", keep=2, selection=Selection(losses="mine"))
    assert (result.n_kept, result.n_unranked) == (2, 1)
    assert result.groups["last"].item() == 0.3


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param("abs(reward_margin) / chosen_num_tokens", id="SQL"),
        pytest.param(pl.col("reward_margin").abs() / pl.col("chosen_num_tokens"), id="expression"),
    ],
)
def test_a_rule_of_ones_own(made, tmp_path, rule):
    _, found = kept(made, tmp_path / "out.parquet", rule=rule, keep=10)
    own = [abs(m) / n for m, n in zip(margins(made), made["chosen_num_tokens"], strict=True)]
    order = sorted(range(len(own)), key=own.__getitem__)[:10]
    assert found["pair_id"].to_list() == [f"p{i}" for i in sorted(order)]


def test_what_is_left_out_has_its_own_file(made, tmp_path):
    invalid = made.with_columns(
        pl.when(pl.int_range(pl.len()) % 10 == 7)
        .then(2.0)  # above 0, and a small margin
        .otherwise(pl.col(LOGPS[0]))
        .alias(LOGPS[0])
    )
    result, found = kept(
        invalid,
        tmp_path / "out.parquet",
        rule="nearest_tie",
        keep=0.3,
        on_invalid="exclude",
        selection=Selection(rest=tmp_path / "rest.parquet"),
    )
    rest = pl.read_parquet(tmp_path / "rest.parquet")
    assert (found.height, rest.height) == (269, 629)
    assert result.n_valid == 898
    assert not set(found["pair_id"]) & set(rest["pair_id"])
    assert rest["selection_rank"].min() == 270
    assert found["selection_value"].max() <= rest["selection_value"].min()


def test_a_folder_gives_a_folder(made, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    made[:400].write_parquet(source / "a.parquet", row_group_size=90)
    made[400:].write_parquet(source / "b.parquet")
    select(source, tmp_path / "folder", rule="nearest_tie", keep=100)
    select(made, tmp_path / "file.parquet", rule="nearest_tie", keep=100)
    parts = [pl.read_parquet(tmp_path / "folder" / f"{name}.parquet") for name in "ab"]
    assert pl.concat(parts).equals(pl.read_parquet(tmp_path / "file.parquet"))
    assert {each.name for each in (tmp_path / "folder").iterdir()} >= {"_SUCCESS"}


@pytest.mark.repeats(1)  # sources are one plan before pairs are selected
@pytest.mark.parametrize("kind", ["lazy", "csv", "reference"])
def test_other_sources_give_the_same(made, tmp_path, kind):
    select(made, tmp_path / "out.parquet", rule="smallest_gap", keep=50)
    expected = pl.read_parquet(tmp_path / "out.parquet")["pair_id"].to_list()
    source, more = made.lazy(), {}
    if kind == "csv":
        source = tmp_path / "pairs.csv"
        made.write_csv(source)
    if kind == "reference":
        reference = made.select("pair_id", *LOGPS[2:]).reverse()
        source, more = made.drop(LOGPS[2:]).lazy(), {"reference": reference}
    select(source, tmp_path / "other.parquet", rule="smallest_gap", keep=50, **more)
    assert pl.read_parquet(tmp_path / "other.parquet")["pair_id"].to_list() == expected


def test_rules_side_by_side(made):
    asked = Selection(compared=["smallest_gap", "nearest_tie"])
    result = select(made, rule="largest_margin", keep=0.1, selection=asked)
    values = margins(made)
    n = 100
    sets = {
        "largest_margin": set(sorted(range(997), key=lambda i: -values[i])[:n]),
        "smallest_gap": set(sorted(range(997), key=lambda i: values[i])[:n]),
        "nearest_tie": set(sorted(range(997), key=lambda i: abs(values[i]))[:n]),
    }
    for a, b, both, share in result.overlaps.iter_rows():
        assert both == len(sets[a] & sets[b])
        assert share == both / n
    assert result.overlaps.height == 3
    tokens = made["chosen_num_tokens"].to_list()
    for row in result.effects.iter_rows(named=True):
        some = sets.get(row["rule"], set(range(997)))
        assert row["n_pairs"] == len(some)
        assert row["reward_margin"] == pytest.approx(sum(values[i] for i in some) / len(some))
        assert row["reward_accuracy"] == sum(values[i] > 0 for i in some) / len(some)
        assert row["chosen_num_tokens"] == pytest.approx(sum(tokens[i] for i in some) / len(some))
        assert row["rejected_num_tokens"] is None
        assert row["n_prompts"] == len({i // 3 for i in some})


def test_the_top_by_margin_and_the_smallest_gaps_share_no_pair():
    asked = Selection(compared="smallest_gap")
    result = select(PAIRS, rule="largest_margin", keep=0.1, selection=asked)
    assert result.overlaps["n_both"].item() == 0


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out.parquet"
    words = ["select", str(PAIRS), str(out), "--rule", "random", "--keep", "10", "--dry-run"]
    assert main(words) == 0
    assert "would write" in capsys.readouterr().out
    assert not out.exists()


def test_the_command_writes_and_says(tmp_path, capsys):
    out = tmp_path / "out.parquet"
    words = ["select", str(PAIRS), str(out), "--rule", "smallest_gap", "--keep", "12.5%"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["n_pairs"], document["n_kept"]) == (200, 25)
    assert pl.read_parquet(out).height == 25
    assert main(words) == 3  # it is there already
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"rule": "smalest_gap", "keep": 1}, "did you mean 'smallest_gap'"),
        ({"rule": "reward_margn + 1", "keep": 1}, "did you mean 'reward_margin'"),
        ({"rule": "1 +", "keep": 1}, "is none of smallest_gap"),
        ({"rule": None, "keep": 1}, "rule must be smallest_gap"),
        ({"rule": "random"}, "keep must be a count"),
        ({"rule": "random", "keep": 0}, "keep must be a count"),
        ({"rule": "random", "keep": 1.5}, "keep must be a count"),
        ({"rule": "random", "keep": 1, "execution": "ray"}, "on this machine"),
        ({"rule": "random", "keep": 1, "loss": "aot"}, "loss of batches"),
        (
            {"rule": "largest_margin", "keep": 1, "selection": Selection(judge="judge")},
            "needs implicit_low",
        ),
        ({"rule": "easiest", "keep": 1, "selection": Selection(losses="lossa")}, "'loss_a'"),
        (
            {"rule": "random", "keep": 1, "selection": Selection(arguments={"a": 1.0})},
            "takes no arguments",
        ),
    ],
)
def test_what_makes_no_selection_is_refused(made, more, says):
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        select(Pairs(made), **more)


def test_an_input_column_of_the_name_is_not_written_over(made, tmp_path):
    taken = made.with_columns(selection_rank=pl.lit(1))
    with pytest.raises(dpo_pipeline.ColumnError, match="selection_rank"):
        select(taken, tmp_path / "out.parquet", rule="random", keep=1)


def test_an_input_is_no_output(made, tmp_path):
    path = tmp_path / "pairs.parquet"
    made.write_parquet(path)
    with pytest.raises(StorageError):
        select(path, path, "random", 1, outputs=dpo_pipeline.Outputs(overwrite=True))
    assert pl.read_parquet(path).equals(made)
