"""What measuring needs to know about a loaded model: its limits, its embedding matrix, where its weights are.

Contract: nothing here loads or moves a model.
"""

import inspect
import os
import platform
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from nucleoscope.settings import quote


def find_context_length(model: PreTrainedModel) -> int | None:
    """Positions the model can attend to, or None if its configuration sets no limit."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions"):
        positions = getattr(config, name, None)
        if positions and positions > 0:  # XLNet's is -1, which means none
            return positions - find_position_offset(model)
    return None


def find_position_offset(model: PreTrainedModel) -> int:
    """The position of a text's first token: 0, except for RoBERTa and its relatives, which count from padding_idx + 1.

    Their table of position embeddings has a row for padding; transformers numbers positions in this way if
    it is not given any.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.padding_idx + 1
    return 0


def find_length_limit(model: PreTrainedModel) -> int | None:
    """The length beyond which a model computes positions differently; None if there is none.

    LongRoPE (Ding et al. 2024) has one set of rotary factors for short texts and one for long ones, and
    transformers chooses by the largest position of a batch. Llama 4 and Inkling scale queries beyond a position
    that they count with padding.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    limits = [
        part.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for part in kinds
        if part.get("rope_type") == "longrope"
    ]
    if getattr(config, "attn_temperature_tuning", None):
        limits.append(getattr(config, "floor_scale", None))
    limits.append(getattr(config, "log_scaling_n_floor", None))
    return min((int(limit) for limit in limits if limit), default=None)


def find_end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """All ids that end a text: those of the generation config, of the model, of its text part and of the tokenizer.

    ValueError if one is no number.
    """
    ends: set[int] = set()
    configs = (getattr(model, "generation_config", None), model.config, model.config.get_text_config())
    for source in (*configs, tokenizer):
        value = getattr(source, "eos_token_id", None)
        found = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        if not all(isinstance(token, int) for token in found):
            raise ValueError(f"{type(source).__name__} has the eos_token_id {quote(value)}: it must be a number")
        ends.update(found)
    return ends


def find_embedding_matrix(model: PreTrainedModel) -> torch.Tensor:
    """The input embedding (V, d), detached, with one row per token id."""
    return model.get_input_embeddings().weight.detach()


def find_output_matrix(model: PreTrainedModel) -> torch.Tensor | None:
    """The rows of the output layer (V, d'), detached; None if they are those of the input embedding, or no matrix.

    If the layer is packed (`models.packing`), they are a copy.
    """
    embedding, head = find_embedding_matrix(model), model.get_output_embeddings()
    # to read its attribute would make a layer of `models.packing` an ordinary one, which is slower
    rows = head.read_weight() if hasattr(head, "read_weight") else getattr(head, "weight", None)
    if not isinstance(rows, torch.Tensor) or rows.dim() != 2 or not rows.is_floating_point():
        return None
    rows = rows.detach()
    if rows.data_ptr() == embedding.data_ptr():
        return None
    same = rows.shape == embedding.shape and torch.equal(rows.to(embedding), embedding)
    return None if same else rows


def find_cache_argument(model: PreTrainedModel) -> str:
    """The name under which a model's forward pass takes its cache; ValueError if it takes none."""
    accepted = inspect.signature(model.forward).parameters
    for name in ("past_key_values", "cache_params"):
        if name in accepted:
            return name
    raise ValueError(f"{type(model).__name__} does not accept a cache")


@torch.inference_mode()
def measure_cache(model: PreTrainedModel) -> tuple[int, int]:
    """Bytes that a model keeps for each token of a row, and for each row whatever its length.

    Measured on two short texts, because configurations name the sizes of caches in too many ways. If the model
    has no cache, two embeddings for each layer stand for what a forward pass needs.
    """
    try:
        short, long = (_count_cache_bytes(model, length) for length in (4, 8))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # models of all kinds raise anything for a cache that is not theirs
        stacks = [len(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
        return 2 * max(stacks, default=1) * find_embedding_matrix(model).shape[1] * model.dtype.itemsize, 0
    token = (long - short) // 4
    return token, short - 4 * token


def _count_cache_bytes(model: PreTrainedModel, length: int) -> int:
    cache = DynamicCache(config=model.config)
    name = find_cache_argument(model)
    ids = torch.full((1, length), find_embedding_matrix(model).shape[0] // 2, device=model.device)
    model(input_ids=ids, use_cache=True, **{name: cache})
    total = sum(_count_bytes(value) for layer in cache.layers for value in vars(layer).values())
    if not total:
        raise ValueError("the model keeps nothing in the cache")
    return total


def _count_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_count_bytes, value)) if isinstance(value, (list, tuple)) else 0


def count_weight_bytes(model: PreTrainedModel) -> dict[torch.device, int]:
    """Bytes of the model's weights on each device that has any."""
    sizes: dict[torch.device, int] = {}
    for parameter in model.parameters():
        if parameter.device.type != "meta":  # accelerate keeps such weights elsewhere
            sizes[parameter.device] = sizes.get(parameter.device, 0) + parameter.nbytes
    return sizes or {model.device: 0}


def find_free_memory(model: PreTrainedModel) -> list[tuple[int, float]]:
    """For each device of a model: its free bytes, and its share of the layers (by their weights).

    What torch keeps of a GPU for this process but does not use is free.
    """
    sizes = count_weight_bytes(model)
    total = sum(sizes.values()) or 1
    if all(device.type != "cuda" for device in sizes):
        # Half of the machine's total memory: what happens to be free at the moment must not change the batches.
        return [(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2, 1.0)]
    return [(_read_free(device), size / total) for device, size in sizes.items() if device.type == "cuda"]


def _read_free(gpu: torch.device) -> int:
    unused = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
    return torch.cuda.mem_get_info(gpu)[0] + unused


def describe_devices(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Each device with its name, the gigabytes of weights on it and, if there are several, the modules."""
    places: dict[str, list[str]] = {}
    for name, place in getattr(model, "hf_device_map", {}).items():
        device = f"cuda:{place}" if isinstance(place, int) else str(place)
        places.setdefault(device, []).append(name)
    found = [
        {"device": str(device), "name": _name_device(device), "weights_gb": round(size / 1e9, 3)}
        for device, size in count_weight_bytes(model).items()
    ]
    if len(places) > 1:
        for entry in found:
            entry["modules"] = _abbreviate(places.get(entry["device"], []))
    return found


def _name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def _abbreviate(names: list[str]) -> str:
    """Module names with ranges of numbers at their ends: "model.layers.0 to 15"."""
    found: list[tuple[str, int | None, int | None]] = []
    for name in names:
        stem, _, number = name.rpartition(".")
        if not number.isdecimal():
            found.append((name, None, None))
        elif found and found[-1][0] == stem and found[-1][2] == int(number) - 1:
            found[-1] = (stem, found[-1][1], int(number))
        else:
            found.append((stem, int(number), int(number)))
    return ", ".join(
        stem if first is None else f"{stem}.{first}" + (f" to {last}" if last > first else "")
        for stem, first, last in found
    )
