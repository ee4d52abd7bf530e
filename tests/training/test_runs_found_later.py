"""What an adversary found in what looks after a run: each run with what is right for it."""
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPTNeoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2VLConfig,
    Qwen3MoeConfig,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from helpers.training.fit import check_fit
from helpers.training.memory import estimate_memory
from helpers.training.resume import checkpoint_problem, run_settings, where_to_begin
from helpers.training.saving import written_whole

ROWS = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 4


def base_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2))


def made(folder, rows=ROWS, **named):
    args = TrainingArguments(str(folder / "run"), max_steps=4, save_steps=2, per_device_train_batch_size=1, report_to="none", use_cpu=True, disable_tqdm=True)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return Trainer(get_peft_model(base_model(), lora, **named), args, train_dataset=rows, data_collator=default_data_collator)


def row(number):
    ids = torch.arange(1200) % 60
    ids[200:1000] = number
    return {"input_ids": ids, "labels": ids}


def test_other_data_are_another_run_also_in_the_middle_of_long_tensors(tmp_path):
    one, other, again = (run_settings(made(tmp_path, [row(number)] * 4))["training data"] for number in (3, 7, 3))
    assert one == again != other


def test_settings_of_a_stream_without_an_end_are_found(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield ROWS[0]

    assert where_to_begin(made(tmp_path, Stream())) is None


def test_a_checkpoint_of_an_adapter_with_a_name_is_whole(tmp_path, capsys):
    trainer = made(tmp_path, adapter_name="sft")
    where_to_begin(trainer)
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    shutil.copytree(checkpoint, tmp_path / "checkpoint-2")
    shutil.copytree(checkpoint, tmp_path / "twice" / "checkpoint-2" / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "sft" / "adapter_model.safetensors").unlink()
    (tmp_path / "checkpoint-2" / "optimizer.pt").rename(tmp_path / "checkpoint-2" / "sft" / "optimizer.pt")
    assert checkpoint_problem(tmp_path / "checkpoint-2") == "adapter_model.safetensors is missing"
    shutil.copy(checkpoint / "sft" / "adapter_model.safetensors", tmp_path / "checkpoint-2" / "sft")
    assert checkpoint_problem(tmp_path / "checkpoint-2") == "optimizer.pt is missing" and checkpoint_problem(tmp_path / "twice" / "checkpoint-2")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert where_to_begin(made(tmp_path, adapter_name="sft")).endswith("checkpoint-2")
    assert "after step 2 of 4" in capsys.readouterr().out


def test_what_was_there_stays(tmp_path):
    (tmp_path / "model.part.zip").write_text("mine")
    with written_whole(tmp_path / "model.zip") as part:
        part.write_text("x")
    assert (tmp_path / "model.part.zip").read_text() == "mine"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1").write_text("x")
    (tmp_path / "a_previous").write_text("mine")
    for write in (lambda part: (part.mkdir(), (part / "b").write_text("x")), lambda part: part.write_text("x")):
        with pytest.raises(PermissionError, match="can't be replaced.*nothing is lost"), written_whole(tmp_path / "a") as part:
            write(part)
        assert (tmp_path / "a" / "1").read_text() == "x" and (tmp_path / "a_previous").read_text() == "mine"


@pytest.mark.parametrize(("config", "said"), [
    (Qwen3MoeConfig(num_hidden_layers=4, mlp_only_layers=[0, 1], hidden_size=64, intermediate_size=128, moe_intermediate_size=64, num_experts=8,
                    num_attention_heads=4, num_key_value_heads=2, vocab_size=256), "if all layers were as the first two"),
    (GPTNeoConfig(), "no causal language model can be built"), (Qwen2VLConfig(), "reads more than text"),
    (Qwen2VLConfig().get_text_config(), "no causal language model can be built"), ({"model_type": "llama"}, "of type dict"), (None, "of type NoneType")])
def test_what_can_not_be_predicted_is_a_sentence(config, said):
    for ask in (estimate_memory, check_fit):
        with pytest.raises(ValueError, match=said) as error:
            ask(config)
        assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_a_model_is_as_good_as_its_configuration():
    assert estimate_memory(base_model()) == estimate_memory(base_model().config)
