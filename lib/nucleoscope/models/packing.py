"""Weights in the layout that a CPU multiplies with, so that they are not rearranged for every product.

Contract: a packed model computes what it computed before, up to the order of sums in float32, and its code sees the
weights that it had. On a CPU, oneDNN multiplies in bfloat16 by blocks of a weight, which torch's linear layer makes of
it anew at each call. That takes a third to a half of the time of a step. Here they are made once, and take the place of
the weight, so that a model needs no more memory. `torch.compile` uses the same two operations of torch.
"""

import platform
from collections import Counter

import torch
from torch import nn
from transformers import PreTrainedModel

# Bytes that the blocks of a weight may take beside it: that of an output layer is often the input embedding too, whose
# rows are looked up.
MOST_BESIDE = 2**27
ROWS = 32  # of the input for which blocks are chosen; other numbers have the same ones


class PackedLinear(nn.Linear):
    """Takes the place of a linear layer, with its weight packed.

    ``weight`` is the weight as it was. If it is read more than once, a model's code may read it at every step: the
    layer then becomes an ordinary one again. ``shared`` says that the weight is needed elsewhere too, and is kept.
    Gradients are those of an ordinary layer.
    """

    def __init__(self, linear: nn.Linear, shared: bool):
        nn.Module.__init__(self)  # not nn.Linear's, which creates a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.training = linear.training
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.packed = nn.Parameter(packed, requires_grad=False)
        # in a tuple, because the module would register it as its own
        self._dense = (linear.weight,) if shared else ()
        self._read_before = shared

    @property
    def weight(self) -> torch.Tensor:
        if self._dense:
            return self._dense[0]
        weight = self._unpack()
        if self._read_before:
            self._dense, self.packed = (weight,), None
        self._read_before = True
        return weight

    def _unpack(self) -> nn.Parameter:
        return nn.Parameter(self.packed.detach().to_dense(), requires_grad=False)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}packed", None)
        destination[f"{prefix}weight"] = (self._dense[0] if self._dense else self._unpack()).detach()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.packed is None or torch.is_grad_enabled():
            return super().forward(input)
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")


def pack(model: PreTrainedModel) -> PreTrainedModel:
    """Packs the weights of a model's linear layers in place if it is in bfloat16 on a CPU that multiplies in it.

    Returns the model. Layers with hooks, or with a forward pass of their own, stay as they are.
    """
    if not _can_pack():
        return model
    uses = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    packed: dict[nn.Module, PackedLinear] = {}
    with torch.inference_mode(False), torch.no_grad():
        for parent in list(model.modules()):
            for name, module in list(parent._modules.items()):  # a module that is used twice is there twice
                if module not in packed and _is_suitable(module):
                    shared = uses[id(module.weight)] > 1
                    if not shared or module.weight.nbytes <= MOST_BESIDE:
                        packed[module] = PackedLinear(module, shared)
                if module in packed:
                    setattr(parent, name, packed[module])
        if packed:
            _leave_file(model)
    return model


def _leave_file(model: PreTrainedModel) -> None:
    """Copies the weights that are left. They may be parts of a file in memory, all of which stays there until none is
    used any more."""
    for weight in model.parameters():
        if weight.layout == torch.strided and weight.device.type == "cpu":
            weight.data = weight.data.clone()


def _can_pack() -> bool:
    """Whether this machine multiplies in bfloat16, and is of a kind on which this was tried."""
    return platform.machine() in ("x86_64", "AMD64") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _is_suitable(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    if module._forward_hooks or module._forward_pre_hooks or nn.utils.parametrize.is_parametrized(module):
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.layout == torch.strided
