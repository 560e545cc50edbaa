#!/usr/bin/env bash
# A fast part of the tests on the newest Python of this machine, with the newest jax that was tested on it.
#   bash scripts/test_newest.sh [pytest arguments]
# Needs neither torch nor peft. Where there is no Python newer than the one of .venv it says so, and that is all.
set -euo pipefail
cd "$(dirname "$0")/.."

newest=''
for minor in 13 12; do # What constraints were written for; a newer one is tried by hand with LATEST=1.
  for candidate in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python; do
    if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then newest=$candidate; break 2; fi
  done
done
version='import sys; print("%d.%d" % sys.version_info[:2])'
own=$("${PYTHON:-python3}" -c "$version")
if [ -z "$newest" ] || [ "$("$newest" -c "$version")" = "$own" ]; then
  echo "no Python newer than $own (up to 3.13) is here: its tests are left out"
  exit 0
fi

export PYTHON=$newest VENV=.venv-newest
bash scripts/install.sh fast
# What depends on jax, numpy and the standard library most, and compiles least.
exec "$VENV/bin/python" -m pytest -n "${TEST_WORKERS:-2}" --dist=worksteal \
  tests/objectives tests/sampling/test_choose.py tests/data tests/rollout tests/evaluation \
  tests/training/test_{checkpoint,clock,loop,optimizer,state,step}.py tests/annotation/test_*parsing.py "$@"
