"""Captures a decoding step as a CUDA graph, so that the host launches it at once and not kernel by kernel.

Contract: a step is a function without arguments. It reads and writes tensors that stay where they are, does the same
if it is run twice, and returns a tensor. What must hold for a capture is found out before it, on any device.

A graph repeats the kernels of one run with the addresses and numbers that they had then. So

* all that changes from step to step must be in tensors: a Python number would be repeated as it was;
* the host must not wait for the device or read from it, because during a capture nothing is computed;
* every tensor that the step uses and did not allocate itself must live as long as the graph.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

StepFunction = Callable[[], torch.Tensor]

# Operators whose result, or its shape, the host must read; and methods of a tensor that read it.
READING = {"item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim"}
READING |= {"unique_consecutive", "bincount", "equal", "allclose"}
METHODS = {"item", "tolist", "numpy", "cpu", "__array__", "__bool__", "__int__", "__float__", "__index__"}


class NotCapturable(RuntimeError):
    """A step does what cannot be captured."""


class Recorder:
    """Captures steps on one device. Its graphs share their memory, so that only one may be in use at a time."""

    def __init__(self, device: torch.device):
        self.device, self.pool, self.stream = device, None, None

    def record(self, step: StepFunction) -> StepFunction | None:
        """A function that replays ``step``; None on a CPU, where steps are only checked.

        Each call returns a tensor of its own. Raises what the step raises, NotCapturable or, from torch, RuntimeError.
        """
        if self.device.type != "cuda":
            with refuse_reading():
                step()
            return None
        if self.pool is None:
            self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device)
        outside = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)  # the step reads what was written there
        try:
            # This block gives back the stream, which `torch.cuda.graph` does not do if a capture fails.
            with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
                step()  # libraries allocate and choose kernels the first time, which may wait for the device
                with _refuse_waiting():  # a capture that fails for this reason could leave torch's state damaged
                    step()
                graph = torch.cuda.CUDAGraph()
                # Another thread, such as a notebook's, may allocate memory meanwhile.
                with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                    result = step()
        finally:
            outside.wait_stream(self.stream)  # what follows writes to the same tensors

        def replay() -> torch.Tensor:
            graph.replay()
            return result.clone()  # the next replay, of this graph or another, writes over it

        return replay


@contextlib.contextmanager
def _refuse_waiting() -> Iterator[None]:
    """Has torch raise where the host would wait for a GPU."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@contextlib.contextmanager
def refuse_reading() -> Iterator[None]:
    """Raises NotCapturable within the block where a value is read from a tensor: the same as a GPU would refuse.

    In contrast to a capture, also for tensors on a CPU. There it notices neither a copy between devices nor what a
    kernel reads.
    """
    with _RefusedMethods(), _RefusedOperators():
        yield


class _RefusedMethods(TorchFunctionMode):
    """What Python asks of a tensor; some of it is answered without an operator."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in METHODS:
            raise NotCapturable(f"the host reads a tensor ({function.__name__})")
        return function(*args, **(kwargs or {}))


class _RefusedOperators(TorchDispatchMode):
    """What operators do themselves."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode, operators that consist of others arrive whole
            result = operator.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        name = operator.overloadpacket.__name__
        counts = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in READING or (counts and operator._overloadname == "Tensor") or _is_masked(name, args):
            raise NotCapturable(f"the host reads a tensor ({name})")
        return operator(*args, **(kwargs or {}))


def _is_masked(name: str, args: Any) -> bool:
    """Whether an index is a mask, of which the number of true values is counted."""
    indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
