"""The example of notebook 13: records of ours in three forms, from a subject that nothing else in the course touches."""
import json

from notebook_tools import ROOT

from helpers.data.dataset import load_sft_jsonl
from helpers.data.own_data import fact_groups

PATH = ROOT / "data" / "helpdesk.jsonl"
RECORDS = load_sft_jsonl(PATH, convert=True)
BENCHES = ("electrical", "sewing", "wood", "bicycles")


def test_there_are_ten_records_of_each_form_and_a_system_message_in_the_first():
    keys = [tuple(json.loads(line)) for line in PATH.read_text(encoding="utf-8").splitlines()]
    forms = [("messages", "key_phrase"), ("prompt", "completion", "key_phrase"), ("instruction", "input", "output", "key_phrase")]
    assert sorted(keys) == sorted(forms * 10)
    assert sum(record["messages"][0]["role"] == "system" for record in RECORDS) == 10


def test_every_ticket_has_its_form_and_names_a_bench_that_its_message_does_not_name():
    benches = [record["key_phrase"].removeprefix("Bench: ") for record in RECORDS]
    assert {bench: benches.count(bench) for bench in BENCHES} == {"electrical": 8, "sewing": 8, "wood": 7, "bicycles": 7}
    for record, bench in zip(RECORDS, benches, strict=True):
        item, fault, end = record["messages"][-1]["content"].removesuffix(".").split(". ")
        assert item.startswith("Item: ") and fault.startswith("Fault: ") and end == f"Bench: {bench}"
        assert bench not in str(record["messages"][:-1])


def test_no_two_records_share_a_question_or_an_answer():
    assert len(fact_groups(RECORDS)) == len(RECORDS) == 30
