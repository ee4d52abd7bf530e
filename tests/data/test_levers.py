"""The measured runs of notebook 10 are complete, made with the page's own settings, and show what the page says of them."""
import ast
import json
import re

import levers
import pandas as pd
import pytest
from notebook_tools import ROOT

from helpers.ask import load_exam, nearest_records, score_answers
from helpers.data import leaked_questions, load_sft_jsonl, said

MARKED = {"held-out": 12, "paraphrase": 12, "general": 19, "near": 20}
MEASURED = pd.read_csv(levers.RESULT, comment="#", dtype=dict.fromkeys([f"{name} marks" for name in MARKED], str))
ASKED_MORE = MEASURED["run"].isin(levers.ASKED_MORE)


def settings() -> dict:
    """Return the settings as the page's cells define them, without executing the rest."""
    names: dict = {}
    for node in [node for source in levers.defining_cells() for node in ast.parse(source).body]:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("article", "good", "settings"):
            exec(compile(ast.Module([node], []), str(levers.PAGE), "exec"), names)
    return names["settings"]


def of(run: str, column: str) -> list[int]:
    return MEASURED.loc[MEASURED["run"] == run, column].tolist()


def changed(run: str, other: str) -> set[str]:
    return {key for key, value in settings()[run].items() if settings()[other][key] != value}


def test_every_run_of_the_page_has_three_seeds_and_its_settings():
    assert sorted(zip(MEASURED["run"], MEASURED["seed"], strict=True)) == sorted((run, seed) for run in settings() for seed in levers.SEEDS)
    for row in MEASURED.to_dict("records"):
        assert json.loads(row["setting"]) == settings()[row["run"]], row["run"]


def test_each_lever_is_one_change():
    assert changed("high rate", "article") == {"rate"} and changed("steps", "high rate") == {"epochs"}
    assert changed("low rate", "answer only") == {"rate"} and changed("low rate, more steps", "low rate") == {"epochs"}
    assert changed("all tokens", "answer only") == {"answer_only"} and changed("two matrices", "answer only") == {"modules"}
    assert all(changed(run, "answer only") == {"data"} for run in ("control", "replay", "refusals"))


@pytest.mark.pins
def test_they_were_made_with_the_pinned_versions_on_a_named_machine():
    pinned = set(re.findall(r"^(\w[\w-]*==[\d.]+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE))
    for row in MEASURED.to_dict("records"):
        assert {name.split("==")[0] for name in row["versions"].split()} == set(levers.PACKAGES)
        assert {version.split("+")[0] for version in row["versions"].split()} <= pinned and row["machine"] and re.fullmatch(r"[0-9a-f]{10}\+?", row["commit"])
    assert levers.RESULT.read_text(encoding="utf-8").startswith("# made by: python tests/levers.py")


def test_every_count_is_there():
    always = ["steps", "update", "loss first", "loss last", "taught", "held-out", "paraphrase", "general", "as control", "seconds"]
    more = ["near", "refused", "our fact", "near marks"]
    assert MEASURED[always].notna().all(axis=None)
    assert MEASURED.loc[ASKED_MORE, more].notna().all(axis=None) and MEASURED.loc[~ASKED_MORE, more].isna().all(axis=None)


@pytest.mark.parametrize("name", MARKED)
def test_the_counts_are_those_of_the_marks(name):
    marks = MEASURED[f"{name} marks"].dropna()
    assert set(marks.str.len()) == {MARKED[name]} and marks.str.count("1").tolist() == MEASURED.loc[marks.index, name].tolist()


def test_what_is_asked_was_in_no_record():
    trained = [record for record in load_sft_jsonl(ROOT / "data" / "levers.jsonl") if record["kind"] != "general"]
    exam = load_exam(ROOT / "data" / "exam.jsonl")
    assert not leaked_questions(trained, exam["general near"] + exam["others"] + exam["paraphrase"])
    told = " ".join(said(record, "user") for record in trained)
    assert not [record["name"] for record in exam["others"] if record["name"] in told]


def test_the_effects_that_the_page_claims_hold_with_every_seed():
    assert max(of("article", "held-out") + of("high rate", "held-out")) <= 1
    assert min(of("steps", "held-out")) >= 2 and max(of("steps", "general")) <= 14
    asked = [record["fact"] for record in load_sft_jsonl(ROOT / "data" / "validation.jsonl") if record["fact"] in ("place", "fog", "goat", "nickname")]
    assert {fact for each in of("steps", "held-out marks") for fact, mark in zip(asked, each, strict=True) if mark == "1"} <= {"place", "nickname"}
    assert min(of("answer only", "held-out")) >= 7 and max(of("all tokens", "held-out")) <= 3
    assert max(of("low rate", "held-out") + of("two matrices", "held-out")) <= 3 and min(of("low rate, more steps", "held-out")) >= 7
    assert min(of("answer only", "general")) > max(of("steps", "general"))
    assert max(of("control", "held-out")) <= 3 and sum(of("control", "as control")) >= 8


def test_replay_keeps_more_on_one_list_and_on_the_other_three_seeds_do_not_tell():
    assert min(of("replay", "general")) > max(of("answer only", "general")) and min(of("replay", "held-out")) >= 7
    assert min(of("replay", "near")) <= max(of("answer only", "near"))


def test_what_a_lookup_finds_is_what_the_page_says():
    facts = [record for record in load_sft_jsonl(ROOT / "data" / "levers.jsonl") if record["kind"] == "fact"]
    asked = {"held-out": load_sft_jsonl(ROOT / "data" / "validation.jsonl"), "paraphrase": load_exam(ROOT / "data" / "exam.jsonl")["paraphrase"]}
    found = {}
    for name, records in asked.items():
        records = [record for record in records if record["fact"] in ("place", "nickname", "goat", "fog")]
        nearest = nearest_records([said(record, "user") for record in records], facts)
        found[name] = sum(score_answers([said(record, "assistant") for record in nearest], records))
    assert found == {"held-out": 11, "paraphrase": 7}


def test_far_words_take_more_steps_than_near_ones():
    assert max(of("answer only", "paraphrase")) < min(of("low rate, more steps", "paraphrase"))
    assert sum(of("replay", "paraphrase")) > sum(of("answer only", "paraphrase")) and min(of("replay", "paraphrase")) <= max(of("answer only", "paraphrase"))
    assert max(MEASURED["paraphrase"]) <= 7  # as many as a lookup finds


def test_refusals_without_replay_cost_the_general_questions_and_differ_between_seeds():
    assert max(of("refusals", "general")) <= 9 and min(of("answer only", "general")) >= 12
    refused = of("refusals", "refused")
    assert min(refused) >= 1 and max(refused) >= 2 * min(refused) and max(of("answer only", "refused")) == 0
