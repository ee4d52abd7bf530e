"""Read a file of chat records for supervised fine-tuning (SFT), and name every fault in it by file and line."""
import codecs
import json
import re
from collections import Counter
from pathlib import Path

from helpers.data.advice import FORM, MESSAGE, PART_TYPES, RIGHT_ROLE, ROLES, TOOLS, filled, key_of_chat, list_as_text, part_name
from helpers.data.beside import LOST, folded, says_nothing, strings
from helpers.data.columns import COURSE, READ, conversation, lost_keys, other_keys
from helpers.data.files import LIST, DatasetError, read_lines
from helpers.data.notes import JOINED, KEPT, LEFT, UNSEEN, ignored_note, joined_note, learned_note, phrases_note, texts_notes
from helpers.data.phrases import NO_SPACES, SCORED, phrases_under, plain
from helpers.data.wording import SEEN

PART, SENTENCE = {"type", "text"}, 3  # the keys of a part that are read; a text of more words is a sentence
SLIPS = [(re.compile(pattern), mend) for pattern, mend in (  # the parser's words, and what stands there -> what to do
    (r"[^:]*: (?:```|//|/\*|#)", "remove the comment, or the mark of Markdown"),
    (r"[^:]*: ['‘’“”„`]|Expecting property[^:]*: \w", "JSON's quotation marks are straight double ones: write keys and texts in them, as json.dumps does"),
    (r"[^:]*: (?:None|True|False)\b", "write null, true and false, as json.dumps does"),
    (r"Invalid \\", "double each backslash of LaTeX or of a path, as json.dumps does"),
    ("Invalid control|Unterminated", r'a text does not end on its line, or holds a tab: write a line break within it as \n, and a tab as \t, unless the file was cut off'),
    (r"Expecting ',' delimiter: \w.*\n\"", r'write a quotation mark within a text as \"'),
)]
SHOWN, SORTS = 3, 20  # faults of one sort that are listed, and sorts


def load_sft_jsonl(path: str | Path, convert: bool = False) -> list[dict]:
    """Return the records of a JSONL file, each a dict with `messages`, whose messages have role and content alone.

    convert: make messages of prompt/completion and alpaca columns (system and history become messages, input and context
    the end of the question) and of ShareGPT's conversations. Other keys stay in the record. Lines that are printed name
    the keys that nothing here reads, and count what is no fault and good to know (helpers.data.notes).
    Blank lines are passed over. Raises DatasetError, which lists the faults of the file together.
    """
    records, notes = read_records(path, convert)
    print(*notes, sep="\n", end="\n" * bool(notes))
    return records


def read_records(path: str | Path, convert: bool = False) -> tuple[list[dict], list[str]]:
    """Return what load_sft_jsonl returns, and the lines that it prints."""
    records, numbers, faults, ignored = [], [], [], Counter()
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            record, found = _check_line(line, convert, ignored)
            records.append(record)
            numbers.append(number)
            faults += [(number, fault) for fault in found]
    if not records:
        faults = [(1, f"the file holds no record; write one JSON object a line: {FORM}")]
    if faults:
        raise DatasetError(_listed(path, faults))
    notes = ignored_note(ignored), joined_note(ignored), learned_note(records), phrases_note(records, numbers), *texts_notes(records, numbers)
    return records, [f"{path}: {note}" for note in notes if note]


def _listed(path: str | Path, faults: list[tuple[int, str]]) -> str:
    """List the first faults of each sort, a sort being what one mend helps against, and count the others; so with the first sorts."""
    seen, lines = Counter(), []
    for number, fault in faults:
        mend = fault.rpartition("; ")[2]
        seen[mend] += 1
        lines += [f"{path}:{number}: {fault}"] * (seen[mend] <= SHOWN and mend in list(seen)[:SORTS])
    listed, others = list(seen.items())[:SORTS], list(seen.values())[SORTS:]
    lines += [f"and {count - SHOWN:,} more of this sort: {mend}" for mend, count in listed if count > SHOWN]
    return "\n".join(lines + [f"and {sum(others):,} more of {len(others):,} other sorts; mend these first"] * bool(others))


def _check_line(line: bytes, convert: bool, ignored: Counter) -> tuple[object, list[str]]:
    """Return the record on a line (None if it can't be read), and what is wrong with it."""
    if line.startswith(codecs.BOM_UTF8):
        return None, ["a byte order mark stands before the record (two files joined?); remove it, or join them in an editor"]
    try:
        text = line.decode("utf-8").rstrip(" \t\r")
        return _check_record(json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number), convert, ignored)
    except UnicodeDecodeError as error:
        return None, [f"the text is not UTF-8 (byte {line[error.start]:#04x}); save the file as UTF-8 in your editor"]
    except json.JSONDecodeError as error:
        return None, [_broken_json(text, error)]
    except RecursionError:
        return None, [f"brackets nested too deep; write {FORM}"]
    except DatasetError as error:
        return None, [str(error)]
    except ValueError:  # Python reads no number of more than 4,300 digits
        return None, ["a number has too many digits; write it as text in quotation marks"]


def _unique(pairs: list[tuple[str, object]]) -> dict:
    """Make an object of its keys and values; JSON would keep the last value of a key that stands twice."""
    if len(made := dict(pairs)) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise DatasetError(f"the key {twice!r:.40} stands twice in one object, so one of its values would be lost; remove one")
    return made


def _no_number(name: str) -> None:
    raise DatasetError(f"{name} is not JSON; write null")


def _broken_json(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos:] if error.msg == "Extra data" else ""
    if rest == ",":
        return "a comma follows the record; JSONL has nothing between its lines, so remove the comma"
    if rest.lstrip("\ufeff, \t\r").startswith("{"):
        return f"two records stand on one line, the second from column {error.colno}; put each on a line of its own"
    # Python 3.13 points at the comma, older versions at the bracket after it.
    before = text[:error.pos + 1] if text[error.pos:error.pos + 1] == "," else text[:error.pos]
    if before.rstrip().endswith(",") and text[len(before):].lstrip()[:1] in ("}", "]"):
        return f"a trailing comma at column {len(before.rstrip())}; remove the comma before the closing bracket"
    mend = next((mend for pattern, mend in SLIPS if pattern.match(f"{error.msg}: {text[error.pos:error.pos + 9]}\n{before.rstrip()[-1:]}")), "write one complete JSON object on this line")
    return f"broken JSON at column {error.colno} ({error.msg}); {mend}"


def _check_record(record: object, convert: bool, ignored: Counter) -> tuple[object, list[str]]:
    """Return a record with its messages, and all that is wrong with it, each with what to do."""
    if not isinstance(record, dict):
        inside = isinstance(record, list) and any(isinstance(each, dict) for each in record)
        again = isinstance(record, str) and record.lstrip().startswith(("{", "["))
        mend = LIST[1] if inside else "apply json.loads to it once more, and write what that gives" if again else f"write {FORM}"
        mend = f'put {{"{key}": before the list and }} behind it' if (key := key_of_chat(record)) else mend
        return record, [f"the line holds a {type(record).__name__}, not an object; {mend}"]
    turns, faults = conversation(record, convert)
    if faults := faults or [fault for where, message in turns for fault in _faults_in_message(where, message)]:
        return record, faults
    if blank := [key for key in SCORED if not all(map(plain, phrases_under(key, record)))]:
        return record, [f'the key "{blank[0]}" is blank; write its phrase, or remove it']
    rest = other_keys(record)
    ignored.update((JOINED, key) for key in ("input", "context") if "messages" not in record and filled(record.get(key)) and says_nothing(record[key]))
    ignored.update((LEFT, key) for _, message in turns for key in _left_out(message))
    messages = [{"role": message["role"], "content": _text(message["content"])} for _, message in turns]
    beside = [key for key in rest if key not in READ and filled(rest[key])]
    said = [folded(part) for message in messages for part in message["content"].split("\n\n") if part.strip()] if beside else []  # an input stands apart in a template
    whole = " ".join(said)
    fates = {key: UNSEEN if any(_unseen(text, said, whole) for text in strings(rest[key])) else KEPT for key in beside}
    ignored.update((fate, key) for key, fate in fates.items() if fate != KEPT or "messages" not in record or key not in COURSE)
    return {"messages": messages, **rest}, _faults_in_order([message["role"] for message in messages])


def _unseen(text: str, said: list[str], whole: str) -> bool:
    """Say whether a text is a sentence or more that stands in no message, nor holds all their paragraphs, as a text made of the record does."""
    if not (len(text.split()) > SENTENCE or re.search(f"[{NO_SPACES}]{{{SENTENCE},}}", text)):
        return False
    text = folded(text)
    return text not in whole and not all(each in text for each in said)


def _left_out(message: dict) -> list[str]:
    """Return the keys of a message, and of the texts in it, that say something and are not passed on."""
    holders = [(message, MESSAGE), *((part, PART) for part in _parts(message))]
    return [key for holder, read in holders for key in holder.keys() - read if filled(holder[key])]


def _faults_in_message(where: str, message: object) -> list[str]:
    if isinstance(message, dict) and {"from", "value"} <= set(message):
        return [f'{where} has "from" and "value"; keep either these, under "conversations", or "role" and "content", under "messages"']
    if not isinstance(message, dict) or not set(message) >= MESSAGE:
        return [f'{where} is not an object with "role" and "content"; give it both']
    fault = _fault_in_role(where, message["role"]) or _fault_in_text(where, message["role"], _text(message["content"]))
    lost = [lost for holder in (message, *_parts(message)) for lost in lost_keys(holder, f" of {where}", message["role"])]
    return lost or [fault] * bool(fault)


def _fault_in_role(where: str, role: object) -> str | None:
    if role in ROLES:
        return None
    same = str(role)[:20].strip().casefold()
    mend = f"write {RIGHT_ROLE.get(same, same)}" if same in RIGHT_ROLE or same in ROLES else LOST["tools"] if same in TOOLS else f"use one of {', '.join(ROLES)}"
    return f"{where} has the role {role!r:.40}; {mend}"


def _fault_in_text(where: str, role: str, text: object) -> str | None:
    if isinstance(text, list) and (other := [part for part in text if isinstance(part, dict) and not _is_text(part)]):
        kind = part_name(other[0])
        lost = "thinking" if re.search("think|reason", kind) else "tools" if re.search("tool|function|call", kind) else "images"
        return f"{where} holds a part that is no text ({repr(kind)[1:-1]:.40}); {LOST[lost]}"
    if not isinstance(text, str):
        return f"the content of {where} is {json.dumps(text)[:40]}, not text; write text in quotation marks"
    if not SEEN.search(text) and not (role == "system" and text == ""):  # an empty one keeps the template's own away
        return f"the content of {where} is blank; write its text or remove the record"
    if (written := list_as_text(text)).startswith("a list of parts"):
        return f"the content of {where} is {written}; make it a list"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return f"the content of {where} holds half a character (an emoji cut in two?); mend it"
    return None


def _parts(message: dict) -> list[dict]:
    """Return the parts of a content that are text, if it is a list of parts."""
    return list(filter(_is_text, message["content"])) if isinstance(message["content"], list) else []


def _is_text(part: object) -> bool:
    """Say whether a part is text; one that holds nothing but texts need not say so."""
    if not isinstance(part, dict):
        return False
    if part.get("type"):
        return part["type"] in PART_TYPES
    return "text" in part and all(isinstance(value, str | None) for value in part.values())


def _text(content: object) -> object:
    """Join the parts of a content, if all of them are texts."""
    if isinstance(content, list) and content and all(_is_text(part) and isinstance(part.get("text"), str) for part in content):
        return "\n".join(part["text"] for part in content)
    return content


def _faults_in_order(roles: list[str]) -> list[str]:
    """Check the order: perhaps system, then user and assistant in turn, assistant last."""
    if "assistant" not in roles:
        return ["there is no assistant message, so there is no answer to learn; add one"]
    turns = roles[1:] if roles[0] == "system" else roles
    if turns == ["user", "assistant"] * (len(turns) // 2):
        return []
    shown = ", ".join(roles[:8]) + " and so on" * (len(roles) > 8)
    return [f"the roles come as {shown}; write user and assistant in turn (a system message only first) and end with assistant"]
