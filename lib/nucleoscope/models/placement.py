"""Where a model is put: on the freest GPU, on several where one is too small, or on the CPU.

Contract: nothing here knows models' names or files. torch shows the GPUs that
``CUDA_VISIBLE_DEVICES`` names and no others, so that choice is always kept. A GPU that is taken is
locked until this process ends (see `gpus`): runs that start together take different ones, although
their weights are not there to be seen yet. Another user's runs show only in the memory that is free.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from nucleoscope.models import gpus

SHARE = 0.9  # of a GPU's free memory that weights may take: caches and logits need some, too
SPREAD = "balanced"  # the name of a device: all GPUs that are to be had

_held: dict[str, Any] = {}  # the locks of this process, by the GPU's id


class TooLarge(ValueError):
    """The weights do not fit the GPUs that are here."""


def pick_device(device: str) -> torch.device:
    """The torch device that ``device`` stands for; ValueError where this machine has none.

    "cuda" without a number, which "auto" and "balanced" give as well, leaves it to `options` which
    GPUs are meant.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device("cuda" if device == SPREAD else device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"device '{device}' cannot be used here: {reason}") from None
    return place


def options(device: str, weights: Callable[[], int | None]) -> dict[str, Any]:
    """What ``from_pretrained`` is told, so that each weight is read straight to its device.

    device: "auto", "cuda", "balanced", or a torch device. ``weights()`` gives the bytes that the
    weights take, or None where that is not known; it is called only where it matters. Where nobody
    has chosen among several GPUs, `choose` does. Raises `TooLarge`.
    """
    place = pick_device(device)
    if place.type == "cpu":
        return {}
    if place.type != "cuda":
        return {"device_map": {"": place}}
    need = weights() if place.index is None else None
    with _choosing():
        if place.index is None:
            free = free_memory()
            idle = [gpu for gpu in free if _lock(gpu, keep=False)]
            chosen = (idle or list(free)) if device == SPREAD else choose(free, idle, need)
        else:
            chosen = [place.index]
        for gpu in chosen:
            _lock(gpu, keep=True)
    if len(chosen) == 1:
        return {"device_map": {"": torch.device("cuda", chosen[0])}}
    return {"device_map": "balanced", "max_memory": {gpu: int(SHARE * free[gpu]) for gpu in sorted(chosen)}}


def choose(free: dict[int, int], idle: list[int], need: int | None) -> list[int]:
    """The GPUs for ``need`` bytes of weights (None: not known), among those with ``free`` bytes each.

    One that has room for them, the freest first, and rather one of the ``idle``, which no other run
    of ours has taken. Where none has, the fewest that have it together; where all have not, one
    into which the weights just go. Else `TooLarge`.
    """
    order = sorted(free, key=lambda gpu: (-free[gpu], gpu))
    pools = [[gpu for gpu in order if gpu in idle], order]
    for pool in pools:
        if pool and (need is None or need <= SHARE * free[pool[0]]):
            return pool[:1]
    for pool in pools:
        for count in range(2, len(pool) + 1):
            if need <= SHARE * sum(free[gpu] for gpu in pool[:count]):
                return pool[:count]
    if need <= free[order[0]]:  # batches will be small
        return order[:1]
    room = " + ".join(f"{free[gpu] / 1e9:.1f}" for gpu in order)
    raise TooLarge(
        f"the model's weights take {need / 1e9:.1f} GB, and of the GPUs here {room} GB are free: "
        "use more or larger GPUs, dtype=bfloat16 where it is float32, or device=cpu"
    )


def free_memory() -> dict[int, int]:
    """Bytes that are free on each GPU that torch sees.

    Asking CUDA itself would start this process on every GPU, which takes half a gigabyte of each.
    """
    count = torch.cuda.device_count()
    told = gpus.read_free_memory() if count > 1 else {}
    return {gpu: told.get(_id(gpu)) or torch.cuda.mem_get_info(gpu)[0] for gpu in range(count)}


def _id(gpu: int) -> str:
    return str(getattr(torch.cuda.get_device_properties(gpu), "uuid", gpu))


@contextlib.contextmanager
def _choosing() -> Iterator[None]:
    """One process of a user's chooses at a time. Without a folder for locks each chooses as if alone."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(gpus.choosing())
        yield


def _lock(gpu: int, keep: bool) -> bool:
    """Whether no other process of ours has taken the GPU; ``keep``: takes it, until this process ends.

    A job of the graph finds its own GPUs taken: by `gpus.claimed`, for it.
    """
    name = _id(gpu)
    if name in _held:
        return True
    try:
        lock = gpus.take(name)
    except OSError:  # no folder for locks: as if alone
        return True
    if lock and keep:
        _held[name] = lock
    elif lock:
        lock.close()
    return lock is not None


def weights(config: PreTrainedConfig, dtype: torch.dtype | str, trust_remote_code: bool = False) -> int | None:
    """Bytes that a model's weights will take, from its configuration alone; None for quantised ones."""
    if getattr(config, "quantization_config", None):
        return None
    wanted = dtype if isinstance(dtype, torch.dtype) else (config.dtype or torch.float32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=wanted, trust_remote_code=trust_remote_code)
    return sum(parameter.numel() * wanted.itemsize for parameter in model.parameters())


def check_placed(model: PreTrainedModel) -> None:
    """`TooLarge` where a part of a model that was spread over GPUs found no room on any."""
    left = [name for name, place in getattr(model, "hf_device_map", {}).items() if place in ("cpu", "disk")]
    if left:
        raise TooLarge(
            f"{left[0]} and what follows it found no room on the GPUs: use more or larger ones, or device=cpu"
        )
