"""What the tests of the notebooks share; `python tests/notebook_tools.py` writes the navigation line of every notebook."""
from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
CONTENTS = "[Contents](../README.md#the-course) · [Glossary](glossary.md)"


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def copy_of_course(folder):
    """Make a copy of the course with nothing in outputs/ and no notebook."""
    (folder / "notebooks").mkdir(parents=True)
    shutil.copytree(ROOT / "data", folder / "data")
    for script in (ROOT / "notebooks").glob("*.py"):  # take_home.py and server.py, which pages show
        shutil.copy(script, folder / "notebooks")
    if (ROOT / "notebooks" / "images").is_dir():
        shutil.copytree(ROOT / "notebooks" / "images", folder / "notebooks" / "images")
    return folder


def widget_outputs(notebook) -> list[dict]:
    """Return what the widgets of an executed notebook show in outputs of their own."""
    states = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    return [output for model in states.values() for output in model["state"].get("outputs", [])]


def without_alt(notebook) -> list[str]:
    """Return the head of each picture in an executed notebook's outputs that says nothing to those who cannot see it.

    Neither JupyterLab nor nbconvert's page has a place for words beside a bare image/...: it counts as one without.
    """
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])] + widget_outputs(notebook)
    shown = [data for output in outputs for data in [output.get("data", {})]]
    bare = [f"a bare {kind}" for data in shown for kind in data if kind.startswith("image/")]
    tags = [tag for data in shown for tag in re.findall(r"<(?:img|svg)\b[^>]*>", "".join(data.get("text/html", "")))]
    return bare + [tag[:80] for tag in tags if not re.search(r'\b(?:alt|aria-label)="[^"]*\w', tag)]


def title(path: Path) -> str:
    """Return the title as the notebook's first line has it, for instance "03 Loading the model"."""
    return read(path).cells[0].source.splitlines()[0].removeprefix("# ")


def navigation(path: Path) -> str:
    """Return the line that links a notebook to the one before, the contents and the one after."""
    place = NOTEBOOKS.index(path)
    links = [f"[← {title(NOTEBOOKS[place - 1])}]({NOTEBOOKS[place - 1].name})"] if place else []
    links.append(CONTENTS)
    links += [f"[{title(after)} →]({after.name})" for after in NOTEBOOKS[place + 1:place + 2]]
    return " · ".join(links)


def write_navigation() -> None:
    for path in NOTEBOOKS:
        notebook = read(path)
        if notebook.cells[-1].source != navigation(path):
            notebook.cells[-1].source = navigation(path)
            nbformat.write(notebook, path)
            print(path.name)


if __name__ == "__main__":
    write_navigation()
