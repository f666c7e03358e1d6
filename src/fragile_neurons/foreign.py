"""Networks from elsewhere: what is unwrapped, what is refused, and how outputs become logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fragile_neurons.errors import InputError

WRAPPERS = {
    "torch.compile": ("OptimizedModule", "_orig_mod"),
    "DataParallel": ("DataParallel", "module"),
    "DistributedDataParallel": ("DistributedDataParallel", "module"),
}


def unwrap(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The network inside torch.compile, DataParallel and their like, and the names of what was taken off."""
    notes = []
    while found := next(
        (name for name, (kind, _) in WRAPPERS.items() if type(module).__name__ == kind), None
    ):
        module = getattr(module, WRAPPERS[found][1])
        notes.append(found)
    return module, tuple(notes)


def refuse_unusable(module: nn.Module) -> None:
    """Raise an InputError for a network whose channels cannot be met one by one, or without values."""
    for name, submodule in module.named_modules():
        where = f"{name or 'the network'}: {type(submodule).__name__}"
        if isinstance(submodule, torch.jit.ScriptModule):
            _refuse("is TorchScript", where, "eager modules", "load the original Python class instead")
        home = type(submodule).__module__
        if home.startswith("torch.") and "quantized" in home:
            _refuse("is quantised", where, "float32 modules", "load the network from before quantisation")
        if "FullyShardedDataParallel" in type(submodule).__name__ or "FSDP" in type(submodule).__name__:
            _refuse("is sharded over processes", where, "a whole network", "load its full state dict")
        if getattr(submodule, "_compiled_call_impl", None) is not None:
            _refuse("was compiled in place", where, "eager modules", "load it again without .compile()")
        if type(submodule).__name__ == "OptimizedModule" or hasattr(
            submodule.forward, "_torchdynamo_orig_callable"
        ):
            _refuse(
                "is compiled in part", where, "eager modules", "leave torch.compile out where it is built"
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            _refuse("has weights without a shape yet", name, "weights", "pass one batch through it first")
        if tensor.is_meta:
            _refuse("has weights without values", f"{name} on the meta device", "weights", "load its weights")
        if tensor.is_quantized:
            _refuse("is quantised", name, "float32 weights", "load the network from before quantisation")
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.float32:
            _refuse(
                "is not in single precision",
                f"{name}: {tensor.dtype}",
                "torch.float32, as images and attacks are; in half precision gradients vanish",
                "call .float() on it" if tensor.is_floating_point() else "use a network of real weights",
            )


def logits_of(output: object) -> torch.Tensor:
    """The logits in what a network returns; raises InputError where no rule finds them.

    A tensor is the logits. Of anything else: its `logits` (an attribute, or a key, as in Hugging
    Face's ModelOutput); else the first element of a tuple or list; else the value of a mapping that
    has only one.
    """
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return logits_of(output["logits"])
    if hasattr(output, "logits"):
        return logits_of(output.logits)
    if isinstance(output, (tuple, list)) and output:
        return logits_of(output[0])
    if isinstance(output, Mapping) and len(output) == 1:
        return logits_of(next(iter(output.values())))
    keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) and output else ""
    raise InputError(
        "the network does not return logits",
        given=f"{type(output).__name__}{keys}",
        allowed="a tensor (n, classes); something with `logits`; a tuple that begins with them",
        fix="wrap the network so that it returns its logits alone",
    )


def _refuse(problem: str, given: str, allowed: str, fix: str) -> None:
    raise InputError(f"the network {problem}", given=given, allowed=allowed, fix=fix)
