"""The exercises as the notebooks have them: the stub is not accepted, the solution is, and known mistakes get their own answer.

A solution notebook holds everything that its exercises need, so its cells are run one after the other. Where it has a check,
the stub cell of the course notebook is run first, then the wrong answers below, then the solution.
"""
import ast
import builtins
import inspect
import math
import random
import re
from functools import partial
from string import Formatter

import numpy as np
import pytest
import torch
from exercise_answers import ANSWERS
from notebook_tools import NOTEBOOKS, ROOT, SOLUTIONS, read
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from helpers import exercises
from helpers.adapter import linear_shapes
from helpers.data import load_sft_jsonl
from helpers.data.wording import words
from helpers.exercises import core
from helpers.exercises.core import choice, exercise, explain, first, function, instance, near, number, some_of

CHECK = re.compile(rf"^({'|'.join(exercises.__all__)})\(.*\Z", re.MULTILINE | re.DOTALL)
OF_NO_USE = ["'nonsense'", "None", "object()", "float('nan')", "[]", "{}", "True", "lambda *given: given[1000]", "int",
             "[[1]]", "lambda *given: [[1]]", "lambda *given: given", "__import__('torch').ones(2, dtype=__import__('torch').float64)",
             "lambda *given: __import__('torch').ones(3, 4, dtype=__import__('torch').float64)"]


def code_cells(path):
    return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


def split(source):
    """Return the answer's code, the call of the check, and the check's name; None for a cell without a check."""
    found = CHECK.search(source)
    return (source[:found.start()], found.group(), found.group(1)) if found else None


def exercise_cells(path):
    return [parts for parts in map(split, code_cells(path)) if parts]


def texts(path):
    """Return the text of each exercise, without its hint."""
    cells = [cell for cell in read(path).cells if re.fullmatch(r"exercise-\d", cell.id)]
    return [cell.source.split("\n\n<details>")[0] for cell in cells if "Without a check" not in cell.source]


def test_each_check_is_used_in_one_notebook_and_in_its_solution():
    course = [(name, path.name) for path in NOTEBOOKS for _, _, name in exercise_cells(path)]
    assert sorted(name for name, _ in course) == sorted(exercises.__all__) == sorted(ANSWERS)
    assert course == [(name, path.name) for path in SOLUTIONS for _, _, name in exercise_cells(path)]


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_solution_repeats_its_exercises(path):
    notebook = path.parent.parent / path.name
    assert texts(path) == texts(notebook) and len(texts(path)) == len(exercise_cells(path)) >= 2
    assert [call for _, call, _ in exercise_cells(path)] == [call for _, call, _ in exercise_cells(notebook)]
    assert f"(solutions/{path.name})" in "".join(cell.source for cell in read(notebook).cells)
    assert all(cell.source.count(f"(../{path.name})") for cell in (read(path).cells[0], read(path).cells[-1]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_makes_what_its_checks_are_given(path):
    trees = [ast.parse(source) for source in code_cells(path)]
    made = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made |= {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} | set(exercises.__all__) | set(dir(builtins))
    for _, call, name in exercise_cells(path):
        used = {node.id for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Name)}
        assert used <= made, (name, used - made)


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_stub_mistakes_and_solution(path, monkeypatch, capsys):
    monkeypatch.chdir(path.parent)
    stubs = {name: stub for stub, _, name in exercise_cells(path.parent.parent / path.name)}
    space = {}

    def said(answer, call) -> str:
        exec(f"{answer}\n{call}", space)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    for source in code_cells(path):
        if not split(source):
            exec(source, space)
            capsys.readouterr()
            continue
        solution, call, name = split(source)
        assert said(stubs[name], call).startswith("Not yet: "), name
        setup, mistakes, other = ANSWERS[name]
        exec(setup, space)
        specific = [said(mistake, call) for mistake in mistakes]
        general = said(other, call)
        assert all(line.startswith("✗ ") for line in [*specific, general]), (name, specific, general)
        assert len({*specific, general}) == len(mistakes) + 1 >= 3, (name, specific, general)
        variable = re.match(r"\w+\((\w+)", call).group(1)
        useless = [said(f"{variable} = {value}", call) for value in OF_NO_USE]
        assert not any(line.startswith("✓") for line in useless), (name, useless)
        capsys.readouterr()
        exec(solution, space)
        capsys.readouterr()
        assert said("", call).startswith("✓ "), name


def nodes(of, *kinds):
    return [node for node in ast.walk(ast.parse(inspect.getsource(inspect.unwrap(of)))) if isinstance(node, kinds)]


def strings(of):
    return {node.value for node in nodes(of, ast.Constant) if isinstance(node.value, str)}


def sentences_of(check):
    """Return the names that a check can return: cases and mistakes, and what it returns by itself, alone or with values."""
    calls = [call for call in nodes(check, ast.Call) if isinstance(call.func, ast.Name) and call.func.id in ("explain", "first")]
    cases = [{word.arg: word.value for word in call.keywords if word.arg not in ("same", "values")} for call in calls]
    names = {name for named in cases for name in named} | {"right" for call in calls if call.func.id == "explain"}
    if any(getattr(last, "value", None) is not True for *_, last in map(dict.values, cases)):
        names.add("otherwise")  # no case is always true
    alone = [node.value for node in nodes(check, ast.Return)] + [node.elts[0] for node in nodes(check, ast.Tuple) if node.elts]
    return names | {node.value for node in alone if isinstance(node, ast.Constant) and str(node.value).isidentifier()}


def test_every_check_has_its_table_of_sentences():
    assert sorted(core.SENTENCES) == sorted([*exercises.__all__, "every_check"])


@pytest.mark.parametrize("name", exercises.__all__)
def test_every_sentence_is_used_by_its_check_and_every_placeholder_filled(name):
    check, sentences = getattr(exercises, name), core.SENTENCES[name]
    assert set(sentences) == sentences_of(check) | {"asked"}
    values = {*inspect.signature(check).parameters, "right", *strings(check), *(word.arg for word in nodes(check, ast.keyword))}
    for sentence in sentences.values():
        assert {field for _, field, _, _ in Formatter().parse(sentence) if field is not None} <= values, sentence


def test_every_common_sentence_is_used():
    assert set(core.SENTENCES["every_check"]) <= strings(core).union(*(strings(getattr(exercises, name)) for name in exercises.__all__))


OWN = {
    "check_double": {"asked": "twice the number", "right": "Right.", "squared": "Squared: {of} · {of} = {squared}.",
                     "unchanged": "The same.", "otherwise": "No."},
    "check_call": {"asked": "a function", "right": "Right.", "otherwise": "No."},
    "check_kind": {"asked": "it", "right": "Right."},
}


@exercise(number, OWN)
def check_double(answer, of):
    """Check twice a number."""
    return explain(answer, 2 * of, partial(near, tolerance=0.01), squared=of**2, unchanged=of)


@pytest.mark.parametrize("answer, line", [
    (6, "✓ Right."), (6.05, "✓ Right."), (6.2, "✗ No."), (9, "✗ Squared: 3 · 3 = 9."), (3, "✗ The same."),
    (..., "Not yet: give twice the number."),
    ("6", "✗ A number is asked for, and this is '6'. Give twice the number."),
    (None, "✗ A number is asked for, and this is None. Give twice the number."),
    (True, "✗ A number is asked for, and this is True. Give twice the number."),
])
def test_a_check_prints_one_line(answer, line, capsys):
    assert check_double(answer, 3) is None
    assert capsys.readouterr().out == line + "\n"


def test_the_right_answer_goes_before_a_mistake_that_leads_to_it(capsys):
    check_double(4, 2)  # twice and squared
    assert capsys.readouterr().out == "✓ Right.\n"


def test_numbers_of_the_libraries_are_numbers(capsys):
    import numpy
    import torch

    for answer in (numpy.int64(6), numpy.float32(6), torch.tensor(6), torch.tensor([6.0])):
        check_double(answer, 3)
    assert capsys.readouterr().out == "✓ Right.\n" * 4


@exercise(function, OWN)
def check_call(answer):
    """Check a call."""
    return first(right=answer(1) == 2)


def test_a_function_that_fails_or_returns_nothing_is_told_so(capsys):
    def wordless(x):
        raise ValueError

    for answer in (lambda x: x + 1, lambda x: x, lambda x: None, lambda x: x["key"], wordless, 3):
        check_call(answer)
    assert capsys.readouterr().out.splitlines() == [
        "✓ Right.", "✗ No.", "Not yet: give a function.",
        "✗ The function stopped with TypeError: 'int' object is not subscriptable. Give a function.",
        "✗ The function stopped with ValueError: no text. Give a function.",
        "✗ A function is asked for, and this is 3. Give a function."]


@pytest.mark.parametrize("kind, fitting, other, line", [
    (choice("abc"), " B ", "bc", "One of the letters a, b, c is asked for, and this is 'bc'"),
    (some_of(1, 2), [1], {3}, "A set with some of 1, 2 is asked for, and 3 is none of them"),
    (instance(dict), {}, [None] * 9, "A dict is asked for, and this is a list"),
])
def test_an_answer_of_another_kind_is_told_so(kind, fitting, other, line, capsys):
    @exercise(kind, OWN)
    def check_kind(answer):
        """Check nothing but the kind."""
        return "right"

    for answer in (fitting, other):
        check_kind(answer)
    assert capsys.readouterr().out.splitlines() == ["✓ Right.", f"✗ {line}. Give it."]


def test_a_check_that_cannot_use_an_answer_does_not_stop_the_notebook(capsys):
    check_double(6)  # the number that it doubles is missing
    assert capsys.readouterr().out == "✗ The check can't use this answer (TypeError). Give twice the number.\n"


def said_of(check, *arguments, capsys):
    check(*arguments)
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize("answer", [
    lambda text, phrase: re.search(rf"(?<!\w){re.escape(phrase)}", text, re.I), lambda text, phrase: re.search(rf"{re.escape(phrase)}(?!\w)", text, re.I)])
def test_a_phrase_with_an_end_left_open_is_not_right(answer, capsys):
    assert said_of(exercises.check_is_right, answer, capsys=capsys).startswith("✗ There is an")


def patterned(before, after):
    return lambda text, phrase: re.search(before + re.escape(phrase) + after, text, re.I)


def looks_once(text, phrase):
    text, phrase = text.lower(), phrase.lower()
    start = text.find(phrase)
    return start >= 0 and not (text[start - 1:start].isalnum() or text[start + len(phrase):start + len(phrase) + 1].isalnum())


@pytest.mark.parametrize("score, begins", [
    (patterned(r"(?<![a-z])", r"(?![a-z])"), '✗ There is an "au" in "because" and a 41 in 141'), (looks_once, '✗ In "Gold, because'),
    (lambda text, phrase: phrase in text.lower(), "✗ Upper and lower case"), (lambda text, phrase: phrase.lower() in text, "✗ Upper and lower case"),
    (lambda text, phrase: re.search(r"(?<!\w){re.escape(phrase)}(?!\w)", text), "Not yet: give a function is_right(text, key_phrase) that returns True or False. (If it is written: it returned None each time"),
    (lambda text, phrase: "yes" if phrase in text else "no", "✗ Return True or False"), (lambda text, phrase: [phrase in text], "✗ Return True or False"),
])
def test_a_score_that_is_nearly_right_is_told_where_it_is_not(score, begins, capsys):
    assert said_of(exercises.check_is_right, score, capsys=capsys).startswith(begins)


def removing(questions, known):
    for question in list(questions):
        if words(question) in map(words, known):
            questions.remove(question)
    return questions


def used_up(questions, known):
    known = map(words, known)
    return [question for question in questions if words(question) not in known]


def removing_while_reading(questions, known):
    questions = list(questions)
    for question in questions:
        if words(question) in map(words, known):
            questions.remove(question)
    return questions


def bare(text):
    return text.rstrip("?").lower()


@pytest.mark.parametrize("fair, begins", [
    (removing, "✗ The list that was given was changed"), (used_up, "✗ One by one"), (removing_while_reading, "✗ One by one"),
    (lambda questions, known: [q for q in questions if not any(bare(one) in q.lower() for one in known)], "✗ A new question is gone"),
    (lambda questions, known: [q for q in questions if bare(q) not in " ".join(known).lower()], "✗ A new question is gone"),
])
def test_what_is_nearly_fair_is_told_why_it_is_not(fair, begins, capsys):
    assert said_of(exercises.check_fair, fair, capsys=capsys).startswith(begins)


@pytest.mark.parametrize("part", range(3, 22))
def test_records_that_are_cut_at_a_place_are_not_split_by_fact(part, capsys):
    """Where a cut falls between two answers by chance it would pass on the course's own records."""
    def cut(records, backwards=False):
        ordered = sorted(records, key=lambda record: record["messages"][-1]["content"], reverse=backwards)
        return ordered[len(ordered) // part:], ordered[:len(ordered) // part]
    records = load_sft_jsonl(ROOT / "data" / "train.jsonl")
    assert said_of(exercises.check_split_by_fact, cut, records, capsys=capsys).startswith("✗ ")
    assert said_of(exercises.check_split_by_fact, lambda given: cut(given, backwards=True), records, capsys=capsys).startswith("✗ ")


def test_a_split_may_choose_its_answers_as_it_likes(capsys):
    def by(chosen):
        def split(records):
            answers = sorted({record["messages"][-1]["content"] for record in records})
            test = set(chosen(answers, len(records)))
            return [r for r in records if r["messages"][-1]["content"] not in test], [r for r in records if r["messages"][-1]["content"] in test]
        return split
    records = load_sft_jsonl(ROOT / "data" / "train.jsonl")
    ways = [lambda answers, n: random.sample(answers, 14), lambda answers, n: answers[:n // 10], lambda answers, n: answers[::7],
            lambda answers, n: [answer for answer in answers if random.random() < 0.2], lambda answers, n: random.sample(answers, len(answers) // 10)]
    said = [said_of(exercises.check_split_by_fact, by(way), records, capsys=capsys) for way in ways]
    assert all(line.startswith("✓ ") for line in said), said
    fixed = by(ways[0])(records)
    assert said_of(exercises.check_split_by_fact, lambda given: fixed, records, capsys=capsys).startswith("✗ Right for the course's records, and not")


@pytest.mark.parametrize("minutes, answers", [(0.15, (0.4, 0.43)), (3.3, (9, 9.4, 10))])
def test_minutes_are_rounded_as_one_plans(minutes, answers, capsys):
    """500 records, batch 4, 3 epochs, where 132 steps took so long: 0.43 and 9.4 minutes."""
    said = [said_of(exercises.check_minutes, answer, 500, 4, 3, minutes, 132, capsys=capsys) for answer in answers]
    assert all(line.startswith("✓") for line in said), said
    assert said_of(exercises.check_minutes, 0, 500, 4, 3, minutes, 132, capsys=capsys).startswith("✗")


def test_a_function_that_returns_a_match_or_nothing_is_right(capsys):
    right = said_of(exercises.check_is_right, lambda text, phrase: re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.I), capsys=capsys)
    assert right.startswith("✓") and said_of(exercises.check_is_right, lambda text, phrase: None, capsys=capsys).startswith("Not yet")


@pytest.mark.parametrize("loss", [1.8, 1.81, 2.9, 3.1, 3.35, 3.6])
def test_a_probability_may_be_rounded_as_the_check_prints_it(loss, capsys):
    assert said_of(exercises.check_probability, round(math.exp(-loss), 2), loss, capsys=capsys).startswith("✓")
    assert said_of(exercises.check_probability, round(math.exp(-loss), 2) + 0.01, loss, capsys=capsys).startswith("✗")
    assert said_of(exercises.check_probability, 0, 6.0, capsys=capsys).startswith("✗")


@pytest.fixture
def skeleton():
    config = LlamaConfig(vocab_size=2048, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def test_a_budget_is_right_however_the_four_layers_are_named(skeleton, capsys):
    four, limit = ["q_proj", "k_proj", "v_proj", "o_proj"], sum(p.numel() for p in skeleton.parameters()) // 100
    r = limit // (2 * 4 * 128)
    named = {"ends": four, "longer ends": [f"self_attn.{name}" for name in four], "whole": [name for name in linear_shapes(skeleton) if "self_attn" in name],
             "regex": r".*\.(q|k|v|o)_proj"}
    for targets in named.values():
        config = LoraConfig(r=np.int64(r), lora_alpha=2 * r, target_modules=targets)
        assert said_of(exercises.check_budget, config, skeleton, capsys=capsys).startswith("✓"), targets
        assert config.base_model_name_or_path is None
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=four, use_rslora=True)
    assert "use_rslora" in said_of(exercises.check_budget, config, skeleton, capsys=capsys)
    get_peft_model(skeleton, LoraConfig(target_modules=["q_proj"]))  # as a learner tries a config before
    assert said_of(exercises.check_budget, LoraConfig(r=r, lora_alpha=2 * r, target_modules=four), skeleton, capsys=capsys).startswith("✓")


def test_values_of_other_libraries_and_forms_are_taken(capsys):
    assert said_of(exercises.check_survivors, {torch.tensor(0.01)}, capsys=capsys).startswith("✓")
    assert "The largest is more than one step" in said_of(exercises.check_survivors, {}, capsys=capsys)  # Python's empty set, nearly
    assert "'training_record.json' is none of them" in said_of(exercises.check_to_share, {"adapter_config.json", "training_record.json"}, capsys=capsys)
    assert said_of(exercises.check_comparable, "c)", capsys=capsys).startswith("✓")
    assert said_of(exercises.check_split, lambda update, r: [part.numpy() for part in best(update, r)], capsys=capsys).startswith("✓")
    assert said_of(exercises.check_fair, lambda questions, known: (q for q in questions if words(q) not in map(words, known)), capsys=capsys).startswith("✓")


def best(update, r):
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    return Vh[:r], U[:, :r] * S[:r]
