"""Find the conversation in a record, whatever tool its keys are for, and refuse what training would lose."""
import json
import re
from collections.abc import Iterator
from difflib import SequenceMatcher, get_close_matches
from functools import cache

from helpers.data.advice import FORM, MESSAGE, NO_MESSAGES, PAIRS, SAME, filled, key_of_chat, list_as_text, missing, nested, no_columns, quoted
from helpers.data.beside import ASKED, IN_MESSAGES, LOST, carries, folded, held, says_more, says_nothing, side_of, strings, verdict_on
from helpers.data.chat import THINKING_OFF
from helpers.data.phrases import SCORED

IN_PAIRS, ANSWERS = {*sum(PAIRS, ())}, {answer for _, answer in PAIRS}
HOLDERS = IN_PAIRS | {"messages", "conversations"}  # what may hold a conversation, or half of it
PLACED = ("system", "history", "input", "context")  # each of them has its one place in a conversation
SHAREGPT = {"human": "user", "gpt": "assistant"}  # its names of the roles; system has the same
READ = {"chat_template_kwargs", *SCORED}  # what is read beside a conversation
COURSE = READ | {"messages", "fact", "list", "name", "kind"}  # and in the course's own files
SLIP = 0.9  # of the letters, as in sytem; competition is no slip of completion, nor contest of context
NO_INPUT = re.compile(r"<\s*no ?input\s*>", re.IGNORECASE)  # alpaca's sign for nothing
KNOWN = {key: key for key in (*HOLDERS, *PLACED, *(LOST.keys() - set(IN_MESSAGES)))}
KNOWN |= {"system_prompt": "system", "system_message": "system", "system_instruction": "system", "preamble": "system", "chat_history": "history"}
TABLE = 'write a line for each of them: pandas.read_json(FILE, lines=True).explode({}).to_json(NEW_FILE, orient="records", lines=True, force_ascii=False)'
KINDS = {"instruction": "these are alpaca columns", "prompt": "these are prompt/completion columns", "conversations": "this is a ShareGPT column"}


def conversation(record: dict, convert: bool) -> tuple[list[tuple[str, object]], list[str]]:
    """Return the messages of a record, not checked, each behind the words for its place; and what is wrong with the record's keys."""
    columns, placed = _columns(record), [key for key in PLACED if _says_something(key, record.get(key))]
    if faults := lost_keys(record) or list(_faults_in_keys(record, columns, placed, convert)):
        return [], faults
    if len(columns) == 2:
        turns = _from_pair(record, columns, placed)
    elif not isinstance(whole := record[columns[0]], list) or not whole:
        return [], [f"the conversation is {'empty' if whole == [] else list_as_text(whole) or 'not a list'}; write {FORM}"]
    else:
        whole = map(_renamed, whole) if columns == ("conversations",) else whole
        turns = [(f"message {number}", turn) for number, turn in enumerate(whole, start=1)]
    if "system" not in placed:
        return turns, []
    told = strings([turn for _, turn in turns[:1] if isinstance(turn, dict) and turn.get("role") == "system"])
    if not told:
        return _turns(record["system"], "system", "system") + turns, []
    if folded(" ".join(told)) != folded(" ".join(strings(record["system"]))):
        return [], ['the key "system" stands beside a system message that says something else; keep one of them']
    return turns, []


def _says_something(key: str, value: object) -> bool:
    return filled(value) and not NO_INPUT.fullmatch(str(value)) and not (key == "history" and says_nothing(value))


def _from_pair(record: dict, columns: tuple[str, ...], placed: list[str]) -> list[tuple[str, object]]:
    """Return the turns of a pair of columns, with what was said before them, each behind the column in which it stands."""
    asked, answer = (record[column] for column in columns)
    if isinstance(asked, str):
        asked = "\n\n".join([asked, *(record[key] for key in placed if key in ("input", "context"))])
    pairs = record["history"] if "history" in placed else []
    past = [('the column "history"', {"role": role, "content": text})
            for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    return past + _turns(asked, "user", columns[0]) + _turns(answer, "assistant", columns[1])


def other_keys(record: dict) -> dict:
    """Return what a record holds beside its conversation."""
    used = {"messages", *_columns(record), *PLACED}
    return {key: value for key, value in record.items() if key not in used}


def _columns(record: dict) -> tuple[str, ...]:
    """Return the keys that hold the conversation: one that holds it all, or two for what is asked and its answer."""
    whole = [key for key in ("messages", "conversations") if record.get(key) is not None]
    if whole := [key for key in whole if filled(record[key])] or whole * (not any(filled(record.get(key)) for key in IN_PAIRS)):
        return (whole[0],)
    best = max(PAIRS, key=lambda pair: (sum(filled(record.get(key)) for key in pair), len(set(pair) & set(record))))
    return best if set(best) & set(record) else ()


@cache
def _meant(key: str) -> str | None:
    """Return the key with a meaning that a key is another spelling of, or of LOST the key itself; None for any other key.

    A word or a number more, as in conversation_id or response2, makes another key of it.
    """
    if (plain := key.strip().casefold()) in LOST or plain in PLACED and key != plain:
        return plain
    if KNOWN.get(key) == key or key in COURSE or key in ("content", "function") or key[-1:].isdigit() or any(plain in names for names in SAME):
        return None
    near = get_close_matches(plain, KNOWN, 1, cutoff=0.85)
    slip = near and (sorted(plain) == sorted(near[0]) or SequenceMatcher(None, near[0], plain).ratio() >= SLIP and (plain != f"{near[0]}s" or near[0] in HOLDERS | LOST.keys()))
    return KNOWN[near[0]] if slip and _word_count(key) <= _word_count(near[0]) else None


def _word_count(key: str) -> int:
    return len(re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key.strip())))


def lost_keys(holder: dict, where: str = "", role: object = None) -> list[str]:
    """Return a fault for the keys of a record, or of a message in it, whose meaning training would lose; role: whose message it is."""
    lost = {key: LOST[right] for key in sorted(holder)
            if (right := _meant(key)) in LOST and (where or right not in IN_MESSAGES) and carries(right, holder[key], role)}
    return [f"the meaning of {' and '.join(quoted(key) for key in lost if lost[key] == mend)}{where} would be lost; {mend}"
            for mend in dict.fromkeys(lost.values())]


def _is_slip(record: dict, columns: tuple[str, ...], key: str, right: str) -> bool:
    """Say whether a key may stand for the one that is read: half of a conversation, or something of that form that the whole one does not hold."""
    value = record[key]
    if right in LOST or not filled(value) or len(columns) != 2 and key.strip().casefold() in PLACED:
        return False
    if not columns or not all(filled(record.get(column)) for column in columns):
        return not (isinstance(value, list) and right in IN_PAIRS)
    if right in ("messages", "conversations"):
        return bool(key_of_chat(value)) and says_more(record, columns, key, right)
    return not held(value, side_of(record, columns, right)) if isinstance(value, str) else right not in IN_PAIRS


def _faults_in_keys(record: dict, columns: tuple[str, ...], placed: list[str], convert: bool) -> Iterator[str]:
    if not columns and (told := no_columns(record)) != NO_MESSAGES or len(columns) != 1 and (told := nested(record)):
        yield told
    elif slips := {key: right for key in record if (right := _meant(key)) and _is_slip(record, columns, key, right)}:
        whole = columns and all(filled(record.get(column)) for column in columns)  # instructions beside a question say how to answer
        told = {key: "system" if whole and key.strip().casefold() == "instructions" else right for key, right in slips.items()}
        yield from (f'the key {key!r:.40} is no key that is read; write it as "{right}", or remove it' for key, right in told.items())
    elif columns and (verdict := verdict_on(record, columns)):
        yield (f'the key "{verdict}" is a verdict on the record ({str(record[verdict]).strip()}), which would be lost '
               "(TRL's KTOTrainer learns from it); keep the records that are wanted, and remove the key")
    elif _asks_for_another_template(record.get("chat_template_kwargs")):
        yield f'"chat_template_kwargs" asks for another template than training uses; write {json.dumps(THINKING_OFF)}, or remove it'
    elif not columns:
        yield NO_MESSAGES
    elif lacking := [column for column in columns if column not in record]:
        yield missing(record, lacking[0])
    elif len(columns) == 2 and 1 < (rows := _texts_alone(record[columns[0]])) == _texts_alone(record[columns[1]]):
        lists = [key for key, value in record.items() if isinstance(value, list) and len(value) == rows]
        yield f"the record is a whole table, each column a list of {rows} values; {TABLE.format(json.dumps(lists))}"
    elif not convert and columns != ("messages",):
        yield f"{KINDS[columns[0]]} ({', '.join(columns)}); read the file with convert=True, or write {FORM}"
    elif not convert and placed:
        yield f'the key "{placed[0]}" would be lost; read the file with convert=True, or write it as a message'
    else:
        beside = [key for key in placed if key != "system"] if isinstance(record[columns[0]], list) else []
        beside_it = HOLDERS.union(ASKED if len(columns) == 2 else ())
        others = [key for key in record if key not in columns and key.strip().casefold() in beside_it]
        for key in [key for key in beside + sorted(others) if says_more(record, columns, key)]:
            yield f'the key {quoted(key)} stands beside "{columns[0]}"; write its text into the message that it belongs to, and remove the key'
        faults = {key: _fault_in_column(key, record[key]) for key in ([*columns, *placed] if len(columns) == 2 else placed)}
        yield from (f'the column "{key}" {fault}' for key, fault in faults.items() if fault)


def _asks_for_another_template(settings: object) -> bool:
    asked = {key: value for key, value in settings.items() if filled(value)} if isinstance(settings, dict) else settings
    return filled(asked) and asked != THINKING_OFF


def _texts_alone(value: object) -> int:
    """Return how many texts a list holds, 0 for one that holds anything else, and for any other value."""
    return len(value) if isinstance(value, list) and all(isinstance(each, str) for each in value) else 0


def _fault_in_column(column: str, value: object) -> str | None:
    if column == "history":
        if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
            return 'is no list of pairs; write [["question", "answer"], ...], or remove it'
        whole = all(filled(text) for pair in value for text in pair)
        return None if whole else "holds a turn that is blank; write its text, or remove the pair"
    if _texts_alone(value):
        return f"is a list of texts, not one text; {'write one of them' if column in ANSWERS else 'join them to one'}"
    told = isinstance(value, list) and all(isinstance(part, dict) and part.get("role", "system") == "system" for part in value)
    if told and column == "system" or isinstance(value, list) and column in PAIRS[0]:
        return None  # messages, or parts of one, which are checked when they are joined
    if column in IN_PAIRS and (written := list_as_text(value, answer=column in ANSWERS)):
        return f"is {written}; {'make it a list' if column in PAIRS[0] else f'write its turns as {FORM}'}"
    if not isinstance(value, str):
        return f"is {json.dumps(value)[:40]}, not text; write text in quotation marks"
    what = "its text" if column in ANSWERS else "the text there, which may stand under another key,"
    return None if value.strip() else f"is blank; write {what} or remove the record"


def _turns(value: object, role: str, column: str) -> list[tuple[str, object]]:
    """Return the turns of a column, which may be one text, its parts, or a list of messages, each behind where it stands."""
    if isinstance(value, list) and not all(map(_is_part, value)):
        return [(f'message {number} of "{column}"', turn) for number, turn in enumerate(value, start=1)]
    return [(f'the column "{column}"', {"role": role, "content": value})]


def _is_part(part: object) -> bool:
    return isinstance(part, dict) and "role" not in part and ("text" in part or "type" in part and not {"content", "data"} & part.keys())


def _renamed(turn: object) -> object:
    """Return a turn of ShareGPT's with the keys and the roles that messages have."""
    if not isinstance(turn, dict) or not {"from", "value"} <= set(turn):
        return turn
    made = {"role": SHAREGPT.get(str(turn["from"]), turn["from"]), "content": turn["value"]}
    if any(turn.get(key) not in (None, "", made[key], turn["from"]) for key in MESSAGE):
        return {"from": turn["from"], "value": turn["value"]}  # it says two things
    return {key: value for key, value in turn.items() if key not in ("from", "value")} | made
