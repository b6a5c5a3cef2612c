#!/usr/bin/env bash
# scipy.stats.t.logsf is -inf where the tail is too small for a double, although the logarithm is not.
#
# scipy 1.17.1: norm.logsf computes a logarithm and is right far out in the tail. One would expect the same of t.logsf,
# for example to state the p-value of a correlation over 10,000 tokens. It is the logarithm of sf, which has become 0.
# With t = 40 and 10,000 degrees of freedom the value is -746.6, by the incomplete beta function of mpmath 1.4.1.
#
# Output seen:
#     norm.logsf(40) -804.6
#     t.logsf(40, 10000) -inf
#     by mpmath -746.6
#
# Exits with a status other than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet scipy==1.17.1 numpy==2.4.6 mpmath==1.4.1
cd "$folder"
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import mpmath
from scipy import stats

t, n = 40, 10_000
mpmath.mp.dps = 40
x = mpmath.mpf(n) / (n + t * t)
exact = mpmath.log(mpmath.betainc(mpmath.mpf(n) / 2, mpmath.mpf(1) / 2, 0, x, regularized=True) / 2)
found = stats.t.logsf(t, n)
print(f"norm.logsf({t}) {stats.norm.logsf(t):.1f}")
print(f"t.logsf({t}, {n}) {found:.1f}")
print(f"by mpmath {float(exact):.1f}")
if found != -float("inf"):
    sys.exit("this has changed")
PYTHON
