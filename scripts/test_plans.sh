#!/usr/bin/env bash
# What --plan says with the compiler for TPUs (0.7 GB), in an environment of its own: the embedded model and a step of 1B.
#   bash scripts/test_plans.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
export VENV=.venv-plan
bash scripts/install.sh fast
"$VENV/bin/pip" install --quiet -r requirements-plan.txt
exec "$VENV/bin/python" -m pytest -p no:xdist tests/planning "$@"
