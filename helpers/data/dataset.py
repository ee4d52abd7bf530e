"""Read a JSONL file of chat records for supervised fine-tuning (SFT), and name every fault in it by file and line."""
from __future__ import annotations

import codecs
import json
import unicodedata
from pathlib import Path

ROLES = ("system", "user", "assistant")
FORM = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
COLUMNS = (("prompt", "completion"), ("instruction", "output"))  # what is asked, and its answer
KEPT = ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "So")  # letters, marks, numbers, and emoji
OTHER_FORMATS = {  # columns that other tools use -> how to turn them into messages
    ("instruction", "output"): "alpaca columns (instruction, input, output): put instruction and input into one user "
                               "message and output into an assistant message, or read them with convert=True",
    ("prompt", "completion"): "prompt/completion columns: put prompt into a user message and completion into an "
                              "assistant message, or read them with convert=True",
    ("conversations",): "a ShareGPT column (conversations, with from and value): rename it to messages, from to role "
                        "(human is user, gpt is assistant) and value to content",
}


class DatasetError(ValueError):
    """The file can't be used; the message has a line `file:line: what is wrong, what to do` for each fault."""


def load_sft_jsonl(path: str | Path, convert: bool = False) -> list[dict]:
    """Return the records of a JSONL file, each a dict with `messages`.

    convert: make messages of prompt/completion columns (texts, or lists of messages) and of alpaca columns.
    Other keys are kept, blank lines are passed over, a byte order mark is tolerated.
    Raises DatasetError, which lists all faults of the file together.
    """
    records, faults = [], []
    for number, line in enumerate(_read_lines(Path(path)), start=1):
        if line.strip():
            record, found = _check_line(line, convert)
            records.append(record)
            faults += [f"{path}:{number}: {fault}" for fault in found]
    if not records:
        faults = [f"{path}:1: the file holds no record; write one JSON object a line: {FORM}"]
    if faults:
        raise DatasetError("\n".join(faults))
    return records


def leaked_questions(train: list[dict], test: list[dict]) -> list[str]:
    """Return the questions of `test` that stand in `train` too, whatever their case, punctuation and spaces."""
    known = {words(said(record, "user")) for record in train}
    return [said(record, "user") for record in test if words(said(record, "user")) in known]


def said(record: dict, role: str) -> str:
    """Return what one role says in a record; a system message is no question."""
    return "\n".join(message["content"] for message in record["messages"] if message["role"] == role)


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text in any script, whatever their case; punctuation is dropped, an emoji is kept.

    Marks are kept, since in Hindi, for instance, they are the vowels. A text of nothing else is one word.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(char if unicodedata.category(char) in KEPT else " " for char in plain)
    return tuple(kept.split()) or (plain.strip(),)


def _read_lines(path: Path) -> list[bytes]:
    """Split the file at newlines only: a text in JSON may hold other line separators."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}:1: the file can't be read ({error.strerror}); check the path, "
                           f"seen from {Path.cwd()}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DatasetError(f"{path}:1: the text is UTF-16, not UTF-8; save the file as UTF-8 in your editor")
    if _is_one_list(data):
        raise DatasetError(f"{path}:1: the file is one JSON list; write each of its objects on a line of its own, "
                           "with no brackets around them and no commas between them")
    return data.removeprefix(codecs.BOM_UTF8).split(b"\n")


def _is_one_list(data: bytes) -> bool:
    """Say whether the whole file is a list of objects: JSON, but not JSONL."""
    try:
        whole = json.loads(data.decode("utf-8-sig")) if data.lstrip().endswith(b"]") or b"[" in data[:9] else None
    except (ValueError, RecursionError):
        return False
    return isinstance(whole, list) and any(isinstance(item, dict) for item in whole)


def _check_line(line: bytes, convert: bool) -> tuple[object, list[str]]:
    """Return the record on a line (None if it can't be read), and what is wrong with it."""
    try:
        text = line.decode("utf-8").strip()
        record = json.loads(text)
    except UnicodeDecodeError as error:
        return None, [f"the text is not UTF-8 (byte {line[error.start]:#04x}); save the file as UTF-8 in your editor"]
    except json.JSONDecodeError as error:
        return None, [_broken_json(text, error)]
    except RecursionError:
        return None, [f"brackets nested too deep; write {FORM}"]
    record, faults = _as_messages(record) if convert else (record, [])
    return record, faults or _faults_in(record)


def _as_messages(record: object) -> tuple[object, list[str]]:
    """Return a record with its columns made into messages, and what is wrong with these columns."""
    columns = [pair for pair in COLUMNS if isinstance(record, dict) and set(pair) & set(record)]
    if not columns or "messages" in record:
        return record, []
    question, answer = columns[0]
    extra = ("input",) if question == "instruction" and "input" in record else ()
    faults = [fault for column in (question, answer, *extra) if (fault := _fault_in_column(record, column))]
    if faults:
        return record, faults
    asked = record[question]
    if extra and (record["input"] or "").strip():
        asked += "\n\n" + record["input"]
    rest = {key: value for key, value in record.items() if key not in (question, answer, *extra)}
    return {"messages": _turns(asked, "user") + _turns(record[answer], "assistant"), **rest}, []


def _turns(value: str | list, role: str) -> list:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _fault_in_column(record: dict, column: str) -> str | None:
    if column not in record:
        return f'the column "{column}" is missing; a question needs an answer, and an answer its question'
    value = record[column]
    if (isinstance(value, list) and column in COLUMNS[0]) or (value is None and column == "input"):
        return None  # a list holds messages, which are checked when they are joined
    if not isinstance(value, str):
        return f'the column "{column}" is {json.dumps(value)[:40]}, not text; write text in quotation marks'
    if not value.strip() and column != "input":
        return f'the column "{column}" is blank; write its text or remove the record'
    return None


def _broken_json(text: str, error: json.JSONDecodeError) -> str:
    if text.endswith(",") and _is_json(text[:-1]):
        return "a comma follows the record; JSONL has nothing between its lines, so remove the comma"
    # Python 3.13 points at the comma, older versions at the bracket after it.
    before = text[:error.pos + 1] if text[error.pos:error.pos + 1] == "," else text[:error.pos]
    if before.rstrip().endswith(",") and text[len(before):].lstrip()[:1] in ("}", "]"):
        return f"a trailing comma at column {len(before.rstrip())}; remove the comma before the closing bracket"
    return f"broken JSON at column {error.colno} ({error.msg}); write one complete JSON object on this line"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _faults_in(record: object) -> list[str]:
    """Return all that is wrong with one record, each with what to do."""
    if not isinstance(record, dict):
        return [f"the line holds a {type(record).__name__}, not an object; write {FORM}"]
    if "messages" not in record:
        known = [advice for columns, advice in OTHER_FORMATS.items() if all(column in record for column in columns)]
        return [f"{known[0]}: {FORM}" if known else f'the key "messages" is missing; write {FORM}']
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        return [f'"messages" is {"empty" if messages == [] else "not a list"}; write {FORM}']
    faults = [fault for number, message in enumerate(messages, start=1) if (fault := _fault_in_message(number, message))]
    return faults or _faults_in_order([message["role"] for message in messages])


def _fault_in_message(number: int, message: object) -> str | None:
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        return f'message {number} is not an object with "role" and "content"; give it both'
    role, content = message["role"], message["content"]
    if role not in ROLES:
        return f"message {number} has the role {role!r:.40}; use one of {', '.join(ROLES)}"
    if not isinstance(content, str):
        return f"the content of message {number} is {json.dumps(content)[:40]}, not text; write text in quotation marks"
    if not content.strip():
        return f"the content of message {number} is blank; write its text or remove the record"
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        return f"the content of message {number} holds half a character (an emoji cut in two?); mend it"
    return None


def _faults_in_order(roles: list[str]) -> list[str]:
    """Check the order: perhaps system, then user and assistant in turn, assistant last."""
    if "assistant" not in roles:
        return ["there is no assistant message, so there is no answer to learn; add one"]
    turns = roles[1:] if roles[0] == "system" else roles
    if turns == ["user", "assistant"] * (len(turns) // 2):
        return []
    return [f"the roles come as {', '.join(roles)}; write user and assistant in turn (a system message only first) "
            "and end with assistant"]
