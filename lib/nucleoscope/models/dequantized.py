"""Weights of GGUF files, dequantized once and kept as safetensors, which load in a tenth of the time.

Contract: nothing depends on what is kept. The weights are those that transformers reads from the file; what
cannot be written, or read again, is read from the file. They are kept among the assets of the Hugging Face
cache (HF_HOME, or HF_ASSETS_CACHE), up to `LIMIT`, and `clear` removes them.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

LIMIT = 20 * 2**30  # bytes; the models used longest ago are removed first
_PARTIAL = "partial-"


def locate(digest: str, dtype: torch.dtype | str) -> Path:
    """The folder of the weights of the file with the SHA-256 ``digest``, as this release of transformers reads them."""
    name = str(dtype).removeprefix("torch.")
    return _find_root() / f"{digest}-{name}-transformers-{transformers.__version__}"


def is_kept(folder: Path) -> bool:
    """Whether weights are kept in a folder of `locate`; if so, it counts as used now."""
    with contextlib.suppress(OSError):  # there is none, or it is another user's
        os.utime(folder)
    return folder.is_dir()


def keep(model: PreTrainedModel, config: PreTrainedConfig, folder: Path) -> None:
    """Keeps a model's weights and a configuration, unless they exceed `LIMIT` or the disk has no room for them."""
    size = sum(weight.nbytes for weight in model.parameters())
    with contextlib.suppress(OSError, SafetensorError):  # a full or read-only disk costs the next run time, no more
        root = _find_root()
        root.mkdir(parents=True, exist_ok=True)
        if size > min(LIMIT, shutil.disk_usage(root).free // 2):
            return
        _shrink(LIMIT - size)
        partial = tempfile.mkdtemp(prefix=_PARTIAL, dir=root)
        try:
            model.save_pretrained(partial)
            config.save_pretrained(partial)  # as transformers read it: what this project adds may change
            os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # another process was first, or the disk is full


def clear() -> int:
    """Removes all kept weights. Returns their size in bytes."""
    return _shrink(0)


def _find_root() -> Path:
    return Path(constants.HF_ASSETS_CACHE, "nucleoscope", "dequantized")


def _shrink(limit: int) -> int:
    """Removes the folders used longest ago until the rest is at most ``limit`` bytes. Returns the bytes removed.

    What a killed process left counts too.
    """
    sizes = {folder: sum(path.stat().st_size for path in folder.iterdir()) for folder in _find_root().glob("*/")}
    total = before = sum(sizes.values())
    for folder in sorted(sizes, key=lambda folder: folder.stat().st_mtime):
        if total <= limit:
            break
        shutil.rmtree(folder)
        total -= sizes[folder]
    return before - total
