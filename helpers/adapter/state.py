"""Look at what an adapter holds, and at how far it moved, on a copy that shares the memory of the model's weights."""
import contextlib
import copy
import functools
from collections import OrderedDict
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

from helpers.model.weights import as_stored, four_bit_layers, plain_name

FROM_ZERO = (True, "gaussian", "eva")  # init_lora_weights with which B is zero at first, and the base weights are as they were
ROUNDED = torch.finfo(torch.bfloat16).eps  # of a number: what 16 bits may round away
adapter_tensors = functools.partial(get_peft_model_state_dict, save_embedding_layers=False)  # all that PEFT saves, by the names in the file


def only_lora(config: PeftConfig | PeftModel, what: str = "this adapter") -> None:
    """Raise ValueError for an adapter of another kind; some of them, as AdaLoRA, are built of LoRA layers and begin otherwise."""
    if config.peft_type != PeftType.LORA:
        raise ValueError(f"{what} is of the kind {getattr(config.peft_type, 'value', None)}; only LoRA adapters can be examined here")


def lora_layers(model) -> dict[str, LoraLayer]:
    """Return the LoRA layers of a PeftModel by name; raise ValueError if there are none or if they are merged."""
    if not isinstance(model, PeftModel):
        raise ValueError(f"this {type(model).__name__} is no PeftModel; pass trainer.model, PeftModel.from_pretrained(base, folder), "
                         "or the folder of a saved adapter with base=")
    only_lora(model)
    layers = {name: module for name, module in model.named_modules()
              if isinstance(module, LoraLayer) and (module.lora_A or module.lora_embedding_A)}
    if not layers:
        raise ValueError("this PeftModel has no LoRA layers; only LoRA adapters can be examined here")
    if any(layer.merged for layer in layers.values()):
        raise ValueError("the adapter is merged into the base weights at present; call model.unmerge_adapter() first")
    return layers


def copy_of(model, written=()):
    """Return a copy that shares the memory of the model's weights, but for the base weights named in `written`.

    In it, layers may be switched and merged, and an adapter that writes into these weights may be loaded: PEFT's safe
    merge gives a layer a new weight. A forward that someone put on a module is left out, TRL's calls the first model, and
    so are hooks, which may write down what they see.
    """
    memo = {id(buffer): buffer for buffer in model.buffers()}
    for name, weight in model.named_parameters():
        if type(weight) is torch.nn.Parameter and plain_name(name) not in written:  # packed ones are small, and some are packed anew when they are used
            memo[id(weight)] = torch.nn.Parameter(weight.detach(), weight.requires_grad)
    memo |= {id(hooks): OrderedDict() for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)}
    made = copy.deepcopy(model, memo)
    as_stored(made)
    for layer in four_bit_layers(made):
        layer.support_avx512bf16_for_cpu = False  # nor rearranged again: PEFT would misread it
    for module in made.modules():
        if "forward" in vars(module) and not isinstance(module.forward, functools.partial) and not hasattr(module, "_orig_mod"):  # a partial moves data between devices
            del module.forward
    return made


def holds(layer: LoraLayer, adapters) -> list[str]:
    """Return which of the adapters have a part in this layer."""
    return [name for name in adapters if name in layer.lora_A or name in layer.lora_embedding_A]


def only_magnitudes(layer: LoraLayer, name: str) -> bool:
    """Say whether this is a DoRA layer whose B is zero and whose magnitudes are 16-bit numbers: what they change may be rounding."""
    if name not in layer.lora_magnitude_vector or (layer.lora_B[name].weight if name in layer.lora_B else layer.lora_embedding_A[name]).any():
        return False
    sizes = layer.lora_magnitude_vector[name].weight.float()
    return any(torch.equal(sizes, sizes.to(dtype).float()) for dtype in (torch.bfloat16, torch.float16))


def relative_update(layer: LoraLayer, adapters) -> float:
    """Return the Frobenius norm of the change that these adapters make to a weight, over the norm of the weight unless that is 0."""
    parameters = layer.get_base_layer()._parameters
    packed = dict(parameters)  # PEFT puts a new weight in place of an 8-bit one; a layer that has computed once fails with the new one
    weight = (layer.get_param() if hasattr(layer, "get_param") else dequantize_module_weight(layer.get_base_layer())).detach()
    change = torch.zeros_like(weight, dtype=torch.float32)
    for name in holds(layer, adapters):
        if name in layer.lora_magnitude_vector or type(layer.lora_variant.get(name)).__name__.startswith("Kasa"):  # DoRA scales each row of the sum, KaSA the ranks
            moved = layer.lora_variant[name].merge_safe(layer, name, weight.clone()).float() - weight.float()
            if not only_magnitudes(layer, name) or (moved.abs() > ROUNDED * weight.float().abs()).any():
                change += moved
        else:
            change += layer.get_delta_weight(name).detach().float()
    parameters.update(packed)
    return change.norm().item() / (weight.float().norm().item() or 1)


def update_sizes(model, adapters) -> dict[str, float]:
    """Return the relative size of the change to each adapted layer, retrained module and set of single tokens, by name."""
    sizes = {}
    for name, layer in lora_layers(model).items():
        if holds(layer, adapters):
            name = plain_name(name)
            sizes[f"{name}.{layer.parameter_name}" if name in sizes else name] = relative_update(layer, adapters)  # two parameters of one module (experts)
    for name, module in model.named_modules():
        pairs = []  # of a tensor that is trained and the one in whose place it is
        if isinstance(module, ModulesToSaveWrapper):
            pairs = [(new, old) for key in module.active_adapters if key in module.modules_to_save
                     for new, old in zip(module.modules_to_save[key].parameters(), module.original_module.parameters(), strict=True)]
        elif isinstance(module, TrainableTokensWrapper) and not module.token_adapter.tied_adapter:
            trained, first = module.token_adapter.trainable_tokens_delta, module.token_adapter.trainable_tokens_original
            pairs = [(trained[key], first[key]) for key in trained if key in adapters]
        if pairs:  # else it is of another adapter; on the CPU, for MPS has no float64
            sides = zip(*pairs, strict=True)
            new, old = (torch.cat([part.detach().cpu().double().flatten() for part in side]) for side in sides)
            sizes[plain_name(name)] = (new - old).norm().item() / (old.norm().item() or 1)
    return sizes


def as_saved(model, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a file's tensors by the names that PEFT saves: on loading it renames those of state_dict(), and renames and joins older ones.

    What it would not load keeps its name. Nothing is loaded: only what PEFT would hand to load_state_dict is looked at.
    """
    weights = model.state_dict()
    for name in model.peft_config:
        taken = {}
        model.load_state_dict = lambda state, taken=taken, **_: taken.update(state)
        with contextlib.suppress(LookupError, ValueError, RuntimeError):  # a part is missing, so that PEFT does not load it at all
            set_peft_model_state_dict(model, tensors, name)
        del model.load_state_dict
        saved = {id(weight): key for key, weight in adapter_tensors(model, adapter_name=name, state_dict=weights).items()}
        tensors = {saved.get(id(weights.get(key)), key): tensor for key, tensor in taken.items()} or tensors
    return tensors


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return what the file of a saved adapter holds; raise ValueError if there is none or if it is not whole."""
    if not any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):  # else PEFT asks the hub
        raise ValueError(f"{folder}: adapter_model.safetensors is missing; save the adapter again with save_model")
    try:
        tensors = load_peft_weights(str(folder), device="cpu")  # the older .bin too, of which nothing but tensors is taken
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise ValueError("something else than tensors")
    except MemoryError:
        raise
    except Exception as error:  # there is no list of what reading a damaged file raises
        raise ValueError(f"{folder}: the adapter's weights are not whole; save the adapter again with save_model") from error
    if not all(tensor.numel() for tensor in tensors.values()):
        raise ValueError(f"{folder}: the file holds empty placeholders, as DeepSpeed ZeRO-3 leaves them; gather the weights when saving: set "
                         "stage3_gather_16bit_weights_on_model_save in its configuration to true")
    return tensors
