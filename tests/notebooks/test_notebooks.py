"""Run every notebook with nbmake: alone, with empty outputs, without a network, and its cells twice in one kernel.

A notebook is run from top to bottom and then once more. Where cells take long (their tag is "long", or "slow" for some ten
seconds, for which no learner has to plan), every other cell is run twice in a row instead, so that they run once. Those that need an adapter get the one that notebook 07 has just made;
that 09 trains its own without it is seen on a tiny model (test_any_model.py), 12 and 15 once a week. With EVERY_CELL_TWICE=1, as once a week,
every notebook is repeated whole and begins with empty outputs.
"""
import os
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from datetime import datetime
from functools import cache

import nbformat
import pytest
from notebook_tools import NOTEBOOKS, ROOT, SOLUTIONS, read, widget_outputs, without_alt
from real_failures import EVERY_CELL_TWICE

from helpers.model.base_model import base_model_path
from helpers.tools.processes import free_port, started, wait_until_ready

# A new network namespace has no way out; its loopback is needed by the kernel's own sockets.
OFFLINE = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
pytestmark = pytest.mark.slow
# For one cell; the longest takes 200 s where two tests run, and without a long one none takes 20. Now and then nbclient waits
# until this limit for a message after a cell with widgets that has ended, and then goes on: so it is not set higher.
LONG_CELL_SECONDS, CELL_SECONDS = 600, 100
SOLUTION_SECONDS = 60  # far above what any of their cells takes, so that a slow machine passes
AGAIN = "-again"
CUT_OFF = """import errno
import socket

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:  # nothing is sent
    assert way.connect_ex(("192.0.2.1", 9)) == errno.ENETUNREACH, "the network is not cut off"
"""
NEED_ADAPTER = () if EVERY_CELL_TWICE else ("09", "12", "15")
EXECUTED = ROOT / "outputs" / "executed"  # the first pass of each, for the rendered edition


@cache
def offline_prefix() -> tuple[str, ...]:
    """Return what cuts a command off the network; nothing where this system can't (Windows, macOS)."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return ()
    return tuple(OFFLINE) if subprocess.run([*OFFLINE, "true"], capture_output=True).returncode == 0 else ()


def test_the_network_is_really_cut_off(tmp_path):
    if not offline_prefix():
        assert not os.environ.get("CI"), "CI must run the notebooks without a network: it needs unshare and ip"
        pytest.skip("this system can't cut a process off the network (it takes Linux with unshare and ip)")
    address, log = f"http://127.0.0.1:{(port := free_port())}", tmp_path / "server.log"
    ask = [sys.executable, "-c", f"from urllib.request import urlopen; urlopen({address!r}, timeout=10)"]
    with log.open("w") as file, started("http.server", str(port), "--bind", "127.0.0.1", folder=tmp_path, output=file) as server:
        wait_until_ready(server, address, log, 30)
        assert subprocess.run(ask).returncode == 0 != subprocess.run([*offline_prefix(), *ask], capture_output=True).returncode


def doubled(path):
    """Return the notebook with its cells twice, as the first lines of this file say."""
    notebook = read(path)
    again = deepcopy(notebook.cells)
    for cell in again:
        cell.id += AGAIN
    if EVERY_CELL_TWICE or not any(takes_long(cell) for cell in again):
        notebook.cells += again
    else:
        pairs = zip(notebook.cells, again, strict=True)
        notebook.cells = [copy for pair in pairs for copy in (pair[:1] if takes_long(pair[0]) else pair)]
    if offline_prefix():
        notebook.cells.append(nbformat.v4.new_code_cell(CUT_OFF, id=f"cut-off{AGAIN}"))
    return notebook


def takes_long(cell) -> bool:
    return bool({"long", "slow"} & set(cell.metadata.get("tags", [])))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_alone_offline_and_twice(path, course, request, record_property):
    if path.name.startswith("07"):
        course = request.getfixturevalue("run_of_07")
    else:
        if path.name.startswith(NEED_ADAPTER):
            adapter = request.getfixturevalue("run_of_07") / "outputs" / "07_training" / "adapter"
            shutil.copytree(adapter, course / "outputs" / "07_training" / "adapter")
        run_twice(path, course)
    for cell in code_cells(EXECUTED / path.name):
        record_property("cell", (seconds(cell), path.stem, cell.source.splitlines()[0][:80]))


def run_twice(path, course):
    """Run a notebook in a copy of the course as the first lines of this file say; keep its first pass."""
    base_model_path()  # the one thing that may be fetched, before the network is cut off
    copy = course / "notebooks" / path.name
    nbformat.write(doubled(path), copy)
    before = files_of(course)
    execute_offline(copy, course)
    check_outputs(copy)
    again = [cell for cell in code_cells(copy) if cell.id.endswith(AGAIN) and cell.source != CUT_OFF]
    assert len(again) == sum(EVERY_CELL_TWICE or not takes_long(cell) for cell in code_cells(path)) and all(cell.execution_count for cell in again)
    keep_first_pass(copy, course)
    new = {file.relative_to(course).parts[0] for file in files_of(course) - before}
    assert new <= {"outputs"}, f"the notebook wrote outside outputs/: {new}"


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def check_outputs(path):
    """No warning that nobody explains, no error that a widget swallowed, and no picture without words."""
    assert not unexplained(code_cells(path)), unexplained(code_cells(path))
    assert not widget_errors(read(path)), widget_errors(read(path))
    assert not without_alt(read(path)), f"show these plots with helpers.page.show_plot(figure, alt): {without_alt(read(path))}"


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: f"solutions_{path.stem}")
def test_solutions_run_alone_and_offline(path, course):
    base_model_path()
    copy = course / "notebooks" / "solutions" / path.name
    copy.parent.mkdir()
    shutil.copy(path, copy)
    before = files_of(course)
    execute_offline(copy, course)
    check_outputs(copy)
    assert max(map(seconds, code_cells(copy))) < SOLUTION_SECONDS
    keep_first_pass(copy, course)
    assert {file.relative_to(course).parts[0] for file in files_of(course) - before} <= {"outputs"}


def execute_offline(path, course, seconds=None):
    """Run a notebook of the copied course in place, with nbmake; seconds: the limit for one cell."""
    seconds = seconds or (LONG_CELL_SECONDS if any(map(takes_long, read(path).cells)) else CELL_SECONDS)
    command = [*offline_prefix(), sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(course),
               "--nbmake", "--overwrite", f"--nbmake-timeout={seconds}", str(path)]
    run = subprocess.run(command, cwd=course, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:]


def keep_first_pass(path, course):
    notebook = read(path)
    notebook.cells = [cell for cell in notebook.cells if not cell.id.endswith(AGAIN)]
    kept = EXECUTED / path.relative_to(course / "notebooks")
    kept.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, kept)


def files_of(folder):
    return {file for file in folder.rglob("*") if file.is_file()}


def seconds(cell) -> float:
    start, end = (datetime.fromisoformat(cell.metadata.execution[f"{channel}"].replace("Z", "+00:00"))
                  for channel in ("iopub.execute_input", "shell.execute_reply"))
    return (end - start).total_seconds()


def unexplained(cells) -> list[str]:
    """Return what looks like a warning among the cells' printed lines; progress bars and logged numbers are none."""
    streams = [output.text for cell in cells for output in cell.outputs if output.output_type == "stream"]
    return [line for text in streams for line in text.splitlines() if re.search(r"warn|deprecat|traceback", line, re.IGNORECASE)]


def widget_errors(notebook) -> list[str]:
    """Return the errors that widgets swallowed: `interact` shows them inside its own output and the cell looks fine."""
    return [output.get("evalue", "") for output in widget_outputs(notebook) if output["output_type"] == "error"]


def test_the_looks_at_a_page_find_what_they_look_for():
    streams = [nbformat.v4.new_output("stream", text=text) for text in ("FutureWarning: old\n", "Traceback (most recent call last)\n", "12 records\n")]
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=streams)])
    assert unexplained(page.cells) == ["FutureWarning: old", "Traceback (most recent call last)"] and not widget_errors(page)
    swallowed = {"output_type": "error", "evalue": "no such slider"}
    page.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"1": {"state": {"outputs": [swallowed]}}}}}
    assert widget_errors(page) == ["no such slider"]
