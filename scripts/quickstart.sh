#!/usr/bin/env bash
# From a bare machine to an aligned model and a leaderboard: installs into .venv, then runs the whole loop.
#   bash scripts/quickstart.sh [--config.seed=1 ...]       WORKDIR=runs/other bash scripts/quickstart.sh
# Needs Python >= 3.11 and a package index; no key, no weights. Again in the same folder it reuses what is finished.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh
exec "${VENV:-.venv}/bin/python" -m rlhf_jax.main --config=configs/farm.py --workdir="${WORKDIR:-runs/farm}" "$@"
