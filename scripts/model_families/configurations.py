"""Small random models of every type that transformers registers for causal language modelling.

Contract: the name of a type in, a model out; nothing here depends on nucleoscope. A size is set wherever a
configuration, or a part of one, has an attribute of that name; `NEEDS` adds what a type needs beyond that.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 300
CONTEXT = 128
END = 2  # the token that ends a text
LAYERS, HYBRID_LAYERS = 2, 4
MOST_WEIGHTS = 20_000_000
NOISE = 0.05  # standard deviation of what is added to all weights, so that no part is silent because it starts at 0

WIDTH, INNER, HEADS, HEAD = 64, 96, 4, 16
SIZES: dict[str, Any] = (
    dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim", "lru_width", "dim_model"), WIDTH)
    | dict.fromkeys(("n_layer", "n_layers", "num_layers", "num_hidden_layers", "decoder_layers"), LAYERS)
    | dict.fromkeys(("encoder_layers", "num_encoder_layers", "num_decoder_layers", "depth"), LAYERS)
    | dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), HEADS)
    | dict.fromkeys(("encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), HEADS)
    | dict.fromkeys(("head_dim", "v_head_dim", "attention_head_dim", "dim_head", "d_head"), HEAD)
    | dict.fromkeys(("num_key_value_heads",), 2)
    | dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff", "n_inner"), INNER)
    | dict.fromkeys(("ffn_hidden_size", "dim_ff", "d_inner", "dff", "feed_forward_size"), INNER)
    | dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "zero_expert_num"), 4)
    | dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token"), 2)
    | dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32)
    | dict.fromkeys(("shared_intermediate_size", "shared_experts_intermediate_size", "router_hidden_size"), 32)
    | dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1)
    | dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions"), CONTEXT)
    | dict.fromkeys(("sliding_window", "attention_window_size", "window_size", "local_attention"), 8)
    | {"attention_chunk_size": 8, "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY}
    | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END, "initializer_range": 0.2, "init_std": 0.2}
    | {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "qk_head_dim": 16}
    | {"index_topk": 8, "index_head_dim": 16, "index_n_heads": 32, "rotary_dim": 8, "is_decoder": True}
    | {"mamba_d_state": 8, "state_size": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_dt_rank": 4}
    | {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 8, "ssm_intermediate_size": 64}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
    | {"linear_num_heads": HEADS, "linear_head_dim": HEAD}
    | {
        "hidden_size_per_layer_input": 16,
        "image_size": 32,
        "out_hidden_size": WIDTH,
        "logit_scale": 1.0,
        "logits_mup_width_multiplier": 1.0,
    }
    | {"floor_scale": 8, "log_scaling_n_floor": 8}
)
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
BY_LAYER = {"full_attention": ROPE, "sliding_attention": ROPE}
LONG_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 16.0, "original_max_position_embeddings": 8}
LONG_ROPE |= {"beta_fast": 32.0, "beta_slow": 1.0, "llama_4_scaling_beta": 0.1}
SHARED = ["sliding_attention", "full_attention"] * 2  # the last two layers use the keys and values of the first two
GEMMA_3N = {"layer_types": SHARED, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "laurel_rank": 8}
GEMMA_3N |= {"activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]}
DOTS = {"num_hidden_layers": 4, "q_lora_rank": 24, "head_dim": 16}
DOTS |= {"layer_types": ["indexed_attention", "sliding_attention"] * 2, "swa_num_attention_heads": HEADS}
DOTS |= {"swa_num_key_value_heads": HEADS, "swa_q_lora_rank": 24, "swa_kv_lora_rank": 16, "swa_head_dim": 16}
DOTS |= {"swa_qk_nope_head_dim": 8, "swa_v_head_dim": 16}
DOTS_PARTS = {"vision_config": {"pyramid_num_routed": [0, 4], "adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH}}
DOTS_PARTS |= {"audio_config": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH}}
QWEN_4 = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "indexed_attention"] * 2, "hc_lowrank": 8}
QWEN_4 |= {"ple_layer_ids": [1], "ple_embed_dim": WIDTH, "ngram_vocab_size_base": 200, "split_ngram_parts": 1}
QWEN_4 |= {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8}
QWEN_4 |= {"indexer_compress_ratio": 2}
BLT_PARTS = {"encoder_config": {"hidden_size_global": WIDTH}, "decoder_config": {"hidden_size_global": WIDTH}}

NEEDS: dict[str, dict[str, Any]] = {
    "bamba": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 500, "local_attention_window_len": 8, **BLT_PARTS},
    "cohere_compass_text": {"rope_parameters": BY_LAYER, "layer_types": SHARED, "num_hidden_layers": 4},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1, "max_window_layers": 1},
    "dots3_note": {"text_config": DOTS, **DOTS_PARTS},
    "dots3_note_text": DOTS,
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n": {"text_config": GEMMA_3N},
    "gemma3n_text": GEMMA_3N,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "ministral3": {"rope_parameters": LONG_ROPE},
    "qwen4_exp": {"text_config": QWEN_4},
    "qwen4_exp_text": QWEN_4,
    "recurrent_gemma": {"num_hidden_layers": 4, "block_types": ["recurrent", "attention"]},
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni"},
    "xmod": {"default_language": "en_XX"},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"],
        "attention_head_size": HEAD,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "zaya": {"num_experts_per_tok": 1},
}


# Why a type cannot be built, in place of what transformers says.
UNBUILT = {
    "gemma3n": "its image encoder is in the package timm, which this project does not need otherwise",
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "it drafts for a model whose cache it needs"),
    **dict.fromkeys(
        ("musicgen", "musicgen_melody"), "transformers gives the class the wrong part of its configuration"
    ),
}
CAUSAL = ("is_decoder", "causal", "attn_type", "default_language")


def list_types() -> list[str]:
    """All types that transformers registers for causal language modelling, sorted."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def create_config(kind: str, released: bool = False) -> PreTrainedConfig:
    """A small configuration of a type; whatever transformers raises if the sizes do not go together.

    ``released``: without the values that make a causal language model of an encoder.
    """
    needs, released_values = NEEDS.get(kind, {}), list_released_values(kind) if released else {}
    return _shrink(CONFIG_MAPPING[kind], needs | released_values)


def list_released_values(kind: str) -> dict[str, Any]:
    """The values with which an encoder is released, of those that are changed here to make it causal; else none."""
    if kind in UNBUILT:  # some refuse their own defaults
        return {}
    default = CONFIG_MAPPING[kind]()
    changed = {name: value for name, value in (SIZES | NEEDS.get(kind, {})).items() if name in CAUSAL}
    released = {name: getattr(default, name) for name in changed if hasattr(default, name)}
    return {} if default.is_encoder_decoder else {n: value for n, value in released.items() if value != changed[n]}


def _shrink(kind: type[PreTrainedConfig], needs: Mapping[str, Any]) -> PreTrainedConfig:
    """A configuration of one class with small sizes, its parts too; ``needs`` replaces values, by name."""
    default = kind()
    known = {*default.to_dict(), *kind.attribute_map}
    values = {name: value for name, value in SIZES.items() if name in known}
    if getattr(default, "sliding_window", 0) is None:
        values.pop("sliding_window")
    if "qk_rope_head_dim" in values:  # multi-head latent attention: every head has keys of its own
        latent = {"head_dim": values["qk_rope_head_dim"], "num_key_value_heads": HEADS}
        values |= {name: value for name, value in latent.items() if name in values}
    layers = getattr(default, "layer_types", None)
    if layers and len(set(layers)) > 1 and not _is_derived(kind, "layer_types"):
        chosen = _choose_layers(layers)
        values[kind.attribute_map.get("layer_types", "layer_types")] = chosen
        values |= {n: len(chosen) for n in ("num_hidden_layers", "n_layer", "num_layers") if n in values}
    for name, part in vars(default).items():
        if isinstance(part, PreTrainedConfig):
            values[name] = _shrink(type(part), needs.get(name, {}))
    own = {name: value for name, value in needs.items() if not isinstance(values.get(name), PreTrainedConfig)}
    return kind(**values | own)


def _is_derived(kind: type[PreTrainedConfig], name: str) -> bool:
    """Whether a configuration computes a value from others, so that it cannot be set."""
    return isinstance(getattr(kind, kind.attribute_map.get(name, name), None), property)


def _choose_layers(layers: list[str]) -> list[str]:
    """At least `HYBRID_LAYERS` layers, with every kind that there is."""
    kinds = list(dict.fromkeys(layers))
    return (kinds * HYBRID_LAYERS)[: max(HYBRID_LAYERS, len(kinds))]


def build_model(kind: str, released: bool = False, seed: int = 0) -> PreTrainedModel:
    """A random float32 model of a type in evaluation mode, the same for the same arguments.

    Raises ValueError for one with more than `MOST_WEIGHTS` weights, and whatever transformers raises.
    """
    config = create_config(kind, released)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_WEIGHTS:
        raise ValueError(f"the small configuration still has {size:,} weights")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(create_config(kind, released)).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += NOISE * torch.randn_like(weight)
    return model
