"""Look at the LoRA layers of a model, and switch or merge them for a moment, leaving no trace."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer


def lora_layers(model) -> dict[str, LoraLayer]:
    """Return the LoRA layers of a PeftModel by name; raise ValueError if there are none or if they are merged."""
    if not isinstance(model, PeftModel):
        raise ValueError(f"this {type(model).__name__} is no PeftModel; pass trainer.model, PeftModel.from_pretrained(base, folder), "
                         "or the folder of a saved adapter with base=")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer) and module.lora_A}
    if not layers:
        raise ValueError("this PeftModel has no LoRA layers; only LoRA adapters can be examined here")
    if any(layer.merged for layer in layers.values()):
        raise ValueError("the adapter is merged into the base weights at present; call model.unmerge_adapter() first")
    return layers


def relative_update(layer: LoraLayer) -> float:
    """Return norm(scaling * B @ A) / norm(W) of the adapters in use (Frobenius norms).

    The product, as large as W, is not formed: norm(B @ A)² is the sum of (BᵀB) * (AAᵀ), two matrices of r x r.
    """
    names = [name for name in layer.active_adapters if name in layer.lora_A] or list(layer.lora_A)
    a = torch.cat([layer.lora_A[name].weight.detach().double().flatten(1) for name in names])
    b = torch.cat([layer.scaling[name] * layer.lora_B[name].weight.detach().double().flatten(1) for name in names], dim=1)
    squared = ((b.T @ b) * (a @ a.T)).sum().clamp(min=0)
    return (squared.sqrt() / layer.get_base_layer().weight.detach().float().norm()).item()


@contextmanager
def left_as_found(model) -> Iterator[None]:
    """Put back, at the end, what may be trained, what is in training mode and which adapters are switched on."""
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    switches = [(module, not module.disable_adapters) for module in model.modules() if isinstance(module, LoraLayer)]
    try:
        yield
    finally:
        for layer, was_on in switches:
            layer.enable_adapters(was_on)  # this changes requires_grad, so that comes after it
        for parameter, was_trainable in trainable:
            parameter.requires_grad_(was_trainable)
        for module, was_training in modes:
            module.training = was_training


@contextmanager
def merged(model) -> Iterator[None]:
    """Let a model whose adapters are off compute with W + scaling * B @ A, as a merged model does.

    Each layer gets a merged copy of its weight while it computes, and then its own back, which is never written to: no
    rounding is left behind, and no more than one layer's copy is held at a time.
    """
    with ExitStack() as stack:
        for layer in lora_layers(model).values():
            weight = layer.get_base_layer().weight
            stack.callback(setattr, weight, "data", weight.data)  # also after an error
            before, after = _swapping(layer, weight)
            stack.callback(layer.get_base_layer().register_forward_pre_hook(before).remove)
            stack.callback(layer.get_base_layer().register_forward_hook(after).remove)
        yield


def _swapping(layer: LoraLayer, weight: torch.nn.Parameter):
    """Return two hooks: one puts the merged weight in, one puts the layer's own back."""
    own = weight.data

    def before(module, inputs):
        weight.data = own + sum(layer.get_delta_weight(name) for name in layer.active_adapters if name in layer.lora_A).to(own.dtype)

    def after(module, inputs, output):
        weight.data = own

    return before, after
