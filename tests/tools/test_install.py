"""The install: a wrong Python is refused at once, what is pinned is whole and up to date, and the files for other places are well formed."""
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from urllib.request import urlopen

import pytest
from notebook_tools import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from real_failures import WEEKLY, skip_unless_ci

from helpers.tools.offline_kit import install_text
from helpers.tools.processes import free_port, started, wait_until_ready
from helpers.tools.ready import PYTHON, pinned

COMMAND, *PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
SYSTEMS = [{"sys_platform": system, "os_name": "nt" if system == "win32" else "posix", "python_full_version": f"{python}.0", "python_version": python}
           for system in ("linux", "darwin", "win32") for python in ("3.11", "3.12", "3.13")]
NOT_PINNED = re.compile(r"nvidia-|cuda-|triton|lora-step-by-step")  # which of these, and which version, is PyTorch's own affair


def pins_for(system) -> dict:
    """Return what constraints.txt pins for a system, or for this one."""
    read = [Requirement(line) for line in PINS]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in read if not one.marker or one.marker.evaluate(system)}


def needed(name: str, extras=frozenset({""}), seen=None) -> set[str]:
    """Return the names of all packages that a package here needs, and what those need in turn."""
    seen = seen if seen is not None else set()
    for one in map(Requirement, requires(name) or ()):
        other = canonicalize_name(one.name)
        if (other, *one.extras) not in seen and (not one.marker or any(one.marker.evaluate({"extra": extra}) for extra in extras)):
            seen.add((other, *one.extras))
            needed(other, frozenset({"", *one.extras}), seen)
    return {other for other, *_ in seen}


def test_every_package_here_is_pinned_at_its_version():
    pins, wanted = pins_for(None), {canonicalize_name(Requirement(line).name) for line in pinned()}
    for name in wanted | {other for one in wanted for other in needed(one)}:
        if not NOT_PINNED.match(name):
            assert pins.get(name) == version(name).split("+")[0], f"{name}: see CONTRIBUTING.md, Files that are made"


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: f"{system['sys_platform']} {system['python_version']}")
def test_other_systems_have_the_same_pins_and_what_only_they_need(system):
    pins = pins_for(system)
    assert {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in map(Requirement, pinned())}.items() <= pins.items()
    own = {"win32": {"colorama", "pywinpty"}, "darwin": {"appnope", "pexpect"}, "linux": {"pexpect"}}[system["sys_platform"]]
    assert own <= set(pins) and not [name for name in pins if NOT_PINNED.match(name)]
    assert ("pywinpty" in pins) == (system["sys_platform"] == "win32")


def test_the_command_in_its_first_line_makes_the_same_file():
    if not shutil.which("uv"):
        skip_unless_ci("uv is not installed")
    assert COMMAND.startswith("# uv pip compile ") and "--universal" in COMMAND
    done = subprocess.run(["sh", "-c", COMMAND.removeprefix("# ")], cwd=ROOT, capture_output=True, text=True)
    if not done.stdout and ("error sending request" in done.stderr or "offline" in done.stderr):
        skip_unless_ci("no package index is reached")
    assert done.stdout.splitlines() == PINS, f"see CONTRIBUTING.md, Files that are made\n{done.stderr}"


IN_EVERY_RUN = {("3.11", "x86_64-unknown-linux-gnu"), ("3.12", "aarch64-apple-darwin"), ("3.13", "x86_64-pc-windows-msvc")}


@pytest.mark.slow
@pytest.mark.parametrize("python, platform", [pytest.param(python, platform, marks=[] if (python, platform) in IN_EVERY_RUN else WEEKLY)
                                              for python in ("3.11", "3.12", "3.13") for _, platform in sorted(IN_EVERY_RUN)])
def test_every_system_finds_a_wheel_of_everything(platform, python):
    """As uv would choose them for that system: nothing has to be compiled there. The README says from which macOS on."""
    if not shutil.which("uv"):
        skip_unless_ci("uv is not installed")
    command = ["uv", "pip", "compile", "--quiet", "--only-binary", ":all:", "--python-platform", platform, "--python-version", python, "requirements.txt"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}, capture_output=True, text=True)
    if "error sending request" in done.stderr:
        skip_unless_ci("no package index is reached")
    assert done.returncode == 0 and "torch==" in done.stdout, done.stderr
    assert "macOS 14" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.pins
def test_the_versions_that_the_readme_names_are_those_that_are_pinned():
    named = re.findall(r"\b([a-z][\w-]*)==([\d.]+\d)", (ROOT / "README.md").read_text(encoding="utf-8"))
    pins = pins_for(None)
    assert {"torch", "gguf"} <= {name for name, _ in named} and not [pin for pin in named if pins.get(pin[0]) != pin[1]], named


def test_the_constraints_stand_first_and_a_wrong_python_second():
    first, *others = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
                      if not line.startswith("#")]
    assert (first, others[0]) == ("-c constraints.txt", "-e .")
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f"{PYTHON[0]} <= sys.version_info[:2] < {PYTHON[1]}" in text
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">={}.{},<{}.{}".format(*PYTHON[0], *PYTHON[1])


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.9", "3.10", "3.14"])
def test_a_wrong_python_is_refused_before_anything_is_fetched(tmp_path, python):
    found = shutil.which(f"python{python}")
    if not found or subprocess.run([found, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"there is no python{python} here")
    subprocess.run([found, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"), "-m", "pip"]
    done = subprocess.run([*pip, "install", "-r", "requirements.txt"], cwd=course(tmp_path), capture_output=True, text=True)
    assert done.returncode == 1 and f"runs on Python 3.11, 3.12 or 3.13, and this is {python}" in done.stdout + done.stderr
    assert "torch" not in done.stdout


def test_this_python_were_it_the_wrong_one(tmp_path):
    """The same on any computer: a course that begins later than this Python."""
    folder = course(tmp_path)
    text = (folder / "setup.py").read_text(encoding="utf-8")
    (folder / "setup.py").write_text(text.replace("(3, 11) <=", "(3, 99) <="), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-build-isolation", "--no-index", "-r", "requirements.txt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and "This course runs on Python" in done.stdout + done.stderr and "torch" not in done.stdout


def course(folder):
    """Copy what the install needs."""
    made = folder / "course"
    shutil.copytree(ROOT / "helpers", made / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "constraints.txt", "README.md"):
        shutil.copy(ROOT / name, made)
    return made


SCHEMAS = {"vendor.github-workflows": [".github/workflows/course.yml"], "custom.github-workflows-require-timeout": [".github/workflows/course.yml"],
           "vendor.github-issue-forms": [".github/ISSUE_TEMPLATE/failed.yml", ".github/ISSUE_TEMPLATE/stumbled.yml"],
           "vendor.github-issue-config": [".github/ISSUE_TEMPLATE/config.yml"], "vendor.citation-file-format": ["CITATION.cff"]}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_workflow_forms_and_citation_are_what_their_schemas_ask_for(schema):
    if not shutil.which("check-jsonschema"):
        skip_unless_ci("check-jsonschema is not installed (pip install check-jsonschema)")
    done = subprocess.run(["check-jsonschema", "--builtin-schema", schema, *SCHEMAS[schema]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.pins
def test_elsewhere_the_same_install_is_made():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    torch = next(line for line in pinned() if line.startswith("torch=="))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    install = container["onCreateCommand"].split(" && ")
    assert install[0] in readme and torch in install[0] and install[1] == "pip install -r requirements.txt"
    assert install[2] == "python -m helpers prepare"
    binder = (ROOT / ".binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert binder[1].split()[0] == f"{torch}+cpu" and binder[2] == "-r ../requirements.txt" and (ROOT / ".binder" / binder[2].split()[1]).is_file()
    version_of = (ROOT / ".binder" / "runtime.txt").read_text().strip().removeprefix("python-").split(".")
    assert PYTHON[0] <= tuple(map(int, version_of)) < PYTHON[1]
    for script in (".binder/postBuild", ".binder/start", ".ci/run"):
        assert b"\r" not in (ROOT / script).read_bytes() and (os.name == "nt" or os.access(ROOT / script, os.X_OK))


def test_the_citation_and_the_changes_name_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"version: {project['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_line_endings_stay_whatever_git_is_told(tmp_path):
    """A clone with autocrlf, as Git for Windows makes it."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        skip_unless_ci("this is no git checkout")
    (tmp_path / "source").mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path / "source")]
    subprocess.run([*git, "init", "-q"], check=True)
    for name in (".gitattributes", ".ci/run", "data/train.jsonl"):
        (tmp_path / "source" / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", str(tmp_path / "source"), str(tmp_path / "clone")], check=True)
    for name in (".ci/run", "data/train.jsonl"):
        assert (tmp_path / "clone" / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_start_commands_show_the_whole_course_and_not_its_notebooks_alone(tmp_path):
    """JupyterLab's root would be the folder of the page that it opens: outputs/, data/ and the links to the README lie outside."""
    commands = re.findall(r"jupyter lab [^`\n]*notebooks[/\\\\]00_start_here.ipynb", (ROOT / "README.md").read_text(encoding="utf-8") + install_text())
    assert len(commands) >= 6 and all("--ServerApp.root_dir=. " in command for command in commands)
    port, log = free_port(), tmp_path / "log"
    words = ["jupyterlab", *commands[0].split()[2:], "--no-browser", "--allow-root", f"--ServerApp.port={port}", "--IdentityProvider.token="]
    with log.open("w") as file, started(*words, folder=ROOT, output=file, JUPYTER_CONFIG_DIR=str(tmp_path), JUPYTER_RUNTIME_DIR=str(tmp_path)) as server:
        address = f"http://127.0.0.1:{port}"
        wait_until_ready(server, f"{address}/api", log, 60)
        for path in ("README.md", "data", "notebooks/00_start_here.ipynb"):
            with urlopen(f"{address}/api/contents/{path}?content=0") as answer:
                assert json.load(answer)["path"] == path
