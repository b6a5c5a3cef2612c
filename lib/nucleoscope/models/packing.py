"""Weights in the layout that a CPU multiplies with, so that they are not rearranged for every product.

Contract: a packed model computes what it computed before, up to the order of sums in float32, and whatever looks at its
weights finds them as they were. On a CPU, oneDNN multiplies by blocks of a weight. In bfloat16, torch's linear layer
rearranges the weight at each call, which takes a quarter to a half of the time of a product. In float32, it calls a
BLAS library instead, which takes up to twice as long on an AMD CPU for the few rows of a step. Here the blocks are made
once, and take the place of the weight. The two operations are those of `torch.compile` in bfloat16, and not part of
torch's public API: they are tried before anything is packed.
"""

import functools
import platform
from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nucleoscope.models import memory

# Bytes that the blocks of a weight may take beside it, if it is also that of another layer: an output layer often has
# the input embedding, whose rows are looked up. That is a tenth of what measuring a small model takes.
MOST_BESIDE = 2**27
ROWS = 32  # of the input that the layout is best for; any number gives the same results
# What multiplies in each data type, as torch calls it, one of which is enough; and the largest error of what is tried.
UNITS = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float32: ("avx2",)}
TOLERANCES = {torch.bfloat16: 0.01, torch.float32: 1e-5}


class PackedLinear(nn.Linear):
    """A linear layer whose weight is packed.

    Code that reads ``weight`` may do so at every step, or change it in place: the layer then becomes an ordinary one,
    for good. The same happens before it is copied, moved or converted, and when gradients are enabled. `read_weight`
    leaves it as it is, and so does a state dict, in which each weight is a copy. If the weight is also that of another
    layer, and is changed there, the packed one does not follow.
    """

    def read_weight(self) -> torch.Tensor:
        """The weight (out, in) as it was: that of the other layer if there is one, else a copy."""
        shared = self.__dict__["_shared"]
        if shared is not None:
            return shared.detach()
        with torch.inference_mode(False), torch.no_grad():
            return self.packed.detach().to_dense()

    def unpack(self) -> nn.Linear:
        """Makes it an ordinary layer."""
        weight, bias = self.__dict__["_shared"], self._parameters.pop("bias")
        if weight is None:
            weight = nn.Parameter(self.read_weight(), requires_grad=self.__dict__["_trains"])
        self.__class__ = nn.Linear
        del self.packed, self._shared, self._trains
        self.register_parameter("weight", weight)  # before the bias, as in any state dict
        self.register_parameter("bias", bias)
        return self

    @property
    def weight(self) -> nn.Parameter:
        return self.unpack().weight

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self.unpack()
        nn.Module.__setattr__(self, name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:  # to copy or pickle it
        return self.unpack().__reduce_ex__(protocol)

    def _apply(self, *arguments: Any, **options: Any) -> nn.Module:
        return self.unpack()._apply(*arguments, **options)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.unpack()._load_from_state_dict(*arguments)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.read_weight()
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or input.dtype != self.packed.dtype or input.device.type != "cpu":
            return nn.functional.linear(input, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")


def pack(model: PreTrainedModel) -> PreTrainedModel:
    """Packs, in place, the weights of a model's linear layers in the data types for which this is faster on this CPU.

    Returns the model. Layers with hooks or with a forward pass of their own stay as they are, and so does a model that
    takes more than half of the memory, however much of it is free: packed weights are not paged out to their file, as
    mapped ones are.
    """
    size = sum(weight.nbytes for weight in model.parameters())
    if size > memory.read_total() // 2:
        return model
    uses = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    found = False
    with torch.inference_mode(False), torch.no_grad():
        for module in model.modules():
            if _is_suitable(module) and _can_pack(module.weight.dtype):
                shared = uses[id(module.weight)] > 1
                if not shared or module.weight.nbytes <= MOST_BESIDE:
                    _pack_layer(module, shared)
                    found = True
        if found:
            _leave_file(model)
    return model


def _pack_layer(layer: nn.Linear, shared: bool) -> None:
    """Makes a linear layer a `PackedLinear`; the layer remains the same object, wherever it is used."""
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
    weight = layer._parameters.pop("weight")
    if shared:  # an addition, which is not counted among the weights
        layer.register_buffer("packed", packed, persistent=False)
    else:
        layer.register_parameter("packed", nn.Parameter(packed, requires_grad=False))
    # not as attributes, because the module would register the weight
    layer.__dict__.update(_shared=weight if shared else None, _trains=weight.requires_grad)
    layer.__class__ = PackedLinear


def _leave_file(model: PreTrainedModel) -> None:
    """Copies the other tensors: one that is mapped from a file keeps all of the file in memory."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.layout == torch.strided and tensor.device.type == "cpu" and type(tensor.data) is torch.Tensor:
            tensor.data = tensor.data.clone()


@functools.cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine multiplies in this type, is of a kind on which this was tried, and has both operations."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if platform.machine() not in ("x86_64", "AMD64") or not any(map(flags.get, UNITS.get(dtype, ()))):
        return False
    if dtype == torch.float32 and "AMD" not in flags.get("cpu_name", ""):  # torch's BLAS library is Intel's
        return False
    try:
        with torch.inference_mode():
            weight, x = (torch.arange(n * 64).remainder(17).view(n, 64).to(dtype) / 17 for n in (48, 3))
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
            found = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
            expected = nn.functional.linear(x.float(), weight.float())
            return torch.equal(packed.to_dense(), weight) and torch.allclose(found.float(), expected, TOLERANCES[dtype])
    except Exception:  # of a torch without oneDNN, or one that has changed them
        return False


def _is_suitable(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    weight = module.weight
    if type(weight) is not nn.Parameter:  # quantised, or distributed over processes
        return False
    return weight.device.type == "cpu" and weight.layout == torch.strided
