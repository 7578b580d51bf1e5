#!/usr/bin/env bash
# Run by Snakemake in the new conda environment, from the folder in which Snakemake was started: the clone.
set -euo pipefail
python -m pip install --no-deps --editable .
