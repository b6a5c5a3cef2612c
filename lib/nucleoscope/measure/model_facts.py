"""What measuring needs to know about a loaded model: its limits, its embedding matrix, where its weights are.

Contract: nothing here loads or moves a model.
"""

import os
import platform
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def find_context_length(model: PreTrainedModel) -> int | None:
    """Positions the model can attend to, or None if its configuration sets no limit."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if getattr(config, name, None):
            return getattr(config, name)
    return None


def find_end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """All ids that end a text, from the generation config, the model's config and the tokenizer."""
    ends: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        ends.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return ends


def find_embedding_matrix(model: PreTrainedModel) -> torch.Tensor:
    """The input embedding (V, d), detached, with one row per token id."""
    return model.get_input_embeddings().weight.detach()


def count_weight_bytes(model: PreTrainedModel) -> dict[torch.device, int]:
    """Bytes of the model's weights on each device that has any."""
    sizes: dict[torch.device, int] = {}
    for parameter in model.parameters():
        if parameter.device.type != "meta":  # accelerate keeps such weights elsewhere
            sizes[parameter.device] = sizes.get(parameter.device, 0) + parameter.nbytes
    return sizes or {model.device: 0}


def find_free_memory(model: PreTrainedModel) -> list[tuple[int, float]]:
    """For each device of a model: its free bytes, and its share of the layers (by their weights)."""
    sizes = count_weight_bytes(model)
    total = sum(sizes.values()) or 1
    if all(device.type != "cuda" for device in sizes):
        # Half of the machine's total memory: what happens to be free at the moment must not change the batches.
        return [(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2, 1.0)]
    return [(torch.cuda.mem_get_info(d)[0], size / total) for d, size in sizes.items() if d.type == "cuda"]


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
