#!/usr/bin/env bash
# Everything that must hold before a change lands: lint, format, import rules, then all tests.
#   bash scripts/test.sh [pytest arguments]        VENV=.venv-3.13 PYTHON=python3.13 bash scripts/test.sh
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh test
bin=${VENV:-.venv}/bin

"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/lint-imports"
# Two workers: most of the time goes to compilers, which use one core each.
exec "$bin/python" -m pytest -n "${TEST_WORKERS:-2}" --dist=worksteal "$@"
