#!/usr/bin/env bash
# A configuration that transformers registers for causal language modelling cannot be given to AutoModelForCausalLM.
#
# transformers 5.23.0 with torch 2.13.0: MODEL_FOR_CAUSAL_LM_MAPPING maps MusicgenConfig to MusicgenForCausalLM, the
# decoder of codes. One would expect AutoModelForCausalLM.from_config(MusicgenConfig(...)) to build it, as it does for
# other registered classes whose configuration has parts. It passes the whole configuration, which the class cannot be
# built from; the class itself, given the decoder's part, is built.
#
# Output seen:
#     registered: MusicgenForCausalLM
#     built from its decoder's configuration: MusicgenForCausalLM
#     through AutoModelForCausalLM: AttributeError: 'MusicgenConfig' object has no attribute 'dropout'
#
# Exits with a status other than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    T5Config,
)

sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
decoder = MusicgenDecoderConfig(**sizes, num_codebooks=2, pad_token_id=0, bos_token_id=0)
text = T5Config(vocab_size=64, d_model=32, num_layers=1, num_heads=2, d_ff=32, d_kv=16)
whole = MusicgenConfig(text_encoder=text.to_dict(), audio_encoder=EncodecConfig().to_dict(), decoder=decoder.to_dict())
print("registered:", MODEL_FOR_CAUSAL_LM_MAPPING[MusicgenConfig].__name__)
print("built from its decoder's configuration:", type(MusicgenForCausalLM(decoder)).__name__)
try:
    built = AutoModelForCausalLM.from_config(whole)
except Exception as error:
    print("through AutoModelForCausalLM:", f"{type(error).__name__}: {error}"[:200])
else:
    print("through AutoModelForCausalLM:", type(built).__name__)
    sys.exit("this has changed")
PYTHON
