"""Every output says its objective in full."""

from __future__ import annotations

import json

import polars as pl
import pyarrow.parquet as pq
import pytest

from dpo_pipeline import Objective, evaluate, score, score_parquet
from option_tools import grouped

DOCUMENTED = [
    pytest.param(
        {},
        {
            "beta": 0.1,
            "rewards": "score",
            "dialect": None,
            "ld_alpha": 1.0,
            "humanline": False,
            "terms": [
                {
                    "loss": "sigmoid",
                    "weight": 1.0,
                    "label_smoothing": 0.0,
                    "reference_free": False,
                    "per_token": False,
                    "f_divergence": "reverse_kl",
                }
            ],
        },
        "sigmoid",
        id="default",
    ),
    pytest.param(
        {
            "beta": 0.3,
            "loss": {"ipo": 0.5, "simpo": 1},
            "loss_args": {"gamma": 0.2},
            "dialect": "trl",
        },
        {
            "beta": 0.3,
            "rewards": "logratio",
            "dialect": "trl",
            "ld_alpha": 1.0,
            "humanline": False,
            "terms": [
                {
                    "loss": "ipo",
                    "weight": 0.5,
                    "reference_free": False,
                    "per_token": True,
                    "f_divergence": "reverse_kl",
                },
                {
                    "loss": "simpo",
                    "weight": 1.0,
                    "gamma": 0.2,
                    "label_smoothing": 0.0,
                    "reference_free": True,
                    "per_token": True,
                    "f_divergence": "reverse_kl",
                },
            ],
        },
        "0.5 ipo + simpo",
        id="sum in a dialect",
    ),
    pytest.param(
        {
            "beta": 0.5,
            "loss": "hinge",
            "loss_args": {"f_divergence": "alpha_divergence", "f_alpha": 0.25, "per_token": True},
        },
        {
            "beta": 0.5,
            "rewards": "score",
            "dialect": None,
            "ld_alpha": 1.0,
            "humanline": False,
            "terms": [
                {
                    "loss": "hinge",
                    "weight": 1.0,
                    "reference_free": False,
                    "per_token": True,
                    "f_divergence": "alpha_divergence",
                    "f_alpha": 0.25,
                }
            ],
        },
        "hinge",
        id="divergence",
    ),
]


@pytest.mark.parametrize(("call", "document", "title"), DOCUMENTED)
def test_every_output_says_the_objective_in_full(counted, source, tmp_path, call, document, title):
    scored, means, kept = (tmp_path / name for name in ("s.parquet", "m.parquet", "s.json"))
    result = score_parquet(
        source, scored, **grouped(batch_size=2, batches=means, summary=kept, **call)
    )
    # The files hold what `score` gives, bit for bit.
    beta = call.get("beta")
    rest = {name: value for name, value in call.items() if name != "beta"}
    assert pl.read_parquet(scored).equals(score(counted, beta, **grouped(**rest)).collect())
    for told in (json.loads(kept.read_text()), json.loads(result.to_json())):
        assert told["objective"] == document
        assert (told["loss"], told["beta"]) == (title, document["beta"])
    for path in (scored, means):
        facts = json.loads(pq.read_metadata(path).metadata[b"dpo_pipeline"])
        assert facts["objective"] == document
        assert (facts["loss"], facts["beta"]) == (title, document["beta"])
    assert result.objective.to_dict() == document
    assert f"{title} loss, beta {document['beta']:g}" in str(result)


def test_integers_and_floats_of_an_argument_are_one_document(source):
    documents = [
        evaluate(
            source, beta, loss=Objective({"hinge": weight, "bco_pair": 1}, arguments=arguments)
        ).to_json()
        for beta, weight, arguments in ((1, 2, {"baseline": 3}), (1.0, 2.0, {"baseline": 3.0}))
    ]
    assert documents[0] == documents[1]
