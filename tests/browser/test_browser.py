"""What a learner sees: a real JupyterLab in headless Chromium runs notebooks, and somebody moves what can be moved."""
import re
import shutil
import time
from pathlib import Path

import nbformat
import pytest
from lab import COUNT_PICTURES, KERNEL_READY, WATCH, Notebook, jupyter_lab, wait
from notebook_tools import NOTEBOOKS, ROOT
from real_failures import EVERY_CELL_TWICE

from helpers.model.base_model import base_model_path

pytestmark = pytest.mark.slow
PICTURES = ROOT / "outputs" / "browser"
WITH_WIDGETS = [path for path in NOTEBOOKS if path.name[:2] in {"02", "03", "04", "05"} | ({"06", "14"} if EVERY_CELL_TWICE else set())]
TRAINING, BEFORE_AND_AFTER = (next(path for path in NOTEBOOKS if path.name.startswith(number)) for number in ("07", "09"))
OUTPUTS = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea-output"
PLOT = 'svg[aria-label^="Loss and learning rate"]'


@pytest.fixture(scope="module")
def lab(tmp_path_factory, run_of_07):
    """A server on a copy of the course with the adapter of notebook 07."""
    base_model_path()
    course, settings = tmp_path_factory.mktemp("course"), tmp_path_factory.mktemp("settings")
    for folder in ("notebooks", "data", "helpers"):
        shutil.copytree(ROOT / folder, course / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    adapter = Path("outputs") / "07_training" / "adapter"
    shutil.copytree(run_of_07 / adapter, course / adapter)
    if not EVERY_CELL_TWICE:  # test_notebooks.py asks the whole exam of 09; here it is for what shows the answers
        exam = course / "data" / "exam.jsonl"
        exam.write_text("".join(exam.read_text(encoding="utf-8").splitlines(keepends=True)[::2]), encoding="utf-8")
    with jupyter_lab(course, settings) as address:
        yield address


@pytest.fixture
def opened(browser, lab):
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
def test_runs_and_answers_to_the_keyboard(path, opened, axe):
    run_and_move(path, opened, axe)


def run_and_move(path, opened, axe) -> None:
    """Run all cells, move all that can be moved, look at all outputs in both themes; nothing may go wrong or be too wide."""
    notebook = opened(path)
    notebook.theme("JupyterLab Light")  # the setting outlives a page
    print(f"\n{path.stem}: all cells in {notebook.run_all():.0f} s")
    assert not notebook.errors()
    wait(notebook.explorers, 30, "something to move")  # a widget appears a moment after its cell has ended
    for number, area in enumerate(notebook.explorers()):
        notebook.picture(area, PICTURES / f"{path.stem}_{number}.png")
        if area.get_by_role("button", name="Ask both").count():
            ask_both(notebook, area)
        else:
            move_everything(notebook, area)
        notebook.picture(area, PICTURES / f"{path.stem}_{number}_moved.png")
    assert not notebook.errors()
    assert not notebook.too_wide()
    assert not beside_sliders(axe(notebook.page, OUTPUTS))
    notebook.theme("JupyterLab Dark")
    assert not beside_sliders(axe(notebook.page, OUTPUTS))
    for number, area in enumerate(notebook.explorers()):
        notebook.picture(area, PICTURES / f"{path.stem}_{number}_dark.png")


def beside_sliders(found: list[str]) -> list[str]:
    """Leave out the one thing that is ipywidgets' own: it gives no name to the handle of a slider, only a label before it."""
    return [each for each in found if not (each.startswith("aria-input-field-name") and "noUi-handle" in each)]


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
    try:
        wait(lambda: shown(area) != before, 30, f"the explorer to follow {control_name(slider)}")
    except TimeoutError:
        where, kernel = slider.get_attribute("aria-valuenow"), area.page.evaluate(KERNEL_READY)
        print(f"  the slider is at {where}, the kernel is {'idle' if kernel else 'not idle'}")
        raise
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


KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
TWO_CONTROLS = """
import time
from helpers.page import explore

def look(long, short):
    time.sleep(0 if short % 2 else 1)
    return f"long {long}, short {short}"

explore(look, long=(0, 9), short=(0, 9))
"""


def test_controls_that_are_moved_at_once_stay_alive(tmp_path, browser):
    """ipykernel answers a control's first move in the cells' thread and later ones in another; two calls may overlap."""
    shutil.copytree(ROOT / "helpers", tmp_path / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TWO_CONTROLS)], metadata=KERNEL), tmp_path / "two.ipynb")
    with jupyter_lab(tmp_path, tmp_path / "settings") as address:
        page = browser.new_page()
        notebook = Notebook(page, address("two.ipynb"))
        notebook.run_all()
        [area] = wait(notebook.explorers, 30, "the explorer")
        long, short = area.locator("[role=slider]").all()
        long.press("ArrowRight")
        wait(lambda: "long 5" in shown(area), 10, "the first move")
        long.press("ArrowRight")  # at work for a second
        short.press("ArrowRight")  # at work for a moment, and done before
        wait(lambda: "long 6, short 5" in shown(area), 10, "both to be followed")
        short.press("End")
        wait(lambda: "short 9" in shown(area), 10, "the one that was done first to be followed")
        page.close()


def test_the_live_plot_moves_and_the_button_stops_and_training_goes_on(opened):
    """Stop training, go on where it stopped, stop again; once a week go on to the end, and run all cells below."""
    notebook = opened(TRAINING)
    notebook.theme("JupyterLab Light")
    page = notebook.page
    page.evaluate(COUNT_PICTURES)
    notebook.command("notebook:run-all-cells")
    wait(lambda: page.evaluate("window.plots.size") >= 6 or notebook.errors(), 240, "six pictures")
    train = page.locator(".jp-CodeCell").filter(has=page.locator(PLOT))
    notebook.picture(train, PICTURES / "07_training.png")
    first = stop_training(notebook, train)
    learned_too_little = [error for error in notebook.errors() if "measured: training loss" in error]
    assert notebook.errors() == learned_too_little, notebook.errors()
    assert_steady(page)

    go_on(notebook, train)
    assert stop_training(notebook, train) > first
    assert_steady(page)
    if EVERY_CELL_TWICE:
        go_on(notebook, train)
        notebook.wait_until_idle(600)
        assert train.get_by_text("Stopped after step").count() == 0 and train.locator(f"{PLOT} title").count() > 60
        page.locator(".jp-CodeCell").filter(has_text="train_loss = ").first.locator(".jp-InputArea-editor").click()
        notebook.command("notebook:run-all-below")
        page.wait_for_timeout(2000)
        notebook.wait_until_idle(120)
        assert_steady(page)
        assert not notebook.errors()
    assert not notebook.too_wide()
    assert page.get_by_role("button", name="Stop training").count() == 0
    notebook.theme("JupyterLab Dark")
    notebook.picture(train, PICTURES / "07_dark.png")


def stop_training(notebook, cell) -> int:
    """Press the button; return the step after which training stopped."""
    click = time.monotonic()
    notebook.page.get_by_role("button", name="Stop training").click()
    stopped = cell.get_by_text("Stopped after step")
    wait(stopped.count, 60, "training to stop")
    notebook.wait_until_idle(60)
    notebook.picture(cell, PICTURES / "07_stopped.png")
    step = int(re.search(r"Stopped after step (\d+)", stopped.first.inner_text())[1])
    print(f"\n{TRAINING.stem}: stopped after step {step}, {time.monotonic() - click:.1f} s after the click")
    return step


def go_on(notebook, cell) -> None:
    """Run the cell again and wait for new pictures."""
    cell.locator(".jp-InputArea-editor").click()
    notebook.page.keyboard.press("Control+Enter")
    seen = notebook.page.evaluate("window.plots.size")
    wait(lambda: notebook.page.evaluate("window.plots.size") > seen + 1, 60, "training to go on")
    notebook.page.evaluate("window.heights.clear()")  # the page was empty for a moment: a new run is no flicker


def assert_steady(page) -> None:
    heights = page.evaluate("[...window.heights]")
    assert len(heights) == 1 and heights[0] > 200, f"the picture flickers: in some frame it had another height: {heights}"


def test_before_and_after(opened, axe):
    """With the adapter of notebook 07."""
    run_and_move(BEFORE_AND_AFTER, opened, axe)
