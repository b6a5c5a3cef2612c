"""The list of what `gguf` applies of a GGUF file, for the book.

Contract: importing this is quick, and does not import what reads such files.
"""

APPLIED = {
    "tokenizer.ggml.pre": "how text is split before merges; an unknown name is refused",
    "tokenizer.ggml.add_bos_token": "whether a prompt begins with the beginning-of-text token",
    "tokenizer.ggml.add_space_prefix": "whether a text begins with a space",
    "tokenizer.ggml.eos_token_id, eot_token_id, eom_token_id": "each of these tokens ends a text",
    "rope.freq_base": "the base of the rotary frequencies",
    "rope.freq_base_swa": "the same for layers with a window; refused if the loaded model has one base for all layers",
    "rope.dimension_count, rope.dimension_count_swa": "how many dimensions are rotated, in layers with a window too; "
    "refused if the loaded model rotates another number",
    "rope.*": "any other key of this kind is refused, unless it concerns images only",
    "rope.scaling.type": "linear, yarn and longrope; any other is refused",
    "rope.scaling.factor, rope.scale_linear": "the factor of that scaling",
    "rope.scaling.original_context_length": "the length that the model was trained with before scaling",
    "rope.scaling.yarn_attn_factor, yarn_beta_fast, yarn_beta_slow": "the other parameters of yarn",
    "rope.scaling.attn_factor": "how much longrope scales attention; refused with another type, unless it is 1",
    "rope.scaling.yarn_ext_factor, yarn_log_multiplier, alpha": "refused, unless the value changes nothing",
    "rope_freqs.weight": "a factor for each rotary frequency, as in Llama 3.1",
    "rope_factors_long.weight, rope_factors_short.weight": "the factors of longrope, as in Phi-3",
    "attention.sliding_window": "how far back a token attends",
    "attention.sliding_window_pattern": "which layers have a window; refused if the loaded model has them in others",
    "attn_logit_softcapping, final_logit_softcapping": "the caps of attention scores and of logits",
}


def format_reference() -> str:
    """The table of what is applied, in Markdown, for the book."""
    head = "| in the file | what it decides |\n|---|---|\n"
    rows = [f"| {', '.join(f'`{key}`' for key in keys.split(', '))} | {text} |" for keys, text in APPLIED.items()]
    return head + "\n".join(rows) + "\n"
