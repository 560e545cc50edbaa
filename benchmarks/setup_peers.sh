#!/usr/bin/env bash
# Installs what ours is measured against, each kind in its own environment below benchmarks/.peers (git-ignored):
#   torch  a lean PyTorch loop, TRL, transformers' own generate
#   tunix  google-tunix, which pins another jax
# Usage: bash benchmarks/setup_peers.sh [torch|tunix]        (PYTHON=python3.12 to choose the interpreter)
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)/.peers"
python="${PYTHON:-python3}"
mkdir -p "$here"

make_env() { [ -x "$here/$1/bin/python" ] || "$python" -m venv "$here/$1"; }

if [ "${1:-torch}" = torch ]; then
  make_env torch
  "$here/torch/bin/pip" install --quiet torch==2.13.0 # first, and alone: this version is the CPU build
  "$here/torch/bin/pip" install --quiet "transformers>=5.20,<6" "trl==1.12.0" peft accelerate datasets safetensors psutil
  "$here/torch/bin/python" -c 'import torch, transformers, trl, peft; print("torch", torch.__version__, "transformers", transformers.__version__, "trl", trl.__version__, "peft", peft.__version__)'
fi

if [ "${1:-tunix}" = tunix ]; then
  make_env tunix
  "$here/tunix/bin/pip" install --quiet "google-tunix==0.1.7" safetensors psutil
  "$here/tunix/bin/python" -c 'import importlib.metadata as m; print(*[f"{p} {m.version(p)}" for p in ("google-tunix", "jax", "flax")])'
fi
