"""Read a JSONL file of chat records for supervised fine-tuning (SFT), and name every fault in it by file and line."""
from __future__ import annotations

import json
from pathlib import Path

ROLES = ("system", "user", "assistant")
OTHER_FORMATS = {  # columns that other tools use -> how to turn them into messages
    ("instruction", "output"): "alpaca columns (instruction, input, output); put instruction and input into one user message and output into an "
                               'assistant message: {"messages": [...]}',
    ("prompt", "completion"): "prompt/completion columns; put prompt into a user message and completion into an assistant message: "
                              '{"messages": [...]}',
}


class DatasetError(ValueError):
    """The file can't be used; the message has a line `file:line: what is wrong, what to do` for each fault."""


def load_sft_jsonl(path: str | Path) -> list[dict]:
    """Return the records of a JSONL file, each a dict with `messages`; other keys are kept, blank lines are passed over.

    Raises DatasetError that lists all faults of the file together.
    """
    lines = _read_lines(Path(path))
    records, faults = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record, fault = _parse(line)
        fault = fault or _fault_in(record)
        if fault:
            faults.append(f"{path}:{number}: {fault}")
        records.append(record)
    if not records:
        faults = [f"{path}:1: the file holds no record; write one JSON object a line"]
    if faults:
        raise DatasetError("\n".join(faults))
    return records


def _read_lines(path: Path) -> list[str]:
    """Read the file as UTF-8, with or without a byte order mark; split at newlines only (JSON text may hold other separators)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}:1: the file can't be read ({error.strerror}); check the path, seen from {Path.cwd()}") from error
    try:
        return data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{path}:{line}: the text is not UTF-8 (byte {data[error.start]:#04x}); save the file as UTF-8 in your editor") from error


def _parse(line: str):
    try:
        return json.loads(line), None
    except json.JSONDecodeError as error:
        if line.rstrip().endswith(","):
            return None, "a comma follows the record; JSONL has one object a line with nothing between them, so remove the comma"
        if "trailing comma" in error.msg.lower() or _is_trailing_comma(line, error.pos):
            return None, f"a trailing comma at column {error.pos + 1}; remove the comma before the closing bracket"
        return None, f"broken JSON at column {error.colno} ({error.msg}); write one complete JSON object on this line"


def _is_trailing_comma(line: str, position: int) -> bool:
    return line[position:].lstrip()[:1] in ("}", "]") and line[:position].rstrip().endswith(",")


def _fault_in(record) -> str | None:
    """Return what is wrong with one record and what to do, or None."""
    if not isinstance(record, dict):
        return f'the line holds a {type(record).__name__}, not an object; write {{"messages": [...]}}'
    if "messages" not in record:
        for columns, advice in OTHER_FORMATS.items():
            if all(column in record for column in columns):
                return advice
        return 'the key "messages" is missing; write {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        return '"messages" is not a list or is empty; put at least a user and an assistant message into it'
    return next(filter(None, (_fault_in_message(i, message) for i, message in enumerate(messages, start=1))), None) or _fault_in_order(messages)


def _fault_in_message(number: int, message) -> str | None:
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        return f'message {number} is not an object with "role" and "content"; give it both'
    if message["role"] not in ROLES:
        return f"message {number} has the role {message['role']!r}; use one of {', '.join(ROLES)}"
    if not isinstance(message["content"], str):
        return f"the content of message {number} is {json.dumps(message['content'])[:40]}, not text; put it in quotation marks"
    if not message["content"].strip():
        return f"the content of message {number} is blank; write its text or remove the record"
    return None


def _fault_in_order(messages: list[dict]) -> str | None:
    """Check the order: perhaps system, then user and assistant in turn, assistant last."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        return "no assistant message, so there is no answer to learn; add one"
    turns = roles[1:] if roles[0] == "system" else roles
    if turns != ["user", "assistant"] * (len(turns) // 2):
        return f"the roles come as {', '.join(roles)}; write user and assistant in turn (a system message only first) and end with assistant"
    return None
