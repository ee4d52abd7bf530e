"""Text from records, files and models must reach the page as text: a record that holds a script runs nothing."""
import ast
import tempfile
from html.parser import HTMLParser

import ipywidgets as widgets
import pandas as pd
import pytest
from notebook_tools import FOLDER, NOTEBOOKS, SOLUTIONS, read

from helpers.adapter.checks import Check
from helpers.adapter.diagnosis import Diagnosis
from helpers.ask.answers import Answer, compare_answers
from helpers.data.supervision import supervision_report
from helpers.data.tokens import show_record, show_tokens
from helpers.page import explorers
from helpers.page.pictures import as_html
from helpers.page.report import write_report
from helpers.tools.ready import Readiness
from helpers.training.live_plot import samples_as_html

HOSTILE = '<script>alert(1)</script> "><img src=x onerror=alert(2)> \'&lt;'
MESSAGES = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}]
GIVEN = [Answer(HOSTILE, True), Answer(HOSTILE, False)]


def column(name):
    box = widgets.HTML()
    explorers._column(box, name, "solid")(HOSTILE)
    return box.value


def report():
    parts = {HOSTILE: [HOSTILE, pd.DataFrame({HOSTILE: [HOSTILE]}, index=[HOSTILE]), compare_answers([HOSTILE] * 2, {"after": GIVEN})]}
    with tempfile.TemporaryDirectory() as folder:
        return write_report(f"{folder}/report.html", HOSTILE, parts).read_text(encoding="utf-8")


# What shows text from a record, a file, a model or an error, and how it is made to show the hostile one.
DISPLAYS = {
    "compare_answers": lambda tokenizer: compare_answers([HOSTILE] * 2, {"after": GIVEN})._repr_html_(),
    "compare_answers, marked": lambda tokenizer: compare_answers([HOSTILE] * 2, {"after": GIVEN}, ["alert", "x"])._repr_html_(),
    "show_tokens, text": lambda tokenizer: show_tokens(tokenizer, HOSTILE).data,
    "show_tokens, ids": lambda tokenizer: show_tokens(tokenizer, tokenizer(HOSTILE)["input_ids"]).data,
    "show_tokens, names of parts": lambda tokenizer: show_tokens(
        tokenizer, HOSTILE, parts=[HOSTILE] * len(tokenizer(HOSTILE, add_special_tokens=False)["input_ids"])).data,
    "show_record": lambda tokenizer: show_record(tokenizer, MESSAGES).data,
    "show_record, cut": lambda tokenizer: show_record(tokenizer, MESSAGES, max_length=20).data,
    "show_record, text": lambda tokenizer: show_record(tokenizer, HOSTILE).data,
    "diagnose_adapter": lambda tokenizer: Diagnosis(HOSTILE, HOSTILE, [Check(HOSTILE, False, HOSTILE, HOSTILE)], {})._repr_html_(),
    "check_laptop": lambda tokenizer: Readiness([Check(HOSTILE, False, HOSTILE, HOSTILE)])._repr_html_(),
    "LossPlot, samples": lambda tokenizer: samples_as_html([(0, HOSTILE), (26, HOSTILE)]),
    "write_report": lambda tokenizer: report(),
    "before_and_after": lambda tokenizer: column("base"),
    "Picture, above": lambda tokenizer: as_html(HOSTILE),
    "a table of pandas": lambda tokenizer: pd.DataFrame({"question": [HOSTILE]}, index=[HOSTILE])._repr_html_(),
    "a column of pandas": lambda tokenizer: pd.Series([HOSTILE]).to_frame(HOSTILE)._repr_html_(),
}


class Page(HTMLParser):
    """Read HTML as a browser does: which tags and handlers there are, and what is text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.handlers, self.text = set(), [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.handlers += [name for name, value in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def assert_harmless(html):
    page = Page(html)
    assert not page.tags & {"script", "img"} and not page.handlers
    return page


def test_the_test_itself_sees_what_is_not_escaped():
    assert Page(HOSTILE).tags == {"script", "img"} and Page(HOSTILE).handlers == ["onerror"]
    raw = pd.DataFrame({"question": [HOSTILE]}).style._repr_html_()  # what pandas' Styler does unless it is told to escape
    with pytest.raises(AssertionError):
        assert_harmless(raw)


@pytest.mark.parametrize("name", DISPLAYS)
def test_a_record_with_a_script_is_shown_as_text(name, tokenizer):
    page = assert_harmless(DISPLAYS[name](tokenizer))
    if name != "show_record, cut":
        assert page.text.count("<script>alert(1)</script>") >= 1 and "onerror=alert(2)>" in page.text


def test_every_helper_that_writes_html_is_listed_here():
    """A new one must be added above, or here with the reason why it shows no text that is not ours."""
    numbers_only = {"supervision"}  # counts, and sentences of our own: see the test below
    pages = {"rendered_edition"}  # nbconvert's, and what widgets hold: see test_rendered_edition
    listed = {"answers", "tokens", "diagnosis", "ready", "live_plot", "explorers", "report", "pictures"} | numbers_only | pages
    writers = {path.stem for path in (FOLDER.parent / "helpers").rglob("*.py") if writes_html(path.read_text(encoding="utf-8"))}
    assert writers == listed


def writes_html(source):
    names = {getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None) for node in ast.walk(ast.parse(source))}
    return bool(names & {"HTML", "Markdown", "_repr_html_", "_repr_markdown_", "style", "to_html"})


def test_the_supervision_report_of_such_records(make_sft_trainer):
    rows = [{"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}] * 3
    page = assert_harmless(supervision_report(make_sft_trainer(rows), [{"messages": MESSAGES}] * 3)._repr_html_())
    assert "rows" in page.text


def styled_tables():
    """Return each expression FRAME.style... of the notebooks, with the name `frame` in place of FRAME."""
    for path in NOTEBOOKS + SOLUTIONS:
        for cell in read(path).cells:
            if cell.cell_type == "code":
                yield from ((f"{path.stem} {cell.id}", expression) for expression in chains(cell.source))


def chains(source):
    tree = ast.parse(source)
    styles = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "style"]
    for node in styles:
        node.value = ast.Name("frame", ast.Load())
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in styles:
        while isinstance(above[node], ast.Attribute) or isinstance(above[node], ast.Call) and above[node].func is node:
            node = above[node]
        yield ast.unparse(node)


@pytest.mark.parametrize(("place", "expression"), list(styled_tables()))
def test_styled_tables_of_the_notebooks_escape_what_they_show(place, expression):
    try:
        html = eval(expression, {"frame": pd.DataFrame({"answer": [HOSTILE]}), "formats": {}})._repr_html_()
    except ValueError:  # a format for numbers takes no text
        return
    assert "<script>alert(1)</script>" in assert_harmless(html).text


def test_the_notebooks_write_no_html_of_their_own():
    raw = {"HTML", "Markdown", "to_html"}
    for path in NOTEBOOKS + SOLUTIONS:
        for cell in read(path).cells:
            if cell.cell_type == "code":
                names = {getattr(node, "id", None) or getattr(node, "attr", None) for node in ast.walk(ast.parse(cell.source))}
                assert not names & raw, f"{path.name}, {cell.id}: show a table of pandas instead, which escapes its text"


def test_no_code_of_a_stranger_is_run():
    """Neither a model's own Python file nor a pickle; two notebooks read a harmless one that they made in the same line."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in (FOLDER.parent / "helpers").rglob("*.py")}
    for path in NOTEBOOKS + SOLUTIONS:
        sources |= {f"{path.name} {cell.id}": cell.source for cell in read(path).cells if cell.cell_type == "code"}
    for place, source in sources.items():
        for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
            text = ast.unparse(call)
            assert not any(switch in text for switch in ("trust_remote_code=True", "weights_only=False", "allow_pickle=True")), place
            if ast.unparse(call.func) in ("pickle.loads", "pickle.load"):
                assert text.startswith("pickle.loads(pickle.dumps("), place
