"""Build the rendered edition, the executed course as pages and slides that need neither a network nor Jupyter."""

import html
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import nbformat
from jinja2 import DictLoader
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell, new_notebook, new_output

from helpers import at_home, first_line

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
VIEW, STATE = (f"application/vnd.jupyter.widget-{part}+json" for part in ("view", "state"))
CONTENTS = re.compile(r"\]\(((?:\.\./)*)\.\./README\.md[^)]*\)")  # the course's list of notebooks; here it is the index
# What JupyterLab shows folded, a page shows behind a line that opens on a click.
FOLDED = """{%- extends 'lab/index.html.j2' -%}
{%- block input_group -%}
{%- if cell.metadata.get('jupyter', {}).get('source_hidden') -%}<details><summary>Code</summary>{{ super() }}</details>{%- else -%}{{ super() }}{%- endif -%}
{%- endblock input_group -%}"""
STYLE = """<style>main { max-width: 76em; margin: auto } .jp-RenderedMarkdown :is(p, li) { max-width: 52em }
.jp-RenderedHTMLCommon table { margin-left: 0 } .highlight pre { white-space: pre-wrap }
.jp-RenderedHTMLCommon a:is(:link, :visited) { text-decoration: underline }  /* a link is seen without colours, and every colour is dark enough on grey */
:root { --jp-mirror-editor-operator-color: #8a12d6; --jp-mirror-editor-number-color: #006b00; --jp-mirror-editor-comment-color: #336b6b }
@media print { :root { --jp-content-font-size1: 10.5px; --jp-ui-font-size1: 10.5px; --jp-code-font-size: 9.5px } @page { margin: 10mm }
.jp-RenderedHTMLCommon :is(td, th) { padding: 3px 6px } }</style></head>"""
SLIDES = """<style>html { scroll-snap-type: y mandatory } main { max-width: none } .jp-RenderedMarkdown :is(p, li) { max-width: none; font-size: 150% }
@media screen { .jp-Cell { min-height: 97vh; scroll-snap-align: start } } .jp-Cell:not(:last-child) { break-after: page }
.jp-RenderedMarkdown :is(img, svg) { height: 75vh !important; width: auto; max-width: 100%; object-fit: contain }</style>"""
OURS = '<meta name="generator" content="LoRA, step by step">'
# Makes a browser refuse scripts, frames and anything from outside, even where an output asks for them.
POLICY = (f"<head>{OURS}<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data: file: 'self'; font-src data:; "
          "style-src 'unsafe-inline'\">")
PICTURE = re.compile(r"<img\b[^>]*>|<svg\b.*?</svg>|!\[[^\]]*\]\([^)]+\)", re.DOTALL)


class RenderError(ValueError):
    """The pages can't be built from what was given; the message says why and what to do."""


def build(folder: Path, executed: Path | None = None, notebooks: Path = NOTEBOOKS) -> list[str]:
    """Write index.html, slides.html and a page for every notebook below `notebooks` into `folder`, with the drawings beside them.

    executed: a folder of notebooks that were run already; what is not there, or is another version, is run. Returns the
    pages on which a cell failed. Raises RenderError for a folder that is none, and for what is no notebook.
    """
    folder = at_home(folder)
    if executed is not None and not executed.is_dir():
        raise RenderError(f"{executed}: there is no such folder; give one of executed notebooks, or leave it out and they are run now")
    if folder.resolve() == notebooks.resolve():
        raise RenderError(f"{folder}: the notebooks are there; give a folder of its own for the pages")
    if (index := folder / "index.html").exists() and OURS not in index.read_text(encoding="utf-8", errors="replace"):
        raise RenderError(f"{index}: this page is not of the rendered edition, and would be overwritten; give a folder of its own for the pages")
    folder.mkdir(parents=True, exist_ok=True)
    if (notebooks / "images").is_dir():
        shutil.copytree(notebooks / "images", folder / "images", dirs_exist_ok=True, copy_function=shutil.copyfile)
    rows, failed, deck = [], [], ["# LoRA, step by step\n\nThe course's pictures. Space or Page Down shows the next one; print it for a hand-out."]
    for path in sorted(path for path in notebooks.rglob("[0-9][0-9]_*.ipynb") if ".ipynb_checkpoints" not in path.parts):
        place = path.relative_to(notebooks)
        notebook = as_run(path, executed and executed / place)
        failed += [str(place)] * any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))
        without_widgets(notebook)
        write_page(notebook, folder / place.with_suffix(".html"), path.parent)
        if len(place.parts) == 1:
            rows.append(index_row(notebook, place))
            deck += slides(notebook)
    others = ["[Slides](slides.html)"]
    for path in sorted(notebooks.glob("*.md")):
        if text := path.read_text(encoding="utf-8", errors="replace").strip():
            write_page(new_notebook(cells=[new_markdown_cell(text)]), folder / f"{path.stem}.html", notebooks)
            others.append(f"[{text.splitlines()[0].removeprefix('# ')}]({path.stem}.html)")
    table = ["| notebook | what it promises | minutes |", "| --- | --- | --- |", *rows]
    text = "# LoRA, step by step\n\nThe course as it ran, with every output.\n\n" + "\n".join(table) + "\n\n" + " · ".join(others)
    write_page(new_notebook(cells=[new_markdown_cell(text)]), folder / "index.html", notebooks)
    write_page(new_notebook(cells=[new_markdown_cell(slide) for slide in deck]), folder / "slides.html", notebooks, style=SLIDES)
    return failed


def as_run(path: Path, executed: Path | None) -> nbformat.NotebookNode:
    """Return a notebook with its outputs: as it was run already, if that is this version, else it is run now."""
    notebook = read(path)
    if executed and executed.exists():
        kept = read(executed)
        was_run = any(cell.get("outputs") for cell in kept.cells) or all(cell.cell_type == "markdown" for cell in kept.cells)
        if was_run and [cell.source for cell in kept.cells] == [cell.source for cell in notebook.cells]:  # the present version
            return kept
    print(f"running {path}", flush=True)
    try:
        client = NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(path.parent)}})
        client.execute(stderr=subprocess.DEVNULL)  # what a cell writes there is in its outputs
    except (CellExecutionError, NoSuchKernel) as error:
        raise RenderError(f"{path}: running it failed ({str(error).strip().splitlines()[-1]}); mend it, or take it out of the folder") from error
    except AssertionError as error:  # nbclient answers Ctrl-C by ending the kernel, and then misses it
        raise KeyboardInterrupt from error
    return notebook


def read(path: Path) -> nbformat.NotebookNode:
    """Return a notebook; raise RenderError if the file is none, or has no cell to take a title from."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # what the library makes of a file that is cut or was never a notebook
        raise RenderError(f"{path}: this is no notebook of format 4 ({first_line(error):.200}); mend or remove it") from error
    if not notebook.cells or not notebook.cells[0].source.strip():
        raise RenderError(f"{path}: its first cell is empty; begin with a title")
    return notebook


def slides(notebook: nbformat.NotebookNode) -> list[str]:
    """Return a notebook's slides as Markdown: title, promise and headings; then every heading below which there is a picture, with it."""
    made = [[line for line in notebook.cells[0].source.splitlines() if line.strip()][:2]]
    for cell in notebook.cells:
        parts = re.split(r"(?m)^(?=##+ )", cell.source) if cell.cell_type == "markdown" else [
            output.get("data", {}).get("text/html", "") for output in cell.get("outputs", [])]
        for part in parts:
            made += [[heading[0]]] if (heading := re.match("##+ .*", part)) else []
            made[-1] += PICTURE.findall(part)
    made[0] += ["\n".join("- " + slide[0].lstrip("# ") for slide in made[1:] if slide[0].startswith("## "))]
    return ["\n\n".join(slide) for place, slide in enumerate(made) if place == 0 or len(slide) > 1]


def index_row(notebook: nbformat.NotebookNode, place: Path) -> str:
    """Return a notebook's line in the index, from its first cell: title, promise, minutes."""
    first = notebook.cells[0].source
    title, promise = [*(line.replace("|", "\\|") for line in first.splitlines() if line.strip()), ""][:2]
    minutes = re.search(r"About (\d+) minutes", first)
    return f"| [{title.removeprefix('# ')}]({quote(str(place))}) | {promise} | {minutes[1] if minutes else ''} |"


def write_page(notebook: nbformat.NotebookNode, file: Path, folder: Path, style: str = "") -> None:
    """Write one page; links to notebooks become links to pages, and scripts, which nbconvert takes from the web, go."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"(\]\((?!https?:)[^)\s]+)\.(?:ipynb|md)\b", r"\1.html", CONTENTS.sub(r"](\1index.html)", cell.source))
    # embed_images must stay off: it ends a <details> at the first blank line, so the hints would be open
    exporter = HTMLExporter(template_name="lab", template_file="folded", extra_loaders=[DictLoader({"folded": FOLDED})],
                            exclude_input_prompt=True, exclude_output_prompt=True)
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
    page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title, "path": str(folder)}})
    page = re.sub(r'<a class="anchor-link".*?</a>', "", page)  # the sign; with exclude_anchor_links the headings would have no ids
    page = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL | re.IGNORECASE).replace("</head>", style + STYLE, 1).replace("<head>", POLICY, 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")


def without_widgets(notebook: nbformat.NotebookNode) -> None:
    """Put in each widget's place what it shows: the settings of its controls in a line, and its output below."""
    models = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [shown for output in cell.outputs for shown in static(output, models)]


def static(output: nbformat.NotebookNode, models: dict) -> list[nbformat.NotebookNode]:
    """Return an output as it is, or what stands for the widget in it."""
    if VIEW not in output.get("data", {}):
        return [output]
    parts = list(descendants(output.data[VIEW]["model_id"], models))
    settings = [f"{html.escape(part['description'])} <b>{html.escape(setting(part))}</b>" for part in parts
                if part.get("description") and setting(part)]
    texts = ["In JupyterLab these can be changed: " + ", ".join(settings)] if settings else []
    texts += [" ".join(part["value"] for part in parts if part["_model_name"] == "HTMLModel")]
    shown = [new_output("display_data", {"text/html": f"<div>{text}</div>"}) for text in texts if text]
    return shown + [nbformat.from_dict(each) for part in parts for each in part.get("outputs", [])]


def descendants(model: str, models: dict) -> Iterator[dict]:
    """Yield the state of a widget and of all widgets inside it."""
    state = models.get(model, {}).get("state", {"_model_name": ""})
    yield state
    for child in state.get("children", []):
        yield from descendants(child.removeprefix("IPY_MODEL_"), models)


def setting(state: dict) -> str:
    """Return what a control is set to, as text; nothing for what is not a control."""
    if "_options_labels" in state:
        chosen = state["index"]
        places = chosen if isinstance(chosen, list | tuple) else [chosen]
        return ", ".join(state["_options_labels"][place] for place in places if place is not None)
    return "" if state["_model_name"] == "HTMLModel" else str(state.get("value", ""))
