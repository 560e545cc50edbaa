#!/usr/bin/env bash
# Everything that must hold before a change lands: lint, format, import rules, then all tests.
#   bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh test

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
# Two workers: most of the time goes to compilers, which use one core each.
exec .venv/bin/python -m pytest -n "${TEST_WORKERS:-2}" --dist=worksteal "$@"
