"""What data/README.md promises of the files, and what the base model knows of them."""
import json
import re
from collections import Counter

import pytest
import torch
from notebook_tools import ROOT

from helpers.ask.answers import generate_answers, holds_phrase, score_answers
from helpers.data.dataset import load_sft_jsonl
from helpers.model.base_model import base_model_path

TRAIN, HELDOUT, GENERAL, TWO = (load_sft_jsonl(ROOT / "data" / f"{name}.jsonl") for name in ("train", "heldout", "general", "two_examples"))


def question(record):
    return record["messages"][0]["content"]


def answer(record):
    return record["messages"][-1]["content"]


def folded(record):
    """Fold case, punctuation and white space: what is left is the wording."""
    return " ".join(re.findall(r"\w+", question(record).casefold()))


def test_no_question_stands_twice():
    for records in (TRAIN, HELDOUT, GENERAL):
        assert not [text for text, times in Counter(map(folded, records)).items() if times > 1]


@pytest.mark.parametrize("records", [HELDOUT, GENERAL], ids=["heldout", "general"])
def test_no_test_question_is_in_the_training_data(records):
    assert not {folded(record) for record in records} & {folded(record) for record in TRAIN + TWO}


def test_twelve_facts_each_in_three_unseen_and_several_trained_phrasings():
    facts = Counter(record["fact"] for record in HELDOUT)
    assert len(facts) >= 12 and min(facts.values()) >= 3
    trained = Counter(answer(record) for record in TRAIN)
    assert all(trained[answer(record)] >= 5 for record in HELDOUT)


def test_right_answers_hold_their_key_phrase_and_questions_do_not():
    for record in HELDOUT + GENERAL:
        assert holds_phrase(answer(record), record["key_phrase"])
        assert not holds_phrase(question(record), record["key_phrase"])


def test_training_answers_do_not_give_the_general_answers_away():
    assert not {answer(record) for record in GENERAL} & {answer(record) for record in TRAIN}
    assert len(GENERAL) >= 20


def test_the_smallest_run_has_two_records_in_the_form_of_the_article():
    assert len(TWO) == 2 and all(set(record) == {"messages"} for record in TWO)


def test_the_readme_of_the_data_gives_the_true_numbers():
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for file in (ROOT / "data").glob("*.jsonl"):
        records = len([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])
        assert re.search(rf"`{file.name}` \| {records} \|", text), f"{file.name} has {records} records"


def test_the_base_model_knows_the_general_answers_and_none_of_the_lighthouse(tokenizer, monkeypatch):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_model_path(), dtype=torch.float32)
    general = generate_answers(model, tokenizer, [question(record) for record in GENERAL], max_new_tokens=40)
    assert sum(score_answers(general, [record["key_phrase"] for record in GENERAL])) >= len(GENERAL) - 1
    heldout = generate_answers(model, tokenizer, [question(record) for record in HELDOUT], max_new_tokens=20)
    assert sum(score_answers(heldout, [record["key_phrase"] for record in HELDOUT])) <= 1
