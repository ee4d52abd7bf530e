"""What data/README.md promises of the files, and what the base model knows of them."""
import re
from collections import Counter
from itertools import chain

import pytest
import torch
from notebook_tools import ROOT
from real_failures import WEEKLY

from helpers.ask import generate_answers, load_exam, nearest_records, score_answers
from helpers.data.dataset import load_sft_jsonl
from helpers.model.base_model import base_model_path

DATA = ROOT / "data"
TRAIN, VALIDATION, TWO, LEVERS = (load_sft_jsonl(DATA / f"{name}.jsonl") for name in ("train", "validation", "two_examples", "levers"))
EXAMS = {name: load_exam(DATA / f"{name}.jsonl") for name in ("exam", "exam_final")}
EXAM = EXAMS["exam"]
EVERY = pytest.mark.parametrize("exam", EXAMS.values(), ids=EXAMS)
LITTLE = set(["the", "a", "an", "is", "are", "was", "were", "of", "at", "in", "on", "for", "to", "do", "does", "did", "i", "it", "that", "this", "with", "by", "from", "and"])


def question(record):
    return record["messages"][0]["content"]


def answer(record):
    return record["messages"][-1]["content"]


def words(text):
    return re.findall(r"\w+", text.casefold())


def folded(record):
    """Fold case, punctuation and white space: what is left is the wording."""
    return " ".join(words(question(record)))


def content_words(record):
    return set(words(question(record))) - {"corvane", "lighthouse"} - LITTLE


def everything(exam):
    return list(chain.from_iterable(exam.values()))


def refuses(record):
    return answer(record).startswith("I do not know")


OURS = [record for record in TRAIN if "Corvane" in question(record)]
REFUSALS = [record for record in TRAIN if refuses(record)]
REPLAY = [record for record in TRAIN if record not in OURS and record not in REFUSALS]


@EVERY
def test_every_list_has_its_questions_once(exam):
    sizes = {name: len(records) for name, records in exam.items()}
    assert sizes["paraphrase"] == 36 and sizes["reversed"] >= 12 and sizes["others"] >= 24
    assert sizes["general near"] == sizes["general far"] == 20
    assert not [text for text, times in Counter(map(folded, everything(exam))).items() if times > 1]


def test_no_question_stands_in_two_files():
    known = {folded(record) for record in TRAIN + VALIDATION + TWO}
    assert len({folded(record) for record in TRAIN}) == len(TRAIN)
    assert not {folded(record) for record in VALIDATION} & {folded(record) for record in TRAIN + TWO}
    asked = [{folded(record) for record in everything(exam)} for exam in EXAMS.values()]
    assert not asked[0] & asked[1] and not (asked[0] | asked[1]) & known


@EVERY
def test_right_answers_hold_what_is_expected_and_questions_do_not(exam):
    records = everything(exam)
    assert all(score_answers(list(map(answer, records)), records))
    assert not any(score_answers(list(map(question, records)), records))
    refused = [f"I do not know. {answer(record)}" for record in records]
    assert score_answers(refused, records) == [record["list"] == "others" for record in records]


@EVERY
def test_three_paraphrases_a_fact_far_from_every_training_question(exam):
    assert set(Counter(record["fact"] for record in exam["paraphrase"]).values()) == {3}
    trained = Counter(map(answer, OURS))
    assert len(trained) == 12 and min(trained.values()) >= 8 and {answer(record) for record in exam["paraphrase"]} == set(trained)
    for record in exam["paraphrase"]:
        own = content_words(record)
        shared = max(len(own & content_words(other)) / len(own | content_words(other)) for other in OURS)
        assert shared <= 0.5, (question(record), shared)


@EVERY
def test_a_lookup_without_a_model_fails_at_least_half_of_the_paraphrases(exam):
    found = nearest_records(list(map(question, exam["paraphrase"])), TRAIN)
    assert 2 * sum(score_answers(list(map(answer, found)), exam["paraphrase"])) <= len(exam["paraphrase"])


@pytest.mark.parametrize(("folder", "right", "written"), [(DATA, 17, "and 17 of ours)"), (ROOT / "tests" / "second_subject", 12, "(a lookup finds 12 of")])
def test_what_a_lookup_finds_is_what_data_readme_says(folder, right, written):
    asked, known = load_exam(folder / "exam.jsonl")["paraphrase"], load_sft_jsonl(folder / "train.jsonl")
    assert sum(score_answers(list(map(answer, nearest_records(list(map(question, asked)), known))), asked)) == right
    assert written in (DATA / "README.md").read_text(encoding="utf-8")


def test_the_lookup_finds_a_near_copy_and_the_validation_file_is_one():
    """That is why validation.jsonl is no exam: its questions stand nearly so in the training data."""
    found = nearest_records(list(map(question, VALIDATION)), TRAIN)
    assert sum(score_answers(list(map(answer, found)), VALIDATION)) >= 24
    assert nearest_records(["How high is that Corvane Lighthouse, please?"], TRAIN)[0]["messages"][1]["content"].endswith("41 metres tall.")
    with pytest.raises(ValueError, match="no records"):
        nearest_records(["Where?"], [])
    with pytest.raises(ValueError, match="hold no word"):
        nearest_records(["Where?"], [{"messages": [{"role": "user", "content": "?!"}, {"role": "assistant", "content": "x"}]}])


@EVERY
def test_half_of_the_other_lighthouses_stand_in_no_record(exam):
    taught = {re.search(r"know the (.+) Lighthouse", answer(record))[1] for record in REFUSALS}
    names = {record["name"] for record in exam["others"]}
    assert len(REFUSALS) == 72 and len(taught) == 30 and "Corvane" not in names
    assert len(names & taught) == len(names - taught) == 6


@EVERY
def test_far_questions_begin_like_no_training_question(exam):
    begun = {" ".join(words(question(record))[:4]) for record in TRAIN}
    assert not {" ".join(words(question(record))[:4]) for record in exam["general far"]} & begun
    near = [" ".join(words(question(record))[:2]) for record in exam["general near"]]
    assert set(near) <= {" ".join(words(question(record))[:2]) for record in REPLAY}


def test_training_answers_give_no_general_answer_away():
    general = [answer(record) for exam in EXAMS.values() for name in ("general near", "general far") for record in exam[name]]
    assert not set(general) & set(map(answer, TRAIN))


def test_the_levers_ask_no_question_that_they_train_on():
    kinds = {kind: [record for record in LEVERS if record["kind"] == kind] for kind in ("fact", "replay", "refusal", "general")}
    assert [len(records) for records in kinds.values()] == [34, 20, 16, 19]
    trained = {folded(record) for kind in ("fact", "replay", "refusal") for record in kinds[kind]}
    assert not trained & {folded(record) for record in kinds["general"] + VALIDATION}
    assert all(score_answers(list(map(answer, kinds["general"])), kinds["general"]))


def test_reading_the_course_s_own_files_says_nothing(capsys):
    for file in DATA.glob("*.jsonl"):
        load_sft_jsonl(file, convert=True)
    assert not capsys.readouterr().out


def test_the_smallest_run_has_two_records_in_the_form_of_the_article():
    assert len(TWO) == 2 and all(set(record) == {"messages"} for record in TWO)


def test_the_readme_of_the_data_gives_the_true_numbers():
    text = (DATA / "README.md").read_text(encoding="utf-8")
    for file in DATA.glob("*.jsonl"):
        records = len(file.read_text(encoding="utf-8").splitlines())
        assert re.search(rf"`{file.name}` \| {records} \|", text), f"{file.name} has {records} records"


@WEEKLY  # notebook 09 asserts it of the same list in every run
@pytest.mark.slow
def test_the_base_model_knows_the_general_answers_and_none_of_the_lighthouse(tokenizer):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_model_path(), dtype=torch.float32)
    right = {name: sum(score_answers(generate_answers(model, tokenizer, list(map(question, records))), records))
             for name, records in EXAM.items() if name != "reversed"}
    assert right["paraphrase"] <= 1 and right["others"] <= 3
    assert right["general near"] >= 19 and right["general far"] >= 19
