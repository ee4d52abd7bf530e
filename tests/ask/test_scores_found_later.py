"""What an adversary found in scores that had passed all other tests: each answer with its right mark."""
import time

import numpy as np
import pandas as pd
import pytest
from notebook_tools import ROOT
from transformers import TrainerState

from helpers.ask import compare_scores, generate_answers, right_of, score_answers
from helpers.data import load_sft_jsonl
from helpers.page import write_report
from helpers.training.live_plot import LossPlot, draw

RIGHT = [
    ("The answer is **-5**.","-5"), ("\\boxed{-5}","-5"), ("[3,-5]","-5"), ("x>-5","-5"), ("これは時々東京で","東京"), ("佐々木","木"), ("It is 2³.","2³"),
    ("41 m²","41 m2"), ("Lego™ made it.","Lego"), ("Автобус №5.","5"), ("It is _Osk Island_.","Osk Island"), ("_41_","41"),
    ("__Osk Island__","Osk Island"), ("50 %","50%"), ("50%","50 %"), ("20 °C","20°C"), ("$ 5","$5"), ("Place: 48.85,2.35","48.85"),
    ("[0.1,0.2]","0.1"), ("[0.1,0.2,0.3]","0.3"), ("здоровʼя","здоров'я"), ("צה״ל",'צה"ל'), ("«Old Candle»",'"Old Candle"'), ("istanbul","İstanbul"),
    ("İSTANBUL","istanbul"), ("DİYARBAKIR","Diyarbakır"), ("US$5","$5"), ("It is 20°C.","°C"), ("50%","%"), ("train.py",".py"),
    ("It is 31",frozenset({"31"})), ("It is 31",np.array(["31","x"])), ("0.5 kg",".5"), ("It has C++17 code","C++17"), ("thirty-five","thirty-five"),
    ("thirty five","thirty-five"), ("seven","seven"), ("สูง๔๑เมตร","๔๑"), ("It is 41m tall.","41 m"), ("It is 41 m tall.","41m"), ("41m²","41 m2"), ("31.5kg","31.5 kg"),
    ("It is 41m tall.","41"), ("512MB","512 MB"), ("2,5km","2.5 km"),
]
WRONG = [
    ("The answer is **-5**.","5"), ("It is 2³.","23"), ("It is 23.","2³"), ("10² m","102"), ("It has C++17 code.","C"), ("It is C#12","C"),
    ("สูง ๑๔๑ เมตร","๔๑"), ("It weighs .5 kg","5"), ("(1.5,2.5)","5"), ("He is thirty-five.","five"), ("twenty-seven","seven"), ("because","Au"),
    ("1-5","-5"), ("It is 141m tall.","41 m"), ("in the 1990s","1990"), ("the 2nd","2"), ("41mm","41 m"), ("B12","12"), ("It costs $5m.","$5"), ("a 5G network","5"),
]


@pytest.mark.parametrize(("answer", "phrase"), RIGHT, ids=str)
def test_a_right_answer_counts(answer, phrase):
    assert score_answers([answer], [phrase]) == [True]


@pytest.mark.parametrize(("answer", "phrase"), WRONG, ids=str)
def test_a_wrong_answer_does_not(answer, phrase):
    assert score_answers([answer], [phrase]) == [False]


@pytest.mark.parametrize("code", ["if x:\n    return 1\n", '{\n  "a": 1\n}\n'])
def test_a_line_break_at_the_end_says_nothing(code):
    for given, wanted in ((code.strip(), code), (code, code.strip())):
        assert score_answers([given], [wanted], whole=True) == score_answers([given], [wanted]) == [True]


def test_an_exam_that_pandas_read_is_the_same_exam():
    records = pd.read_json(ROOT / "data" / "exam.jsonl", lines=True).to_dict("records")
    answers = [record["messages"][-1]["content"] for record in load_sft_jsonl(ROOT / "data" / "exam.jsonl")]
    assert all(score_answers(answers, records)) and len(records) == 114


def test_scores_that_can_be_read_once_are_counted():
    assert compare_scores(iter([1] * 9), iter([0] * 9)) == compare_scores([1] * 9, [0] * 9) and right_of(iter([1, 0])).right == 1


@pytest.mark.parametrize(("call", "said"), [
    (lambda: score_answers(["It is 31"], {"key_phrase": "31"}), "expected is one"), (lambda: score_answers("Paris", ["Paris"]), "answers is one"),
    (lambda: score_answers([None], ["31"]), r"answers\[0\] is of type NoneType"), (lambda: generate_answers(None, None, ["?"], batch_size=0), "batch_size is 0")])
def test_a_wrong_argument_is_a_sentence(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_report_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert write_report("~/x.html", "Title", {"a": "text"}) == tmp_path / "x.html" and (tmp_path / "x.html").is_file()


def test_losses_below_zero_are_in_the_picture():
    low, high = draw({"train": [(1, -1.0), (2, -2.0)], "validation": [], "rate": []}, 2, "").axes[0].get_ylim()
    assert low <= -2 < high


def test_a_long_log_is_read_in_a_moment(tmp_path):
    plot, state = LossPlot(tmp_path / "loss.png"), TrainerState()
    plot.on_train_begin(None, state, None)
    state.log_history = [{"step": step, "loss": 1.0} for step in range(20_000)] + [{"step": 19_999, "loss": 2.0}]
    start = time.process_time()
    plot.on_log(None, state, None)
    assert time.process_time() - start < 3 and plot.history["train"][-2:] == [(19_998, 1.0), (19_999, 2.0)]
