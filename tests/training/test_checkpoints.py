"""Checkpoints that the Trainer itself wrote, then damaged in every way; the whole ones must really resume."""
import json
import shutil
import zipfile

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

from helpers.training.resume import checkpoint_problem, last_complete_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]
FILES = ["adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
TORCH = [name for name in FILES if name.endswith((".pt", ".pth"))]


def trainer(folder):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)), config)
    ids = torch.arange(48).reshape(8, 6) % 32
    args = TrainingArguments(output_dir=str(folder), max_steps=6, save_steps=2, per_device_train_batch_size=2, learning_rate=0.01,
                             report_to="none", use_cpu=True, disable_tqdm=True, seed=0)
    return Trainer(model=model, args=args, train_dataset=[{"input_ids": row, "labels": row} for row in ids],
                   data_collator=default_data_collator)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer(folder).train()
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(trained, tmp_path / "run")


def test_what_the_trainer_wrote_is_whole(run):
    assert [checkpoint_problem(run / f"checkpoint-{step}") for step in (2, 4, 6)] == [None] * 3
    assert last_complete_checkpoint(run) == (run / "checkpoint-6", "")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_the_checkpoint_before_is_taken(run, name):
    (run / "checkpoint-6" / name).unlink()
    checkpoint, sentence = last_complete_checkpoint(run)
    assert checkpoint == run / "checkpoint-4"
    assert "checkpoint-6 is damaged" in sentence and name.split(".")[0] in sentence and "use checkpoint-4" in sentence


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99, "all but a byte"])
def test_a_file_that_was_cut_off_is_named(run, name, part):
    file = run / "checkpoint-6" / name
    data = file.read_bytes().rstrip(b"\n")
    file.write_bytes(data[:-1] if part == "all but a byte" else data[:int(part * len(data))])
    assert checkpoint_problem(run / "checkpoint-6") == f"{name} is not whole"
    assert last_complete_checkpoint(run)[0] == run / "checkpoint-4"


@pytest.mark.parametrize("name", TORCH)
def test_an_empty_block_at_the_end_is_noticed(run, name):
    """A power cut can leave a file of the right length whose end is zeros; safetensors keeps no checksum to tell by."""
    file = run / "checkpoint-6" / name
    data = file.read_bytes()
    file.write_bytes(data[:len(data) // 3] + bytes(len(data) - len(data) // 3))
    assert checkpoint_problem(run / "checkpoint-6") == f"{name} is not whole"


@pytest.mark.parametrize("name", TORCH)
def test_one_wrong_byte_is_noticed(run, name):
    file = run / "checkpoint-6" / name
    with zipfile.ZipFile(file) as archive:
        largest = archive.read(max(archive.infolist(), key=lambda info: info.file_size))
    data = bytearray(file.read_bytes())
    data[data.index(largest) + len(largest) // 2] ^= 1
    file.write_bytes(data)
    assert checkpoint_problem(run / "checkpoint-6") == f"{name} is not whole"


def test_the_state_of_another_step_is_noticed(run):
    shutil.copy(run / "checkpoint-4" / "trainer_state.json", run / "checkpoint-6")
    assert checkpoint_problem(run / "checkpoint-6") == "trainer_state.json is of step 4"
    for other in ("[6]", '["ab"]', "{}"):
        (run / "checkpoint-6" / "trainer_state.json").write_text(other)
        assert checkpoint_problem(run / "checkpoint-6") == "trainer_state.json is not whole"


def test_a_pickle_is_not_loaded(run, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "exploded").touch, ()

    torch.save(Bomb(), run / "checkpoint-6" / "optimizer.pt")
    checkpoint_problem(run / "checkpoint-6")
    assert not (tmp_path / "exploded").exists()


def test_newest_is_the_highest_number_and_not_the_last_name(run):
    later = shutil.copytree(run / "checkpoint-6", run / "checkpoint-10")
    state = json.loads((later / "trainer_state.json").read_text()) | {"global_step": 10}
    (later / "trainer_state.json").write_text(json.dumps(state))
    assert last_complete_checkpoint(run)[0] == later


def test_nothing_whole_and_nothing_there(run, tmp_path):
    for step in (2, 4, 6):
        (run / f"checkpoint-{step}" / "optimizer.pt").unlink()
    checkpoint, sentence = last_complete_checkpoint(run)
    assert checkpoint is None and sentence.count("optimizer.pt is missing") == 3 and "step 0" in sentence
    assert last_complete_checkpoint(tmp_path / "no_such_run") == (None, "")
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path) == (None, "")
    assert checkpoint_problem(tmp_path / "checkpoint-6") == "there is no such folder"
    assert "not named" in checkpoint_problem(tmp_path / "checkpoint-best")


def test_resuming_from_the_one_that_is_returned_gives_the_uninterrupted_run(run, trained, tmp_path):
    (run / "checkpoint-6" / "scheduler.pt").unlink()
    checkpoint, _ = last_complete_checkpoint(run)
    trainer(tmp_path / "resumed").train(resume_from_checkpoint=str(checkpoint))
    one, other = (load_file(folder / "checkpoint-6" / "adapter_model.safetensors") for folder in (trained, tmp_path / "resumed"))
    assert max((one[key] - other[key]).abs().max() for key in one) < 1e-7
