"""That tests which share something go to one worker, one after the other, and all others to whoever is free."""
import os
import subprocess
import sys

from notebook_tools import ROOT
from sharing import TOGETHER

TEST = """import os, time, pytest
@pytest.mark.parametrize("number", range(4))
def test_who(number):
    time.sleep(0.05 if "browser" in __file__ else 0.4)
    with open({log!r}, "a") as file:
        print(os.environ["PYTEST_XDIST_WORKER"], __file__, file=file)
"""


def test_what_belongs_together_has_one_worker_and_the_rest_has_two(tmp_path):
    log = tmp_path / "log.txt"
    (tmp_path / "conftest.py").write_text("from sharing import pytest_xdist_make_scheduler", encoding="utf-8")
    files = [tmp_path / "browser" / "test_one.py", tmp_path / "browser" / "test_two.py", tmp_path / "test_three.py", tmp_path / "test_four.py"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(TEST.format(log=str(log)), encoding="utf-8")
    words = ["-q", "-n", "2", "--dist", "loadscope", "--no-loadscope-reorder", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-o", "addopts=", str(tmp_path)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")} | {"PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = [line.split(maxsplit=1) for line in log.read_text(encoding="utf-8").splitlines()]
    workers = {part: {worker for worker, file in ran if ("browser" in file) == part} for part in (True, False)}
    assert len(ran) == 16 and "browser/" in TOGETHER
    assert len(workers[True]) == 1 and len(workers[False]) == 2
