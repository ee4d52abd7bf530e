"""Predict the memory that a fine-tune takes on a CPU at its highest point, from the model's configuration alone."""
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from helpers import first_line
from helpers.adapter.size import linear_shapes, lora_size
from helpers.training.steps import check_above_zero

PROCESS_BYTES = 530_000_000  # Python with torch, transformers, peft, datasets and trl, measured on Linux
HEAD_CHUNK = 32_768  # TRL 1.16 scores this many tokens of the vocabulary at a time
HEAD_COPIES = 8  # float32 tables of that width that its backward pass holds at once
NF4_BYTES = 0.516  # 4 bits a number, and a doubly quantized factor for every 64 of them
# glibc seldom reuses a freed block for an aligned one of the same size. What it keeps so, measured with glibc 2.36, as a
# share of all layers' activations: at the end of the forward pass, and in the backward pass without checkpointing or with it
KEPT_FORWARD, KEPT_BACKWARD = 0.45, {False: 1.05, True: 0.85}
LARGE_BLOCK = 32 * 1024**2  # a block above this is given back to the system at once
METHODS = ("lora", "qlora", "full")
ALIKE = 0.05  # of the parameters: the layers of a model need not be alike to the last one


class MemoryEstimate(NamedTuple):
    """The bytes that a fine-tune holds at its highest point, by part; `total` is their sum."""

    process: int
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    allocator: int

    @property
    def total(self) -> int:
        """Return the sum of all parts."""
        return sum(self)


class _Sizes(NamedTuple):
    """What one model is made of: counts of numbers, and the bytes that autograd saves for a token and for a pair of tokens."""

    numbers: float
    quantizable: float
    trained: float
    saved_token: float
    saved_pair: float


def read_config(source):
    """Return the configuration from a config.json, a model folder or a hub id; one that is loaded already stays as it is."""
    from transformers import AutoConfig, PreTrainedConfig

    try:
        config = AutoConfig.from_pretrained(source) if isinstance(source, str | Path) else getattr(source, "config", source)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: no configuration can be read there ({first_line(error)}); give a config.json, a model's folder, "
                         "or its name on the hub") from error
    if not isinstance(config, PreTrainedConfig):
        raise ValueError(f"config is of type {type(config).__name__}; give a model's configuration, or where it lies")
    return config


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return the number format that a name such as "bfloat16" means; raise ValueError if there is none."""
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f'dtype is {dtype!r}: give "float32", "bfloat16" or "float16"')
    return found


def estimate_memory(
    config, *, method: str = "lora", target_modules: str | list[str] = "all-linear", r: int = 8, batch_size: int = 4,
    length: int = 64, supervised: float = 0.25, dtype: torch.dtype | str = torch.float32, checkpointing: bool = False,
    process_bytes: int = PROCESS_BYTES,
) -> MemoryEstimate:
    """Return the MemoryEstimate of training with SFTTrainer and AdamW on a CPU; no weights are loaded or fetched.

    config: a model's configuration, or where it lies; its layers are taken to be alike. length: tokens of the longest
    record; supervised: the share of all places that carries loss. "qlora" counts the layers in 4 bits; it needs a GPU,
    whose allocator is not in here, as little as the peak of loading in another format than the file's.
    Raises ValueError when a setting makes no sense, and for what is no dense causal language model of text alone.
    """
    check_above_zero(r=r, batch_size=batch_size, length=length, supervised=supervised)
    if supervised > 1:
        raise ValueError(f"supervised is {supervised}: give a share of all places, at most 1")
    if method not in METHODS:
        raise ValueError(f'method is "{method}": give one of {", ".join(METHODS)}')
    config, dtype = read_config(config), as_dtype(dtype)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{config.model_type} is no causal language model: its memory can't be predicted here")
    if config.get_text_config() is not config:
        raise ValueError(f"{config.model_type} reads more than text: its memory can't be predicted here; that of its language part alone can for some, "
                         "with config.get_text_config()")
    text = json.dumps(config.to_dict(), default=str, sort_keys=True)
    targets = target_modules if isinstance(target_modules, str) else tuple(target_modules or ())
    if not targets:
        raise ValueError('target_modules names no layer: give "all-linear" or a list of names')
    one, two = (_measure(text, count, method, targets, r, dtype) for count in (1, 2))
    layer = _Sizes(*(b - a for a, b in zip(one, two, strict=True)))
    whole = _Sizes(*(a + (config.num_hidden_layers - 1) * b for a, b in zip(one, layer, strict=True)))
    numbers = _numbers(text, config.num_hidden_layers, dtype)
    if abs(whole.numbers / numbers - 1) > ALIKE:
        raise ValueError(f"{config.model_type}: its memory can't be predicted: it has {numbers:,} parameters, and {round(whole.numbers):,} if all "
                         "layers were as the first two")

    width, tokens, pairs = dtype.itemsize, batch_size * length, batch_size * length**2
    trained_width = 4 if method == "lora" else width  # PEFT keeps an adapter in float32, TRL that of QLoRA in bfloat16
    quantized = whole.quantizable if method == "qlora" else 0
    all_layers, one_layer = (part.saved_token * tokens + part.saved_pair * pairs for part in (whole, layer))
    saved = width * config.hidden_size * config.num_hidden_layers * tokens if checkpointing else all_layers
    logits = _head_bytes(config, max(1, round(supervised * tokens)), width)
    backward = 8 * (config.hidden_size + getattr(config, "intermediate_size", 0)) * tokens + checkpointing * one_layer
    activations = saved + max(0, backward - logits)  # the head is done when the layers begin
    gradients = trained_width * whole.trained
    if method == "full":  # the gradients come while the activations go, so the peak is at one end of the backward pass
        table = config.vocab_size * config.hidden_size
        twice = width * table * config.tie_word_embeddings  # a table used at both ends gets two gradients, then their sum
        first, last = (4 * table, activations, logits), (gradients + twice, one_layer, 0)
        gradients, activations, logits = max(first, last, key=sum)
    kept = _kept_bytes(config, all_layers, width * tokens)
    return MemoryEstimate(*map(round, (
        process_bytes, width * (whole.numbers - quantized) + NF4_BYTES * quantized,
        0 if method == "full" else trained_width * whole.trained, gradients, 2 * trained_width * whole.trained,
        activations, logits, max(KEPT_FORWARD * kept, KEPT_BACKWARD[checkpointing] * kept - logits))))


def _kept_bytes(config, all_layers: float, column: int) -> float:
    """Return how much of all layers' activations lies in blocks that the C library keeps; column: bytes for a width of 1."""
    mlp = getattr(config, "intermediate_size", 0) * column
    if config.hidden_size * column > LARGE_BLOCK:
        return 0
    return all_layers - 3 * config.num_hidden_layers * mlp * (mlp > LARGE_BLOCK)


def _head_bytes(config, scored: int, width: int) -> int:
    """Return the bytes of TRL's loss head for that many scored tokens; from two-byte weights it makes float32 copies."""
    chunk = min(config.vocab_size, HEAD_CHUNK)
    tables = HEAD_COPIES * 4 * scored * chunk
    return tables if width == 4 else max(tables, 6 * scored * chunk + 4 * chunk * config.hidden_size)


def _build(text: str, layers: int, dtype: torch.dtype):
    """Return a model with so many layers on the device `meta`, where tensors have shapes and no numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = json.loads(text) | {"num_hidden_layers": layers}
    if values.get("layer_types"):
        values["layer_types"] = (values["layer_types"] + values["layer_types"][-1:])[:layers]  # two of a model that has one
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), dtype=dtype)
    except Exception as error:  # there is no list of what a configuration refuses
        raise ValueError(f"{values['model_type']}: its memory can't be predicted, since no causal language model can be built of so many layers "
                         f"({first_line(error):.200})") from error


@lru_cache(maxsize=1024)
def _numbers(text: str, layers: int, dtype: torch.dtype) -> int:
    return _build(text, layers, dtype).num_parameters()


@lru_cache(maxsize=1024)
def _measure(text: str, layers: int, method: str, targets: str | tuple[str, ...], r: int, dtype: torch.dtype) -> _Sizes:
    """Build the first layers of the model, and count."""
    from peft import LoraConfig, get_peft_model

    model, targets = _build(text, layers, dtype), targets if isinstance(targets, str) else list(targets)
    with torch.device("meta"):
        numbers, shapes = model.num_parameters(), linear_shapes(model)
        trained = numbers
        if method != "full":
            trained = lora_size(shapes, r, r, targets).parameters
            lora = LoraConfig(r=r, target_modules=targets, task_type="CAUSAL_LM")
            model = get_peft_model(model, lora).get_base_model()
            model = model.to(dtype) if method == "qlora" else model
    short, long = _saved_bytes(model.train(), 64), _saved_bytes(model, 128)
    pair = (long - 2 * short) / (128**2 - 2 * 64**2)
    return _Sizes(numbers, sum(map(math.prod, shapes.values())), trained, short / 64 - 64 * pair, pair)


def _saved_bytes(model, length: int) -> int:
    """Return the bytes that autograd saves in the forward pass of one record with padding, the parameters left out."""
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage  # held here, so that no other storage gets its address
        return tensor

    tokens = torch.zeros(1, length, dtype=torch.long, device="meta")
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device="meta")
    try:
        with _FlashAttention(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model.base_model(input_ids=tokens, attention_mask=mask, position_ids=tokens, use_cache=False)
    except Exception as error:  # a mixture of experts, for instance, asks the numbers where to go, and here are none
        raise ValueError(f"{model.config.model_type}: its memory can't be predicted without its weights ({first_line(error)}); this is possible "
                         "for models of which every layer takes part in every token") from error
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    return sum(storage.nbytes() for address, storage in saved.items() if address not in own)


class _FlashAttention(TorchFunctionMode):
    """Take for attention the operator that a CPU takes; on the device `meta` PyTorch would choose a larger one."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not torch.nn.functional.scaled_dot_product_attention:
            return function(*args, **kwargs)
        mask = torch.empty_like(kwargs["attn_mask"], dtype=args[0].dtype)  # the operator takes it as numbers
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3], attn_mask=mask)[0]
