"""What a GGUF file says about tokenising, end tokens and positions, where transformers does not apply it.

Contract: each of these is applied exactly, or the file is refused with one line that names it; nothing
that would change a number is ignored. `gguf_reference` lists them for the book. The file's keys are described in
the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); what the names of
pre-tokenizers and a missing ``add_bos_token`` mean is taken from llama.cpp (src/llama-vocab.cpp), which
writes and reads these files.
"""

import functools
import math
from pathlib import Path
from typing import Any

import torch
import transformers  # its classes are imported only where they are used, which is slow
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from transformers.integrations.gguf import load_gguf_state_dict, read_gguf_metadata
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import GgufHeader

ADVICE = "use the model's original folder instead"

# Keys of scaling that are applied with each kind of it. Others change positions in a way that transformers' classes
# have no parameter for; one with a value listed in `NEUTRAL`, if any, changes nothing.
SCALING = "rope.scaling."
ALWAYS = ("type", "factor", "original_context_length", "finetuned")
APPLIED = {
    "yarn": ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"),
    "longrope": ("attn_factor",),
}
NEUTRAL = {"attn_factor": 1, "yarn_attn_factor": 1, "yarn_ext_factor": 1, "yarn_log_multiplier": 0, "alpha": 0}

# Keys of rotary positions that are applied or checked. Sections divide the dimensions between the axes of an image: all
# of them have the same position in a text.
ROPE = "rope."
KNOWN = ("freq_base", "freq_base_swa", "dimension_count", "dimension_count_swa", "dimension_sections", "scale_linear")
FULL, SLIDING = "full_attention", "sliding_attention"  # types of layers

# Splits of byte-level tokenizers that transformers does not know. It falls back to that of GPT-2 for every name that
# it does not know, so the names that do mean GPT-2's are listed too.
GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "mellum", "gigachat", "a.x-4.0")
DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
QWEN2 = ("stablelm2", "hunyuan")
# Of these, llama.cpp looks a whole word up before it applies merges, and prepends the beginning-of-text token
# if the file does not say whether to.
WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")


class Unsupported(ValueError):
    """The file says something that cannot be applied; the message names its key."""


class Metadata:
    """The metadata of a GGUF file, by key; a key of the architecture's own is given without its prefix."""

    def __init__(self, path: str | Path):
        self.path = str(path)
        self.fields, self.tensors = read_gguf_metadata(self.path)
        self.architecture = self.fields["general.architecture"]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of "tokenizer.ggml.pre", say, or of "rope.freq_base" for "llama.rope.freq_base"."""
        return self.fields.get(key, self.fields.get(f"{self.architecture}.{key}", default))

    def read_tensor(self, name: str) -> torch.Tensor | None:
        """A small tensor of the file, in float64; None if there is none."""
        if name not in self.tensors:
            return None
        return load_gguf_state_dict(GgufHeader.from_file(self.path))[name][...].double()


@functools.lru_cache(maxsize=4)
def _read(path: str, modified: int) -> Metadata:
    return Metadata(path)


def read(path: Path) -> Metadata:
    """The metadata of a file, read once unless it is modified."""
    return _read(str(path), path.stat().st_mtime_ns)


# Tokenising


def adjust_tokenizer(
    tokenizer: "transformers.PreTrainedTokenizerBase", metadata: Metadata
) -> "transformers.PreTrainedTokenizerBase":
    """Makes a tokenizer that transformers read from the file split and begin a text as the file says.

    `Unsupported` if the file names a way of splitting that is not known here.
    """
    kind, name = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    core = tokenizer.backend_tokenizer
    bos = metadata.get("tokenizer.ggml.add_bos_token")
    if kind == "gpt2":
        if splitter := _build_splitter(name):
            core.pre_tokenizer = splitter
        if name in WHOLE_WORDS:
            core.model.ignore_merges = True
            bos = True if bos is None else bos
    elif kind == "llama" and metadata.get("tokenizer.ggml.add_space_prefix") is False:
        _omit_first_space(core)
    if bos is not None and kind != "gemma4":  # whose template has the token itself
        tokenizer.add_bos_token = bool(bos)
    return tokenizer


def _build_splitter(name: str | None) -> pre_tokenizers.PreTokenizer | None:
    """The pre-tokenizer that a name stands for; None if transformers has built it. `Unsupported` if it is unknown."""
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # GPT-2's own split
    if name in GGUF_PRE_TOKENIZER_SPLITS:
        return None
    if name in GPT2:
        return whole
    if name in DIGITS_FIRST:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    if name in QWEN2:
        split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS["qwen2"]), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if name and name != "default":
        raise Unsupported(
            f"tokenizer.ggml.pre, which says how text is split, is '{name}', which is not supported: {ADVICE}"
        )
    found = "'default'" if name else "missing"
    raise Unsupported(f"the file does not say how text is split (tokenizer.ggml.pre is {found}): {ADVICE}")


def _omit_first_space(core: Any) -> None:
    """SentencePiece without the space that is otherwise put before the first word, and removed in decoding."""
    space = "\u2581"
    if isinstance(core.pre_tokenizer, pre_tokenizers.Metaspace):
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space, prepend_scheme="never", split=False)
    else:
        core.normalizer = normalizers.Replace(" ", space)
    core.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()])


# Positions


def adjust_config(config: "transformers.PreTrainedConfig", metadata: Metadata) -> "transformers.PreTrainedConfig":
    """Makes a configuration that transformers read from the file scale positions as the file says.

    `Unsupported` for a kind of scaling, or a key of rotary positions, that is not known here, or if the model would
    rotate another number of dimensions or have windows in other layers.
    """
    for key in ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"):
        name, value = key.rpartition(".")[2], metadata.get(key)
        if value is not None and hasattr(config, name):
            setattr(config, name, value)
    _check_layers(config, metadata)
    found = getattr(config, "rope_parameters", None)
    if not found:
        return config
    _check_known(metadata)
    rope, local = (found.get(kind, found) for kind in (FULL, SLIDING))  # some have parameters for each type of layer
    if base := metadata.get("rope.freq_base"):
        rope["rope_theta"] = base
    _check_rotated(config, rope, metadata, "rope.dimension_count")
    _check_rotated(config, local, metadata, "rope.dimension_count_swa")
    if base := metadata.get("rope.freq_base_swa"):
        if local is rope and not math.isclose(base, rope["rope_theta"], rel_tol=1e-6):
            raise Unsupported(
                f"rope.freq_base_swa is {base:g}, but the loaded model has one base for all layers: {ADVICE}"
            )
        local["rope_theta"] = base
    rope.update(_read_scaling(metadata, config))
    return config


def _check_layers(config: "transformers.PreTrainedConfig", metadata: Metadata) -> None:
    """`Unsupported` if other layers have a window than the file says: a list, or every how many layers one has none."""
    pattern, window = metadata.get("attention.sliding_window_pattern"), getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if pattern is None or not (kinds or window or metadata.get("attention.sliding_window")):
        return
    if not kinds:  # all layers of the loaded model are the same
        kinds = [SLIDING if window else FULL] * config.num_hidden_layers
    if isinstance(pattern, int):
        # 0: all layers have a window, as in llama.cpp
        pattern = [not pattern or bool((place + 1) % pattern) for place in range(len(kinds))]
    if [SLIDING if each else FULL for each in pattern] != list(kinds):
        raise Unsupported(f"attention.sliding_window_pattern is not that of the loaded model: {ADVICE}")


def _check_known(metadata: Metadata) -> None:
    """`Unsupported` names a key of rotary positions that is not known here."""
    begin = f"{metadata.architecture}.{ROPE}"
    for key, value in metadata.fields.items():
        name = key.removeprefix(begin)
        if name != key and name not in KNOWN and not key.startswith(f"{metadata.architecture}.{SCALING}"):
            raise Unsupported(f"{ROPE}{name} is {value}, which is not supported: {ADVICE}")


def _check_rotated(config: "transformers.PreTrainedConfig", rope: dict[str, Any], metadata: Metadata, key: str) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = int(head * rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None) or 1))
    stated = metadata.get(key)
    if stated is not None and stated not in (rotated, getattr(config, "global_head_dim", None)):
        raise Unsupported(f"{key} is {stated}, but the loaded model would rotate {rotated}: {ADVICE}")


def _read_scaling(metadata: Metadata, config: "transformers.PreTrainedConfig") -> dict[str, Any]:
    """The scaling of rotary positions as transformers' parameters; empty if there is none."""
    kind = metadata.get("rope.scaling.type")
    factor = metadata.get("rope.scaling.factor") or metadata.get("rope.scale_linear")
    long, short = (metadata.read_tensor(f"rope_factors_{name}.weight") for name in ("long", "short"))
    original = metadata.get("rope.scaling.original_context_length")
    if long is not None and short is not None:
        kind = "longrope"
    kind = kind or ("linear" if factor else "none")
    _check_scaling(metadata, kind)
    known: dict[str, Any] = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    if kind == "none" or (kind == "linear" and factor in (None, 1.0)):
        return {}
    if kind == "yarn":
        known |= {"attention_factor": metadata.get("rope.scaling.yarn_attn_factor")}
        known |= {name: metadata.get(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
    elif kind == "longrope" and long is not None:
        known |= {"long_factor": long.tolist(), "short_factor": short.tolist()}
        known |= {"attention_factor": metadata.get("rope.scaling.attn_factor")}
        known["factor"] = config.max_position_embeddings / original if original else factor
    elif kind == "longrope":
        raise Unsupported(f"rope.scaling.type is longrope, but its factors are missing: {ADVICE}")
    elif kind != "linear":
        raise Unsupported(f"rope.scaling.type is '{kind}', which is not supported: {ADVICE}")
    return {name: value for name, value in known.items() if value is not None}


def _check_scaling(metadata: Metadata, kind: str) -> None:
    """`Unsupported` names a key of scaling that decides something and is not applied with this ``kind``."""
    names = [key.partition(SCALING)[2] for key in metadata.fields if SCALING in key]
    for name in names:
        if name in (*ALWAYS, *APPLIED.get(kind, ())):
            continue
        value = metadata.get(SCALING + name)
        if kind == "none" and name.startswith("yarn_"):
            continue  # parameters of a scaling that is not used
        if name not in NEUTRAL or value != NEUTRAL[name]:
            raise Unsupported(f"{SCALING}{name} is {value}, which is not supported with type {kind}: {ADVICE}")


def adjust_model(model: "transformers.PreTrainedModel", metadata: Metadata) -> "transformers.PreTrainedModel":
    """Applies to a loaded model what no configuration can say: factors of each frequency, and all end tokens."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    ends = {metadata.get(f"tokenizer.ggml.{name}") for name in names} - {None}
    found = model.generation_config.eos_token_id
    ends |= set(found if isinstance(found, list) else [] if found is None else [found])
    model.generation_config.eos_token_id = sorted(ends) or None
    factors = metadata.read_tensor("rope_freqs.weight")
    if factors is not None:
        _divide_frequencies(model, factors)
    return model


def _divide_frequencies(model: "transformers.PreTrainedModel", factors: torch.Tensor) -> None:
    """Divides each rotary frequency by its factor. `Unsupported` if the model has none, or scales them already."""
    rotary = [module for module in model.modules() if isinstance(getattr(module, "inv_freq", None), torch.Tensor)]
    types = {getattr(module, "rope_type", "default") for module in rotary}
    if not rotary or types != {"default"} or any(module.inv_freq.shape != factors.shape for module in rotary):
        raise Unsupported(f"rope_freqs.weight has factors that cannot be applied to this model: {ADVICE}")
    for module in rotary:
        # in float64: the product is rounded once, as it is where transformers computes it
        module.inv_freq.copy_((module.inv_freq.double() / factors.to(module.inv_freq.device)).float())
        if isinstance(getattr(module, "original_inv_freq", None), torch.Tensor):
            module.original_inv_freq.copy_(module.inv_freq)
