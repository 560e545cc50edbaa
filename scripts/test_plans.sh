#!/usr/bin/env bash
# What --plan says with the compiler for TPUs (0.7 GB), in an environment of its own: the embedded model and a step of 1B.
#   bash scripts/test_plans.sh [pytest arguments]
# Where the package index has no such compiler it says so, and that is all.
set -euo pipefail
cd "$(dirname "$0")/.."
export VENV=.venv-plan
bash scripts/install.sh fast
if ! "$VENV/bin/pip" install --quiet -r requirements-plan.txt; then
  echo "libtpu could not be installed: its tests are left out"
  exit 0
fi
exec "$VENV/bin/python" -m pytest -p no:xdist tests/planning/test_{slices,targets}.py \
  tests/planning/test_plans.py::test_the_embedded_model_on_a_tpu_slice "$@"
