#!/usr/bin/env bash
# torch.segment_reduce adds bfloat16 numbers one by one in bfloat16, so a sum stops growing at 256.
#
# torch 2.13.0 on a CPU: sum, cumsum and embedding_bag of a bfloat16 tensor accumulate in a wider type and give 4,096
# for 4,096 ones. segment_reduce, which adds consecutive segments, rounds every partial sum: 256 + 1 is 256 in bfloat16.
# float16 stops at 2,048, and float32 at 16,777,216.
#
# Output seen:
#     sum 4096
#     cumsum 4096
#     embedding_bag 4096
#     segment_reduce 256
#     segment_reduce, float16 2048
#
# Exits with a status other than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch

n = 4096
ones = torch.ones(n, dtype=torch.bfloat16)
found = {
    "sum": ones.sum(),
    "cumsum": ones.cumsum(0)[-1],
    "embedding_bag": torch.nn.functional.embedding_bag(
        torch.arange(n), ones[:, None], torch.tensor([0]), mode="sum"
    ),
    "segment_reduce": torch.segment_reduce(ones, "sum", lengths=torch.tensor([n])),
    "segment_reduce, float16": torch.segment_reduce(ones.half(), "sum", lengths=torch.tensor([n])),
}
totals = {name: int(value.item()) for name, value in found.items()}
for name, total in totals.items():
    print(name, total)
if list(totals.values()) != [n, n, n, 256, 2048]:
    sys.exit("this has changed")
PYTHON
