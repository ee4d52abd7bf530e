"""Read the lines of a JSONL file, or say in one sentence what the file is instead and what to do."""
import codecs
import csv
import gzip
import json
import os
import re
import zlib
from itertools import islice
from pathlib import Path

from helpers import at_home, is_folder
from helpers.data.advice import SAME, key_of_chat
from helpers.data.columns import HOLDERS

PANDAS = 'turn it into JSONL: pandas.read_{}({}{}).to_json({}, orient="records", lines=True, force_ascii=False, date_format="iso")'
ALL_TEXT = ", dtype=str, keep_default_na=False"  # else pandas makes numbers of 007 and nothing of NA
TABLES = {"\t": ("tab", "TSV", r', sep="\t"'), ";": ("semicolon", "CSV", ', sep=";"'), ",": ("comma", "CSV", "")}
KINDS = (  # what a file that is no JSONL looks like, what it is, and what to do
    (rb"PK\x03\x04.{26}mimetypeapplication/", "a document of another program (ODF, EPUB); save a table as CSV in UTF-8, and write questions and answers of a text"),
    (rb"PK\x03\x04.{26}(?:\[Content_Types|_rels/|docProps/|xl/).*xl/", "an Excel workbook; save its sheet as CSV in UTF-8 and give that file"),
    (rb"PK\x03\x04.{26}(?:\[Content_Types|_rels/|docProps/|word/|ppt/).*(?:word|ppt)/|%PDF|\{\\rtf", "a document, not records; write questions and answers of it, a JSON object on each line"),
    (rb"PK[\x03\x05]", "a zip archive; unpack it and give the JSONL file in it"),
    (rb"BZh[1-9]1AY&SY|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd|\x04\x22M\x18|.{257}ustar(?:\0|  \0)", "a packed archive; unpack it and give the JSONL file in it"),
    (rb"\xd0\xcf\x11\xe0", "an old Excel or Word file; save its table as CSV in UTF-8 and give that file"),
    (rb"SQLite format 3|ARROW1|Obj\x01|ORC(?![\x20-\x7e])|\x89HDF|\x93NUMPY|\x80[\x02-\x05]",
     "a table or database of another program (SQLite, Arrow, Avro, ORC, HDF5, NumPy or a pickle); export its records as JSONL in UTF-8"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP", "a picture, not records; write questions and answers, a JSON object on each line"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the data; fetch the data with: git lfs pull"),
    (rb"(?i:\s*<\?xml(?!.{0,500}<html))", "XML, not records; if it is a server's message, download the file again, else write its questions and answers, a JSON object on each line"),
    (rb"(?i:\s*<(!doctype|!--|html|head|body|div|table|svg|\?xml))",
     "a web page, not the data; download the raw file (on the hub its address has /resolve/, not /blob/)"),
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "text in UTF-32, not UTF-8; save the file as UTF-8 in your editor"),
    (rb"\xff\xfe|\xfe\xff", "text in UTF-16, not UTF-8; save the file as UTF-8 in your editor"),
    (rb".{0,999}\0", "no text in UTF-8 (it holds zero bytes); export the records as JSONL in UTF-8"),
)
COLUMNS = (({"columns", "index", "data"}, "split"), ({"columns", "data"}, "split"), ({"schema", "data"}, "table"))  # pandas' own forms of a table
NO_NAMES = ' (without a line of names: header=None, names=["prompt", "completion"])'
NAMES = {*sum(SAME, ()), *HOLDERS}  # of columns that hold half of a conversation, or all of it
CELLS = "1: each line is a cell of a CSV table (JSON that went through a spreadsheet); read it with Python's csv module, and write the cells as lines"
RAGGED = "1: this is a table with a {} between its columns ({}), but no whole rows stand below its line of names; export it again with quotation marks around each text"
TEXT = "1: this is text, not JSON; write questions and answers of it, a JSON object on each line"
LONGEST_CELL = 2**31 - 1  # of a table; the csv module's own limit is 131,072 characters
HEADING = re.compile(rb"\[\[?[A-Za-z_][\w .:-]*\]\]?")  # of TOML, of an INI file, of a song: no list of JSON's
LIST = ("the file is one JSON list", "write each of its objects on a line of its own, with no brackets around them and no commas between them")
PRETTY = ("an object stands on several lines (pretty-printed JSON)", "write each record on one line, as json.dumps does without indent")


class DatasetError(ValueError):
    """The file can't be used; the message has a line `file:line: what is wrong; what to do` for each fault."""


class PathError(DatasetError):
    """The path leads to no file that can be opened."""


def read_lines(path: str | Path) -> list[bytes]:
    """Return the lines of a JSONL file, which may be packed with gzip; `~` is the home folder.

    Lines end at newlines only, for a text in JSON may hold other separators; in a file without any, at carriage returns.
    Raises DatasetError, with one sentence, for anything that is no JSONL file.
    """
    data = _read(path).removeprefix(codecs.BOM_UTF8)
    lines = data.split(b"\n" if b"\n" in data else b"\r")
    if kind := _binary_kind(path, data) or _text_kind(path, lines):
        raise DatasetError(f"{path}:{kind}")
    return lines


def _read(path: str | Path) -> bytes:
    if not isinstance(path, str | os.PathLike):
        raise PathError(f"the path is of type {type(path).__name__}; give the path of one file, and add up the lists that several give")
    if re.match(r"\w{2,}:/", str(path)):
        raise PathError(f"{path}:1: this is an address on the network; download the file and give its path")
    if isinstance(path, str) and re.search(r"\S\s*\n\s*\S|^\s*(\{\s*\"|\[\s*\{)", path) and not os.path.exists(path):  # noqa: PTH110 (Path's raises for a long one)
        raise PathError(f"{path.strip()[:40]!r}: this is the text of a file; give the path of the file")
    try:
        data = (Path(path) if Path(path).exists() else at_home(path)).read_bytes()
        return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path}:1: the gzip archive is broken ({error}); download it or pack it again") from error
    except (OSError, ValueError, MemoryError) as error:  # a zero byte in the path; more than fits
        raise PathError(f"{path}:1: {_why_unreadable(path, error)}") from error


def _why_unreadable(path: str | Path, error: Exception) -> str:
    if isinstance(error, IsADirectoryError | PermissionError) and is_folder(folder := at_home(path)):
        found = sorted(file.name for file in folder.glob("*.jsonl"))[:3]
        return f"this is a folder; give the path of one file in it ({', '.join(found) or 'it holds no .jsonl file'})"
    if isinstance(error, PermissionError):
        return "this account may not read the file; give it the right to, or copy the file to a folder of yours"
    if isinstance(error, MemoryError):
        return "the file does not fit into memory; give a part of it"
    if isinstance(error, OSError) and re.search(r"[*?]", str(path)):
        return "this is a pattern, not a file; give the path of one file, and add up the lists that several give"
    return f"the file can't be read ({getattr(error, 'strerror', None) or error}); check the path, seen from {Path.cwd()}"


def _binary_kind(path: str | Path, data: bytes) -> str | None:
    if data.startswith(b"PAR1"):
        return f"1: this is a Parquet file; {_with_pandas('parquet', path, '')}"
    return next((f"1: this is {kind}" for pattern, kind in KINDS if re.match(pattern, data, re.DOTALL)), None)


def _with_pandas(kind: str, path: str | Path, options: str) -> str:
    source, target = Path(path), Path(path).with_suffix(".jsonl")
    while os.path.exists(at_home(target)):  # noqa: PTH110  (never onto another file, nor onto the file itself)
        target = target.with_name(f"{target.stem}_records.jsonl")
    source, target = (json.dumps(file.as_posix(), ensure_ascii=False) for file in (source, target))
    return PANDAS.format(kind, source, options, target)


def _text_kind(path: str | Path, lines: list[bytes]) -> str | None:
    """Say what a text is whose lines are no JSON objects; None for JSONL, be it faulty or not."""
    top = list(islice((line for line in lines if line.strip()), 20))
    first = [line.strip() for line in top]
    try:
        whole = json.loads(first[0]) if first else None
        if not isinstance(whole, dict | list | str | None) and not any(line.startswith((b"{", b"[")) for line in first):
            raise ValueError  # a number or a word, as in subtitles
        one_list = len(first) == 1 and isinstance(whole, list) and any(isinstance(item, dict) for item in whole) and not key_of_chat(whole)
        return "1: " + "; ".join(LIST) if one_list else len(first) == 1 and isinstance(whole, dict) and _columns_kind(path, whole) or None
    except (ValueError, RecursionError):
        json_like = [bool(re.match(rb'\{|\[\s*([{"\[\]]|$)', line)) and not HEADING.fullmatch(first[0]) for line in first]
        data, table = b"\n".join(lines), TEXT
        if not json_like[0]:
            blank = next(place for place, line in enumerate(lines) if line.strip())
            shown = [line.decode("utf-8", "replace").rstrip("\r\n") for line in top]
            table = _table_kind(path, shown, blank, utf8=data.decode("utf-8", "ignore").encode() == data)
        return _long_kind(data.decode("utf-8", "replace"), first[0]) if table == TEXT and any(json_like) else table


def _columns_kind(path: str | Path, table: dict) -> str | None:
    """Say that one object is a whole table, as pandas writes it by default, and what makes records of it."""
    form = next((form for names, form in COLUMNS if names == set(table)), None)
    parts = list(table.values())
    if not form and parts and all(isinstance(part, dict) and part for part in parts):
        form = "columns" if all(key.isdecimal() for part in parts for key in part) else "index" if all(key.isdecimal() for key in table) else None
    return f'1: this is one table as pandas writes it (orient="{form}"); {_with_pandas("json", path, f", orient={form!r}, dtype=False, convert_dates=False")}' if form else None


def _table_kind(path: str | Path, lines: list[str], blank: int, utf8: bool) -> str:
    """Say what kind of table these lines are, above which so many blank ones stand, or that they are text; utf8: the whole file is."""
    if lines[0].startswith('"{""'):
        return CELLS
    if before := re.match(r'([^{,;\t]{1,12})\{"', lines[0]):
        return f"1: {before[1]!r} stands before the object; remove it, so that each line is one JSON object and nothing else"
    skip = 1 if re.fullmatch(r"sep=.", lines[0].strip()) else 0  # a line for Excel
    for separator, (name, kind, option) in TABLES.items():
        if (above := _lines_above_names(lines[skip:], separator)) is not None:
            mend = _with_pandas("csv", path, ALL_TEXT + option + f", skiprows={blank + skip + above}" * bool(skip + above))
            names = [name.strip(' "').casefold() for name in lines[skip + above].split(separator)]
            mend += NO_NAMES * (len(names) == 2 and not NAMES & {*names})
            if not utf8:
                mend = "its text is not UTF-8: save it as CSV in UTF-8 first, and check that file"
            return f"1: this is a table with a {name} between its columns ({kind}); {mend}"
    first = "".join(lines[skip:skip + 1]).casefold().replace('"', "")  # in prose a space follows a comma
    return next((RAGGED.format(*names) for separator, names in TABLES.items() if len(NAMES & {*first.split(separator)}) > 1), TEXT)


def _lines_above_names(lines: list[str], separator: str) -> int | None:
    """Return how many lines stand above the columns' names, none or a title; None if this is no table.

    It is one if all lines have the same number of columns; in prose a space follows a comma.
    """
    longest = csv.field_size_limit(LONGEST_CELL)
    try:
        rows = list(csv.reader(lines, delimiter=separator))
    except csv.Error:  # a carriage return within a line
        return None
    finally:
        csv.field_size_limit(longest)
    widths = {len(row) for row in (rows if len(lines) < 20 else rows[:-1])}  # the twentieth may be half a row
    above = int(widths != {1} and bool(rows) and rows[0][0] != "" and not any(rows[0][1:]))
    if len(widths) != 1 or len(rows) < above + 2 or widths == {1} and (separator != "," or rows[0][0] not in HOLDERS):
        return None
    names = [name for name in rows[above] if name]  # the rows' numbers have none, nor have columns that a spreadsheet left over
    named = (len(names) > 1 or widths == {1}) and all(re.fullmatch(r"[^\s{}\[\]][^{}]*", name) for name in names)
    return above if named and len(set(names)) == len(names) else None


def _long_kind(text: str, first: bytes) -> str | None:
    """Say whether the first value of a file ends on a later line than it begins, or would if there were no slip in it."""
    what, mend = LIST if first.startswith(b"[") else PRETTY
    try:
        value, end = json.JSONDecoder().raw_decode(text, start := len(text) - len(text.lstrip()))
        if key := key_of_chat(value):
            what, mend = "the file is one conversation", f'write it on one line, as {{"{key}": [...]}}'
        return f"1: {what}; {mend}" if "\n" in text[start:end] else None
    except json.JSONDecodeError as error:
        slip = f", with a slip on this line ({error.msg} at column {error.colno})"
        return f"{error.lineno}: {what}{slip}; {mend}" if first == b"{" or first.startswith(b"[") else None
    except (ValueError, RecursionError):
        return None
