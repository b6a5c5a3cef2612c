"""Chooses where a model goes: the GPU with the most free memory, several if one is too small, or the CPU.

Contract: this module does not depend on models' names or files. torch shows only the GPUs that
``CUDA_VISIBLE_DEVICES`` lists, so that restriction always applies. A GPU that is taken stays
locked until this process ends (see `gpus`), so runs that start together take different GPUs even before
their weights are loaded. Another user's runs are visible only through the free memory.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from nucleoscope.models import devices, gpus, memory

SHARE = 0.9  # share of a GPU's free memory that weights may take: caches and logits need some, too
MOST = 10**18  # bytes that an estimate says at most: a configuration may contain any number
LAYER = 20_000  # bytes that the objects of a layer take at least, without its weights: 3 kB for each of its modules
# Above this number of layers, weights are estimated from two of them: no model has as many, and describing a layer
# takes a millisecond and `LAYER` bytes.
MANY = 1000
SPREAD = "balanced"  # the device name that stands for all available GPUs

_held: dict[str, Any] = {}  # the locks that this process holds, by the GPU's id


class TooLarge(ValueError):
    """The weights do not fit on the GPUs of this machine."""


def pick_device(device: str) -> torch.device:
    """The torch device that ``device`` stands for; ValueError if this machine has no such device.

    The result "cuda" without a number, which "auto" and "balanced" give as well, leaves the choice of GPUs
    to `plan_placement`.
    """
    devices.check(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device("cuda" if device == SPREAD else device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(devices.describe_unusable(device, reason)) from None
    return place


def plan_placement(device: str, weights: Callable[[], int | None]) -> dict[str, Any]:
    """The placement arguments for ``from_pretrained``, so that each weight is loaded straight onto its device.

    device: "auto", "cuda", "balanced", or a torch device. ``weights()`` returns the bytes that the
    weights take, or None if that is unknown. If several GPUs are
    possible and none was specified, `choose_gpus` decides. Raises `TooLarge`.
    """
    place = pick_device(device)
    if place.type == "cpu":
        _check_memory(weights())
        return {}
    if place.type != "cuda":
        return {"device_map": {"": place}}
    need = weights()
    with _choose_alone():
        free = read_free_memory()
        if place.index is None:
            idle = [gpu for gpu in free if _lock(gpu, keep=False)]
            chosen = (idle or list(free)) if device == SPREAD else choose_gpus(free, idle, need)
        elif need is None or need <= free[place.index]:
            chosen = [place.index]
        else:
            room = free[place.index] / 1e9
            raise TooLarge(
                f"the model's weights take {need / 1e9:,.1f} GB, but {place} has only {room:,.1f} GB free: "
                "use another GPU, device=auto, or dtype=bfloat16 instead of float32"
            )
        for gpu in chosen:
            _lock(gpu, keep=True)
    if len(chosen) == 1:
        return {"device_map": {"": torch.device("cuda", chosen[0])}}
    return {"device_map": "balanced", "max_memory": {gpu: int(SHARE * free[gpu]) for gpu in sorted(chosen)}}


def _check_memory(need: int | None) -> None:
    """Raises `TooLarge` for weights that certainly do not fit: the system would end this process without a word."""
    room = memory.read_available()
    if need is not None and need > room:
        raise TooLarge(
            f"the model's weights take {need / 1e9:,.1f} GB, but this machine has only {room / 1e9:,.1f} GB of memory "
            "and swap available: use a smaller model, dtype=bfloat16 instead of float32, or a machine with more memory"
        )


def choose_gpus(free: dict[int, int], idle: list[int], need: int | None) -> list[int]:
    """Chooses GPUs for ``need`` bytes of weights (None: unknown) among those with ``free`` bytes each.

    First choice is one GPU with enough room, preferably one of the ``idle`` (not taken by another run of
    this user), and the one with the most free memory. If there is none, the fewest that have enough room
    together; failing that, a single GPU on which the weights just fit. Otherwise raises `TooLarge`.
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
        f"the model's weights take {need / 1e9:.1f} GB, but the GPUs have only {room} GB free: "
        "use more or larger GPUs, dtype=bfloat16 instead of float32, or device=cpu"
    )


def read_free_memory() -> dict[int, int]:
    """Free bytes on each GPU that torch sees, including what torch keeps of it for this process but does not use.

    Asking CUDA itself would create a context on every GPU, which takes half a gigabyte on each.
    """
    count = torch.cuda.device_count()
    told = gpus.query_free_memory() if count > 1 else {}
    free = {gpu: told.get(_read_id(gpu)) or torch.cuda.mem_get_info(gpu)[0] for gpu in range(count)}
    # of an earlier model, say; where this process has not used CUDA, both are 0, and asking creates no context
    return {
        gpu: size + torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu) for gpu, size in free.items()
    }


def _read_id(gpu: int) -> str:
    return str(getattr(torch.cuda.get_device_properties(gpu), "uuid", gpu))


@contextlib.contextmanager
def _choose_alone() -> Iterator[None]:
    """Lets only one process per user choose at a time. If locks are not possible, each chooses independently."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(gpus.choose_alone())
        yield


def _lock(gpu: int, keep: bool) -> bool:
    """Whether no other process of this user has taken the GPU; ``keep``: take it until this process ends.

    A workflow job's GPUs were taken for it beforehand, by `gpus.claim`.
    """
    name = _read_id(gpu)
    if name in _held:
        return True
    try:
        lock = gpus.take(name)
    except OSError:  # locks are not possible: assume that there are no other processes
        return True
    if lock and keep:
        _held[name] = lock
    elif lock:
        lock.close()
    return lock is not None


def estimate_weights(
    config: PreTrainedConfig,
    dtype: torch.dtype | str,
    trust_remote_code: bool = False,
    loader: type = AutoModelForCausalLM,
) -> int | None:
    """Bytes that a model's weights will take, from its configuration alone; None for quantised ones.

    ``loader`` is its class of `kinds.CLASSES`.
    """
    if getattr(config, "quantization_config", None):
        return None
    wanted = dtype if isinstance(dtype, torch.dtype) else (config.dtype or torch.float32)
    least = _estimate_least(config, wanted.itemsize)
    if least <= memory.read_available() and _count_layers(config) > MANY:
        least = max(least, _extrapolate(config, wanted, trust_remote_code, loader))
    if least > memory.read_available():  # and so would be the description of each layer
        return least
    return _measure_weights(config, wanted, trust_remote_code, loader)


def _measure_weights(config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool, loader: type) -> int:
    with torch.device("meta"):
        model = loader.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    return sum(parameter.numel() * dtype.itemsize for parameter in model.parameters())


def _extrapolate(config: PreTrainedConfig, *options: Any) -> int:
    """The weights of a model of many layers from those of its first two; 0 for one that cannot have so few."""
    try:
        one, two = (_measure_weights(_shorten(config, layers), *options) for layers in (1, 2))
    except Exception:  # models of all kinds raise anything
        return 0
    return min(one + (two - one) * (_count_layers(config) - 1), MOST)


def _count_layers(config: PreTrainedConfig) -> int:
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    return layers if isinstance(layers, int) else 0


def _shorten(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """A copy of a configuration with fewer layers in its text part."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers = layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == _count_layers(config):  # what each layer is
            setattr(text, name, value[:layers])
    return short


def _estimate_least(config: PreTrainedConfig, itemsize: int) -> int:
    """Bytes that a model takes at least: its embedding, and what Python needs for each of its layers."""
    text = config.get_text_config()
    sizes = [getattr(text, name, None) for name in ("vocab_size", "hidden_size")]
    rows, width = (size if isinstance(size, int) else 0 for size in sizes)
    return min(rows * width * itemsize + _count_layers(config) * LAYER, MOST)


def check_placed(model: PreTrainedModel) -> None:
    """Raises `TooLarge` if part of a model that was spread over GPUs did not fit on any of them."""
    left = [name for name, place in getattr(model, "hf_device_map", {}).items() if place in ("cpu", "disk")]
    if left:
        raise TooLarge(
            f"{left[0]} and the modules after it do not fit on the GPUs: use more or larger ones, or device=cpu"
        )
