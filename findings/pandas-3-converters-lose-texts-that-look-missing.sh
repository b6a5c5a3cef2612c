#!/usr/bin/env bash
# In pandas 3, read_csv takes the results of a converter for missing values if they are texts such as "NA" or "None".
#
# pandas 3.1.1: a converter for a column used to be the way to keep texts as they are, because what it returned was not
# looked at again: with pandas 2.2.3, converters={"token": str} keeps the token "NA". With 3.1.1 the same call gives a
# missing value for it, so that joining the tokens of a text fails or loses some. keep_default_na=False keeps them in
# both.
#
# Output seen:
#     2.2.3 converters: ['NA', 'None', 'null', 'the']
#     2.2.3 keep_default_na=False: ['NA', 'None', 'null', 'the']
#     3.1.1 converters: [nan, nan, nan, 'the']
#     3.1.1 keep_default_na=False: ['NA', 'None', 'null', 'the']
#
# Exits with a status other than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/read.py" <<'PYTHON'
import io
import sys

import pandas as pd

csv = "token,k\nNA,1\nNone,2\nnull,3\nthe,4\n"
kept = ["NA", "None", "null", "the"]
converted = pd.read_csv(io.StringIO(csv), converters={"token": str})["token"]
plain = pd.read_csv(io.StringIO(csv), keep_default_na=False, na_values=[""])["token"]
print(f"{pd.__version__} converters: {converted.tolist()}")
print(f"{pd.__version__} keep_default_na=False: {plain.tolist()}")
lost = [True, True, True, False] if pd.__version__ >= "3" else [False] * 4
if converted.isna().tolist() != lost or plain.tolist() != kept:
    sys.exit("this has changed")
PYTHON
for version in 2.2.3 3.1.1; do
    python3 -m venv --clear "$folder/venv"
    "$folder/venv/bin/python" -m pip install --quiet "pandas==$version"
    "$folder/venv/bin/python" "$folder/read.py"
done
