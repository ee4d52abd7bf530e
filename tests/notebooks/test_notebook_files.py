"""The notebooks as files: what can be checked without running them."""
import ast
import re

import nbformat
import pytest
from notebook_tools import FOLDER, NOTEBOOKS, ROOT, SOLUTIONS, navigation, read

METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_notebook_and_solution = pytest.mark.parametrize(
    "path", NOTEBOOKS + SOLUTIONS, ids=lambda path: path.stem if path in NOTEBOOKS else f"solutions_{path.stem}")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_the_folder_holds_the_course():
    assert len(NOTEBOOKS) >= 9
    assert {path.name for path in FOLDER.glob("*.ipynb")} == {path.name for path in NOTEBOOKS}


@every_notebook_and_solution
def test_committed_without_outputs_and_machine_metadata(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))
    known = {"tags": (["long"], ["slow"]), "jupyter": ({"source_hidden": True},)}  # takes a minute, or ten seconds; is folded
    assert all(value in known.get(name, ()) for cell in notebook.cells for name, value in cell.metadata.items())
    assert all(cell.source.strip() for cell in notebook.cells)


@every_notebook
def test_begins_and_ends_like_the_others(path):
    notebook = read(path)
    first = notebook.cells[0].source
    assert first.startswith(f"# {path.name[:2]} ")
    assert "You will be able to:" in first and re.search(r"\*\*About \d+ minutes\.\*\*", first)
    assert "## In this notebook we" in prose(notebook) and "## Exercises" in prose(notebook)
    assert notebook.cells[-1].source == navigation(path), "run: python tests/notebook_tools.py"


@every_notebook
def test_checks_its_own_lesson(path):
    source = "\n".join(cell.source for cell in code_cells(read(path)))
    assert re.search(r"^\s*assert |check_lesson\(", source, re.MULTILINE)


@every_notebook_and_solution
def test_imports_helpers_before_the_hub_libraries(path):
    """Helpers set the offline switches, and the libraries read them once, when they are imported."""
    trees = [ast.parse(cell.source) for cell in code_cells(read(path))]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    names = [(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0] for node in imports]
    hub = [place for place, name in enumerate(names) if name in {"transformers", "peft", "trl", "datasets"}]
    assert not hub or names.index("helpers") < hub[0]


@every_notebook_and_solution
def test_local_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose(read(path))):
        assert (path.parent / target).exists(), target


@every_notebook
def test_each_exercise_without_a_check_has_its_paragraph(path):
    exercises = prose(read(path)).partition("## Exercises\n")[2].partition("\n## Read on")[0]
    without = set(re.findall(r"\*\*(\d)\. \[Without a check\]", exercises)) or set(re.findall(r"^(\d)\. ", exercises, re.MULTILINE))
    told = (FOLDER / "open_exercises.md").read_text(encoding="utf-8")
    section = told.partition(f"## {prose(read(path)).partition(chr(10))[0].removeprefix('# ')}\n")[2].partition("\n## ")[0]
    assert without and set(re.findall(r"^(\d)\. \*\*", section, re.MULTILINE)) == without and "](open_exercises.md)" in exercises


def test_the_readme_names_every_notebook():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert f"({path.relative_to(ROOT).as_posix()})" in readme
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", readme):
        assert (ROOT / target).exists(), target
