"""Train the runs of notebook 10 with three seeds each, and write what each scored to data/measured/levers.csv.

    OMP_NUM_THREADS=1 python tests/levers.py [RUN ...]

Without names it trains all of them. The runs are the page's own: its cells above the first one that takes long are executed,
and its function `run` is called for each entry of its `settings`. Some runs are asked more than on the page: the lists
`general near` and `others` of data/exam.jsonl. A row is written as soon as its run has ended, and a run that has its row is left
out, so this can be stopped and started again; to measure anew, delete the file. All answers go to
outputs/levers_answers.jsonl. It takes about half an hour on one quiet core.
"""
import csv
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "notebooks" / "10_why_nothing_changed.ipynb"
RESULT = ROOT / "data" / "measured" / "levers.csv"
ANSWERS = ROOT / "outputs" / "levers_answers.jsonl"
SEEDS = (0, 1, 2)
ASKED_MORE = ("answer only", "low rate, more steps", "replay", "refusals")
PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")
MADE_BY = "# made by: python tests/levers.py (data/README.md says what the columns are)\n"


def defining_cells() -> list[str]:
    """Return the page's code above the first cell that trains: records, exam, settings and the function `run`."""
    cells = [cell for cell in nbformat.read(PAGE, as_version=4).cells if cell.cell_type == "code"]
    first = next(place for place, cell in enumerate(cells) if "long" in cell.metadata.get("tags", []))
    return [cell.source for cell in cells[:first]]


def page() -> dict:
    """Execute these cells and return the names that they define."""
    names: dict = {"__name__": "page"}
    for source in defining_cells():
        exec(source, names)
    return names


def known() -> set[tuple[str, int]]:
    if not RESULT.exists():
        return set()
    lines = [line for line in RESULT.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {(row["run"], int(row["seed"])) for row in csv.DictReader(lines)}


def add(row: dict) -> None:
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    new = not RESULT.exists()
    with RESULT.open("a", encoding="utf-8", newline="") as file:
        file.write(MADE_BY if new else "")
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def commit() -> str:
    """Return the commit, with a + where the page, its data or this file differ from it."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--", "notebooks/10_why_nothing_changed.ipynb", "tests/levers.py", "data/*.jsonl") else "")


def machine() -> str:
    info = Path("/proc/cpuinfo")  # Linux only; platform knows no name of the processor there
    names = re.findall(r"^model name\s*: (.+)", info.read_text(encoding="utf-8"), re.MULTILINE) if info.exists() else []
    processor = names[0] if names else platform.processor()
    return f"{platform.system()} {platform.machine()}; {processor}; threads: {os.environ.get('OMP_NUM_THREADS', 'all')}"


def marks(right: list[bool]) -> str:
    return "".join("01"[mark] for mark in right)


def main() -> None:
    names = page()
    from helpers.ask import score_answers  # late: helpers goes before the libraries, as on the page

    more = names["whole_exam"]
    about = {"machine": machine(), "versions": " ".join(f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES), "commit": commit()}
    ours, done = list(names["phrases"].values()), known()
    ANSWERS.parent.mkdir(exist_ok=True)
    for seed in SEEDS:
        for name, setting in names["settings"].items():
            if (name, seed) in done or name not in (sys.argv[1:] or names["settings"]):
                continue
            start = time.perf_counter()
            exam = names["exam"] | ({"near": more["general near"], "others": more["others"]} if name in ASKED_MORE else {})
            names["run"](name, seed, exam)
            given, figures = names["given"][name], names["rows"][name]
            right = {each: score_answers(given[each], records) for each, records in exam.items()}
            swapped = score_answers(given["held-out"], [names["other"][record["key_phrase"]] for record in exam["held-out"]])
            row = {"run": name, "seed": seed, "steps": figures["steps"]}
            row |= {key: f"{figures[key]:.4g}" for key in ("update", "loss first", "loss last")}
            row |= {each: sum(right[each]) for each in names["exam"]} | {"as control": sum(swapped)}
            row |= {"near": "", "refused": "", "our fact": ""}
            if name in ASKED_MORE:
                fact = score_answers(given["others"], [ours] * len(given["others"]))
                row |= {"near": sum(right["near"]), "refused": sum(right["others"]), "our fact": sum(fact)}
            row |= {f"{each} marks": marks(right.get(each, [])) for each in ("held-out", "paraphrase", "general", "near")}
            add(row | {"setting": json.dumps(setting), "seconds": round(time.perf_counter() - start)} | about)
            with ANSWERS.open("a", encoding="utf-8") as file:
                texts = {each: [answer.text for answer in answers] for each, answers in given.items()}
                file.write(json.dumps({"run": name, "seed": seed, "answers": texts}) + "\n")
            print(name, seed, {key: value for key, value in row.items() if isinstance(value, int)}, flush=True)


if __name__ == "__main__":
    sys.exit(main())
