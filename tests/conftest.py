"""What all tests share: two workers of one thread each, models, a copy of the course, and what each kind of test cost."""
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: two workers with one thread each do more than one with two
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import shutil
import subprocess
from importlib.util import find_spec

import pytest
from filelock import FileLock
from notebook_tools import NOTEBOOKS, ROOT, copy_of_course
from real_failures import skip_unless_ci
from sharing import pytest_xdist_make_scheduler  # noqa: F401
from tiny_qwen3 import build_tiny_qwen3

from helpers.model.base_model import base_model_path

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
AXE = "axe-core@4.14.1"  # of npm; it finds what keeps people out who cannot see, or use no mouse
# Long tests begin first, so that no worker waits for the other at the end; what needs the adapter of notebook 07 comes after it.
FIRST = ("[10_", "[12_", "[11_", "[07_", "tools/test_offline_kit", "browser/", "[14_", "training/test_memory", "training/test_resume", "[09_", "[15_", "model/test_base_model", "notebooks/test_gguf")


def pytest_collection_modifyitems(items):
    """Mark what is quick (no training, browser or environment) and what lacks its package, and put the long tests first."""
    for item in items:
        if item.get_closest_marker("packed") and not find_spec("bitsandbytes"):
            assert not os.environ.get("PACKED"), "bitsandbytes is not there, and PACKED says that it must be"
            item.add_marker(pytest.mark.skip(reason='bitsandbytes is not installed: pip install -e ".[qlora]" (.ci/run does it after all other tests)'))
        if not item.get_closest_marker("slow"):
            item.add_marker("quick")
    items.sort(key=lambda item: next((place for place, part in enumerate(FIRST) if part in item.nodeid), len(FIRST)))


def pytest_collection_finish():
    """Take what the libraries have made out of the search for garbage: each end of a training looks through all of it, a third of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def course_folder(monkeypatch):
    """Begin in the course's folder, and come back to it: a page's first cell moves to its own."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_model_path())


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory):
    """Build a tiny random Qwen3, once, in a folder whose path has spaces and Chinese characters; return the folder."""
    return build_tiny_qwen3(tmp_path_factory.mktemp("models") / "我的 模型" / "Qwen3 tiny")


@pytest.fixture
def make_sft_trainer(tmp_path, tokenizer):
    """Make a TRL trainer for these rows, on a tiny random model."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from helpers.model.hardware import training_precision

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))

    def make(rows, data_collator=None, processing_class=tokenizer, **settings):
        args = SFTConfig(str(tmp_path), report_to="none", activation_checkpointing=False, **settings, **training_precision())
        return SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=processing_class,
                          data_collator=data_collator)

    return make


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not program:
        skip_unless_ci("no Chromium here (Debian and Ubuntu: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def axe(tmp_path_factory):
    """A function that returns what axe calls serious or critical in a page, or in one place of it, as "rule: element"."""
    folder = tmp_path_factory.mktemp("npm")
    npm = shutil.which("npm")
    fetched = npm and subprocess.run([npm, "install", "--no-save", "--silent", "--prefix", str(folder), AXE], capture_output=True, text=True)
    if not fetched or fetched.returncode:
        skip_unless_ci(f"axe comes from npm, {fetched.stderr[-200:] if fetched else 'which is not installed'}")

    def look(page, place: str = "html") -> list[str]:
        page.add_script_tag(path=str(folder / "node_modules" / "axe-core" / "axe.min.js"))
        found = page.evaluate("place => axe.run(place, {resultTypes: ['violations']})", place)["violations"]
        return [f"{each['id']}: {node['html'][:80]}" for each in found if each["impact"] in ("serious", "critical") for node in each["nodes"]]

    return look


@pytest.fixture(scope="session")
def run_of_07(tmp_path_factory):
    """The course in which notebook 07 has been run, once for all workers: its adapter is what later notebooks need."""
    from test_notebooks import run_twice

    folder = tmp_path_factory.getbasetemp().parent / "course_of_07"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            run_twice(next(path for path in NOTEBOOKS if path.name.startswith("07")), copy_of_course(folder))
    return folder


@pytest.fixture
def course(tmp_path):
    """A copy of the course with nothing in outputs/ and no notebook."""
    return copy_of_course(tmp_path / "course")


def pytest_terminal_summary(terminalreporter):
    """Report what each kind of test and each notebook took: a report and not a test, since machines differ."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports if hasattr(report, "duration")]
    kinds, cells = {}, []
    for report in reports:
        kind = "/".join(report.nodeid.split("::")[0].split("/")[1:3])
        kinds[kind] = kinds.get(kind, 0) + report.duration
        if report.when == "call":
            cells += [tuple(value) for key, value in report.user_properties if key == "cell"]
    write = terminalreporter.write_line
    terminalreporter.section("seconds of each kind of test, all workers together")
    for kind, seconds in sorted(kinds.items(), key=lambda pair: -pair[1])[:15]:
        write(f"{seconds:7.1f}  {kind}")
    if cells:
        terminalreporter.section("seconds of the notebooks, first pass")
        for name in sorted({name for _, name, _ in cells}):
            write(f"{sum(seconds for seconds, other, _ in cells if other == name):7.1f}  {name}")
        write(f"{sum(seconds for seconds, *_ in cells):7.1f}  the whole course\nslowest cells:")
        for seconds, name, line in sorted(cells, reverse=True)[:12]:
            write(f"{seconds:7.1f}  {name[:2]}  {line}")
