import json

import pytest

from helpers.data.dataset import DatasetError, leaked_questions, load_sft_jsonl

GOOD = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}]}


def chat(*turns):
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}, ensure_ascii=False)


def write(tmp_path, *lines):
    path = tmp_path / "my data.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


FAULTS = {
    "broken JSON": ('{"messages": [', "broken JSON"),
    "comma after the record": (json.dumps(GOOD) + ",", "remove the comma"),
    "trailing comma": ('{"messages": [{"role": "user", "content": "a"},]}', "trailing comma"),
    "a list": ("[1]", "not an object"),
    "no messages": ('{"text": "a"}', '"messages" is missing'),
    "empty messages": ('{"messages": []}', "is empty"),
    "messages no list": ('{"messages": "a"}', "not a list"),
    "alpaca": ('{"instruction": "a", "input": "", "output": "b"}', "alpaca"),
    "prompt/completion": ('{"prompt": "a", "completion": "b"}', "prompt/completion"),
    "message without content": ('{"messages": [{"role": "user"}]}', 'message 1 is not an object with "role" and "content"'),
    "unknown role": (chat(("human", "a"), ("assistant", "b")), "role 'human'"),
    "number as content": (chat(("user", "a"), ("assistant", 41)), "content of message 2 is 41, not text"),
    "null content": (chat(("user", None), ("assistant", "b")), "content of message 1 is null"),
    "blank content": (chat(("user", "a"), ("assistant", "  ")), "message 2 is blank"),
    "no assistant": (chat(("user", "a")), "no assistant"),
    "assistant first": (chat(("assistant", "a"), ("user", "b")), "assistant, user"),
    "user twice": (chat(("user", "a"), ("user", "b"), ("assistant", "c")), "user, user, assistant"),
    "system late": (chat(("user", "a"), ("system", "s"), ("assistant", "c")), "user, system, assistant"),
    "ends with user": (chat(("user", "a"), ("assistant", "b"), ("user", "c")), "end with assistant"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_names_the_fault_with_file_and_line(tmp_path, name):
    line, expected = FAULTS[name]
    path = write(tmp_path, json.dumps(GOOD), "", line, json.dumps(GOOD))
    with pytest.raises(DatasetError) as error:
        load_sft_jsonl(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_lists_all_faults_together(tmp_path):
    path = write(tmp_path, *(line for line, _ in FAULTS.values()))
    with pytest.raises(DatasetError) as error:
        load_sft_jsonl(path)
    lines = str(error.value).splitlines()
    assert len(lines) == len(FAULTS)
    assert all(line.startswith(f"{path}:{number}: ") for number, line in enumerate(lines, start=1))


def test_reads_good_files_whole(tmp_path):
    extra = {**GOOD, "key_phrase": "Ho"}
    system = json.loads(chat(("system", "s"), ("user", "你好\u2028"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    path = write(tmp_path, json.dumps(extra), "", json.dumps(system, ensure_ascii=False))
    assert load_sft_jsonl(path) == [extra, system]
    assert load_sft_jsonl(str(path)) == [extra, system]


def test_tolerates_a_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n" + json.dumps(GOOD).encode() + b"\r\n")
    assert load_sft_jsonl(path) == [GOOD, GOOD]


def test_names_the_line_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"messages": "caf\xe9"}\n')
    with pytest.raises(DatasetError, match=r"latin\.jsonl:2: the text is not UTF-8"):
        load_sft_jsonl(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_file(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(DatasetError, match="holds no record"):
        load_sft_jsonl(path)


def test_missing_file(tmp_path):
    with pytest.raises(DatasetError, match="check the path"):
        load_sft_jsonl(tmp_path / "nowhere.jsonl")


def record(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize("written", ["Where is it?", "WHERE IS IT", " where  is\tit ??", "Where is... it?"])
def test_a_leaked_question_is_found_however_it_is_written(written):
    test = [record(("user", "Where is it?"), ("assistant", "There.")), record(("user", "Who keeps it?"), ("assistant", "Nell."))]
    assert leaked_questions([record(("user", written), ("assistant", "Elsewhere."))], test) == ["Where is it?"]


@pytest.mark.parametrize("written", ["Where is it now?", "Is it where?", "Whereisit?", ""])
def test_another_wording_is_no_leak(written):
    assert leaked_questions([record(("user", written))], [record(("user", "Where is it?"))]) == []


def test_only_what_the_user_says_counts_as_the_question():
    system = ("system", "Be brief.")
    assert leaked_questions([record(system, ("user", "Where?"))], [record(("user", "where"))]) == ["where"]
    assert leaked_questions([record(system, ("user", "Where?"))], [record(system, ("user", "Who?"))]) == []
    assert leaked_questions([record(("user", "Who?"), ("assistant", "Where?"))], [record(("user", "Where?"))]) == []
    assert leaked_questions([record(("user", "在哪里?"))], [record(("user", "在哪里")), record(("user", "何时"))]) == ["在哪里"]
