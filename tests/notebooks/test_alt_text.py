"""Every plot says in words what it shows. That the executed pages do so is asserted where they are executed (test_notebooks)."""
import ast

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from notebook_tools import NOTEBOOKS, ROOT, SOLUTIONS, read, without_alt

PNG = "iVBORw0KGgo="
WIDGETS = "application/vnd.jupyter.widget-state+json"


every_page = pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")


def draws(name: str) -> bool:
    """Say whether a called function makes a figure."""
    return name in ("plt.subplots", "plt.figure") or name.endswith(".plot") or ".plot." in name


def complaint(source: str) -> str:
    """Return what is missing in a cell that draws, or nothing; a function may leave it to its caller to show what it draws."""
    tree = ast.parse(source)
    calls = [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    shows = [node for name, node in calls if name == "show_plot"]
    if any(name == "plt.show" for name, _ in calls):
        return "plt.show() gives no words; use show_plot(figure, alt)"
    if any(draws(name) for name, _ in calls) and not shows and not any(isinstance(node, ast.FunctionDef) for node in tree.body):
        return "a plot without words; end the cell with show_plot(figure, alt)"
    texts = [(node.args[1:2] + [word.value for word in node.keywords if word.arg == "alt"])[0] for node in shows]
    short = [ast.unparse(text) for text in texts if isinstance(text, ast.Constant | ast.JoinedStr) and len(ast.unparse(text).split()) < 5]
    return f"say what the plot shows in a sentence: {short[0]}" if short else ""


@every_page
def test_every_plot_is_shown_with_a_sentence(path):
    for cell in read(path).cells:
        assert cell.cell_type != "code" or not complaint(cell.source), f"{cell.id}: {complaint(cell.source)}"


@pytest.mark.parametrize(("source", "missing"), [
    ("plt.subplots()", "a plot without words"), ("table.plot.bar()", "a plot without words"), ("plt.show()", "plt.show"),
    ("figure = plt.figure()\nshow_plot(figure, 'A plot.')", "say what the plot shows"),
    ("figure = plt.figure()\nshow_plot(figure, alt=f'A plot {1}.')", "say what the plot shows"),
    ("figure = plt.figure()\nshow_plot(figure, 'A line that rises from 1 to 2.')", ""), ("def draw():\n    plt.figure()", ""),
])
def test_a_cell_that_leaves_the_words_out_is_found(source, missing):
    assert complaint(source).startswith(missing) and bool(complaint(source)) == bool(missing)


@every_page
def test_the_executed_page_has_no_picture_without_words(path):
    executed = ROOT / "outputs" / "executed" / path.relative_to(ROOT / "notebooks")
    if not executed.exists():
        pytest.skip("this page was not executed here (test_notebooks.py executes it)")
    if [cell.source for cell in read(executed).cells] != [cell.source for cell in read(path).cells]:
        pytest.skip("this page changed since it was executed")
    assert not without_alt(read(executed))


def page(data, widget=None):
    """Return a notebook with one output, or with the same output inside a widget."""
    output = new_output("display_data", data)
    notebook = new_notebook(cells=[new_code_cell("1", outputs=[] if widget else [output])])
    if widget:
        notebook.metadata["widgets"] = nbformat.from_dict({WIDGETS: {"state": {"a": {"state": {"outputs": [output]}}, "b": {"state": {}}}}})
    return notebook


@pytest.mark.parametrize("widget", [False, True])
@pytest.mark.parametrize(("data", "missing"), [
    ({"image/png": PNG, "text/plain": "<Figure>"}, ["a bare image/png"]),
    ({"text/html": f'<img src="data:image/png;base64,{PNG}">'}, [f'<img src="data:image/png;base64,{PNG}">']),
    ({"text/html": f'<img alt="" src="data:image/png;base64,{PNG}">'}, [f'<img alt="" src="data:image/png;base64,{PNG}">']),
    ({"text/html": '<svg viewBox="0 0 1 1"></svg>'}, ['<svg viewBox="0 0 1 1">']),
    ({"text/html": f'<img alt="Bars." src="data:image/png;base64,{PNG}">'}, []),
    ({"text/html": '<svg role="img" aria-label="loss 2 to 1"></svg>'}, []),
    ({"text/plain": "42"}, []),
])
def test_a_picture_without_words_is_found(data, missing, widget):
    assert without_alt(page(data, widget)) == missing
