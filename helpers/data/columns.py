"""Find the conversation in a record, whatever tool its keys are for, and refuse what training would lose."""
import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache

from helpers.data.advice import BESIDE, FORM, MESSAGE, NO_MESSAGES, PAIRS, SAME, VERDICTS, filled, list_as_text, missing, no_columns
from helpers.data.chat import THINKING_OFF

IN_PAIRS = {*sum(PAIRS, ())}
HOLDERS = IN_PAIRS | {"messages", "conversations"}  # what may hold a conversation, or half of it
PLACED = ("system", "history", "input", "context")  # each of them has its one place in a conversation
SHAREGPT = {"human": "user", "gpt": "assistant"}  # its names of the roles; system has the same
READ = {"chat_template_kwargs", "key_phrase", "accept"}  # what is read beside a conversation
COURSE = READ | {"messages", "fact", "list", "name", "kind"}  # and in the course's own files
IN_MESSAGES = ("loss", "train", "mask", "masked", "training", "train_detail", "loss_mask", "refusal")  # in a record they are about it
LOST = {key: mend for keys, mend in (  # what carries meaning and has no place in this training -> what to do
    (("tools", "functions", "tool_calls", "tool_call_id", "function_call"), "calls of tools are not learned here: remove the record"),
    (("reasoning_content", "reasoning", "reasoning_details", "thinking"), "write the reasoning into the answer, or remove the key"),
    (("enable_thinking",), "this training is without thinking aloud: remove the key"),
    (("weight", "weights", *IN_MESSAGES), "remove the key, and let each record end with an answer to learn"),
    (("chosen", "rejected", "chosen_response", "rejected_response", "preferred_output", "non_preferred_output"), "preferences are for TRL's DPOTrainer: here, "
     "write the chosen answer under completion, or, if it is a list of all messages, under messages, and remove the others"),
    (("label", "kto_tag"), "answers that are marked as wanted or not are for TRL's KTOTrainer: here, keep the wanted ones and remove the key"),
    (("images", "image", "image_url", "audio", "audios", "video", "videos"),
     "the model reads text only: remove the record, or the key if its text does without"),
) for key in keys}
SWITCHES = {"label": (True, False), "kto_tag": (True, False), "enable_thinking": (True,)}  # only these values of them carry meaning
JUDGED = {"answer": VERDICTS, "accept": ("true", "false"), "label": ("true", "false"), "kto_tag": ("true", "false")}  # as texts: a CSV makes them so
CALLS = ("tools", "functions")  # plain texts under one of these are names or tags
ASKED = ("question", "query", "text", "message", *BESIDE)  # beside a pair one of these would belong to what is asked
KNOWN = {key: key for key in (*HOLDERS, *PLACED, *(LOST.keys() - set(IN_MESSAGES)))}
KNOWN |= {"system_prompt": "system", "system_message": "system", "system_instruction": "system", "preamble": "system", "chat_history": "history"}
KINDS = {"instruction": "these are alpaca columns", "prompt": "these are prompt/completion columns", "conversations": "this is a ShareGPT column"}


def conversation(record: dict, convert: bool) -> tuple[object, list[str]]:
    """Return the messages of a record as they stand in it, not checked, and what is wrong with its keys."""
    columns, placed = _columns(record), [key for key in PLACED if filled(record.get(key))]
    if faults := lost_keys(record if columns else {key: value for key, value in record.items() if key not in SWITCHES}) or list(_faults_in_keys(record, columns, placed, convert)):
        return None, faults
    turns = _from_pair(record, columns, placed) if len(columns) == 2 else record[columns[0]]
    if columns == ("conversations",) and isinstance(turns, list):
        turns = [_renamed(turn) for turn in turns]
    return _turns(record["system"], "system") + turns if "system" in placed and isinstance(turns, list) else turns, []


def _from_pair(record: dict, columns: tuple[str, ...], placed: list[str]) -> list:
    asked, answer = (record[column] for column in columns)
    if isinstance(asked, str):
        asked = "\n\n".join([asked, *(record[key] for key in placed if key in ("input", "context"))])
    past = [turn for pair in (record["history"] if "history" in placed else []) for turn in zip(("user", "assistant"), pair, strict=True)]
    return [{"role": role, "content": text} for role, text in past] + _turns(asked, "user") + _turns(answer, "assistant")


def other_keys(record: dict) -> dict:
    """Return what a record holds beside its conversation."""
    used = {"messages", *_columns(record), *PLACED}
    return {key: value for key, value in record.items() if key not in used}


def lost_keys(holder: dict, where: str = "") -> list[str]:
    """Return a fault for the keys of a record, or of a message in it, whose meaning training would lose."""
    lost = [key for key in sorted(LOST.keys() & holder) if _carries(key, holder[key]) and (where or key not in IN_MESSAGES)]
    mends = {LOST[key]: [f'"{other}"' for other in lost if LOST[other] == LOST[key]] for key in lost}
    return [f"the meaning of {' and '.join(keys)}{where} would be lost; {mend}" for mend, keys in mends.items()]


def _carries(key: str, value: object) -> bool:
    """Say whether a key of LOST means with this value what it is there for."""
    if key in SWITCHES:
        return any(value is switch for switch in SWITCHES[key])
    if key in CALLS:
        return "{" in str(value)
    return filled(value)


def _columns(record: dict) -> tuple[str, ...]:
    """Return the keys that hold the conversation: one that holds it all, or two for what is asked and its answer."""
    whole = [key for key in ("messages", "conversations") if record.get(key) is not None]
    if whole := [key for key in whole if filled(record[key])] or whole * (not any(filled(record.get(key)) for key in IN_PAIRS)):
        return (whole[0],)
    best = max(PAIRS, key=lambda pair: (sum(filled(record.get(key)) for key in pair), len(set(pair) & set(record))))
    return best if set(best) & set(record) else ()


@cache
def _meant(key: str) -> str | None:
    """Return the key with a meaning that an unknown key is a misspelling of; None for any other key.

    A word or a number more, as in conversation_id or response2, makes another key of it.
    """
    if (plain := key.strip().casefold()) in PLACED and key != plain:
        return plain
    if key in KNOWN and KNOWN[key] == key or key in COURSE or key == "content" or key[-1:].isdigit() or any(plain in names for names in SAME):
        return None
    near = get_close_matches(plain, KNOWN, 1, cutoff=0.85)
    return KNOWN[near[0]] if near and _word_count(key) <= _word_count(near[0]) else None


def _word_count(key: str) -> int:
    return len(re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key.strip())))


def _misspelt(record: dict, columns: tuple[str, ...]) -> list[str]:
    meant = {key: _meant(key) for key, value in record.items() if filled(value)}
    return [key for key, right in meant.items() if right and (right not in LOST or _carries(right, record[key]))
            and (len(columns) == 2 or key.strip().casefold() not in PLACED) and not (isinstance(record[key], list) and right in IN_PAIRS)]


def _faults_in_keys(record: dict, columns: tuple[str, ...], placed: list[str], convert: bool) -> Iterator[str]:
    if not columns and (told := no_columns(record)) != NO_MESSAGES:
        yield told
    elif misspelt := _misspelt(record, columns):
        yield from (f'the key {key!r:.40} is no key that is read; write it as "{_meant(key)}", or remove it' for key in misspelt)
    elif columns and (verdict := _verdict(record, str(record.get(columns[-1])))):
        yield f'the key "{verdict}" is a verdict on the record ({str(record[verdict]).strip()}), which would be lost; keep the records that are wanted, and remove the key'
    elif record.get("chat_template_kwargs", THINKING_OFF) not in (THINKING_OFF, {}, None):
        yield f'"chat_template_kwargs" asks for another template than training uses; write {json.dumps(THINKING_OFF)}, or remove it'
    elif not columns:
        yield NO_MESSAGES
    elif lacking := [column for column in columns if column not in record]:
        yield missing(record, lacking[0])
    elif not convert and columns != ("messages",):
        yield f"{KINDS[columns[0]]} ({', '.join(columns)}); read the file with convert=True, or write {FORM}"
    elif not convert and placed:
        yield f'the key "{placed[0]}" would be lost; read the file with convert=True, or write it as a message'
    else:
        beside = [key for key in placed if key != "system"] if isinstance(record[columns[0]], list) else []
        others = HOLDERS.union(ASKED if len(columns) == 2 else ()) & record.keys() - {*columns}
        for key in beside + [key for key in sorted(others) if _says_more(record, columns, key)]:
            yield f'the key "{key}" stands beside "{columns[0]}"; write its text into the message that it belongs to, and remove the key'
        yield from filter(None, (_fault_in_column(record, key) for key in (*columns, *placed) if key not in ("messages", "conversations")))


def _verdict(record: dict, answer: str) -> str | None:
    """Return the key that says whether somebody wanted the record; where the answer (or its conversation) says the same, it is no verdict."""
    said = {key: str(record.get(key)).strip().casefold() for key in JUDGED}
    return next((key for key, verdicts in JUDGED.items() if said[key] in verdicts and said[key] not in answer.casefold()), None)


def _says_more(record: dict, columns: tuple[str, ...], key: str) -> bool:
    """Say whether a key holds a text that the conversation does not: some tools write the question once more beside it."""
    value, texts = record[key], [_folded(record.get(name)) for name in columns]
    if value in map(record.get, columns) or key in ASKED and all(any(part in text for text in texts) for part in _texts_in(key, value)):
        return False
    if len(columns) == 2 and key in ("text", "prompt", "instruction") and all(text in _folded(value) for text in texts):
        return False  # both once more, as a whole text to train on
    turns = record[columns[0]] if isinstance(record[columns[0]], list) else []
    if isinstance(value, list) and [_renamed(turn) for turn in value] == [_renamed(turn) for turn in turns]:
        return False  # the same conversation once more
    return filled(value) and not any(isinstance(turn, dict) and value in turn.values() for turn in turns)


def _folded(text: object) -> str:
    return " ".join(str(text).split()).casefold()


def _texts_in(key: str, value: object) -> list[str]:
    """Return the texts in a value that may belong to a question, folded; an address, a number or one word beside it is none."""
    if isinstance(value, dict | list):
        return [text for part in (value.values() if isinstance(value, dict) else value) for text in _texts_in(key, part) if len(text) > 1]
    whole = isinstance(value, str) and (key in ("question", "query", "choices", "options") or " " in value.strip() and "://" not in value)
    return [_folded(value)] if whole else []


def _fault_in_column(record: dict, column: str) -> str | None:
    value = record[column]
    if column == "history":
        pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
        return None if pairs else 'the column "history" is no list of pairs; write [["question", "answer"], ...], or remove it'
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return f'the column "{column}" is a list of texts, not one text; write one of them'
    if isinstance(value, list) and column in PAIRS[0]:
        return None  # messages, which are checked when they are joined
    if column in PAIRS[0] and (written := list_as_text(value, answer=column == "completion")):
        return f'the column "{column}" is {written}; make it a list'
    if not isinstance(value, str):
        return f'the column "{column}" is {json.dumps(value)[:40]}, not text; write text in quotation marks'
    return None if value.strip() else f'the column "{column}" is blank; write its text or remove the record'


def _turns(value: object, role: str) -> list:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _renamed(turn: object) -> object:
    """Return a turn of ShareGPT's with the keys and the roles that messages have."""
    if not isinstance(turn, dict) or not {"from", "value"} <= set(turn):
        return turn
    made = {"role": SHAREGPT.get(str(turn["from"]), turn["from"]), "content": turn["value"]}
    if any(turn.get(key) not in (None, "", made[key], turn["from"]) for key in MESSAGE):
        return {"from": turn["from"], "value": turn["value"]}  # it says two things
    return {key: value for key, value in turn.items() if key not in ("from", "value")} | made
