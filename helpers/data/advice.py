"""Say what to write where a record's keys hold no conversation that is read: which key is meant, whatever tool wrote it."""
import ast
import json
import re
import warnings

FORM = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
NO_MESSAGES = f'the key "messages" is missing; write {FORM}'
PAIRS = (("prompt", "completion"), ("instruction", "output"), ("instruction", "response"))  # what is asked, and its answer
MESSAGE = {"role", "content"}  # the keys of a message that are read
SAME = (("prompt", "instruction", "question", "query", "definition", "input", "inputs", "problem", "user", "text", "message", "context"),  # of what is asked
        ("completion", "output", "response", "answer", "reply", "solution", "target", "targets", "assistant"))  # other names of its answer
VERDICTS = ("accept", "reject", "ignore")  # Prodigy's answers, which are about the text
BESIDE = ("choices", "options", "passage", "article")  # what a question may need to be one
ROLES = ("system", "user", "assistant")
RIGHT_ROLE = {"developer": "system", "human": "user", "prompter": "user", **dict.fromkeys(("gpt", "chatgpt", "chatbot", "model", "bot", "ai"), "assistant")}
TOOLS = ("tool", "function", "observation", "function_call", "function_response", "tool_call", "tool_response", "ipython")  # roles of calls and results
ANSWERERS = ("assistant", *(name for name, role in RIGHT_ROLE.items() if role == "assistant"))
SPEAKERS = (*ROLES, *RIGHT_ROLE, *TOOLS)
NUMBERED = re.compile(r"(?i)(?:response|answer|output|completion)[ _]?\d|(?:response|output|completion|conversation)[ _]?[ab]")
TURNS = re.compile(r"""\s*\[?\s*\{\s*['"]\w+['"]\s*:""")
UNDIVIDED = re.compile(r"\}[^\S\n]*\n\s*\{")  # two turns as NumPy writes a list of them, with no comma between
PART_TYPES = ("text", "input_text", "output_text")  # of a part that is text
LONGEST_TEXT = 1_000_000  # characters that are read as Python's, which takes memory
NESTED = ("row", "rows", "data", "records", "examples")  # where an export keeps its records


def filled(value: object) -> bool:
    """Say whether a value says anything: null and what is empty, or holds nothing else, do not, 0 and false do."""
    inside = [value]
    while inside:
        value = inside.pop()
        if isinstance(value, dict | list):
            inside += value.values() if isinstance(value, dict) else value
        elif value.strip() if isinstance(value, str) else value is not None:
            return True
    return False


def part_name(part: dict) -> str:
    """Return what a part of a content is called that is no text: its type, else the key that says what it is."""
    return str(part.get("type") or next((key for key in part if key != "text"), type(part.get("text")).__name__))


def key_of_chat(value: object) -> str | None:
    """Return under which key a list of turns is read: messages, or ShareGPT's conversations; None for anything else."""
    turns = value if isinstance(value, list) and all(isinstance(turn, dict) for turn in value) else []
    return next((key for key, names in (("messages", MESSAGE), ("conversations", {"from", "value"})) if turns and all(names <= set(turn) for turn in turns)), None)


def list_as_text(value: object, answer: bool = False) -> str:
    """Return what a text is that holds turns (of an answer: the assistant's alone), and what reads it; "" for any other text."""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or not TURNS.match(value):
        return ""
    form, first = value, ""
    if value.lstrip()[0] == "{":
        form, first = f"[{value}]", ", once there are brackets around it,"
    if UNDIVIDED.search(form):
        form, first = UNDIVIDED.sub("}, {", form), ", once there are commas between the turns,"
    for name, read in (("json.loads", json.loads), ("ast.literal_eval", ast.literal_eval)):
        try:
            with warnings.catch_warnings(action="ignore"):  # of Python's own about what stands in the text
                turns = read(form)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if all(isinstance(part, dict) and set(part) == {"type", "text"} and part["type"] in PART_TYPES for part in turns):
            return f"a list of parts written as a text ({name}{first} reads it)"
        speakers = {str(turn.get("role", turn.get("from"))).casefold() for turn in turns} if key_of_chat(turns) else {""}
        known = speakers <= set(ANSWERERS if answer else SPEAKERS)
        return f"{'turns' if first else 'a list'} written as a text ({name}{first} reads it)" if known else ""
    return ""


def no_columns(record: dict) -> str:
    """Say what is wrong with a record in which no key holds a conversation, or half of one."""
    asked, answers = next(iter(_named(record, SAME[0])), None), _named(record, SAME[1])
    chats = {key: right for key, value in record.items() if (right := key_of_chat(value))}
    if asked and answers and str(record[answers[0]]).strip().casefold() in VERDICTS and asked.casefold() == "text":
        return f'"{answers[0]}" is a verdict on the text ({record[answers[0]].strip()}), not an answer to it; write a question and its answer: {FORM}'
    if several := candidates(record):
        where = '"messages"' if chats else '"completion", and the question under "prompt"'
        return f"{several}; choose one, write it under {where}, and remove the others"
    if asked and answers:
        more = [quoted(key) for key, value in record.items() if key != asked and key.strip().casefold() in (*SAME[0], *BESIDE) and filled(value)]
        which = "them" if len(answers) == 1 else f"{quoted(asked)} and either {quoted(answers[0])} or {quoted(answers[1])}, whichever is to be learned,"
        beside = f", and the question may need what stands under {' and '.join(more[:4])}" if more else ""
        return f'the keys {quoted(asked)} and {quoted(answers[0])} are not read{beside}; rename {which} to "prompt" and "completion", and use convert=True'
    if chats:
        key, right = next(iter(chats.items()))
        return f'the conversation stands under {key!r:.40}, which is not read; rename that key to "{right}"'
    lists = [key for key, value in record.items() if isinstance(value, list) and value and all(isinstance(each, dict) for each in value)]
    if turns := next((key for key in lists if all({"role", "parts"} <= set(turn) for turn in record[key])), None):
        return f'the turns under {turns!r:.40} have "parts" as Gemini writes them; write them as messages, the role model as assistant: {FORM}'
    if found := sorted(lists + [key for key in NESTED if isinstance(record.get(key), dict)], key=lambda key: key not in NESTED):
        kind = "a list" if isinstance(record[found[0]], list) else "an object"
        turns = "" if found[0] in NESTED else f"write the turns of one conversation as {FORM}, and "
        return f'the key "messages" is missing, and {found[0]!r:.40} is {kind}; {turns}if the records stand in it, write each of them on a line of its own'
    if "label" in record:
        return f"a label is no answer yet; write it in words, as the answer to a question: {FORM}"
    return NO_MESSAGES


def quoted(key: str) -> str:
    """Return a key as it stands in a sentence, on one line and of bounded length."""
    return f'"{repr(key)[1:-1]:.40}"'


def candidates(record: dict) -> str:
    """Name the keys that hold several answers to one question, or several conversations; "" if there are none, or one answer beside them."""
    lists = [key for key, value in record.items() if key.casefold().removesuffix("s") in SAME[1] and isinstance(value, list) and len(value) > 1
             and (key[-1] in "sS" or all(isinstance(each, str) for each in value))]
    numbered = [key for key in record if NUMBERED.fullmatch(key)]
    found = lists + numbered if lists or len(numbered) > 1 else []
    single = [key for key, value in record.items() if key.casefold() in SAME[1] and isinstance(value, str)]
    if any(isinstance(value, list) and key.casefold().removesuffix("s") in SAME[0] and any(len(value) == len(record[each]) for each in lists) for key, value in record.items()):
        return ""  # as many questions
    return f"there are several candidates ({' and '.join(f'{key!r:.40}' for key in found[:4])})" if found and not single else ""


def nested(record: dict) -> str:
    """Name the keys in which one half of a conversation, or both, stands within objects alone; "" if there are none."""
    if any(isinstance(value, dict) and isinstance(value.get("replies"), list) for value in record.values()):
        return f"a tree of replies stands in the record; follow one branch of it, and write its turns as messages: {FORM}"
    if any(map(key_of_chat, record.values())):
        return ""
    halves = [[key for key, value in record.items() if filled(value) and {name := key.strip().casefold(), name.removesuffix("s")} & {*names}] for names in SAME]
    keys = [key for half in halves if all(isinstance(record[key], dict) for key in half) for key in half]
    return f'objects stand under {" and ".join(map(quoted, keys))}; write the text of the question as "prompt", and that of its answer as "completion"' if keys else ""


def missing(record: dict, column: str) -> str:
    """Say that half of a conversation is missing, and which key may be it."""
    if several := column in SAME[1] and candidates(record):
        return f'{several}; choose one, write it under "{column}", and remove the others'
    other = next((key for names in SAME if column in names for key in _named(record, names)), None)
    mend = f"rename {quoted(other)} to it" if other else "a question needs an answer, and an answer its question"
    if other and isinstance(record[other], list):
        mend = f'rename {quoted(other)} to "{PAIRS[0][column in SAME[1]]}" and its partner to "{PAIRS[0][column in SAME[0]]}"'
    return f'the column "{column}" is missing; {mend}'


def _named(record: dict, names: tuple[str, ...]) -> list[str]:
    """Return the keys of the record that have one of these names, however they are written, in the order of the names."""
    keys = {key.strip().casefold(): key for key in reversed(record)}
    return [keys[name] for name in names if name in keys]
