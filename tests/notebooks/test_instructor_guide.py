"""The instructor guide: every notebook, link and heading that it names is there, and its minutes are those of the pages."""
import re

import pytest
from notebook_tools import FOLDER, NOTEBOOKS, read, title

GUIDE = (FOLDER / "instructor_guide.md").read_text(encoding="utf-8")
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def section(path) -> str:
    return GUIDE.split(f"\n## [{title(path)}]({path.name})\n")[1].split("\n## ")[0]


def italics(text) -> list[str]:
    return re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", text)


def headings(path) -> set[str]:
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    return set(re.findall(r"^## (.+)$", prose, re.MULTILINE))


def reading_minutes(path) -> float:
    cells = read(path).cells
    end = next(place for place, cell in enumerate(cells) if "## Exercises" in cell.source)
    words = sum(len(cell.source.split("## Exercises")[0].split()) for cell in cells[:end + 1] if cell.cell_type == "markdown")
    lines = sum(len(cell.source.splitlines()) for cell in cells[:end] if cell.cell_type == "code")
    return words / 200 + lines / 25


@every_notebook
def test_has_a_section_with_idea_mistakes_question_and_rejoining(path):
    for words in ("**The one idea.**", "**What they get wrong.**", "**The question that helps.**", "**Behind?**"):
        assert section(path).count(words) == 1
    if any("long" in cell.metadata.get("tags", []) for cell in read(path).cells):
        assert "rain (" in section(path) or "rains (" in section(path), "say what to do while it trains"


@every_notebook
def test_names_headings_that_the_notebook_has(path):
    assert italics(section(path)) and set(italics(section(path))) <= headings(path), set(italics(section(path))) - headings(path)


def test_the_plans_name_headings_that_their_notebooks_have():
    rows = [line for line in GUIDE.split("\n## Three plans\n")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    assert len(italics("\n".join(rows))) > 5
    for row in rows:
        named = [path for path in NOTEBOOKS if re.search(rf"\b{path.name[:2]}\b", re.sub(r"^\| [\d:]+ \|", "|", row))]
        assert set(italics(row)) <= {heading for path in named for heading in headings(path)}, row


@every_notebook
def test_the_minutes_for_reading_are_those_of_the_page(path):
    row = re.search(rf"^\| \[{re.escape(title(path))}\]\({path.name}\) \| (\d+) \| (\d+) \| (\d+) \|$", GUIDE, re.MULTILINE)
    assert abs(int(row[1]) - reading_minutes(path)) <= 3


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", GUIDE)
    assert targets and all((FOLDER / target).exists() for target in targets)
