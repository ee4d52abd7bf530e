"""PeakMemory against allocations of a known size, and estimate_memory against real models and real training."""

import platform
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from memory_benchmark import SETTINGS, measure, predict
from notebook_tools import ROOT
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Trainer,
    TrainingArguments,
)

from helpers.training.fit import PeakMemory, resident_bytes
from helpers.training.memory import estimate_memory

pytestmark = pytest.mark.slow
MB = 1024**2


@pytest.fixture
def measured():
    """Call a function in a process of its own: here, memory that earlier tests gave back would serve it without growth."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        yield lambda function, *values: process.submit(function, *values).result()


def hold(megabytes: int) -> None:
    """Fill that much memory, keep it a moment, give it back."""
    block = b"x" * (megabytes * MB)
    time.sleep(0.1)
    assert len(block) == megabytes * MB


def watch(megabytes: int) -> tuple[int, int, int, int]:
    """Hold that much while a PeakMemory watches; return start, peak, growth and what is left afterwards, in bytes."""
    with PeakMemory() as memory:
        hold(megabytes)
        after = resident_bytes()
    return memory.start_bytes, memory.peak_bytes, memory.growth_bytes, after


def test_growth_is_what_was_allocated_although_it_is_given_back_before_the_end(measured):
    start, peak, growth, after = measured(watch, 200)
    assert 180 * MB < growth < 260 * MB and peak == start + growth
    assert peak - after > 150 * MB


def test_nothing_allocated_is_next_to_no_growth(measured):
    _, _, growth, _ = measured(watch, 0)
    assert 0 <= growth < 20 * MB


def grow_between_looks() -> tuple[int, int]:
    """Return the growth that is seen inside and after a block which ends before the first look of the watching thread."""
    with PeakMemory(interval=60) as memory:
        block = b"x" * (100 * MB)
        inside = memory.growth_bytes
    assert block.endswith(b"x")
    return inside, memory.growth_bytes


def test_last_look_sees_a_block_shorter_than_the_interval(measured):
    inside, after = measured(grow_between_looks)
    assert inside < 20 * MB and after > 80 * MB


def grow_while_watched() -> int:
    """Return the growth that is seen while the block still runs."""
    with PeakMemory() as memory:
        block = b"x" * (100 * MB)
        time.sleep(0.2)
        assert block.endswith(b"x")
        return memory.growth_bytes


def test_peak_is_readable_while_the_block_runs(measured):
    assert measured(grow_while_watched) > 80 * MB


def test_an_error_passes_through_and_the_thread_ends():
    before = threading.active_count()
    with pytest.raises(KeyError), PeakMemory():
        raise KeyError("the learner's own error")
    assert threading.active_count() == before


def grow_twice() -> list[int]:
    """Return the growth of two blocks that one watcher sees, one after the other."""
    memory, growth = PeakMemory(), []
    for megabytes in (100, 200):
        with memory:
            hold(megabytes)
        growth.append(memory.growth_bytes)
    return growth


def test_one_watcher_serves_several_blocks(measured):
    first, second = measured(grow_twice)
    assert 80 * MB < first < 140 * MB and 180 * MB < second < 240 * MB


def test_one_watcher_does_not_serve_nested_blocks():
    memory = PeakMemory()
    with memory, pytest.raises(RuntimeError, match="already watching"):
        memory.__enter__()


def test_as_a_callback_it_watches_while_a_trainer_trains(tmp_path):
    """Also again after a training that was interrupted, at whose end the trainer calls nobody."""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2))
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 4
    memory, before = PeakMemory(), threading.active_count()
    args = TrainingArguments(str(tmp_path), max_steps=2, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True)
    memory.on_train_begin()
    Trainer(model, args, train_dataset=rows, callbacks=[memory]).train()
    assert memory.peak_bytes >= memory.start_bytes > 50 * MB and threading.active_count() == before


@pytest.mark.parametrize("interval", [0, -1, float("nan")])
def test_an_interval_that_is_no_time_is_refused(interval):
    with pytest.raises(ValueError, match="more than 0"):
        PeakMemory(interval=interval)


SMALL = {"hidden_size": 24, "intermediate_size": 56, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 6, "vocab_size": 4000}
SHAPES = {"llama": LlamaConfig(**SMALL, tie_word_embeddings=True), "qwen3": Qwen3Config(**SMALL, tie_word_embeddings=False)}
QWEN = sorted((ROOT / "data" / "model_configs").glob("*.json"))


@pytest.fixture(params=SHAPES)
def config(request):
    return SHAPES[request.param]


def size_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_parts_are_those_of_a_real_training_step(config, method, dtype):
    config = type(config)(**SMALL | {"vocab_size": 200}, tie_word_embeddings=config.tie_word_embeddings)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
    weights = size_of(model.parameters())
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    tokens = torch.arange(80).reshape(2, 40)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    needs = estimate_memory(config, method=method, r=4, target_modules=["q_proj", "down_proj"], batch_size=1, length=2,
                            dtype=dtype)
    assert needs.weights == weights
    assert needs.optimizer == size_of(t for state in optimizer.state.values() for t in state.values() if t.dim())
    if method == "lora":
        assert needs.adapter == size_of(trained) and needs.gradients == size_of(parameter.grad for parameter in trained)
    else:  # a table that is used at both ends gets a second gradient for a moment
        assert needs.adapter == 0
        second = size_of([model.get_input_embeddings().weight]) if config.tie_word_embeddings else 0
        assert needs.gradients == size_of(parameter.grad for parameter in trained) + second


@pytest.mark.parametrize(("method", "dtype"), [("lora", torch.float32), ("lora", torch.bfloat16), ("qlora", torch.bfloat16), ("full", torch.float32)])
@pytest.mark.parametrize(("batch_size", "length"), [(2, 40), (3, 200)])
def test_activations_are_what_autograd_saves_on_the_cpu(config, method, dtype, batch_size, length):
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
    if method != "full":
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")).get_base_model()
    if method == "qlora":  # TRL turns its adapter into the format of the base
        model = model.to(dtype)
    own, saved = {p.data_ptr() for p in model.parameters()}, {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mask = torch.ones(batch_size, length, dtype=torch.long)
    mask[-1, length // 2:] = 0
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.base_model(input_ids=torch.ones_like(mask), attention_mask=mask, use_cache=False)
    real = sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in own)
    # scored at so many places that the head's memory covers what the layers need after it
    needs = estimate_memory(config, method=method, dtype=dtype, batch_size=batch_size, length=length, supervised=1)
    assert needs.logits and needs.activations == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("path", QWEN, ids=lambda path: path.stem)
def test_weights_of_a_described_model_are_those_of_the_whole_model(path):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    needs = estimate_memory(path, dtype=torch.bfloat16)
    assert needs.weights == 2 * model.num_parameters()
    assert float(path.stem.split("-")[1].rstrip("B")) * 1e9 == pytest.approx(model.num_parameters(), rel=0.03)


def test_more_work_needs_more_and_savings_save(config):
    def total(**settings):
        return estimate_memory(config, **settings).total

    assert total() < total(batch_size=8) < total(batch_size=8, length=256) < total(batch_size=8, length=256, supervised=1)
    assert total(checkpointing=True) < total() and total(dtype=torch.bfloat16) < total()
    assert total(r=2) < total(r=64) and total(target_modules=["v_proj"]) < total()
    assert total(process_bytes=0) == total(process_bytes=10**9) - 10**9


@pytest.mark.parametrize("path", QWEN, ids=lambda path: path.stem)
def test_qlora_needs_less_than_lora_and_lora_less_than_all(path):
    qlora, lora, full = (estimate_memory(path, method=method, dtype=torch.bfloat16).total for method in ("qlora", "lora", "full"))
    assert qlora < 0.8 * lora and lora < 0.8 * full


def test_checkpointing_keeps_one_number_list_a_layer_and_token(config):
    needs = estimate_memory(config, checkpointing=True, supervised=0.9)
    assert needs.activations == 4 * config.num_hidden_layers * config.hidden_size * 4 * 64


def test_with_few_scored_places_checkpointing_still_needs_one_whole_layer(config):
    few = {"supervised": 0.001, "batch_size": 8, "length": 128}
    kept, all_layers = (estimate_memory(config, checkpointing=on, **few).activations for on in (True, False))
    assert all_layers / config.num_hidden_layers < kept < 0.6 * all_layers


def growth_of_the_head(dtype: torch.dtype, scored: int, width: int) -> int:
    """Return the bytes that scoring that many places with TRL's chunked head takes, forward and backward."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def score(scored: int) -> None:
        hidden = torch.ones(scored, width, dtype=dtype, requires_grad=True)
        scores = ChunkedLogProbFunction.apply(hidden, table, None, torch.zeros(scored, dtype=torch.long), 1.0, 32_768)
        scores[0].sum().backward()

    table = torch.ones(32_768, width, dtype=dtype)
    score(1)  # what a process loads for its first step is there before
    with PeakMemory(interval=0.001) as memory:
        score(scored)
    return memory.growth_bytes


@pytest.mark.parametrize(("dtype", "scored", "width"), [(torch.float32, 300, 512), (torch.bfloat16, 20, 2048)])
def test_logits_are_what_the_head_of_trl_takes(measured, dtype, scored, width):
    config = LlamaConfig(**SMALL | {"vocab_size": 32_768, "hidden_size": width})
    needs = estimate_memory(config, batch_size=1, length=scored, supervised=1, dtype=dtype)
    assert measured(growth_of_the_head, dtype, scored, width) == pytest.approx(needs.logits, rel=0.15)


def test_large_blocks_are_given_back():
    wide = LlamaConfig(**SMALL | {"hidden_size": 1024, "intermediate_size": 16_384})  # the MLP's blocks reach 32 MiB at 512 tokens
    below, above, all_above = (estimate_memory(wide, batch_size=1, length=length, supervised=0.01).allocator for length in (512, 513, 8193))
    assert all_above == 0 < above < 0.6 * below


@pytest.mark.parametrize(("settings", "message"), [
    ({"batch_size": 0}, "batch_size is 0"), ({"length": -1}, "length is -1"), ({"r": 0}, "r is 0"), ({"supervised": 0}, "supervised is 0"),
    ({"method": "Lora"}, "one of lora, qlora, full"), ({"target_modules": ["q_porj"]}, "q_porj")])
def test_settings_that_make_no_sense_are_refused(config, settings, message):
    with pytest.raises(ValueError, match=message):
        estimate_memory(config, **settings)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the estimate was measured with glibc, as on Linux")
@pytest.mark.parametrize("name", ["default, 4 x 64", "default, 8 x 64, checkpointing"])
def test_a_real_training_takes_what_was_predicted(name):
    """Within 15 %: one and the same training takes 1.89 to 2.04 GB on an Intel processor with AMX, and less on AMD's (1.79 predicted)."""
    predicted, measured = predict(SETTINGS[name]).total, measure(SETTINGS[name])
    assert predicted == pytest.approx(measured, rel=0.15), f"predicted {predicted / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB"
