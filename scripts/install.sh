#!/usr/bin/env bash
# Makes .venv with the run-time requirements, and those of the tests when called with `test`.
#   bash scripts/install.sh [test]        PYTHON=python3.12 bash scripts/install.sh
# Does nothing when .venv already holds exactly what the requirement files ask for.
set -euo pipefail
cd "$(dirname "$0")/.."

files=(requirements.txt)
[ "${1:-}" = test ] && files+=(requirements-test.txt)
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $($python --version) is too old; rlhf_jax needs Python >= 3.11 (PYTHON=/path/to/python3 chooses another)" >&2
  exit 2
}
stamp=$(cat "${files[@]}" | sha256sum | cut -d' ' -f1)
for done in .venv/installed-test .venv/installed; do
  [ -f "$done" ] && grep -qx "$stamp" "$done" && exit 0
done
if [ "${1:-}" != test ] && [ -f .venv/installed-test ]; then  # The test environment holds the run-time one.
  grep -qx "$(cat requirements.txt requirements-test.txt | sha256sum | cut -d' ' -f1)" .venv/installed-test && exit 0
fi

echo "installing ${files[*]} into .venv"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check "${files[@]/#/-r}"
echo "$stamp" > ".venv/installed${1:+-$1}"
