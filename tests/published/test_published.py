"""The published contracts: committed as generated, valid by their standards, true of the tables."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

import jsonschema
import polars as pl
import pytest
import yaml
from open_data_contract_standard.model import OpenDataContractStandard

from completion_tools import made_up
from dpo_pipeline import (
    Batches,
    Selection,
    check,
    compare,
    evaluate,
    rank,
    score_parquet,
    select,
)
from dpo_pipeline.cli.program import main
from dpo_pipeline.columns import BATCH_MEANS, INVALID, ROLES, SCORED
from dpo_pipeline.published import table_contracts
from pair_tools import ROOT
from schema_tools import schema, validate

published = cache(table_contracts.published)
COMMITTED = ROOT / "schemas"
TABLES = [name for name in published() if name.endswith(".odcs.yaml")]
STANDARD = json.loads(files("open_data_contract_standard").joinpath("schema.json").read_text())
IS_STANDARD = jsonschema.validators.validator_for(STANDARD)(STANDARD)


def test_the_committed_files_are_the_generated_ones():
    assert {path.name: path.read_text() for path in COMMITTED.iterdir()} == published(), (
        "run: dpo-pipeline contract --to schemas"
    )


@pytest.mark.parametrize("name", TABLES)
def test_tables_follow_the_open_data_contract_standard(name):
    document = yaml.safe_load(published()[name])
    IS_STANDARD.validate(document)
    model = OpenDataContractStandard.from_string(published()[name])
    assert [p.name for p in model.schema_[0].properties] == [
        p["name"] for p in document["schema"][0]["properties"]
    ]


def columns_of(name):
    return [p["name"] for p in yaml.safe_load(published()[name])["schema"][0]["properties"]]


def test_tables_that_go_out_have_the_published_columns_and_types(tmp_path, pairs):
    physical = {pl.Float64: "DOUBLE", pl.Int64: "BIGINT", pl.String: "VARCHAR"}
    physical[pl.List(pl.String)] = None
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pairs.with_columns(
        ref_chosen_logps=pl.Series([None, -2.0, -3.0, -4.0, -5.0, -6.0])
    ).write_parquet(source)
    score_parquet(
        source, out, batches=Batches(2, file=tmp_path / "means.parquet"), on_invalid="quarantine"
    )
    kept, found = tmp_path / "kept.parquet", tmp_path / "found.parquet"
    asked = Selection(contradictions=found)
    select(source, kept, "random", 2, on_invalid="exclude", selection=asked)
    for name, path, exact in (
        ("selected_pairs.odcs.yaml", kept, False),
        ("contradicting_pairs.odcs.yaml", found, False),
        ("scored_pairs.odcs.yaml", out, False),
        ("invalid_pairs.odcs.yaml", tmp_path / "out.invalid.parquet", False),
        ("batch_means.odcs.yaml", tmp_path / "means.parquet", True),
    ):
        schema = pl.read_parquet_schema(path)
        properties = yaml.safe_load(published()[name])["schema"][0]["properties"]
        for each in properties:
            assert physical[schema[each["name"]]] == each.get("physicalType")
        if exact:
            assert list(schema) == [each["name"] for each in properties]


def test_every_declared_column_and_alias_is_published():
    texts = {"pair": "preference_pairs.odcs.yaml", "completion": "completions.odcs.yaml"}
    for role in ROLES.values():
        for row in role.of:
            text = published()[texts[row]]
            assert all(json.dumps(name) in text for name in (role.name, *role.aliases))
    assert columns_of("scored_pairs.odcs.yaml") == [column.name for column in SCORED]
    assert columns_of("invalid_pairs.odcs.yaml") == [column.name for column in INVALID]
    assert columns_of("batch_means.odcs.yaml") == [column.name for column in BATCH_MEANS]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="totals"),
        pytest.param(["--by", "subset", "--batch-size", "2"], id="subsets and batches"),
        pytest.param(["--on-invalid", "exclude", "--beta", "1e15"], id="invalid pairs"),
    ],
)
def test_the_document_follows_its_schema(capsys, tmp_path, pairs, options):
    pairs.write_parquet(tmp_path / "in.parquet")
    assert main(["evaluate", str(tmp_path / "in.parquet"), "--json", *options]) == 0
    document = json.loads(capsys.readouterr().out)
    validate(document, "summary")
    assert bool(document["invalid"]) == ("--beta" in options)


def test_the_schema_refuses_what_is_no_summary(pairs):
    document = evaluate(pairs).to_dict()
    validate(document, "summary")
    for wrong in ({"beta": "0.1"}, {"document_version": 2}, {"more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            validate(document | wrong, "summary")


def test_the_sql_of_the_rules_counts_what_the_rules_count(pairs):
    odd = pairs.with_columns(
        ref_chosen_logps=pl.Series([None, float("nan"), float("inf"), 0.5, -5e6, -6.0])
    )
    reported = check(odd).by_rule
    document = yaml.safe_load(published()["preference_pairs.odcs.yaml"])
    quality = [q for p in document["schema"][0]["properties"] for q in p["quality"]]
    # Polars' SQL is the other route; it names the two tests differently from the standard SQL.
    frames = pl.SQLContext(object=odd)
    counted = {}
    for rule in quality:
        column = rule["name"].split(".")[0]
        in_polars = {
            f"isnan({column})": f"({column} = 'NaN'::double)",
            f"isinf({column})": f"(abs({column}) = 'Infinity'::double)",
        }
        query = rule["query"].format(object="object")
        for call, expression in in_polars.items():
            query = query.replace(call, expression)
        n = frames.execute(query, eager=True).item()
        if n:
            counted[rule["name"]] = n
    assert counted == reported


def test_the_command_prints_and_writes_them(capsys, tmp_path):
    assert main(["contract", "summary"]) == 0
    assert json.loads(capsys.readouterr().out) == schema("summary")
    assert main(["contract", "--to", str(tmp_path / "new")]) == 0
    assert {p.name: p.read_text() for p in (tmp_path / "new").iterdir()} == published()


def test_documents_of_completions_follow_their_schemas(tmp_path):
    table = made_up(20, 1).with_columns(part=pl.col("prompt_id") % 2)
    other = table.with_columns(policy_logps=pl.col("policy_logps") + pl.col("completion_id") % 3)
    loss = "apo_zero_unpaired"
    documents = {
        "completions_summary": [
            evaluate(table, loss=loss, by="part"),
            evaluate(table, loss=loss, statistics=True),
            evaluate(table, loss="nca", by="part"),
        ],
        "completions_comparison": [compare(table, other, loss=loss)],
        "ranking": [rank(table, by="part"), rank(table.drop("label").with_columns(rank=1))],
    }
    for name, made in documents.items():
        for each in made:
            document = json.loads(each.to_json())
            validate(document, name)
            with pytest.raises(jsonschema.ValidationError):
                validate(document | {"more": 1}, name)
    score_parquet(table, tmp_path / "out.parquet", loss=loss)
    columns = pl.read_parquet_schema(tmp_path / "out.parquet").names()
    assert columns[-4:] == columns_of("scored_completions.odcs.yaml")
