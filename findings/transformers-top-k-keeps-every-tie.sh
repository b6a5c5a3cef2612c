#!/usr/bin/env bash
# transformers' top-k keeps more than k tokens where the k-th logit occurs several times, so top_k=1 is not greedy.
#
# transformers 5.23.0 with torch 2.13.0: one would expect TopKLogitsWarper(k) to leave k tokens. It removes what is
# below the k-th largest logit, and all tokens that have exactly this logit stay. Logits of a bfloat16 model have 8
# significant bits, so ties are no rarity there. With top_k=1, do_sample=True then draws between all the likeliest
# tokens, while greedy decoding takes the one with the lowest id.
#
# Output seen:
#     top_k=1 leaves the tokens [1, 3, 4]
#     top_k=2 leaves the tokens [1, 3, 4]
#     greedy decoding takes the token 1
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

import torch
from transformers import TopKLogitsWarper

logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, 3.0]])
left = {}
for k in (1, 2):
    kept = TopKLogitsWarper(top_k=k)(torch.tensor([[0]]), logits.clone())
    left[k] = kept.isfinite()[0].nonzero()[:, 0].tolist()
    print(f"top_k={k} leaves the tokens {left[k]}")
print("greedy decoding takes the token", logits.argmax(-1).item())
if left != {1: [1, 3, 4], 2: [1, 3, 4]}:
    sys.exit("this has changed")
PYTHON
