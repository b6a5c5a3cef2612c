"""Weights of GGUF files, dequantized once and kept as safetensors, which load in a tenth of the time.

Contract: the weights are those that transformers reads from the file. What cannot be written, or was changed since,
is read from the file, which costs time and nothing else. The weights are kept among the assets of the Hugging Face
cache (HF_HOME, or HF_ASSETS_CACHE), up to `LIMIT`, and `clear` removes them.
"""

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from pathlib import Path

import torch
import transformers
from huggingface_hub import constants
from transformers import PreTrainedConfig, PreTrainedModel

from nucleoscope.atomic import ABANDONED, hash_file

LIMIT = 20 * 2**30  # bytes; the models used longest ago are removed first
CHECKSUM = "sha256"  # the file with the checksum of the others
PARTIAL = "partial-"


def locate(digest: str, dtype: torch.dtype | str) -> Path:
    """The folder of the weights of the file with the SHA-256 ``digest``, as this release of transformers reads them."""
    name = str(dtype).removeprefix("torch.")
    return _find_root() / f"{digest}-{name}-transformers-{transformers.__version__}"


def is_kept(folder: Path) -> bool:
    """Whether the weights in a folder of `locate` are as they were written; if so, they count as used now."""
    try:
        if (folder / CHECKSUM).read_text(encoding="ascii") != _hash_folder(folder):
            return False
    except (OSError, UnicodeDecodeError):  # there are none, or they are another user's
        return False
    with contextlib.suppress(OSError):
        os.utime(folder)
    return True


def keep(model: PreTrainedModel, config: PreTrainedConfig, folder: Path) -> None:
    """Keeps a model's weights and a configuration, unless they exceed `LIMIT` or the disk has no room for them."""
    size = sum(weight.nbytes for weight in model.parameters())
    with contextlib.suppress(Exception):  # the model is loaded: whatever fails here costs the next run time, no more
        root = _find_root()
        root.mkdir(parents=True, exist_ok=True)
        if size > min(LIMIT, shutil.disk_usage(root).free // 2):
            return
        shutil.rmtree(folder, ignore_errors=True)  # damaged
        _shrink(LIMIT - size)
        partial = root / f"{PARTIAL}{uuid.uuid4().hex}"
        try:
            model.save_pretrained(partial)
            config.save_pretrained(partial)  # as transformers read it: what this project adds may change
            for path in partial.iterdir():
                shutil.copymode(partial / "config.json", path)  # safetensors would let nobody else read its file
            (partial / CHECKSUM).write_text(_hash_folder(partial), encoding="ascii")
            os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # another process was first, or the disk is full


def clear() -> int:
    """Removes all kept weights. Returns their size in bytes. PermissionError if some belong to another user."""
    before = 0
    for folder in _list_folders():
        with contextlib.suppress(FileNotFoundError):  # another process clears too
            before += _measure_size(folder)
            shutil.rmtree(folder)
    return before


def _find_root() -> Path:
    return Path(constants.HF_ASSETS_CACHE, "nucleoscope", "dequantized")


def _list_folders() -> list[Path]:
    """The folders of weights, without those that another process is writing; what a killed one left counts."""
    fresh = time.time() - ABANDONED
    folders = _find_root().glob("*/")
    own = [folder for folder in folders if not folder.is_symlink()]
    return [folder for folder in own if not folder.name.startswith(PARTIAL) or folder.stat().st_mtime < fresh]


def _measure_size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.iterdir())


def _shrink(limit: int) -> None:
    """Removes the folders used longest ago, where that is allowed, until the rest is at most ``limit`` bytes."""
    folders = sorted(_list_folders(), key=lambda folder: folder.stat().st_mtime)
    sizes = {folder: _measure_size(folder) for folder in folders}
    for folder in folders:
        if sum(sizes.values()) <= limit:
            return
        shutil.rmtree(folder, ignore_errors=True)
        del sizes[folder]


def _hash_folder(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files, without `CHECKSUM`."""
    files = sorted(path for path in folder.iterdir() if path.name != CHECKSUM)
    return hashlib.sha256("".join(f"{path.name} {hash_file(path)}\n" for path in files).encode()).hexdigest()
