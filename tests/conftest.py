import pytest

from helpers.base_model import base_model_path

TIMES: dict[str, list[tuple[float, str]]] = {}


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_model_path())


@pytest.fixture(scope="session")
def notebook_times():
    """Seconds and source of every code cell, by notebook; printed at the end of the run."""
    return TIMES


def pytest_terminal_summary(terminalreporter):
    """Report what the notebooks took: a report and not a test, since machines differ."""
    if not TIMES:
        return
    write = terminalreporter.write_line
    terminalreporter.section("seconds of the notebooks, first pass")
    for name, cells in TIMES.items():
        write(f"{sum(seconds for seconds, _ in cells):7.1f}  {name}")
    write(f"{sum(seconds for cells in TIMES.values() for seconds, _ in cells):7.1f}  the whole course")
    write("slowest cells:")
    slow = sorted(((seconds, name, source) for name, cells in TIMES.items() for seconds, source in cells), reverse=True)[:12]
    for seconds, name, source in slow:
        write(f"{seconds:7.1f}  {name[:2]}  {source.splitlines()[0][:80]}")
