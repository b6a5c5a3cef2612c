"""Which devices this machine certainly does not have, found out without torch.

Contract: importing this is quick and touches no GPU. What is not refused here may still be refused by torch,
which alone knows: see `placement.pick_device`.
"""

import importlib.metadata
import sys

from nucleoscope.models import gpus
from nucleoscope.settings import quote, validate


def check(device: str) -> None:
    """Raises ValueError, in one line, for a device that no run on this machine can use."""
    validate("device", device)
    kind, _, number = device.partition(":")
    why, remedy = None, ""
    if kind in ("cuda", "balanced", "xpu") and _is_cpu_build():
        why = "the installed torch is built for CPUs only"
        remedy = "install a CUDA build of torch, or " if kind != "xpu" and gpus.list_names() else ""
    elif kind in ("cuda", "balanced"):
        why = _explain_missing_gpu(number)
    elif kind == "mps" and sys.platform != "darwin":
        why = "mps needs a Mac"
    if why:
        raise ValueError(describe_unusable(device, why, remedy))


def describe_unusable(device: str, why: str, remedy: str = "") -> str:
    """A line for a device that this machine does not have; ``remedy``: what else can be done about it."""
    return f"device is {quote(device)}, which cannot be used on this machine: {why}; {remedy}use device=auto"


def _explain_missing_gpu(number: str) -> str | None:
    names = gpus.list_names()  # none where the GPUs are AMD's
    if names and number and int(number) >= len(names):
        return f"its GPUs are cuda:0 to cuda:{len(names) - 1}" if len(names) > 1 else "its only GPU is cuda:0"
    return None


def _is_cpu_build() -> bool:
    """Whether pip says that torch has no code for GPUs: the wheels for CPUs carry it in their version."""
    return importlib.metadata.version("torch").endswith("+cpu")
