"""The rendered edition, built from a small course that is really executed."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64encode
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import nbformat
import psutil
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_tools import ROOT

from helpers.tools.rendered_edition import VIEW, RenderError, build, setting, static, write_page

FIRST = """# 00 First

It promises a `picture`.

You will be able to: look.

**About 7 minutes.** Needs nothing. [more](extra/00_more.ipynb) [web](https://example.org/01_second.ipynb)

<details><summary>Hint</summary>

Look twice.

</details>"""
WIDGET = """from IPython.display import HTML
from helpers.page import explore
explore(lambda size=3, name="disc": HTML(f"<i>{name} of size {size}</i>"), size=(1, 9), name=["disc", "a < b"])"""
OLD = "the output of an earlier run"
PICTURE = """import matplotlib.pyplot as plt
from helpers.page import show_plot
show_plot(plt.figure(), 'A sheet with nothing on it.')"""



class Links(HTMLParser):
    """What a page links to, and what a browser loads to show it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links, self.loaded, self.scripts = [], re.findall(r"(?:url\(|@import\s+)['\"]?([^'\")\s]+)", page), 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.scripts += tag == "script"
        self.links += [attrs["href"]] if tag == "a" and "href" in attrs else []
        self.loaded += [attrs[name] for name in ("src", "data", "srcset") if attrs.get(name)]
        self.loaded += [attrs["href"]] if tag in ("link", "image") and "href" in attrs else []

    def remote(self) -> list[str]:
        return [address[:80] for address in self.loaded if not address.startswith(("data:", "#"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    course = tmp_path_factory.mktemp("course")
    folded = new_code_cell("assert 2 * 3 == 6\n'seen'", metadata={"jupyter": {"source_hidden": True}})
    more = [new_markdown_cell("# More\n\n[back](../00_first.ipynb)"), new_code_cell("print(6 * 7)")]
    cells = {"00_first": [new_markdown_cell(FIRST), new_code_cell(WIDGET), new_code_cell(PICTURE)],
             "01_second": [new_markdown_cell("# 01 Second\n\nNo minutes.\n\n[← 00 First](00_first.ipynb)"), new_code_cell("print(2 * 2)")],
             "02_third": [new_markdown_cell("# 02 Third\n\nFolded.\n\n[Contents](../README.md#the-course) [Glossary](glossary.md)\n\n"
                                          "## A drawing\n\n![A drawing.](images/drawing.svg)"), folded],
             "extra/00_more": more}
    (course / "notebooks" / "images").mkdir(parents=True)
    (course / "notebooks" / "images" / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
    (course / "notebooks" / "glossary.md").write_text("# Glossary\n\n| term | meaning |\n| --- | --- |\n| token | a piece of a word |\n", encoding="utf-8")
    for name, content in cells.items():
        file = course / "notebooks" / f"{name}.ipynb"
        file.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=content), file)
    for name, source in {"01_second": "print(2 * 2)", "extra/00_more": "print('of an older version')"}.items():
        done = new_notebook(cells=[*cells[name][:-1], new_code_cell(source, outputs=[new_output("stream", text=OLD)])])
        file = course / "executed" / f"{name}.ipynb"
        file.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(done, file)
    shutil.copy(course / "notebooks" / "00_first.ipynb", course / "executed")  # the page itself, which nobody ran, is no executed one
    build(course / "site", course / "executed", course / "notebooks")
    return course / "site"


def page(site: Path, name: str) -> str:
    return (site / name).read_text(encoding="utf-8")


def test_the_index_names_every_notebook_with_its_minutes(site):
    assert re.search(r'<a href="00_first\.html">00 First</a></td>\s*<td>It promises a <code>picture</code>\.</td>\s*<td>7</td>',
                     page(site, "index.html"))
    assert Links(page(site, "index.html")).links == ["00_first.html", "01_second.html", "02_third.html", "slides.html", "glossary.html"]


def test_what_was_executed_before_is_not_executed_again_unless_it_changed(site):
    assert OLD in page(site, "01_second.html")
    assert OLD not in page(site, "extra/00_more.html") and "42" in page(site, "extra/00_more.html")


def test_every_local_link_leads_to_a_page(site):
    pages = sorted(site.rglob("*.html"))
    assert [file.relative_to(site).as_posix() for file in pages] == [
        "00_first.html", "01_second.html", "02_third.html", "extra/00_more.html", "glossary.html", "index.html", "slides.html"]
    links = [(file, link) for file in pages for link in Links(file.read_text(encoding="utf-8")).links]
    assert len(links) == 11
    assert all(link.startswith("https://") or (file.parent / link).is_file() for file, link in links)
    assert "https://example.org/01_second.ipynb" in Links(page(site, "00_first.html")).links


def test_a_page_loads_nothing_and_runs_nothing(site):
    for file in site.rglob("*.html"):
        found = Links(file.read_text(encoding="utf-8"))
        assert all((file.parent / address).is_file() for address in found.remote()) and not found.scripts, file
    assert Links(page(site, "02_third.html")).remote() == ["images/drawing.svg"] and 'alt="A drawing."' in page(site, "02_third.html")
    assert Links('<link href="https://a.b/c.css"><img src="x.png"><style>@import "d.css"</style>').remote() == [
        "d.css", "https://a.b/c.css", "x.png"]  # the check itself sees them


def test_a_widget_shows_its_settings_and_its_picture(site):
    first = page(site, "00_first.html")
    assert "In JupyterLab these can be changed: size <b>3</b>, name <b>disc</b>" in first
    assert "<i>disc of size 3</i>" in first and "interactive(" not in first
    assert "data:image/png;base64," in first


def test_a_hint_stays_hidden_until_it_is_opened(site):
    first = (site / "00_first.html").read_text(encoding="utf-8")
    assert "Look twice." in re.search(r"<details><summary>Hint</summary>(.*?)</details>", first, re.DOTALL)[1]


def test_the_contents_are_the_index_and_the_glossary_is_a_page(site):
    assert Links(page(site, "02_third.html")).links == ["index.html", "glossary.html"]
    assert "a piece of a word" in page(site, "glossary.html") and "<title>Glossary</title>" in page(site, "glossary.html")


def test_a_plot_keeps_its_words(site):
    assert '<img alt="A sheet with nothing on it."' in page(site, "00_first.html")
    for file in site.rglob("*.html"):
        assert "No description has been provided" not in file.read_text(encoding="utf-8")


def test_folded_code_is_behind_a_line_and_its_output_is_not(site):
    [(hidden, shown)] = re.findall(r"<details><summary>Code</summary>(.*?)</details>(.*)", page(site, "02_third.html"), re.DOTALL)
    assert "assert" in hidden and "seen" in shown and "assert" not in shown
    assert "<summary>Code" not in page(site, "01_second.html")


DOT = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="8" height="8"/></svg>'


def notebooks_in(folder, **named):
    """Return a folder with these notebooks: name -> its cells, already run, or bytes that are none."""
    folder.mkdir()
    for name, made in named.items():
        file = folder / f"{name.replace('__', ' ')}.ipynb"
        file.write_bytes(made if isinstance(made, bytes) else nbformat.writes(new_notebook(cells=made)).encode())
    return folder


def test_links_to_headings_lead_there(tmp_path):
    notebooks = notebooks_in(tmp_path / "n", **{"00_a": [new_markdown_cell("# 00 A\n\n[down](#Far-below), [there](01_b.ipynb#1-What-is-it)")],
                                                "01_b": [new_markdown_cell("# 01 B\n\n## 1 What is it")]})
    assert build(tmp_path / "site", notebooks, notebooks) == []
    assert 'href="01_b.html#1-What-is-it"' in page(tmp_path / "site", "00_a.html") and 'id="1-What-is-it"' in page(tmp_path / "site", "01_b.html")


def test_a_learner_s_own_page_and_the_drafts_that_jupyterlab_keeps(tmp_path):
    notebooks = notebooks_in(tmp_path / "n", **{"20_meine__Übung": [new_markdown_cell("# a | b")]})
    notebooks_in(notebooks / ".ipynb_checkpoints", **{"20_meine__Übung-checkpoint": [new_markdown_cell("# old")]})
    build(tmp_path / "site", notebooks, notebooks)
    assert not (tmp_path / "site" / ".ipynb_checkpoints").exists()
    index = page(tmp_path / "site", "index.html")
    assert ">a | b</a>" in index and 'href="20_meine%20%C3%9Cbung.html"' in index


def test_a_browser_runs_and_fetches_nothing_that_an_output_asks_for(tmp_path, browser):
    """A picture beside the page and one within it are shown; a handler, a frame and a style sheet from outside are not."""
    hits = []

    class Count(BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)

    server = HTTPServer(("127.0.0.1", 0), Count)
    Thread(target=server.serve_forever, daemon=True).start()
    outside = f"http://127.0.0.1:{server.server_port}"
    asked = (f'<img alt="x" src="{outside}/picture.png" onerror="document.title = 1"><iframe src="{outside}/frame"></iframe>'
             f'<link rel="stylesheet" href="{outside}/style.css">')
    cells = [new_markdown_cell("# 00 A\n\n![dot](images/dot.svg)"), new_code_cell("1", outputs=[new_output("display_data", {"text/html": asked}),
             new_output("display_data", {"text/html": f'<img alt="y" src="data:image/svg+xml;base64,{b64encode(DOT).decode()}">'})])]
    notebooks = notebooks_in(tmp_path / "n", **{"00_a": cells})
    (notebooks / "images").mkdir()
    (notebooks / "images" / "dot.svg").write_bytes(DOT)
    build(tmp_path / "site", notebooks, notebooks)
    shown = browser.new_page()
    shown.goto((tmp_path / "site" / "00_a.html").as_uri())
    shown.wait_for_timeout(500)
    widths = shown.evaluate("() => Object.fromEntries([...document.images].map(image => [image.alt, image.naturalWidth]))")
    assert widths == {"dot": 8, "x": 0, "y": 8} and shown.title() != "1"
    assert not hits
    shown.close()
    server.shutdown()


def test_a_page_on_which_a_cell_failed_is_named(tmp_path):
    cell = new_code_cell("1/0", outputs=[new_output("error", ename="ZeroDivisionError", evalue="division by zero", traceback=["no"])])
    notebooks = notebooks_in(tmp_path / "n", **{"00_a": [new_markdown_cell("# 00 A"), cell]})
    assert build(tmp_path / "site", notebooks, notebooks) == ["00_a.ipynb"]


@pytest.mark.parametrize("made", [b"", b'{"cells": [', b"[]", b"\xff\xfe", b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
                                  [], [new_markdown_cell("")], [new_markdown_cell("# A"), new_code_cell("1/0")]])
def test_what_is_no_page_is_a_sentence_with_its_file(tmp_path, made):
    notebooks = notebooks_in(tmp_path / "n", **{"00_a": made})
    with pytest.raises(RenderError, match=r"00_a\.ipynb: .*mend|00_a\.ipynb: its first cell is empty"):
        build(tmp_path / "site", None, notebooks)


def test_a_folder_that_is_none_starts_nothing(tmp_path):
    notebooks = notebooks_in(tmp_path / "n", **{"00_a": [new_markdown_cell("# 00 A")]})
    with pytest.raises(RenderError, match="there is no such folder"):
        build(tmp_path / "site", tmp_path / "missing", notebooks)
    with pytest.raises(RenderError, match="the notebooks are there"):
        build(notebooks, None, notebooks)
    assert not (tmp_path / "site").exists()


def test_somebody_s_own_index_is_not_overwritten_and_ours_is(tmp_path):
    notebooks = notebooks_in(tmp_path / "n", **{"00_a": [new_markdown_cell("# 00 A")]})
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<html>mine</html>", encoding="utf-8")
    with pytest.raises(RenderError, match="would be overwritten"):
        build(tmp_path / "site", None, notebooks)
    assert [file.name for file in (tmp_path / "site").iterdir()] == ["index.html"]
    assert build(tmp_path / "new", notebooks, notebooks) == build(tmp_path / "new", notebooks, notebooks) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_ctrl_c_while_a_notebook_runs_ends_with_a_word_and_leaves_no_kernel(tmp_path):
    begun = tmp_path / "begun"
    cell = f"from pathlib import Path; import os, time; Path({str(begun)!r}).write_text(str(os.getpid())); time.sleep(600)"
    notebooks = notebooks_in(tmp_path / "n", **{"00_a": [new_markdown_cell("# 00 A"), new_code_cell(cell)]})
    code = (f"import sys, functools; from pathlib import Path; import helpers.__main__ as line; from helpers.tools import rendered_edition as edition; "
            f"edition.build = functools.partial(edition.build, notebooks=Path({str(notebooks)!r})); sys.exit(line.main())")
    process = subprocess.Popen([sys.executable, "-c", code, "render", str(tmp_path / "site")], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (begun.exists() and begun.read_text()) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    complaint = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and complaint.endswith("Stopped.\n") and "Traceback" not in complaint
    assert not psutil.pid_exists(int(begun.read_text()))


def test_settings_of_controls():
    choice = {"_model_name": "SelectMultipleModel", "_options_labels": ["q", "k", "v"], "index": [0, 2]}
    assert setting(choice) == "q, v"
    assert setting(choice | {"_model_name": "DropdownModel", "index": None}) == ""
    assert setting({"_model_name": "CheckboxModel", "value": False}) == "False"
    assert setting({"_model_name": "HTMLModel", "value": "<b>x</b>"}) == "" == setting({"_model_name": "ButtonModel"})


def test_what_somebody_typed_is_shown_as_text():
    typed = "<script>alert(1)</script> <b>bold</b>"
    models = {"box": {"state": {"_model_name": "TextModel", "description": "<i>name</i>", "value": typed}}}
    [shown] = static(new_output("display_data", {VIEW: {"model_id": "box"}}), models)
    text = shown.data["text/html"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &lt;b&gt;bold&lt;/b&gt;" in text and "&lt;i&gt;name&lt;/i&gt;" in text
    assert not any(tag in text for tag in ("<script", "<b>bold", "<i>"))


def slides_of(site) -> list[str]:
    return re.split(r'<div class="jp-Cell jp-MarkdownCell', page(site, "slides.html"))[1:]


def test_slides_show_each_page_s_promise_and_its_pictures_below_their_headings(site):
    cover, *slides = slides_of(site)
    titles = [re.search(r"<h[1-6][^>]*>(.*?)</h", slide)[1] for slide in slides]
    assert "Page Down" in cover and titles == ["00 First", "01 Second", "02 Third", "A drawing"]
    assert "It promises a <code>picture</code>" in slides[0] and 'alt="A sheet with nothing on it."' in slides[0]
    assert "<li>A drawing</li>" in slides[2] and "<img" not in slides[2] and 'src="images/drawing.svg"' in slides[3]


def test_slides_are_stepped_through_by_keyboard_and_printed_one_to_a_page(site, browser, tmp_path):
    shown = browser.new_page(viewport={"width": 1280, "height": 800})
    shown.goto((site / "slides.html").as_uri())
    count = shown.locator(".jp-Cell").count()
    tops = "() => [...document.querySelectorAll('.jp-Cell')].map(cell => Math.round(cell.getBoundingClientRect().top))"
    for place in range(1, count):
        shown.keyboard.press("PageDown")
        shown.wait_for_function(f"() => Math.abs(({tops})()[{place}]) < 40", timeout=5000)
    shown.pdf(path=str(tmp_path / "slides.pdf"), width="1280px", height="800px")
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "slides.pdf").read_bytes())) == count == 5


@pytest.fixture
def audit(browser, axe):
    """A function that returns what axe finds in the page of a file."""
    def look(file) -> list[str]:
        shown = browser.new_page(bypass_csp=True)  # axe is a script
        shown.goto(file.as_uri())
        found = axe(shown)
        shown.close()
        return found

    return look


@pytest.mark.slow
def test_everybody_can_read_the_pages(site, audit):
    assert not {file.name: found for file in site.rglob("*.html") if (found := audit(file))}


@pytest.mark.slow
def test_the_audit_itself_sees_what_is_wrong(audit, tmp_path):
    (tmp_path / "bad.html").write_text('<html><title>x</title><main><img src="x.png"><p style="color: #aaa; background: #fff">pale</p></main>', encoding="utf-8")
    rules = {found.split(":")[0] for found in audit(tmp_path / "bad.html")}
    assert rules == {"image-alt", "color-contrast", "html-has-lang"}


@pytest.mark.slow
def test_everybody_can_read_the_course_as_it_ran(audit, tmp_path):
    """The whole rendered edition, from what pytest has executed; a page that was not executed is looked at without its outputs."""
    notebooks = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks", notebooks, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for path in (ROOT / "outputs" / "executed").rglob("*.ipynb"):
        place = notebooks / path.relative_to(ROOT / "outputs" / "executed")
        if place.exists():
            shutil.copy(path, place)
    build(tmp_path / "site", notebooks, notebooks)
    assert not {file.name: found for file in (tmp_path / "site").rglob("*.html") if (found := audit(file))}


def test_the_cheat_sheet_is_one_page_and_says_what_the_recipe_says(browser, tmp_path):
    text = (ROOT / "notebooks" / "cheat_sheet.md").read_text(encoding="utf-8")
    write_page(new_notebook(cells=[new_markdown_cell(text)]), tmp_path / "sheet.html", ROOT / "notebooks")
    shown = browser.new_page()
    shown.goto((tmp_path / "sheet.html").as_uri())
    for paper in ("A4", "Letter"):
        shown.pdf(path=str(tmp_path / f"{paper}.pdf"), format=paper)
        assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / f"{paper}.pdf").read_bytes())) == 1, paper
    recipe = yaml.safe_load((ROOT / "data" / "recipe.yaml").read_text(encoding="utf-8"))
    names = ("learning_rate", "lora_r", "lora_alpha", "num_train_epochs", "warmup_steps", "lora_target_modules")
    rate, r, alpha, epochs, warmup, [modules] = (recipe[name] for name in names)
    row = {line.split("|")[1].strip(" `"): line.split("|")[3].strip() for line in text.splitlines() if line.startswith("| ")}
    assert float(row["learning_rate"].split(";")[0]) == rate and row["r`, `lora_alpha"] == f"{r}, {alpha}"
    assert float(row["warmup_steps"]) == warmup and row["target_modules"] == f'`"{modules}"`'
    assert f"r={r}, lora_alpha={alpha}" in text and f"num_train_epochs={epochs}," in text
