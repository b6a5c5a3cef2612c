#!/usr/bin/env bash
# Of equally likely tokens, transformers' top-p keeps those with the highest ids, and so can drop the one that greedy
# decoding takes.
#
# transformers 5.23.0 with torch 2.13.0: a nucleus is usually described as the head of the tokens sorted by falling
# probability, where one would expect the lower id first, as in argmax and in greedy decoding. TopPLogitsWarper sorts
# by rising probability and cuts off the beginning, where the lower ids of a tie are. However small top_p is, the
# token that greedy decoding takes is then not in the nucleus.
#
# Output seen:
#     top_p=0.01 leaves the tokens [3]
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
from transformers import TopPLogitsWarper

logits = torch.tensor([[1.0, 3.0, 2.0, 3.0]])
kept = TopPLogitsWarper(top_p=0.01)(torch.tensor([[0]]), logits.clone())
left = kept.isfinite()[0].nonzero()[:, 0].tolist()
print("top_p=0.01 leaves the tokens", left)
print("greedy decoding takes the token", logits.argmax(-1).item())
if left != [3]:
    sys.exit("this has changed")
PYTHON
