#!/usr/bin/env bash
# Snakemake runs this in the new conda environment, in the folder in which it was started (the clone).
set -euo pipefail
python -m pip install --no-deps --editable .
