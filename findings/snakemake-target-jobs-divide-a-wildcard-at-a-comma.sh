#!/usr/bin/env bash
# A job of a cluster fails if a wildcard has a comma in its value.
#
# snakemake 9.27.1: a job of a cluster is a Snakemake of its own, which is told its wildcards as --target-jobs
# rule:name=value,name=value. What is split there is not only the list: a value with a comma is cut too, quoted or not, and
# what follows is taken for another wildcard. "@" and "=" in a value are kept.
#
# Output seen:
#     model@top_p=0.95@seed=1: {'folder': 'model@top_p=0.95@seed=1'}
#     model@top_p=0.95,seed=1: {'folder': 'model@top_p=0.95', 'seed': '1'}
#
# Exits with a status other than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet snakemake==9.27.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from snakemake.target_jobs import parse_target_jobs_cli_args

found = {}
for value in ("model@top_p=0.95@seed=1", "model@top_p=0.95,seed=1"):
    (spec,) = parse_target_jobs_cli_args([f"measure:folder={value}"])
    found[value] = spec[1]
    print(f"{value}: {spec[1]}")
if [spec["folder"] == value for value, spec in found.items()] != [True, False]:
    sys.exit("this has changed")
PYTHON
