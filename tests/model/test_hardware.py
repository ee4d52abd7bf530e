import pytest
import torch
from trl import SFTConfig

from helpers.model import hardware


def test_describes_this_machine():
    table = hardware.describe_hardware()
    assert set(table) >= {"CPU cores", "memory", "free disk", "device", "precision"}
    assert int(table["CPU cores"]) >= 1
    assert all(isinstance(value, str) for value in table.values())


def test_trainer_accepts_the_precision(tmp_path):
    config = SFTConfig(str(tmp_path), **hardware.training_precision())
    assert not (config.bf16 and config.fp16)
    assert config.use_cpu == (hardware.best_device() == "cpu")


@pytest.mark.parametrize(("device", "speedup", "supported", "expected"), [
    ("cpu", 0.3, False, (False, False)),
    ("cpu", 2.0, False, (True, False)),
    ("mps", 2.0, False, (False, False)),
    ("cuda", 0.3, True, (True, False)),
    ("cuda", 2.0, False, (False, True)),
])
def test_precision_follows_what_is_fast(monkeypatch, device, speedup, supported, expected):
    monkeypatch.setattr(hardware, "best_device", lambda: device)
    monkeypatch.setattr(hardware, "bf16_speedup", lambda: speedup)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)
    precision = hardware.training_precision()
    assert (precision["bf16"], precision["fp16"]) == expected


def test_speedup_is_measured_in_the_right_direction(monkeypatch):
    hardware.bf16_speedup.cache_clear()
    monkeypatch.setattr(hardware, "matmul_seconds", {torch.float32: 3.0, torch.bfloat16: 1.0}.get)
    assert hardware.bf16_speedup() == 3.0
    hardware.bf16_speedup.cache_clear()


@pytest.mark.parametrize("labels", [[[-100, -100, 5, 6], [-100, 7, -100, -100]], [[-100] * 4] * 2, [[1, 2, 3, 4]] * 2])
def test_skipping_masked_positions_changes_neither_loss_nor_gradient(tmp_path, monkeypatch, labels):
    """TRL's own way, which scores every position on a CPU, is the oracle."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTTrainer
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    monkeypatch.setattr(hardware, "best_device", lambda: "cpu")
    original = chunked_logprob._use_triton

    def loss_and_gradient():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=50, pad_token_id=0, **sizes))
        rows = Dataset.from_list([{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}])
        config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
        trainer = SFTTrainer(model, SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none"), train_dataset=rows,
                             peft_config=config, processing_class=tokenizer_for(50))
        batch = {"input_ids": torch.tensor([[1, 2, 3, 4]] * 2), "labels": torch.tensor(labels), "attention_mask": torch.ones(2, 4)}
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return loss.item(), [p.grad.clone() for p in trainer.model.parameters() if p.requires_grad]

    monkeypatch.setattr(utils, "_use_triton", original)
    plain_loss, plain_gradient = loss_and_gradient()
    monkeypatch.setattr(utils, "_use_triton", original)  # undone after the test, also what the next line sets
    assert hardware.score_supervised_only()
    assert utils._use_triton(torch.device("cpu")), "the switch of this version of TRL is not the one that was checked"
    loss, gradient = loss_and_gradient()
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    for mine, plain in zip(gradient, plain_gradient, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)


def tokenizer_for(size):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({str(number): number for number in range(size)}, unk_token="1"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="2", unk_token="1")
