"""Tiny random models and a tiny tokenizer, made on the fly: nothing is downloaded, nothing is learned.

`create_tokenizer` and `create_model` belong together: the ids of the special tokens (`BOS`, `EOS`, `PAD`) and the
size of the vocabulary (`VOCAB`) agree. What comes out is the real class of the transformers library,
so it can be saved with ``save_pretrained`` and loaded by name; `save` does that for both.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nucleoscope import quantities
from nucleoscope.measure.runs import complete_run
from nucleoscope.store import run_folder

QUANTITIES = list(quantities.find_columns())
SPECIAL = ["<bos>", "<eos>", "<pad>"]
BOS, EOS, PAD = range(3)
MERGES = (  # pairs of byte-level pieces; "Ġ" is the byte of the space
    "Ġ t,h e,Ġ a,i n,Ġt he,r e,o n,Ġ s,Ġ w,e n,o u,i t,Ġ o,a n,e r,n d,Ġ c,o r,e s,i s,in g,Ġ b,"
    "Ġ f,Ġ p,Ġ m,Ġ d,Ġ h,a t,Ġa nd,Ġt o,Ġo f,Ġ in,l l,e d,a r,o m,Ġ l,a l,Ġ n,Ġb e,Ġ g"
)
CHAT_TEMPLATE = (
    "<bos>{% for message in messages %}[{{ message.role }}] {{ message.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
VOCAB = len(SPECIAL) + 256 + len(MERGES.split(","))  # 300


def create_tokenizer(
    bos: bool = True, eos: bool = True, pad: bool = False, chat: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `VOCAB` tokens that can write any text.

    ``bos``: it has a beginning-of-text token and puts it in front; ``eos``, ``pad``: it has such a
    token; ``chat``: it has a chat template (`CHAT_TEMPLATE`). The ids are the same in all variants.
    """
    merges = [tuple(pair.split()) for pair in MERGES.split(",")]
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    core = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    core.add_special_tokens(SPECIAL)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    wanted = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    names = {name: token for (name, has), token in zip(wanted.items(), SPECIAL, strict=True) if has}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    if chat:
        wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def create_record(text: str, prompt: str = "prompt", seed: int = 0, most: int = 60) -> dict:
    """A record of `results` whose text is ``text`` and whose numbers are made up; a quarter of its tokens has k = 1."""
    rng = np.random.default_rng(seed)
    tokens = create_tokenizer(bos=False)(text)["input_ids"]
    sizes = np.where(rng.uniform(size=len(tokens)) < 0.25, 1, rng.integers(2, most, len(tokens)))
    found = {"prompt": prompt, "tokens": torch.tensor(tokens), "top_p_tokens": [], "top_p_probs": []}
    for token, size in zip(tokens, sizes, strict=True):
        others = rng.permutation([other for other in range(VOCAB) if other != token])[: size - 1]
        found["top_p_tokens"].append(torch.tensor(rng.permutation([token, *others])))
        found["top_p_probs"].append(torch.tensor(-np.sort(-0.9 * rng.dirichlet(np.ones(size))), dtype=torch.float32))
    values = rng.uniform(0, 1, (len(QUANTITIES), len(tokens)))
    values[QUANTITIES.index("cosines")] = np.where(sizes == 1, 1, 0.5 * values[QUANTITIES.index("cosines")])
    return found | {name: row.tolist() for name, row in zip(QUANTITIES, values, strict=True)}


COMMON = {
    "vocab_size": VOCAB,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.7,  # 35 times the usual: nuclei of one token and of two dozen both occur
}
ROTARY = COMMON | {  # grouped queries: four heads share two keys and values
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
KINDS = {  # kind -> class, configuration class, configuration
    "llama": (LlamaForCausalLM, LlamaConfig, ROTARY),
    "mistral": (MistralForCausalLM, MistralConfig, ROTARY | {"sliding_window": 8}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, ROTARY | {"head_dim": 16}),  # wider than 32 / 4, as the real one's
    "gpt2": (GPT2LMHeadModel, GPT2Config, COMMON | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
}


def create_model(kind: str = "llama", seed: int = 0, **config) -> PreTrainedModel:
    """A random model in evaluation mode: float32, on the CPU, the same for the same arguments.

    ``kind`` is one of `KINDS`. ``config`` replaces values of its configuration, for instance
    ``tie_word_embeddings=True``, ``num_key_value_heads=1``, ``sliding_window=4``, or
    ``vocab_size=VOCAB + 20`` for an embedding with more rows than the tokenizer has tokens.
    """
    model_class, config_class, defaults = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config_class(**defaults | config)).eval()


def hash_weights(model: PreTrainedModel) -> str:
    """A hash of all weights, by their names."""
    total = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        total.update(name.encode() + weight.float().numpy().tobytes())
    return total.hexdigest()


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """Saves both as a model folder, as ``save_pretrained`` does; returns its name, to load it by."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pre: str | None = "gpt-2",
    fields: dict[str, object] | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
) -> str:
    """Saves a "llama" model and its tokenizer as a float32 .gguf file, as llama.cpp would; returns its name.

    ``pre`` is the name of the pre-tokenizer; ``fields`` and ``tensors`` are added as they are.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(VOCAB)))
    writer.add_token_types([3] * len(SPECIAL) + [1] * (VOCAB - len(SPECIAL)))  # control, normal
    writer.add_token_merges(MERGES.split(","))
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for name, value in (fields or {}).items():
        kinds[type(value)](name, value)
    for name, weight in model.state_dict().items():
        writer.add_tensor(_name_gguf(name), _order_gguf_rows(name, weight, config).numpy())
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def _name_gguf(name: str) -> str:
    renamed = {
        "model.": "",
        "embed_tokens": "token_embd",
        "lm_head": "output",
        "layers.": "blk.",
        "self_attn.o_proj": "attn_output",
        "self_attn.": "attn_",
        "mlp.": "ffn_",
        "_proj": "",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for old, new in renamed.items():
        name = name.replace(old, new)
    return "output_norm.weight" if name == "norm.weight" else name


def _order_gguf_rows(name: str, weight: torch.Tensor, config: LlamaConfig) -> torch.Tensor:
    """The rows as llama.cpp orders them: a head's rotary pairs side by side, not half a head apart."""
    for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if part in name:
            return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
    return weight


def measure(
    folder: Path,
    model: tuple[PreTrainedModel, PreTrainedTokenizerFast],
    prompts: Sequence[str],
    settings: dict,
    **given,
) -> Path:
    """Measures a run of a model with its tokenizer, with some ``settings`` in its run.json; returns its folder."""
    with run_folder.RunFolder(folder, settings) as run:
        complete_run(run, *model, prompts, progress=False, **{"max_tokens": settings["max_tokens"]} | given)
    return folder


class Stopped(Exception):
    """Stands for a kill after a batch was saved."""


@contextlib.contextmanager
def stop_after(run, after: int | None):
    """Ends what is filled into ``run`` in this block once so many batches are saved; None: never."""
    save, saved = run.save_batch, []

    def stopping(*batch):
        save(*batch)
        saved.append(batch)
        if len(saved) == after:
            raise Stopped

    run.save_batch = stopping
    with contextlib.suppress(Stopped):
        yield
