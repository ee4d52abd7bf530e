import json
import time

import pytest

from helpers.data.dataset import DatasetError, load_sft_jsonl
from helpers.data.own_data import fact_groups
from helpers.data.wording import leaked_questions

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
    "two records": (json.dumps(GOOD) + " " + json.dumps(GOOD), "two records stand on one line"),
    "two records and a comma": (json.dumps(GOOD) + ", " + json.dumps(GOOD), "put each on a line of its own"),
    "a dictionary of Python's": ("{'messages': []}", "JSON's quotation marks are straight double ones"),
    "curly quotation marks": ("{“messages”: []}", "straight double ones"),
    "a text of Python's": ("""{"prompt": 'a'}""", "broken JSON at column 12 (Expecting value); JSON's quotation marks are straight double ones"),
    "a curly text": ('{"prompt": “a”}', "straight double ones"),
    "a key without them": ('{prompt: "a"}', "straight double ones"),
    "None": ('{"prompt": None}', "write null, true and false"),
    "True": ('{"prompt": "a", "ok": True}', "write null, true and false"),
    "a raw tab": ('{"prompt": "a\tb"}', r"and a tab as \t"),
    "a text that goes on below": ('{"prompt": "a', r"write a line break within it as \n"),
    "a path": ('{"prompt": "C:\\Users"}', "double each backslash of LaTeX or of a path"),
    "LaTeX": ('{"prompt": "\\usepackage"}', "double each backslash"),
    "quoted within a text": ('{"prompt": "say "hi" now"}', r'write a quotation mark within a text as \"'),
    "a fence": ("```", "remove the comment, or the mark of Markdown"),
    "a comment behind a record": (json.dumps(GOOD) + " // mine", "remove the comment"),
    "indented": ('   {"a": x}', "broken JSON at column 10 "),
    "indented, a trailing comma": ('   {"a": "b",}', "a trailing comma at column 13"),
    "a list of records": (json.dumps([GOOD, GOOD]), "holds a list, not an object; write each of its objects on a line of its own"),
    "a text in quotation marks": ('"a"', "holds a str, not an object; write {"),
    "a key twice": ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "'content' stands twice"),
    "not a number": ('{"messages": [], "score": NaN}', "NaN is not JSON; write null"),
    "5,000 digits": ('{"messages": [], "id": ' + "9" * 5000 + "}", "too many digits; write it as text"),
    "nested too deep to read": ("[" * 100_000, "nested too deep"),
    "nested deep": ('{"messages": ' + "[" * 900 + "]" * 900 + "}", "message 1 is not an object"),
    "an object in an object": ('{"messages": [{"role": "user", "content": ' + '{"a":' * 900 + "1" + "}" * 901 + "]}", "not text"),
    "trailing comma, spaced": ('{"messages": [{"role": "user", "content": "a"} ,  ]}', "a trailing comma at column 48"),
    "trailing comma": ('{"messages": [{"role": "user", "content": "a"},]}', "trailing comma"),
    "a list": ("[1]", "not an object"),
    "a blank that is none in JSON": (json.dumps(GOOD) + "\u00a0", "broken JSON"),
    "a colon before a quotation mark": ("""{"prompt": "Q: 'Where is it?'""", r"write a line break within it as \n"),
    "a number that is none": ('{"id": 007}', "write one complete JSON object on this line"),
    "a number with its unit": ('{"weight": 12kg}', "write one complete JSON object on this line"),
    "a record in quotation marks": (json.dumps(json.dumps(GOOD)), "holds a str, not an object; apply json.loads to it once more"),
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
    "an answer of signs without width": (chat(("user", "a"), ("assistant", "\u200b\u2060\ufeff\u3164")), "message 2 is blank"),
    "an answer of other blanks": (chat(("user", "a"), ("assistant", "\u00ad\u2800 \ufe0f\u115f")), "message 2 is blank"),
    "a system message of a blank": (chat(("system", " "), ("user", "a"), ("assistant", "b")), "message 1 is blank"),
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


@pytest.mark.parametrize(("first", "said"), [
    ("// my records", "broken JSON at column 1"), ("[" * 100_000, "nested too deep"), ('{"messages": ' + "[" * 100_000, "nested too deep"),
    ("9" * 5000, "too many digits"), (json.dumps(GOOD["messages"]), "holds a list, not an object")])
def test_a_fault_in_the_first_line_does_not_make_another_kind_of_file(tmp_path, first, said):
    found = faults_of(write(tmp_path, first, json.dumps(GOOD), "[1]"))
    assert len(found) == 2 and ":1: " in found[0] and said in found[0] and ":3: " in found[1]


def test_records_in_quotation_marks_are_not_taken_for_a_table(tmp_path):
    found = faults_of(write(tmp_path, *[json.dumps(json.dumps(GOOD))] * 5))
    assert len(found) == 4 and all("holds a str, not an object" in line for line in found[:3]) and found[3].startswith("and 2 more")


def faults_of(path):
    with pytest.raises(DatasetError) as error:
        load_sft_jsonl(path)
    return str(error.value).splitlines()


def test_lists_all_faults_together_and_in_order(tmp_path):
    path = write(tmp_path, *(line for line, _ in FAULTS.values()))
    lines = [line for line in faults_of(path) if not line.startswith("and ")]
    numbers = [int(line.removeprefix(f"{path}:").partition(": ")[0]) for line in lines]
    assert numbers == sorted(numbers) and len({line.rpartition("; ")[2] for line in lines}) >= 15
    assert len(FAULTS) > len(lines) > len(FAULTS) / 2


def test_of_each_sort_three_are_listed_and_the_others_counted(tmp_path):
    lines = [chat((f"nobody {number}", "a"), ("assistant", "b")) for number in range(301)] + [chat(("user", "a"), ("assistant", number)) for number in range(2)]
    path = write(tmp_path, json.dumps(GOOD), *lines)
    found = faults_of(path)
    assert [line.removeprefix(f"{path}:").partition(": ")[0] for line in found[:5]] == ["2", "3", "4", "303", "304"]
    assert found[5:] == ["and 298 more of this sort: use one of system, user, assistant"]
    assert len(faults_of(write(tmp_path, *lines[:3]))) == 3
    assert faults_of(write(tmp_path, *[chat((f"a; {number}", "a"), ("assistant", "b")) for number in range(4)]))[3] == "and 1 more of this sort: use one of system, user, assistant"


def test_a_long_conversation_out_of_order_is_shown_in_part(tmp_path):
    line, = faults_of(write(tmp_path, chat(*[("user", "a")] * 5000, ("assistant", "b"))))
    assert "user, user and so on; write user and assistant in turn" in line and len(line) < 300


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
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError, match="holds no record"):
        load_sft_jsonl(path)


def test_missing_file(tmp_path):
    with pytest.raises(DatasetError, match="check the path"):
        load_sft_jsonl(tmp_path / "nowhere.jsonl")


def record(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize("written", ["Where is it?", "WHERE IS IT", " where  is\tit ??", "Where is... it?", "Whe\u200bre\u2060 is\ufeff it",
                                     "\u3164Where is it\u200d", "Where \u00adis i\ufe0ft\u034f"])
def test_a_leaked_question_is_found_however_it_is_written(written):
    test = [record(("user", "Where is it?"), ("assistant", "There.")), record(("user", "Who keeps it?"), ("assistant", "Nell."))]
    assert leaked_questions([record(("user", written), ("assistant", "Elsewhere."))], test) == ["Where is it?"]


@pytest.mark.parametrize("written", ["Where is it now?", "Is it where?", "Whereisit?", ""])
def test_another_wording_is_no_leak(written):
    assert leaked_questions([record(("user", written))], [record(("user", "Where is it?"))]) == []


@pytest.mark.parametrize(("one", "other"), [("What is 7 + 2?", "What is 7 - 2?"), ("What is 7 * 2?", "What is 7 / 2?"), ("Solve x/3 = 2", "Solve x*3 = 2"), ("x^2", "x*2"), ("What is -5 + 3?", "What is 5 + 3?"), ("Who made C++?", "Who made C?"),
                                            ("Who made C#?", "Who made C?"), ("Is it $5?", "Is it €5?"), ("Is 3 < 4?", "Is 3 > 4?"),
                                            ("What is 10²?", "What is 102?"), ("Is it 5%?", "Is it 5?"), ("if (!ok)", "if (ok)")])
def test_a_sign_that_is_no_punctuation_makes_another_question(one, other):
    assert leaked_questions([record(("user", one))], [record(("user", other))]) == []
    assert leaked_questions([record(("user", one.replace(" ", "  ")))], [record(("user", one))]) == [one]


@pytest.mark.parametrize(("one", "other"), [("7 − 2", "7 - 2"), ("7 – 2", "7 - 2"), ("6 × 7", "6 * 7"), ("8 ÷ 2", "8 / 2"), ("½ of it", "1/2 of it"), ("x²", "x^2")])
def test_a_sign_may_be_written_in_two_ways(one, other):
    assert leaked_questions([record(("user", one))], [record(("user", other))]) == [other]


def test_a_dash_or_a_mark_of_emphasis_between_words_is_punctuation():
    assert leaked_questions([record(("user", "Is the *well-known* rock red/white?"))], [record(("user", "is the well known rock red white"))])


def test_a_conversation_of_many_turns_is_counted_at_once(tmp_path, capsys):
    turns = ("user", "Again?"), ("assistant", "Again.")
    start = time.process_time()
    load_sft_jsonl(write(tmp_path, chat(*turns * 6000)))
    assert "1 of 6,000 answers is learned" in capsys.readouterr().out and time.process_time() - start < 5


def test_several_answers_are_counted_and_one_row_a_reply_is_offered(tmp_path, capsys):
    turns = ("user", "A ticket to stop 1."), ("assistant", "That is 1 shells."), ("user", "And back to 1?"), ("assistant", "2 shells.")
    path = write(tmp_path, chat(*turns, *turns[:2]))
    load_sft_jsonl(path)
    assert capsys.readouterr().out == (f"{path}: 1 of 3 answers is learned, the last of each record; "
                                       "one_row_a_reply(records) makes a record of each answer.\n")
    load_sft_jsonl(write(tmp_path, chat(*turns), json.dumps(GOOD)))
    assert "2 of 3 answers are learned" in capsys.readouterr().out
    load_sft_jsonl(write(tmp_path, chat(("system", ""), *turns[:2]), json.dumps(GOOD)))
    assert capsys.readouterr().out == ""


def test_only_what_the_user_says_counts_as_the_question():
    system = ("system", "Be brief.")
    assert leaked_questions([record(system, ("user", "Where?"))], [record(("user", "where"))]) == ["where"]
    assert leaked_questions([record(system, ("user", "Where?"))], [record(system, ("user", "Who?"))]) == []
    assert leaked_questions([record(("user", "Who?"), ("assistant", "Where?"))], [record(("user", "Where?"))]) == []
    assert leaked_questions([record(("user", "在哪里?"))], [record(("user", "在哪里")), record(("user", "何时"))]) == ["在哪里"]


def chats(*texts):
    return record(*zip(("user", "assistant") * 3, texts, strict=False))


LIBRARY, MUSEUM = ("When does the library open?", "Nine."), ("When does the museum open?", "Ten.")


@pytest.mark.parametrize(("train", "test", "leaks"), [
    ([chats("Hi", "Hello!", "Where is it?", "On Osk.")], chats("Where is it?", "There."), True),  # asked alone
    ([chats("Where is it?", "On Osk.")], chats("Hi", "Hello!", "where is it", "There."), True),
    ([chats("Hi", "Hello!", "Where is it?", "On Osk.")], chats("Good day", "Hello!", "Where is it?", "On Osk."), True),  # the same answer
    ([chats(*LIBRARY, "And on Sunday?", "Closed.")], chats(*MUSEUM, "And on Sunday?", "Till four."), False),  # what went before is meant
    ([chats(*LIBRARY, "And on Sunday?", "Closed.")], chats(*LIBRARY, "and on Sunday", "Till four."), True),
    ([chats(*LIBRARY, "And on Sunday?", "Closed."), chats(*LIBRARY)], chats(*MUSEUM, "And on Sunday?", "Till four."), False),
    ([chats("Tides?", "Moon.", "Why?", "Gravity."), chats("Why?", "Why what?")], chats("Is Pluto a planet?", "No.", "Why?", "Too small."), False),
    ([chats("Hi", "Hello!", "Where is it?", "On Osk."), chats("Where is it?", "There.")] + [chats(f"Tell me of {i}.", "Well.", "Where is it?", f"{i}.") for i in range(5)],
     chats("Good day", "Hello!", "Where is it?", "Here."), False)])
def test_of_a_conversation_the_last_question_is_compared_where_it_says_all(train, test, leaks):
    assert bool(leaked_questions(train, [test])) is leaks
    group = next(group for group in fact_groups([*train, test], by="question") if len(train) in group)
    assert (len(group) > 1) is leaks
