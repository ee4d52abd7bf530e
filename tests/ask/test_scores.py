"""Scores with intervals: the figures are those of textbooks and of statsmodels, computed elsewhere."""
import numpy as np
import pytest

from helpers.ask import compare_scores, right_of, score_answers
from helpers.ask.answers import Answer


def test_one_of_several_phrases_will_do():
    answers = [Answer("I do not know it.", True), Answer("It is 31 metres tall.", True), "It is 310 metres tall."]
    assert score_answers(answers, [["don't know", "do not know"], {"accept": ["31", "thirty-one"]}, {"key_phrase": "31"}]) == [True, True, False]


def test_what_no_right_answer_holds_makes_one_wrong():
    titanic = {"key_phrase": "Titanic", "wrong_phrase": "I do not know"}
    assert score_answers(["I do not know the Titanic.", "It was the Titanic."], [titanic, titanic]) == [False, True]
    assert score_answers(["Titanic, sorry.", "Titanic"], [titanic | {"wrong_phrase": ["sorry", "no"]}, titanic | {"wrong_phrase": None}]) == [False, True]
    for blank in ("", " ", ["sorry", "\u200b"]):
        with pytest.raises(ValueError, match=r"expected\[0\] is blank"):
            score_answers(["Titanic"], [titanic | {"wrong_phrase": blank}])


@pytest.mark.parametrize(("right", "of", "low", "high"), [(0, 24, 0.0, 0.1380), (24, 24, 0.8620, 1.0), (35, 36, 0.8583, 0.9951), (10, 20, 0.2993, 0.7007)])
def test_the_interval_is_wilsons(right, of, low, high):
    count = right_of([True] * right + [False] * (of - right))
    assert (count.right, count.of) == (right, of)
    assert count.low == pytest.approx(low, abs=1e-3) and count.high == pytest.approx(high, abs=1e-3)


def test_a_count_reads_as_a_sentence():
    assert str(right_of([True, True, False, False])) == "2 of 4 (15% to 85%)"
    with pytest.raises(ValueError, match="no scores"):
        right_of([])


@pytest.mark.parametrize("wrong", [[Answer("no", True), Answer("", False)], right_of([False, True]), ["Paris"], [0.5]])
def test_what_is_no_list_of_scores_is_refused(wrong):
    with pytest.raises(ValueError, match="give the list that score_answers returns"):
        right_of(wrong)
    with pytest.raises(ValueError, match="give the list that score_answers returns"):
        compare_scores(wrong, wrong)
    with pytest.raises(ValueError, match="give the list that score_answers returns"):
        compare_scores([True, False], wrong)
    assert compare_scores(np.array([True, False]), [1, 1]).only_second == 1


def test_the_paired_test_looks_only_where_two_systems_differ():
    first, second = [True] * 30 + [True] * 5 + [False], [True] * 30 + [False] * 5 + [True]
    found = compare_scores(first, second)
    assert (found.only_first, found.only_second) == (5, 1) and found.p == pytest.approx(0.21875)
    assert compare_scores(first, first).p == 1.0
    with pytest.raises(ValueError):
        compare_scores(first, second[1:])
