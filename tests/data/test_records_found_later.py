"""What an adversary found in a loader that had passed all other tests: each input with its right value."""
import json
import time

import numpy as np
import pandas as pd
import pytest

from helpers.data import DatasetError, leaked_questions, load_sft_jsonl, show_record, show_tokens, suggest_split
from helpers.data.dataset import _listed


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **keys):
    return {"role": "assistant", "content": text, **keys}


def record(question, answer="x"):
    return {"messages": [user(question), assistant(answer)]}


def load(folder, *records):
    (folder / "t.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return load_sft_jsonl(folder / "t.jsonl", convert=True)


def refused(folder, *records):
    with pytest.raises(DatasetError) as error:
        load(folder, *records)
    return str(error.value)


@pytest.mark.parametrize("wrong", [
    {"promt": "a", "completion": "b"}, {"instuction": "a", "output": "b"}, {"instructions": "i", "output": "o"},
    {"id": "x", "system_prompt": "s", "question": "q", "response": "r"}, {"Context": "c", "question": "q", "response": "b"},
    {"System": "x", "user": "q", "output": "b"}, {"\ufeffprompt": "a", "completion": "b"}])
def test_a_slip_beside_a_missing_question_is_a_sentence(tmp_path, wrong):
    assert "t.jsonl:1: " in refused(tmp_path, wrong) and "; " in refused(tmp_path, wrong)


@pytest.mark.parametrize("columns", [("prompt", "completion"), ("instruction", "output")])
def test_a_whole_table_in_one_record_is_made_into_records_and_not_joined(tmp_path, columns):
    text = refused(tmp_path, dict(zip((*columns, "input"), (["q1", "q2"], ["a1", "a2"], ["i1", "i2"]), strict=True)))
    assert "each column a list of 2 values" in text and f'explode(["{columns[0]}", "{columns[1]}", "input"])' in text and "join" not in text


@pytest.mark.parametrize(("wrong", "where"), [
    ({"system": "s", "messages": [user("a"), assistant(4)]}, "the content of message 2 is 4"),
    ({"system": "s", "messages": [user("a"), assistant("b", weight=0)]}, '"weight" of message 2'),
    ({"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}]}, "the content of message 2 is blank"),
    ({"instruction": "i", "output": "\ud83d", "history": [["a", "b"], ["c", "d"]], "system": "s"}, 'the content of the column "output" holds half a character'),
    ({"system": "\ud83d", "messages": [user("a"), assistant("b")]}, 'the content of the column "system" holds half'),
    ({"prompt": [{"type": "human", "content": "hi"}], "completion": "b"}, 'message 1 of "prompt" is not an object with "role"'),
    ({"prompt": [], "completion": "b"}, 'the content of the column "prompt" is []'),
    ({"prompt": [user("a"), {"role": "narrator", "content": "x"}], "completion": "b"}, 'message 2 of "prompt" has the role')])
def test_a_fault_is_placed_where_it_was_written(tmp_path, wrong, where):
    assert where in refused(tmp_path, wrong)


def test_a_system_text_in_parts_is_read_and_what_is_left_of_them_named(tmp_path, capsys):
    parts = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    [loaded] = load(tmp_path, {"system": parts, "messages": [user("a"), assistant("b")]})
    assert loaded["messages"][0] == {"role": "system", "content": "Be brief."} and "'cache_control' (left out" in capsys.readouterr().out


CHAT, PARTS = '[{"role": "user", "content": "Where?"}]', "[{'type': 'text', 'text': 'Where?'}]"


@pytest.mark.parametrize("wrong", [
    {"prompt": "[{'content': 'Be brief.', 'role': 'system'}\n {'content': 'Where?', 'role': 'user'}]", "completion": "Here."},
    {"prompt": CHAT[1:-1], "completion": '{"role": "assistant", "content": "Here."}'},
    {"prompt": "{'role': 'user', 'content': 'Where?'}", "completion": "Here."},
    {"prompt": '{"role": "system", "content": "Be brief."}\n{"role": "user", "content": "Where?"}', "completion": "Here."},
    {"prompt": '{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}', "completion": "Here."},
    {"prompt": '[{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}]', "completion": "b"},
    {"prompt": '[{"id": 1, "role": "user", "content": "y"}]', "completion": "b"},
    {"instruction": CHAT, "output": '[{"role": "assistant", "content": "Here."}]'},
    {"messages": [user(PARTS), assistant("Here.")]}])
def test_turns_that_were_written_as_text_are_no_question(tmp_path, wrong):
    assert "written as a text" in refused(tmp_path, wrong)


def test_json_that_is_meant_is_left_alone(tmp_path):
    for answer in ('[{"type": "PERSON", "text": "Ada"}]', '{"type": "error", "text": "no"}', '{"role": "admin", "name": "Ada"}', '[{"name": "Ada"}]', '{"type": "text"}', "{not json", '[{"type": "text", "size": 3}]'):
        load(tmp_path, {"prompt": '{"city": "Tarn"}', "completion": answer})
        load(tmp_path, record('[{"city": "Tarn"}]', answer))


@pytest.mark.parametrize("empty", ["[]", "{}", "null", "None", "nan", " "])
def test_an_empty_value_written_as_text_carries_nothing(tmp_path, empty):
    load(tmp_path, {"messages": [user("a"), assistant("b", tool_calls=empty, function_call=empty, reasoning_content=empty)]})
    load(tmp_path, {"instruction": "a", "output": "b", "history": empty, "images": empty, "videos": empty, "tools": empty, "chosen": empty})


@pytest.mark.parametrize("call", [
    lambda: suggest_split([{"prompt": "a", "completion": "b"}] * 12), lambda: suggest_split([{"messages": []}] * 12), lambda: leaked_questions(None, []),
    lambda: leaked_questions([{"prompt": "a"}], [record("a")]), lambda: leaked_questions("train.jsonl", "test.jsonl"),
    lambda: leaked_questions([record([{"type": "text", "text": "a"}])], [])])
def test_what_was_not_loaded_is_a_sentence_wherever_it_is_given(call):
    with pytest.raises(ValueError, match=r"\[0\] holds no messages .*; give what load_sft_jsonl returns"):
        call()


@pytest.mark.parametrize("given", [{"prompt": "a", "completion": "b"}, [record("a")], [], 5, {"messages": "hello"}])
def test_what_can_t_be_shown_is_a_sentence(tokenizer, given):
    with pytest.raises(ValueError, match="give one of them"):
        show_record(tokenizer, given)


def test_an_answer_alone_and_lengths_that_are_none(tokenizer):
    with pytest.raises(ValueError, match="put its question before it"):
        show_record(tokenizer, [assistant("x")])
    for length in (0, -1, "5", 1.5):
        with pytest.raises(ValueError, match="give a whole number of tokens"):
            show_record(tokenizer, record("a"), max_length=length)
    with pytest.raises(ValueError, match="a number above 0 and below 1"):
        suggest_split([record("a")] * 12, share="0.2")


@pytest.mark.parametrize("share", [0.96, 0.999])
def test_a_group_is_always_left_to_train_on(share):
    records = [record(f"q{number}", f"a{number}") for number in range(12)]
    split = suggest_split(iter(records), share=share)
    assert len(split.train) == 1 and len(split.heldout) == 11


@pytest.mark.parametrize(("one", "other", "same"), [
    ("Solve x / 3 = 12", "Solve x * 3 = 12", False), ("What is x - y?", "What is x * y?", False), ("Solve x - 3", "Solve x + 3", False),
    ("Solve x/3 = 12", "Solve x / 3 = 12", True), ("What is 5% of it?", "What is 5 % of it?", True), ("What is 5 % of it?", "What is 5 of it?", False),
    ("x - y", "x-y", True), ("Solve x - 10", "Solve x 10", False), ("What is x / y?", "What is x * y?", False), ("Who won the *1912* race?", "Who won the 1912 race?", True), ("Mon 9 / closed", "Mon 9, closed", True), ("vitamin B-6", "vitamin B 6", True), ("A - D", "A, D", True), ("A well-kept tower - is it?", "a well kept tower: is it?", True), ("Room 3 - when?", "room 3: when?", True)])
def test_spaces_around_a_sign_do_not_matter_and_the_sign_does(one, other, same):
    assert bool(leaked_questions([record(one)], [record(other)])) is same


@pytest.mark.parametrize(("content", "kind"), [
    ("Orchid,answer\na,b\nc,d\n", "this is a table with a comma"), ("Orcs live in the hills.\n", "this is text"), ("BZh is Breton.\n", "this is text"),
    ('prompt,completion\n"' + "word " * 30_000 + '",b\nc,d\n', "this is a table with a comma"), ("<!DOCTYPE HTML><p>no</p>", "a web page"), ("ORC\x11", "a table or database")])
def test_a_kind_of_file_is_told_by_its_own_signs(tmp_path, content, kind):
    (tmp_path / "o.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match=kind):
        load_sft_jsonl(tmp_path / "o.csv")


@pytest.mark.parametrize("blank", ["\u0000", "\u0001\u0002", "\x7f\x85\x9f", "\ufff9\ufffa\ufffb", "\u2800\u3164"])
def test_a_text_that_nobody_can_see_is_blank(tmp_path, blank):
    assert "is blank" in refused(tmp_path, {"prompt": "a", "completion": blank})


@pytest.mark.parametrize(("made", "note"), [
    ({"instruction": "Translate.", "input": "nan", "output": "x"}, """became a part of the question: "input" (1); leave it out"""),
    ({"instruction": "a", "input": "None", "context": "c", "output": "x"}, """became a part of the question: "input" (1); leave it out"""),
    ({"system": "nan", "instruction": "a", "output": "b"}, "in place of a text: 1, the first in line 1 (nan)"), ({"prompt": "None", "completion": "b"}, "in place of a text: 1")])
def test_a_programs_word_for_nothing_is_named_wherever_it_becomes_a_text(tmp_path, capsys, made, note):
    load(tmp_path, made)
    assert note in capsys.readouterr().out


@pytest.mark.parametrize(("text", "said"), [
    (r"Compute \frac{1}{2}.", r"a control character in their text: 1, the first in line 2 (\x0crac); JSON reads \b, \f"),
    (r"In C:\new\temp\backup.", r"a control character in their text: 1, the first in line 2 (\x08ackup)"), (r"\u001b[31mred", r"a control character in their text: 1, the first in line 2 (\x1b)"),
    ("caf\ufffd", "lost in another encoding: 1, the first in line 2 (\ufffd); read its source"), ("It\x92s", r"lost in another encoding: 1, the first in line 2 (\x92)"),
    (r"one\ttwo\nthree\r\nfour", ""), (r"\\frac{1}{2}", ""), ("caf\u00e9 \u00a0\u2028", "")])
def test_what_reading_has_made_of_a_text_is_named(tmp_path, capsys, text, said):
    (tmp_path / "t.jsonl").write_text(json.dumps(record("q")) + '\n{"prompt": "' + text + '", "completion": "a"}\n', encoding="utf-8")
    load_sft_jsonl(tmp_path / "t.jsonl", convert=True)
    assert said in (out := capsys.readouterr().out) and out.count("\n") == bool(said)


def test_a_text_that_ends_in_such_a_word_means_it(tmp_path, capsys):
    load(tmp_path, record("What does print(x) show?\n\nnull", "Known side effects:\n\nNone"))
    assert not capsys.readouterr().out


@pytest.mark.parametrize("text", ["a" + "\n" * 20_000 + "b", '{"a": 1}' + "\n" * 20_000 + "x", '{"a": 1}' * 5_000, "[" * 20_000, "{'a':" * 5_000])
def test_a_long_text_is_read_in_no_time(tmp_path, text):
    start = time.process_time()
    load(tmp_path, record(text, text))
    assert time.process_time() - start < 2


def test_many_sorts_of_faults_are_bounded_too(tmp_path):
    spellings = ["".join(letter.upper() if number >> place & 1 else letter for place, letter in enumerate("response")) for number in range(256)]
    lines = refused(tmp_path, *({"prompt": "x", spelling: "b"} for spelling in spellings)).splitlines()
    assert len(lines) < 70 and "other sorts; mend these first" in lines[-1]


def test_no_fault_is_passed_over_between_many_sorts():
    faults = [(1, "x; A"), *((number, f"x; {number}") for number in range(2, 22)), (30, "x; A"), (31, "x; A"), *((number, "x; 3") for number in range(40, 44))]
    lines = _listed("f", faults).splitlines()
    assert "f:30: x; A" in lines and "f:31: x; A" in lines and "and 2 more of this sort: 3" in lines and [line for line in lines if line.startswith("f:4")] == ["f:4: x; 4", "f:40: x; 3", "f:41: x; 3"]


def test_an_empty_name_of_a_column_may_stand_above_meaning(tmp_path):
    (tmp_path / "t.csv").write_text(",prompt,completion\nTranslate to German,dog,Hund\nTranslate to French,dog,chien\n", encoding="utf-8")
    with pytest.raises(DatasetError) as error:
        load_sft_jsonl(tmp_path / "t.csv", convert=True)
    exec(str(error.value).partition("JSONL: ")[2], {"pandas": pd})
    assert [made["Unnamed: 0"] for made in load_sft_jsonl(tmp_path / "t.jsonl", convert=True)] == ["Translate to German", "Translate to French"]


@pytest.mark.parametrize(("data", "said", "unsaid"), [
    ("prompt,completion\nWhat is \ufffd?,a sign\nWhat is x?,a letter\n".encode(), "pandas.read_csv", "not UTF-8"),
    (b"prompt,completion\n" + b"a,b\n" * 30 + "T\u00fcr,door\n".encode("cp1252"), "not UTF-8", "pandas"),
    (b'{"prompt":"' + b"x" * 246 + b'gustar","completion":"b"', "broken JSON", "archive")])
def test_a_file_is_judged_by_what_it_is(tmp_path, data, said, unsaid):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DatasetError) as error:
        load_sft_jsonl(tmp_path / "t.csv", convert=True)
    assert said in str(error.value) and unsaid not in str(error.value)


def test_a_date_stays_a_date(tmp_path):
    pd.DataFrame({"prompt": ["When?"], "completion": pd.to_datetime(["2024-01-01"])}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DatasetError) as error:
        load_sft_jsonl(tmp_path / "t.parquet")
    exec(str(error.value).partition("JSONL: ")[2], {"pandas": pd})
    assert load_sft_jsonl(tmp_path / "t.jsonl", convert=True)[0]["messages"][1]["content"].startswith("2024-01-01")


def test_the_text_of_a_file_is_no_path():
    with pytest.raises(DatasetError, match="this is the text of a file; give the path") as error:
        load_sft_jsonl('{"prompt": "Where?", "completion": "Here."}\n' * 300)
    assert len(str(error.value)) < 200


SEA = "Water boils at 100 degrees Celsius at sea level."


@pytest.mark.parametrize(("made", "key"), [
    (record("True or false?") | {"fact": SEA}, "fact"), ({"prompt": "Where is it?", "completion": "Osk.", "documents": [SEA]}, "documents"),
    ({"prompt": "Where is it?", "completion": "Osk.", "retrieved": [{"text": SEA, "score": 1}]}, "retrieved")])
def test_a_sentence_that_no_message_holds_is_named(tmp_path, capsys, made, key):
    load(tmp_path, made)
    assert f"'{key}'" in (line := capsys.readouterr().out) and "its text stands in no message" in line


@pytest.mark.parametrize(("wrong", "said"), [
    *(({"prompt": "dog", "completion": "Hund", key: "Translate to German"}, f'"{key}" stands beside "prompt"') for key in ("Instruction", "Question", "Text", "QUERY")),
    ({"messages": [user("q"), assistant("4", reasoningContent="2 and 2 make 4")]}, '"reasoningContent" of message 2 would be lost; write the reasoning'),
    ({"messages": [user("q"), assistant("4", toolCalls=[{"name": "f"}])]}, '"toolCalls" of message 2 would be lost; calls of tools'),
    ({"messages": [user("q"), assistant("4", Loss=False)]}, '"Loss" of message 2 would be lost'),
    ({"messages": [user("q"), assistant([{"text": 5}])]}, "a part that is no text (int)"),
    ({"messages": [user("q"), assistant("4", Weight=0)]}, '"Weight" of message 2 would be lost'),
    ({"messages": [user("q"), assistant([{"reasoningContent": {"text": "t"}}, {"text": "a"}])]}, "a part that is no text (reasoningContent); write the reasoning"),
    ({"messages": [user("q"), assistant([{"toolUse": {"name": "f"}}])]}, "(toolUse); calls of tools"),
    ({"instruction": "", "input": "Where is it?", "output": "Osk."}, "under another key")])
def test_what_another_tool_calls_so_is_refused_with_its_own_mend(tmp_path, wrong, said):
    assert said in refused(tmp_path, wrong)


TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize("good", [
    {"messages": [user("q") | {"function_call": {"name": None, "arguments": None}}, assistant("a", tool_calls=[None])]},
    *({"prompt": "q", "completion": "a"} | more for more in (
        {"image": {"bytes": None, "path": None}}, {"images": [None]}, {"images": [""]}, {"responses": 3}, {"outputs": 1}, {"prompts": 2})),
    {"messages": [user([{"type": "text", "text": "q", "image_url": {"url": None}}]), assistant("a")]},
    {"system": "s", "conversations": TURNS, "messages": [{"role": "system", "content": "s"}, user("q"), assistant("a")]},
    *(record("q", "a") | {"conversation": value} for value in (17, "conv-17", [user("q"), assistant("a")])),
    record("q", "a") | {"chat_template_kwargs": {"custom_instructions": "", "enable_thinking": False, "python_tools": None, "xml_tools": []}}])
def test_what_is_empty_a_number_or_a_copy_is_no_fault(tmp_path, good):
    assert [message["content"] for message in load(tmp_path, good)[0]["messages"] if message["role"] != "system"] == ["q", "a"]


def test_another_conversation_under_a_near_name_is_a_fault(tmp_path):
    assert "'conversation' is no key that is read" in refused(tmp_path, record("q", "a") | {"conversation": [user("other"), assistant("text")]})


@pytest.mark.parametrize("copied", [{"system": "s"}, {"history": [["before", "then"]]}, {"input": "i"}])
def test_a_copy_of_all_that_was_said_is_no_fault(tmp_path, copied):
    pair = {"prompt": "q", "completion": "a"} | copied
    said = [message for message in load(tmp_path, pair)[0]["messages"]]
    for name in ("conversation", "messages_"):
        assert load(tmp_path, pair | {name: said})[0]["messages"] == said


@pytest.mark.parametrize("wrong", [{"prompt": "2+2?", "completon": 4}, {"prompt": "2+2?", "completon": {"text": "4"}}, {"mesages": "[]x"}, {"mesages": {"a": 1}}])
def test_a_slip_is_named_whatever_stands_there(tmp_path, wrong):
    assert "no key that is read; write it as" in refused(tmp_path, wrong)


def test_a_path_is_no_text_of_a_file_and_a_long_one_no_traceback(tmp_path):
    for name in ("[old] records.json", "{x}.jsonl", "records.jsonl\n", "[ab]*.jsonl"):
        with pytest.raises(DatasetError) as error:
            load_sft_jsonl(name)
        assert "text of a file" not in str(error.value)
    (tmp_path / ("a" * 251 + ".csv")).write_text("prompt,completion\na,b\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="a table with a comma"):
        load_sft_jsonl(tmp_path / ("a" * 251 + ".csv"))


@pytest.mark.parametrize(("one", "other"), [("What is R & D?", "What is R&D?"), ("AT & T", "AT&T"), ("What is a * b?", "What is a*b?"),
                                           ("Help !!!", "Help!"), ("What is it ::", "What is it")])
def test_a_sign_between_spaces_is_the_same_question(one, other):
    assert leaked_questions([record(one)], [record(other)]) == [other]


@pytest.mark.parametrize(("one", "other"), [
    ("What is .5 of 10?", "What is 5 of 10?"), ("What is -x?", "What is x?"), ("Differentiate f'(x)", "Differentiate f(x)"), ("Differentiate f''(x)", "Differentiate f’(x)"),
    *((f"What does {sign} do?", "What does % do?") for sign in ("//", "**", "&&", "!", "::")), ("What does // do?", "What does / do?"),
    ("What does the @ operator do in Python?", "What does the * operator do in Python?")])
def test_a_sign_that_makes_another_question_is_no_leak(one, other):
    assert leaked_questions([record(one)], [record(other)]) == [] and leaked_questions([record(one)], [record(one.rstrip("?"))]) == [one.rstrip("?")]


def test_a_wrong_argument_is_a_sentence(tokenizer):
    with pytest.raises(ValueError, match="by is"):
        suggest_split([record("q")], by=["answer"])
    with pytest.raises(ValueError, match="labels go beside it"):
        show_tokens(tokenizer, [-100, 5])
    with pytest.raises(ValueError, match="surrogates not allowed"):
        show_record(tokenizer, "a\ud83d")
    records = [record(f"q{n}", f"a{n}") for n in range(20)]
    assert suggest_split(records, seed=np.int64(3)) == suggest_split(records, seed=3)
    assert suggest_split(records, seed="abc").heldout and suggest_split(records, seed=None).heldout
