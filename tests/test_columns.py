"""Which column plays which role: aliases, mappings, doubts, and hints."""

from __future__ import annotations

import polars as pl
import pytest

from dpo_pipeline import Batches, ColumnError, Pairs, Scored, evaluate, score
from dpo_pipeline.columns import AMBIGUOUS, ROLES, SCORED, Needs, resolve
from pair_tools import LOGPS

SPELLINGS = {
    "TRL today": "{m}_{s}_logps ref",
    "TRL until 2024, torchtune, the DPO authors": "{m}_{s}_logps reference",
    "log probs": "{m}_{s}_log_probs reference",
    "logprobs": "{m}_{s}_logprobs ref",
    "logprobs in full": "{m}_{s}_logprobs reference",
    "the specification": "log_probs_{s}_{m} ref",
}


def spelled(how, role):
    pattern, reference = SPELLINGS[how].split()
    model, side, _ = role.split("_")
    return pattern.format(m=model if model == "policy" else reference, s=side)


@pytest.mark.parametrize("how", SPELLINGS)
def test_spellings_in_use_come_out_under_canonical_names(pairs, how):
    renamed = pairs.rename({role: spelled(how, role) for role in LOGPS})
    assert score(renamed).collect().equals(score(pairs).collect())
    assert evaluate(renamed).columns[LOGPS[2]] == spelled(how, LOGPS[2])


def test_no_alias_stands_for_two_roles_or_an_output():
    names = [name for role in ROLES.values() for name in (role.name, *role.aliases)]
    assert len(names) == len(set(names))
    assert not set(names) & (set(AMBIGUOUS) | {column.name for column in SCORED})


@pytest.mark.parametrize("name", ["chosen_logps", "chosen_logprobs", "chosen_log_probs"])
def test_a_name_that_tools_use_for_either_model_is_not_taken_alone(pairs, name):
    alone = pairs.rename({"policy_chosen_logps": name}).drop("ref_chosen_logps")
    with pytest.raises(ColumnError, match=f"{name!r} may be it, a name that is the policy's"):
        score(alone)
    with pytest.raises(ColumnError, match=f"{name!r} may be it, a name that is the policy's"):
        score(alone, loss="cpo")


@pytest.mark.parametrize("reference", ["ref_{}_logps", "reference_{}_logprobs"])
@pytest.mark.parametrize("word", ["logps", "logprobs", "log_probs"])
def test_such_a_name_beside_the_references_is_the_policys(pairs, word, reference):
    names = {f"policy_{side}_logps": f"{side}_{word}" for side in ("chosen", "rejected")}
    names |= {f"ref_{side}_logps": reference.format(side) for side in ("chosen", "rejected")}
    found = evaluate(pairs.rename(names))
    assert found.summary == evaluate(pairs).summary
    assert found.columns["policy_chosen_logps"] == f"chosen_{word}"
    # A loss without a reference takes no reference's column, and knows whose the other is.
    assert (
        evaluate(pairs.rename(names), loss="cpo").summary.loss
        == evaluate(pairs, loss="cpo").summary.loss
    )


def test_a_mapping_of_such_a_name_wins(pairs):
    names = {"policy_chosen_logps": "chosen_logps"}
    mapped = {"ref_chosen_logps": "chosen_logps", "policy_chosen_logps": "ref_chosen_logps"}
    rewards = score(Pairs(pairs.rename(names), columns=mapped)).collect()["chosen_reward"]
    assert rewards.to_list() == (-score(pairs).collect()["chosen_reward"]).to_list()


def test_two_such_names_are_in_doubt(pairs):
    both = pairs.rename({"policy_chosen_logps": "chosen_logps"})
    with pytest.raises(ColumnError, match="'chosen_logps' and 'chosen_logprobs' could both be it"):
        score(both.with_columns(chosen_logprobs="chosen_logps"))


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("model", ["policy", "ref"])
def test_lists_of_one_side_count_its_own_tokens_alone(side, model):
    names = [*LOGPS, f"{model}_{side}_token_logps"]
    other = {"chosen": "rejected", "rejected": "chosen"}[side]
    (problem,) = resolve(names, needs=Needs(tokens=True)).problems
    assert problem.startswith(f"{other}_num_tokens: missing; if a column has another name, map it")
    both = [*names, f"ref_{other}_token_logprobs"]
    assert resolve(both, needs=Needs(tokens=True)).problems == ()


def test_a_mapping_wins(pairs):
    swapped = {"policy_chosen_logps": "ref_chosen_logps", "ref_chosen_logps": "policy_chosen_logps"}
    rewards = score(Pairs(pairs, columns=swapped)).collect()["chosen_reward"]
    assert rewards.to_list() == (-score(pairs).collect()["chosen_reward"]).to_list()


def test_a_mapping_settles_a_doubt_and_the_other_column_passes_through(pairs):
    both = pairs.rename({"ref_chosen_logps": "reference_chosen_logps"}).with_columns(
        ref_chosen_logprobs=pl.lit(-1.0)
    )
    with pytest.raises(ColumnError, match=r"'ref_chosen_logprobs' and 'reference_chosen_logps'"):
        score(both)
    scored = score(Pairs(both, columns={"ref_chosen_logps": "reference_chosen_logps"})).collect()
    assert scored["chosen_reward"].equals(score(pairs).collect()["chosen_reward"])
    assert scored["ref_chosen_logprobs"].unique().to_list() == [-1.0]


def test_a_mapping_does_not_silently_displace_a_column(pairs):
    other = pairs.with_columns(mine=pl.lit(-1.0))
    mapping = {"ref_chosen_logps": "mine"}
    with pytest.raises(ColumnError, match="ref_chosen_logps: the input has this column already"):
        score(Pairs(other, columns=mapping))
    assert (
        score(Pairs(other, columns=mapping), scored=Scored(replace=True)).collect()[
            "ref_chosen_logps"
        ][0]
        == -1.0
    )


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        pytest.param({"ref_chosen_logps": "nope"}, "'nope', which is not a column", id="absent"),
        pytest.param(
            {"ref_chosen_logps": "ref_chosen_logpz"}, "did you mean 'ref_chosen_logps'", id="typo"
        ),
        pytest.param(
            {"ref_chosen_logps": "pair_id", "pair_id": "pair_id"},
            "'pair_id' is mapped to pair_id and ref_chosen_logps",
            id="one column for two roles",
        ),
    ],
)
def test_wrong_mappings(pairs, mapping, said):
    with pytest.raises(ColumnError, match=said):
        score(Pairs(pairs, columns=mapping))


def test_everything_that_is_wrong_is_said_at_once(pairs):
    with pytest.raises(ColumnError) as caught:
        score(pairs.drop(LOGPS[:2]).with_columns(loss=0))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [*LOGPS[:2], "loss"]


def test_missing_column_lists_what_is_there():
    (first, *_) = resolve(["prompt", "score"]).problems
    assert first == (
        "policy_chosen_logps: missing; if a column has another name, map it: "
        "Pairs(columns={role: name}), or --column role=name; the columns are prompt, score"
    )


@pytest.mark.parametrize("name", ["*", "^.*$"])
def test_a_name_that_polars_reads_as_a_pattern_is_refused_by_name(pairs, name):
    with pytest.raises(ColumnError, match="reads this name as a pattern"):
        evaluate(pairs.with_columns(pl.lit(1).alias(name)))


@pytest.mark.parametrize("name", ["__row", "__valid", "__batch", "index", "n_pairs", "literal"])
def test_columns_may_have_names_that_look_internal(pairs, name):
    odd = pairs.with_columns(pl.lit(1).alias(name), ref_chosen_logps=pl.lit(1.0))
    odd = pl.concat([odd, pairs.with_columns(pl.lit(1).alias(name))], how="vertical_relaxed")
    result = evaluate(odd, batches=Batches(5, by=None), on_invalid="exclude")
    assert result.summary.n_invalid == 6
    assert result.invalid.broken[0].offenders[0].row == 0
