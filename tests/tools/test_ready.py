"""The readiness page, under real conditions: a wrong pin, a folder that can't be written, a bare Python, a full disk."""
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from notebook_tools import ROOT
from real_failures import as_nobody, little_memory, small_disk

from helpers.model.base_model import base_model_path, is_prepared
from helpers.tools import ready
from helpers.tools.processes import started

LINES = ["Python", "packages", "JupyterLab", "base model", "free memory", "free disk", "processor cores", "folder outputs/", "speed"]


@pytest.fixture
def course(tmp_path):
    """A copy of what the page looks at."""
    (tmp_path / "course").mkdir()
    shutil.copytree(ROOT / "helpers", tmp_path / "course" / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.txt", tmp_path / "course")
    return tmp_path / "course"


def page(course, prefix=(), python=sys.executable, **env):
    """Return the exit status, and each line of the page with its sign and what follows it."""
    done = subprocess.run([*prefix, python, "-m", "helpers", "ready"], cwd=course, env={**os.environ, **env, "PYTHONIOENCODING": "utf-8"}, capture_output=True, text=True,
                          encoding="utf-8")
    assert "Traceback" not in done.stderr, done.stderr
    *lines, verdict = done.stdout.splitlines()
    assert verdict == "This laptop is ready." if done.returncode == 0 else verdict.startswith("Not ready yet: ")
    return done.returncode, {line[2:].split(":")[0]: (line[0], line + "".join(lines[place + 1:place + 2]))
                             for place, line in enumerate(lines) if line[0] in "✓✗"}


def test_looks_at_everything_and_says_so_with_its_exit_status(course):
    base_model_path()
    status, lines = page(course)
    assert list(lines) == LINES
    assert [lines[name][0] for name in ("Python", "packages", "JupyterLab", "base model", "folder outputs/")] == ["✓"] * 5
    assert status == int(any(sign == "✗" for sign, _ in lines.values()))


def test_a_computer_that_is_busy_with_something_else_is_told_so(course):
    with started("timeit", "-n", "1", "-r", "1", "while True: pass", folder="."):
        _, lines = page(course)
    assert re.search(r"; something else keeps \d busy, and training takes longer", lines["processor cores"][1])


def test_a_wrong_pin_and_a_missing_package_are_named(course):
    text = (course / "requirements.txt").read_text(encoding="utf-8")
    (course / "requirements.txt").write_text(text.replace("peft==", "peft==9") + "no-such-package==1.0\n", encoding="utf-8")
    status, lines = page(course)
    assert status == 1 and lines["packages"][0] == "✗"
    assert "(wanted ==90." in lines["packages"][1] and "no-such-package is missing" in lines["packages"][1] and "pip install" in lines["packages"][1]


def test_what_a_package_needs_and_has_in_another_version_is_named(course, tmp_path):
    for name, made in (("numpy", "1.0"), ("jinja2", "99.0")):  # as an older or a newer one lies where Python looks first
        (folder := tmp_path / "first" / f"{name}-{made}.dist-info").mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {made}\n", encoding="utf-8")
    status, lines = page(course, PYTHONPATH=str(tmp_path / "first"))
    sign, found = lines["packages"]
    assert status == 1 and sign == "✗" and "numpy 1.0 (transformers needs" in found and "pip install" in found
    assert "jinja2 99.0" not in found  # nobody says that it is too new


@pytest.mark.slow
def test_a_python_without_any_package_gets_the_page_as_well(course, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    bare = tmp_path / "bare" / ("Scripts" if os.name == "nt" else "bin") / "python"
    status, lines = page(course, python=bare, PYTHONPATH="")
    assert status == 1 and list(lines) == LINES and lines["Python"][0] == "✓"
    for name in ("packages", "JupyterLab", "base model", "free memory", "speed"):
        assert lines[name][0] == "✗" and "Activate the course's environment" in lines[name][1]


@pytest.mark.parametrize(("gigabytes", "sign"), [(2.9, "✗"), (3.1, "✓")])
def test_memory_that_is_too_little_for_a_training(course, gigabytes, sign):
    status, lines = page(course, little_memory(course, int(gigabytes * 1e9 / 1024)))
    assert lines["free memory"][0] == sign and f"{gigabytes} GB, training needs 3 GB" in lines["free memory"][1] and (status == 1 or sign == "✓")


def test_a_python_for_which_the_course_is_not_made(course):
    file = course / "helpers" / "tools" / "ready.py"
    file.write_text(file.read_text(encoding="utf-8").replace("((3, 11), ", "((3, 99), "), encoding="utf-8")
    status, lines = page(course)
    assert status == 1 and lines["Python"][0] == "✗" and "Install Python" in lines["Python"][1]


def test_outputs_that_is_no_folder(course):
    (course / "outputs").write_text("in the way")
    status, lines = page(course)
    assert status == 1 and lines["folder outputs/"][0] == "✗" and "Move the course" in lines["folder outputs/"][1]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_outputs_without_the_right_to_write(course):
    (course / "outputs").mkdir(mode=0o555)
    status, lines = page(course, as_nobody() if os.geteuid() == 0 else [], PYTHONDONTWRITEBYTECODE="1")  # root may write anywhere
    assert status == 1 and "(Permission denied)" in lines["folder outputs/"][1]


@pytest.mark.parametrize("full", ["outputs", "cache"])
def test_a_full_disk_is_seen_whether_it_is_the_course_s_or_the_cache_s(course, full):
    (place := course / full).mkdir()
    if full == "outputs":  # the course moves there
        shutil.copytree(course / "helpers", place / "helpers")
        shutil.copy(course / "requirements.txt", place)
        shutil.copytree(place, course.parent / "copied")
        prefix = [*small_disk(place, 20), "sh", "-ec", f'cp -r "{course.parent}/copied/." "{place}"; cd "{place}"; exec "$@"', "sh"]
        status, lines = page(place, prefix)
    else:
        status, lines = page(course, small_disk(place, 20), LORA_COURSE_CACHE=str(place / "not made yet"))
    assert status == 1 and lines["free disk"][0] == "✗" and "0.0 GB" in lines["free disk"][1] and str(place) in lines["free disk"][1]


@pytest.mark.parametrize("chosen", ["", "no/such-model", "nowhere", "<script>/x"])
def test_a_base_model_that_is_not_there(tmp_path, monkeypatch, chosen):
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("BASE_MODEL", chosen)
    ok, found, todo = ready._or_missing(ready._base_model)
    assert not ok and (chosen or "SmolLM2") in found and "python -m helpers prepare" in todo
    monkeypatch.setenv("BASE_MODEL", f'"{chosen}"')  # as Windows' set leaves it
    assert ready._or_missing(ready._base_model)[1] == found


def test_a_base_model_of_ones_own(monkeypatch):
    monkeypatch.setenv("BASE_MODEL", base_model_path())
    assert is_prepared()


def test_python_versions_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">={}.{},<{}.{}".format(*ready.PYTHON[0], *ready.PYTHON[1])


def test_speed_is_judged_by_the_minutes_that_training_takes():
    as_here, slow = ready._speed(ready.REFERENCE_SPEED), ready._speed(ready.REFERENCE_SPEED / 10)
    assert as_here[0] and "about 3 min" in as_here[1] and not slow[0] and "about 30 min" in slow[1] and "power supply" in slow[2]


def test_speed_counts_the_operations_that_pytorch_counts():
    """The best of its products can't be slower than all of them together, and each is as large as it says."""
    import time

    from torch.utils.flop_counter import FlopCounterMode

    ready.matrix_speed()
    start = time.perf_counter()
    with FlopCounterMode(display=False) as counter:
        speed = ready.matrix_speed()
    together = counter.get_total_flops() / (time.perf_counter() - start)
    assert together <= speed and counter.get_total_flops() == 20 * 2 * 512 * 576 * 1536


def test_the_table_in_a_notebook_shows_text_as_text():
    table = ready.Readiness([ready.Check("base model", False, "<script>alert(1)</script>", "mend & try"), ready.Check("Python", True, "3.12", "unused")])
    shown = table._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "mend &amp; try" in shown and "unused" not in shown
    assert "Not ready yet: base model." in shown and str(table).splitlines()[1] == "  mend & try"


def test_a_library_that_cannot_be_loaded_is_a_line_of_the_page():
    ok, found, todo = ready._or_missing(lambda: ctypes.CDLL("libtorch_that_is_not_there.so"))
    assert not ok and found.startswith("a package can't be loaded (") and "libtorch_that_is_not_there" in found and todo == ready.INSTALL


@pytest.mark.parametrize("error", [OSError('[WinError 126] The specified module could not be found. Error loading "C:\\torch\\lib\\c10.dll" or one of its dependencies.'),
                                   ImportError("DLL load failed while importing _C: The specified module could not be found.")])
def test_on_windows_the_library_that_pytorch_needs_is_named(error):
    """PyTorch's words there, which we do not have."""
    def check():
        raise error
    assert "Visual C++" in ready._or_missing(check)[2] and ready.VISUAL_C.split("(")[1].split(")")[0] in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_kernel_of_another_environment_is_named(tmp_path):
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    other = str(tmp_path / "venv" / "bin" / "python")
    (kernel / "kernel.json").write_text(json.dumps({"argv": [other, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "x"}))
    ask = [sys.executable, "-c", "from helpers.tools.ready import _jupyterlab; print(*_jupyterlab(), sep='|')"]
    said = [subprocess.run(ask, env=os.environ | more, capture_output=True, text=True, check=True).stdout for more in ({}, {"JUPYTER_PATH": str(tmp_path)})]
    assert said[0].startswith("True|") and said[1].startswith(f"False|its kernel python3 is another Python, {other}|run `jupyter kernelspec remove")
