"""Programs that a notebook starts: their output, their failure, and that none of them is left behind."""
import subprocess
import sys
import time

import psutil
import pytest

from helpers.tools.processes import free_port, memory_of, run_module, started, wait_until_ready

CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def module(tmp_path):
    """Write a module into a folder of its own; return its name."""
    def write(source):
        (tmp_path / "a_program.py").write_text(source, encoding="utf-8")
        return "a_program"
    return write


def test_lines_are_shown_and_kept(module, tmp_path):
    seen, log = [], tmp_path / "output.log"
    name = module("import os, sys\nprint('步 1'); print(sys.argv[1:], os.environ['OMP_NUM_THREADS'])\nprint('oh', file=sys.stderr)")
    run_module(name, "--a", "b c", folder=tmp_path, log=log, threads=3, show=seen.append)
    assert sorted(seen) == ["['--a', 'b c'] 3", "oh", "步 1"]
    assert sorted(log.read_text(encoding="utf-8").splitlines()) == sorted(seen)


def test_peak_memory_is_seen_between_two_lines(module, tmp_path):
    name = module("import time\nx = bytearray(200_000_000)\ntime.sleep(1)\ndel x\nprint('empty again', flush=True); time.sleep(0.5)")
    peak = run_module(name, folder=tmp_path, log=tmp_path / "log", threads=1, show=lambda line: None)
    assert 200e6 < peak < 300e6


FAMILY = """
import subprocess, sys
x = bytearray(100_000_000)
child = "x = bytearray(200_000_000); print('both full', flush=True); import time; time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child]).wait()
"""


def test_memory_of_a_family_together_and_of_its_largest(module, tmp_path):
    with started(module(FAMILY), folder=tmp_path, output=subprocess.PIPE) as process, memory_of(process) as peaks:
        assert process.stdout.readline() == "both full\n"
        time.sleep(1)
    assert 200e6 < peaks["largest"] < 280e6 and 300e6 < peaks["together"] < 400e6


def test_a_server_is_waited_for_until_it_answers(module, tmp_path, monkeypatch):
    port = free_port()
    name = module(f"import time; time.sleep(1)\nfrom http.server import test, SimpleHTTPRequestHandler as one\ntest(one, port={port}, bind='127.0.0.1')")
    with started(name, folder=tmp_path) as server:
        wait_until_ready(server, f"http://127.0.0.1:{port}", tmp_path / "log", seconds=20)
        wait_until_ready(server, f"http://127.0.0.1:{port}/no/such/page", tmp_path / "log", seconds=5)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        wait_until_ready(server, f"http://127.0.0.1:{port}", tmp_path / "log", seconds=5)
        with pytest.raises(TimeoutError, match="does not answer"):
            wait_until_ready(server, f"http://127.0.0.1:{free_port()}", tmp_path / "log", seconds=0.5)


def test_a_server_that_ends_is_not_waited_for(module, tmp_path):
    begin = time.monotonic()
    with started(module("raise SystemExit(3)"), folder=tmp_path) as server, pytest.raises(RuntimeError, match=r"exit code 3.*log"):
        wait_until_ready(server, f"http://127.0.0.1:{free_port()}", tmp_path / "log", seconds=60)
    assert time.monotonic() - begin < 20


def test_a_failure_tells_its_last_lines_and_where_the_rest_is(module, tmp_path):
    name = module("print('so far so good')\nraise SystemExit('no such file')")
    with pytest.raises(RuntimeError, match=r"(?s)a_program failed \(exit code 1\).*output\.log.*so far so good.*no such file|no such file.*so far"):
        run_module(name, folder=tmp_path, log=tmp_path / "output.log", threads=1, show=lambda line: None)


def test_a_program_that_does_not_end_after_its_work_is_stopped_and_is_no_failure(module, tmp_path):
    name = module("import time\nprint('saved to here', flush=True); print('saved to here', flush=True); time.sleep(60)")
    begin = time.monotonic()
    run_module(name, folder=tmp_path, log=tmp_path / "log", threads=1, show=lambda line: None, last="saved to", grace=0.5)
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("source", ["print('saved to here', flush=True); raise SystemExit(3)", "print('lost', flush=True); raise SystemExit(3)"])
def test_one_that_fails_by_itself_is_a_failure_also_after_its_last_line(module, tmp_path, source):
    with pytest.raises(RuntimeError, match="exit code 3"):
        run_module(module(source), folder=tmp_path, log=tmp_path / "log", threads=1, show=lambda line: None, last="saved to")


def test_an_interrupt_leaves_no_process_behind(module, tmp_path):
    pids = []

    def interrupt(line):
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_module(module(CHILD), folder=tmp_path, log=tmp_path / "log", threads=1, show=interrupt)
    assert pids and gone(pids[0])


def test_the_end_of_the_block_stops_the_program_and_its_children(module, tmp_path):
    with started(module(CHILD), folder=tmp_path, output=subprocess.PIPE) as process:
        pid = int(process.stdout.readline())
        assert alive(pid) and alive(process.pid)
    assert gone(pid) and gone(process.pid)


@pytest.mark.parametrize("call", ["run_module('a_program', folder='.', log=Path('log'), threads=1, show=lambda line: print(line, flush=True))",
                                  "\nwith started('a_program', folder='.', output=None): time.sleep(60)"], ids=["run_module", "started"])
def test_if_the_caller_is_killed_nothing_stays(module, tmp_path, call):
    """As when a kernel is killed: no `finally` is run, so the program has to see it by itself."""
    module(CHILD)
    code = f"import time; from pathlib import Path; from helpers.tools.processes import run_module, started; {call}"
    caller = psutil.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    caller.stdout.readline()
    family = [one.pid for one in caller.children(recursive=True)]
    assert len(family) >= 2 and all(map(alive, family))
    caller.kill()
    caller.wait()
    assert all(map(gone, family))


def test_a_program_is_run_as_python_does_it(module, tmp_path):
    """Its own name and words, its folder first on the path, and its children know it as their main module."""
    name = module("import sys, multiprocessing as m\ndef f(x): return x + 1\nif __name__ == '__main__':\n"
                  "    print(sys.argv[1:], sys.path[0]); print(m.get_context('spawn').Pool(1).map(f, [1]))")
    lines = []
    run_module(name, "a", folder=tmp_path, log=tmp_path / "log", threads=1, show=lines.append)
    assert lines == [f"['a'] {tmp_path}", "[2]"]


def test_one_that_has_ended_by_itself_is_no_fault(module, tmp_path):
    with started(module("pass"), folder=tmp_path) as process:
        process.wait()
    assert process.returncode == 0


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pid: int) -> bool:
    """Say whether a process ends within five seconds."""
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)
