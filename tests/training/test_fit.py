"""The verdict, the advice and the picture of "Will it fit?"."""
import time

import matplotlib.pyplot as plt
import psutil
import pytest
import torch
from transformers import Gemma3Config, LlamaConfig, MixtralConfig, T5Config

from helpers.training.fit import PeakMemory, changes, check_fit, plot_fit, resident_bytes
from helpers.training.memory import estimate_memory

SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8000}
LARGE = LlamaConfig(**SHAPE, num_hidden_layers=12)
SMALL = LlamaConfig(**SHAPE, num_hidden_layers=2)
TINY = LlamaConfig(**SHAPE, num_hidden_layers=1)
SETTINGS = {"batch_size": 4, "length": 256, "method": "full"}


def total(config=LARGE, **change) -> int:
    return estimate_memory(config, **SETTINGS | change).total


def verdict(memory, **change) -> str:
    return check_fit(LARGE, memory, None, **SETTINGS | change).verdict


def test_fits_to_the_byte():
    assert verdict(total()).startswith("It fits")
    assert verdict(total() - 1).startswith("It does not fit")


@pytest.mark.parametrize(("change", "word"), [
    ({"batch_size": 1}, "batch size 1 with accumulation 4"), ({"checkpointing": True}, "checkpointing"), ({"method": "lora"}, "LoRA instead"),
    ({"length": 128}, "at most 128 tokens"), ({"dtype": torch.bfloat16}, "bfloat16"),
    ({"method": "qlora", "dtype": torch.bfloat16}, "QLoRA")])
def test_each_change_is_offered_as_it_is_computed(change, word):
    assert [offered for text, offered in changes(SETTINGS) if word in text] == [change]


@pytest.mark.parametrize("place", range(4))
def test_the_first_single_change_that_suffices_is_named_with_what_it_needs(place):
    memory = total(**changes(SETTINGS)[place][1])
    text, change = next((text, change) for text, change in changes(SETTINGS) if total(**change) <= memory)
    assert f"Cheapest change: {text}; then {total(**change) / 1e9:.1f} GB." in verdict(memory)


def test_offers_nothing_that_is_set_already():
    least = {"batch_size": 1, "length": 64, "method": "qlora", "dtype": torch.bfloat16, "checkpointing": True}
    assert changes(least) == []


def test_two_changes_where_one_is_not_enough_and_a_gpu_only_where_nothing_else_is():
    settings = {"batch_size": 2, "length": 64, "method": "lora"}
    on_cpu = [(text, change) for text, change in changes(settings) if "GPU" not in text]
    pair = min(estimate_memory(LARGE, **settings | a | b).total for _, a in on_cpu for _, b in on_cpu if a != b)
    text = check_fit(LARGE, pair, **settings).verdict
    assert text.count(" and ") == 1 and "QLoRA" not in text
    everything = estimate_memory(LARGE, **settings | {key: value for _, change in on_cpu for key, value in change.items()}).total
    assert "QLoRA (needs a GPU)" in check_fit(LARGE, everything - 1, **settings).verdict


def test_a_smaller_model_where_no_setting_helps_and_a_plain_word_where_nothing_does():
    settings = {"batch_size": 1, "length": 32, "method": "qlora", "dtype": torch.bfloat16, "checkpointing": True}
    room = estimate_memory(SMALL, **settings).total
    assert "largest model that fits is small:" in check_fit(LARGE, room, {"large": LARGE, "the tiniest": TINY, "small": SMALL}, **settings).verdict
    assert "Neither" in check_fit(LARGE, 1000, {"large": LARGE, "small": SMALL}, **settings).verdict
    settings = {"batch_size": 4, "length": 64, "method": "lora", "process_bytes": 0}
    room = estimate_memory(SMALL, **settings | {"batch_size": 1, "checkpointing": True, "dtype": torch.bfloat16}).total
    assert f"is small with all that saves memory on a CPU: {room / 1e9:.1f} GB." in check_fit(LARGE, room, {"small": SMALL}, **settings).verdict
    assert "Neither" in check_fit(LARGE, room - 1, {"small": SMALL}, **settings).verdict


def test_what_cannot_be_known_is_said():
    assert "nobody can predict" in verdict(10**12, method="qlora") and "nobody" not in verdict(10**12, method="lora")


def test_bars_follow_each_other_up_to_the_total():
    fit = check_fit(LARGE, 2 * 10**9, **SETTINGS)
    figure = plot_fit(fit)
    *parts, whole = figure.axes[0].patches
    ends = [bar.get_x() + bar.get_width() for bar in parts]
    assert [bar.get_x() for bar in parts] == pytest.approx([0, *ends[:-1]])
    assert ends[-1] == whole.get_width() == pytest.approx(fit.needs.total / 1e9)
    assert figure.axes[0].lines[0].get_xdata()[0] == pytest.approx(2.0)
    assert figure.axes[0].get_xlim()[1] > max(2.0, ends[-1])
    plt.close(figure)


@pytest.mark.parametrize("memory", [10**6, 10**9, 10**12])
@pytest.mark.parametrize("batch_size", [1, 2000])
def test_nothing_reaches_out_of_the_picture(memory, batch_size):
    figure = plot_fit(check_fit(LARGE, memory, **SETTINGS | {"batch_size": batch_size}))
    inside = figure.get_tightbbox()
    assert inside.x0 >= 0 and inside.y0 >= 0 and inside.x1 <= figure.get_figwidth() and inside.y1 <= figure.get_figheight()
    plt.close(figure)


def test_the_second_look_at_a_model_is_quick():
    check_fit(LARGE, 1000, **SETTINGS)
    start = time.process_time()
    check_fit(LARGE, 1000, **SETTINGS | {"batch_size": 3, "length": 512})
    assert time.process_time() - start < 0.2


@pytest.mark.parametrize(("config", "reason"), [
    (Gemma3Config(), r"gemma3 reads more than text: .* with config\.get_text_config\(\)"), (T5Config(), "t5 is no causal language model"),
    (MixtralConfig(num_hidden_layers=2, hidden_size=64, intermediate_size=64), "this model is a mixture of experts"),
    ("no/such folder", "no/such folder: no configuration can be read there")], ids=lambda value: type(value).__name__)
def test_what_no_memory_is_predicted_for_is_named(config, reason):
    with pytest.raises(ValueError, match=reason):
        check_fit(config, 10**9)


def test_a_number_format_may_be_given_by_its_name():
    assert check_fit(SMALL, 10**8, dtype="bfloat16") == check_fit(SMALL, 10**8, dtype=torch.bfloat16)


def test_what_this_process_holds_is_room_too():
    held, free = torch.ones(2 * 10**8), psutil.virtual_memory().available  # 0.8 GB
    assert resident_bytes() > held.nbytes
    assert abs(check_fit(SMALL).memory - free - resident_bytes()) < 0.4e9


@pytest.mark.parametrize(("settings", "reason"), [({"dtype": "bf16"}, 'dtype is .bf16.: give "float32"'), ({"dtype": "int8"}, "dtype is"), ({"supervised": 25}, "supervised is 25: give a share")])
def test_settings_that_mean_something_else_are_named(settings, reason):
    with pytest.raises(ValueError, match=reason):
        check_fit(SMALL, 10**9, **settings)


def test_a_watcher_that_was_added_twice_ends_once():
    watcher = PeakMemory()
    watcher.on_train_begin()
    watcher.on_train_end()
    watcher.on_train_end()
    assert watcher.peak_bytes > 0


def test_gigabytes_in_place_of_bytes_are_noticed():
    with pytest.raises(ValueError, match="memory is 16 bytes; if you mean 16 GB, write 16e9"):
        check_fit(SMALL, 16)
