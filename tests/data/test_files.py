"""Files that are no JSONL: one sentence names the kind and what to do, and what it says to do works."""
import bz2
import gzip
import io
import json
import lzma
import os
import re
import tarfile
import zipfile

import pandas as pd
import pytest

from helpers.data.dataset import DatasetError, load_sft_jsonl
from helpers.data.files import PathError

CHAT = json.dumps({"messages": [{"role": "user", "content": "Où?"}, {"role": "assistant", "content": "灯塔"}]}, ensure_ascii=False)
PRETTY = json.dumps(json.loads(CHAT), indent=2)


def packed(name, content=CHAT):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(name, content)
    return archive.getvalue()


def tarred():
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        file.addfile(tarfile.TarInfo("data.jsonl"))
    return archive.getvalue()


KINDS = {  # what is in the file -> the line that is named, the kind, and what to do
    "zip": (packed("data.jsonl"), 1, "a zip archive", "unpack it"),
    "Excel": (packed("xl/worksheets/sheet1.xml"), 1, "an Excel workbook", "CSV in UTF-8"),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), 1, "an old Excel", "CSV in UTF-8"),
    "HTML": ("\n <!DOCTYPE html>\n<html><body>Not found</body></html>\n", 1, "a web page", "/resolve/"),
    "XML": ('<?xml version="1.0"?>\n<Error/>', 1, "XML, not records", "download the file again"),
    "Git LFS": ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n", 1, "a Git LFS pointer", "git lfs pull"),
    "UTF-16": (CHAT.encode("utf-16"), 1, "UTF-16", "save the file as UTF-8"),
    "UTF-16, no mark": (CHAT.encode("utf-16-le"), 1, "zero bytes", "export the records as JSONL"),
    "UTF-32": (CHAT.encode("utf-32"), 1, "UTF-32", "save the file as UTF-8"),
    "pickle": (b"\x80\x04\x95\x0e\x00\x00\x00", 1, "of another program", "export its records as JSONL"),
    "SQLite": (b"SQLite format 3\x00\x10\x00", 1, "of another program", "export its records as JSONL"),
    "xz": (lzma.compress(CHAT.encode()), 1, "a packed archive", "unpack it"),
    "bz2": (bz2.compress(CHAT.encode()), 1, "a packed archive", "unpack it"),
    "tar": (tarred(), 1, "a packed archive", "unpack it"),
    "PDF": (b"%PDF-1.6\r%\xe2\xe3\xcf\xd3\r\n24 0 obj\r<</A 1>>\r", 1, "a document", "write questions and answers"),
    "Word": (packed("word/document.xml"), 1, "a document", "write questions and answers"),
    "slides": (packed("ppt/slides/slide1.xml"), 1, "a document", "write questions and answers"),
    "OpenDocument": (packed("mimetype", b"application/vnd.oasis.opendocument.spreadsheet"), 1, "a document of another program", "save a table as CSV"),
    "zip of a folder that only sounds like it": (packed("crossword/data.jsonl"), 1, "a zip archive", "unpack it"),
    "lz4": (b"\x04\x22M\x18d@", 1, "a packed archive", "unpack it"),
    "subtitles": ("1\n00:00:01,000 --> 00:00:04,000\nHello.\n\n2\n", 1, "this is text, not JSON", "write questions and answers"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(9), 1, "a picture", "write questions and answers"),
    "SVG": ("<svg xmlns='http://www.w3.org/2000/svg'/>", 1, "a web page", "download the raw file"),
    "a carriage return in a line": ("prompt,completion\r\na\rx,b\r\nc,d\r\n", 1, "(CSV), but no whole rows", "quotation marks around each text"),
    "a log": ("Downloading: 1%\rDownloading: 100%\nDone\n", 1, "text, not JSON", "a JSON object on each line"),
    "prose with as many commas": ("Hello, world\nBye, world\n", 1, "text, not JSON", "a JSON object on each line"),
    "prose on one line": ("first,second and third", 1, "text, not JSON", "a JSON object on each line"),
    "TOML": ('[[records]]\nprompt = "a"\n', 1, "text, not JSON", "a JSON object on each line"),
    "a chat export": ("[12.03.24, 10:15:01] Anna: Hallo\n[12.03.24, 10:16:22] Ben: Hi, wie geht's?\n", 1, "text, not JSON", "a JSON object on each line"),
    "a song": ("[Verse 1]\nHello, sea\n", 1, "text, not JSON", "a JSON object on each line"),
    "a no-break space before": (f"\xa0{CHAT}\n", 1, "'\\xa0' stands before the object", "remove it"),
    "server-sent events": (f"data: {CHAT}\n\ndata: {CHAT}\n", 1, "'data: ' stands before the object", "remove it"),
    "YAML of objects": (f"- {CHAT}\n- {CHAT}\n", 1, "'- ' stands before the object", "remove it"),
    "a text sequence": (f"\x1e{CHAT}\n", 1, "'\\x1e' stands before the object", "remove it"),
    "CSV, not UTF-8": ("prompt,completion\nOù,là\n".encode("latin-1"), 1, "(CSV)", "save it as CSV in UTF-8 first"),
    "gzip of an archive": (gzip.compress(b"data.jsonl" + bytes(502)), 1, "no text", "export the records as JSONL"),
    "gzip, damaged": (gzip.compress(b"{}" * 99)[:10] + b"\xff" * 30, 1, "the gzip archive is broken", "download it"),
    "gzip, cut": (gzip.compress(CHAT.encode() * 9)[:-9], 1, "the gzip archive is broken", "download it"),
    "CSV": ('prompt,completion\n"a, ""b""\n\nc",d\n' + "q,a\n" * 3000, 1, "(CSV)", "pandas.read_csv("),
    "CSV, cut in a cell": ("prompt,completion\n" + "q,a\n" * 18 + '"a\nb",c\n' * 3, 1, "(CSV)", "pandas.read_csv("),
    "TSV, empty cells": ("question\tanswer\t\nq1\ta1\t\nq2\t\t\n", 1, "(TSV)", r'sep="\t"'),
    "CSV, a long cell": ('question,answer\n"' + "word " * 2000 + '",b\nc,d\n', 1, "(CSV)", "pandas.read_csv("),
    "CSV, columns left over": ("question,answer,,\nq1,a1,,\nq2,a2,,\n", 1, "(CSV)", "pandas.read_csv("),
    "CSV, a line for Excel": ("sep=;\nquestion;answer\nq1;a1\n", 1, "(CSV)", "skiprows=1"),
    "CSV under a title": ("Helpdesk 2024,\nquestion,answer\nq1,a1\n", 1, "(CSV)", "skiprows=1"),
    "CSV under a blank line and a title": ("\nHelpdesk 2024,\nquestion,answer\nq1,a1\n", 1, "(CSV)", "skiprows=2"),
    "CSV of three columns": ("What is 2+2?,4,easy\nWhat is 3+3?,6,easy\n", 1, "(CSV)", 'lines=True, force_ascii=False, date_format="iso")'),
    "CSV, brackets in a name": ("Question [EN],Answer\nq1,a1\n", 1, "(CSV)", "pandas.read_csv("),
    "CSV, brackets in cells": ("question,answer\n[urgent] Kettle leaks,Bench 2\n{x},Bench 1\n", 1, "(CSV)", "pandas.read_csv("),
    "CSV without names": ("What is 2+2?,4\nWhat is 3+3?,6\n", 1, "(CSV)", 'without a line of names: header=None, names=["prompt", "completion"]'),
    "one conversation of ShareGPT's, pretty": (json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], indent=1), 1, "one conversation", '{"conversations": [...]}'),
    "one conversation, pretty": (json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], indent=1), 1, "one conversation", '{"messages": [...]}'),
    "CSV, a comma too many": ("prompt,completion\nWhere is it?,On Osk Island, in the north.\n", 1, "(CSV), but no whole rows", "quotation marks around each text"),
    "CSV, a semicolon too many": ('"Question";"Answer"\nWhere is it?;On Osk; far\nWho?;Nell\n', 1, "a semicolon between its columns (CSV), but no whole rows", "quotation marks"),
    "CSV, its names alone": ("id,instruction,output\n", 1, "(CSV), but no whole rows", "export it again"),
    "prose on names": ("Question, answer, reply\nAll, of, them, alike\n", 1, "text, not JSON", "a JSON object on each line"),
    "JSON from a spreadsheet": ('"{""prompt"": ""q"", ""completion"": ""a""}"\n' * 3, 1, "a cell of a CSV table", "write the cells as lines"),
    "JSON from a spreadsheet, a semicolon behind": ('"{""prompt"": ""q"", ""completion"": ""a""}";\n' * 3, 1, "a cell of a CSV table", "Python's csv module"),
    "TSV": ("prompt\tcompletion\na, b\tc\n", 1, "a tab between its columns (TSV)", r'sep="\t"'),
    "CSV of Excel": ("prompt;completion\na, b;c\n", 1, "a semicolon between", 'sep=";"'),
    "text": ("Hello, lighthouse.\nIt is tall.\n" * 200, 1, "text, not JSON", "a JSON object on each line"),
    "a list": (f"[{CHAT},\n {CHAT}]", 1, "one JSON list;", "on a line of its own"),
    "a list on one line": (f"[{CHAT}, {CHAT}]\n", 1, "one JSON list;", "on a line of its own"),
    "a list with a slip": (f"[\n{CHAT},\n{CHAT}\n{CHAT}\n]", 4, "one JSON list, with a slip on this line", "on a line of its own"),
    "a list that was cut": (f"[{CHAT},\n{CHAT[:40]}", 2, "one JSON list, with a slip on this line", "on a line of its own"),
    "pretty-printed": (f"{PRETTY}\n{PRETTY}\n", 1, "pretty-printed JSON", "each record on one line"),
    "pretty-printed, first line not bare": (CHAT.replace("[{", "[\n{"), 1, "pretty-printed JSON", "each record on one line"),
    "pretty-printed with a slip": (PRETTY.replace('"user",', '"user",,'), 4, "pretty-printed JSON), with a slip", "each record on one line"),
}


def refused(path):
    """Return the sentence with which a file, or what is no path, is refused."""
    with pytest.raises(DatasetError) as error:
        load_sft_jsonl(path, convert=True)
    assert str(error.value).count("\n") == 0 and len(str(error.value)) < 3 * len(str(path)) + 340  # as the mend names it
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_named_in_one_sentence(tmp_path, kind):
    data, line, what, mend = KINDS[kind]
    path = tmp_path / "a file"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    sentence = refused(path)
    assert sentence.startswith(f"{path}:{line}: ") and what in sentence and mend in sentence.partition(what)[2]


TABLE = pd.DataFrame({"prompt": ['a, "b"\n\n灯塔', "NA", "null"], "completion": ["007", "12", "1.50"]})


@pytest.mark.parametrize(("name", "write"), [
    ("t.csv", lambda path: TABLE.to_csv(path, index=False)), ("t.tsv", lambda path: TABLE.to_csv(path, index=False, sep="\t")),
    ("semicolons.csv", lambda path: TABLE.to_csv(path, index=False, sep=";", encoding="utf-8-sig")), ("t.parquet", TABLE.to_parquet),
    ("numbered.csv", TABLE.to_csv), ("numbered.tsv", lambda path: TABLE.to_csv(path, sep="\t")),
    *((f"{form}.json", lambda path, form=form: TABLE.to_json(path, orient=form)) for form in ("columns", "index", "split", "table")),
    ('a "name".csv' if os.name != "nt" else "it's.csv", lambda path: TABLE.to_csv(path, index=False)), ("chats.parquet", pd.DataFrame([json.loads(CHAT)]).to_parquet)])
def test_what_the_sentence_says_turns_a_table_into_jsonl_without_a_loss(tmp_path, name, write):
    path = tmp_path / "我的 data" / name
    path.parent.mkdir()
    write(path)
    exec(re.search(r"pandas\.read_.*", refused(path)).group(), {"pandas": pd})
    records = load_sft_jsonl(path.with_suffix(".jsonl"), convert=True)
    expected = [json.loads(CHAT)] if name == "chats.parquet" else [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]} for asked, answer in TABLE.itertuples(index=False)]
    numbers = [{"Unnamed: 0": str(place)} if name.startswith("numbered") else {} for place in range(len(expected))]  # pandas' own, which are named
    assert records == [record | number for record, number in zip(expected, numbers, strict=True)]


@pytest.mark.parametrize("name", ["t.jsonl", "t.JSONL"])
def test_the_sentence_does_not_write_onto_the_file_itself(tmp_path, name):
    TABLE.to_csv(tmp_path / name, index=False)
    before = (tmp_path / name).read_bytes()
    (tmp_path / "t_records.jsonl").write_text("mine", encoding="utf-8")
    exec(re.search(r"pandas\.read_.*", refused(tmp_path / name)).group(), {"pandas": pd})
    assert (tmp_path / name).read_bytes() == before and (tmp_path / "t_records.jsonl").read_text(encoding="utf-8") == "mine"
    made, = {*tmp_path.iterdir()} - {tmp_path / name, tmp_path / "t_records.jsonl"}
    assert len(load_sft_jsonl(made, convert=True)) == len(TABLE)


@pytest.mark.parametrize("data", [gzip.compress(f"{CHAT}\n{CHAT}\n".encode()), f"{CHAT}\r{CHAT}\r".encode(), f"{CHAT}\r\n\r\n{CHAT}".encode(),
                                  f"\ufeff\n{CHAT}\n{CHAT}".encode(), gzip.compress(f"\ufeff{CHAT}\r\n{CHAT}".encode())],
                         ids=["gzip", "CR", "CRLF and a blank line", "BOM", "gzip with BOM"])
def test_what_the_library_reads_is_read_and_checked(tmp_path, data):
    (tmp_path / "data").write_bytes(data)
    assert load_sft_jsonl(tmp_path / "data") == [json.loads(CHAT)] * 2
    broken = gzip.compress(gzip.decompress(data) + b"\n{") if data[:1] == b"\x1f" else data + data[-1:] + b"{"
    (tmp_path / "data").write_bytes(broken)
    assert "broken JSON" in refused(tmp_path / "data")


def test_a_byte_order_mark_between_two_records_is_named(tmp_path):
    (tmp_path / "joined.jsonl").write_text(f"\ufeff{CHAT}\n\ufeff{CHAT}\n", encoding="utf-8")
    assert ":2: a byte order mark stands before the record" in refused(tmp_path / "joined.jsonl")
    (tmp_path / "joined.jsonl").write_text(f"\ufeff{CHAT}\ufeff{CHAT}\n", encoding="utf-8")
    assert f":1: two records stand on one line, the second from column {len(CHAT) + 1}" in refused(tmp_path / "joined.jsonl")


def test_a_path_that_leads_to_no_file_is_named(tmp_path):
    (tmp_path / "some.jsonl").write_text(CHAT, encoding="utf-8")
    assert "this is a folder; give the path of one file in it (some.jsonl)" in refused(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "holds no .jsonl file" in refused(str(tmp_path / "empty"))
    assert "this is a pattern" in refused(tmp_path / "*.jsonl")
    for address in ("https://example.org/data.jsonl", "hf://datasets/a/b.jsonl", "s3://b/c"):
        assert f"{address}:1: this is an address" in refused(address)
    assert "the path is of type list; give the path of one file" in refused([tmp_path / "some.jsonl"] * 2)
    assert "the path is of type NoneType" in refused(None)
    for nowhere in (tmp_path / "nowhere.jsonl", "a\0b.jsonl", "~nobody-at-all/data.jsonl"):
        assert "can't be read" in refused(nowhere) and "check the path" in refused(nowhere)
    with pytest.raises(PathError):
        load_sft_jsonl(tmp_path)


def test_a_wave_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "some.jsonl").write_text(CHAT, encoding="utf-8")
    assert load_sft_jsonl("~/some.jsonl") == [json.loads(CHAT)]


def test_a_name_may_begin_with_a_wave(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~t.jsonl").write_text(CHAT, encoding="utf-8")
    assert load_sft_jsonl("~t.jsonl") == [json.loads(CHAT)]
