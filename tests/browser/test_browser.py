"""What a learner sees: a real JupyterLab in headless Chromium runs notebooks, and somebody moves what can be moved."""
import os
import shutil
import time

import nbformat
import pytest
from lab import CHROMIUM_FLAGS, COUNT_PICTURES, WATCH, Notebook, jupyter_lab, wait
from notebook_tools import NOTEBOOKS, ROOT, read

from helpers.model.base_model import base_model_path

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]
PICTURES = ROOT / "outputs" / "browser"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WITH_WIDGETS = [path for path in NOTEBOOKS if path.name[:2] in {"02", "03", "04", "05", "06", "12"}]
TRAINING, BEFORE_AND_AFTER = (next(path for path in NOTEBOOKS if path.name.startswith(number)) for number in ("07", "09"))
PLOT = 'svg[aria-label="loss and learning rate"]'
if not CHROMIUM and not os.environ.get("CI"):  # in CI they must not be skipped: there they fail
    pytest.skip("no Chromium here (Debian and Ubuntu: apt-get install chromium)", allow_module_level=True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server on a copy of the course with empty outputs."""
    base_model_path()
    course, settings = tmp_path_factory.mktemp("course"), tmp_path_factory.mktemp("settings")
    for folder in ("notebooks", "data", "helpers"):
        shutil.copytree(ROOT / folder, course / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    cut_after(next((course / "notebooks").glob("12_*.ipynb")), "will-it-fit-explorer")  # what follows has no widget and trains long
    with jupyter_lab(course, settings) as address:
        yield address


def cut_after(path, name) -> None:
    """Leave the cells up to the one with this id."""
    notebook = read(path)
    end = [cell.id for cell in notebook.cells].index(name)
    notebook.cells = notebook.cells[:end + 1]
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "CI must run the browser tests: install chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(lab, browser):
    """Open a notebook; close its page and its kernel at the end."""
    pages = []

    def open_notebook(path) -> Notebook:
        pages.append(browser.new_page(viewport={"width": 1400, "height": 1000}))
        return Notebook(pages[-1], lab(f"notebooks/{path.name}"))

    yield open_notebook
    for page in pages:
        page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
        page.close()


@pytest.mark.parametrize("path", WITH_WIDGETS, ids=lambda path: path.stem)
def test_runs_and_answers_to_the_keyboard(path, opened):
    run_and_move(path, opened)


def run_and_move(path, opened) -> None:
    """Run all cells, move all that can be moved, take pictures in both themes; nothing may go wrong or be too wide."""
    notebook = opened(path)
    notebook.theme("JupyterLab Light")  # the setting outlives a page
    print(f"\n{path.stem}: all cells in {notebook.run_all():.0f} s")
    assert not notebook.errors()
    assert notebook.explorers(), "there is nothing to move"
    for number, area in enumerate(notebook.explorers()):
        notebook.picture(area, PICTURES / f"{path.stem}_{number}.png")
        if area.get_by_role("button", name="Ask both").count():
            ask_both(notebook, area)
        else:
            move_everything(notebook, area)
        notebook.picture(area, PICTURES / f"{path.stem}_{number}_moved.png")
    assert not notebook.errors()
    assert not notebook.too_wide()
    notebook.theme("JupyterLab Dark")
    for number, area in enumerate(notebook.explorers()):
        notebook.picture(area, PICTURES / f"{path.stem}_{number}_dark.png")


def move_everything(notebook, area) -> None:
    """Move every slider from one end to the other by the keyboard, and every choice; each must change what is shown."""
    area.evaluate(WATCH)
    for slider in area.locator("[role=slider]").all():
        slider.focus()
        slider.press("Home")
        notebook.page.wait_for_timeout(1000)
        changes_at_once(slider, area)
        slider.press("ArrowLeft")
    for choice in area.locator("select:not([multiple])").all():
        notebook.page.wait_for_timeout(1000)
        assert any(follows(area, choice, index) for index in another_choice(choice)), f"no {control_name(choice)} changes anything"


def changes_at_once(slider, area) -> None:
    """Press End; print how long the picture took to be whole, as the page itself measures it."""
    before = shown(area)
    slider.press("End")
    wait(lambda: shown(area) != before, 30, f"the explorer to follow {control_name(slider)}")
    area.page.wait_for_timeout(700)
    seconds = area.evaluate("() => (window.changesAt.at(-1) - window.keyAt) / 1000")
    print(f"  {control_name(slider)}: followed in {seconds:.2f} s")
    assert seconds < 1, f"{control_name(slider)} follows too slowly"


def another_choice(choice) -> list[int]:
    now = choice.evaluate("choice => choice.selectedIndex")
    return [index for index in range(choice.locator("option").count()) if index != now][:8]


def follows(area, choice, index) -> bool:
    """Say whether the explorer shows something else for this choice; two choices may well lead to the same."""
    before = shown(area)
    choice.select_option(index=index)
    try:
        return wait(lambda: shown(area) != before, 5, "a change")
    except TimeoutError:
        return False


def control_name(control) -> str:
    return control.locator("xpath=ancestor::*[contains(@class, 'widget-inline-hbox')][1]").inner_text().split("\n")[0]


def ask_both(notebook, area) -> None:
    """Type a question: both answers come; at strength 0 the fine-tuned model is the base model."""
    area.locator("input[type=text]").first.fill("Where is the Corvane Lighthouse?")
    area.locator("input[type=text]").first.press("Enter")
    columns = area.locator(".widget-html-content")
    wait(lambda: all("\n" in text.strip() for text in columns.all_inner_texts()[-2:]), 60, "both answers")
    notebook.page.wait_for_timeout(6000)
    base, tuned = (text.split("\n", 1)[1].strip() for text in columns.all_inner_texts()[-2:])
    print(f"  base: {base}\n  fine-tuned: {tuned}")
    assert base != tuned and "Osk" in tuned
    strength = area.locator("[role=slider]").last
    strength.focus()
    strength.press("Home")
    area.get_by_role("button", name="Ask both").press("Enter")
    wait(lambda: [text.split("\n", 1)[-1].strip() for text in columns.all_inner_texts()[-2:]] == [base, base], 60,
         "the base model's answer twice")


def shown(area) -> str:
    """Return what an explorer shows apart from its controls."""
    return "".join(area.locator(".jp-OutputArea-output .jp-OutputArea-output, .widget-html").evaluate_all(
        "outputs => outputs.map(output => output.innerHTML)"))


def test_the_live_plot_moves_and_the_button_stops_and_training_goes_on(opened):
    """Run all cells and stop training early; then run its cell again, which goes on, and all cells below."""
    notebook = opened(TRAINING)
    notebook.theme("JupyterLab Light")
    page, start = notebook.page, time.monotonic()
    page.evaluate(COUNT_PICTURES)
    notebook.command("notebook:run-all-cells")
    wait(lambda: page.evaluate("window.plots.size") >= 6 or notebook.errors(), 180, "six pictures")
    train = page.locator(".jp-CodeCell").filter(has=page.locator(PLOT))
    notebook.picture(train, PICTURES / "07_training.png")
    click = time.monotonic()
    page.get_by_role("button", name="Stop training").click()
    wait(lambda: train.get_by_text("Stopped after step").count(), 60, "training to stop")
    print(f"\n{TRAINING.stem}: stopped {time.monotonic() - click:.1f} s after the click")
    notebook.wait_until_idle(60)
    notebook.picture(train, PICTURES / "07_stopped.png")
    learned_too_little = [error for error in notebook.errors() if "measured: training loss" in error]
    assert notebook.errors() == learned_too_little, notebook.errors()
    assert_steady(page)

    run_again(page, train)
    seen = page.evaluate("window.plots.size")
    wait(lambda: page.evaluate("window.plots.size") > seen + 1, 60, "training to go on")
    page.evaluate("window.heights.clear()")  # the page was empty for a moment: a new run is no flicker
    notebook.wait_until_idle(300)
    assert train.get_by_text("Stopped after step").count() == 0 and train.locator(f"{PLOT} title").count() > 60
    page.locator(".jp-CodeCell").filter(has_text="train_loss = ").first.locator(".jp-InputArea-editor").click()
    notebook.command("notebook:run-all-below")
    page.wait_for_timeout(2000)
    notebook.wait_until_idle(120)
    print(f"  {page.evaluate('window.plots.size')} pictures, all in {time.monotonic() - start:.0f} s")
    assert_steady(page)
    assert not notebook.errors() and not notebook.too_wide()
    assert page.get_by_role("button", name="Stop training").count() == 0
    notebook.theme("JupyterLab Dark")
    notebook.picture(train, PICTURES / "07_dark.png")


def assert_steady(page) -> None:
    heights = page.evaluate("[...window.heights]")
    assert len(heights) == 1 and heights[0] > 200, f"the picture flickers: in some frame it had another height: {heights}"


def run_again(page, cell) -> None:
    cell.locator(".jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")


def test_before_and_after(opened):
    """With the adapter that the test above has saved; alone it trains one first."""
    run_and_move(BEFORE_AND_AFTER, opened)
