#!/usr/bin/env bash
# Makes .venv with the run-time requirements, those of the tests when called with `test`, or of their fast part with `fast`.
#   bash scripts/install.sh [test|fast]        PYTHON=python3.13 VENV=.venv-3.13 bash scripts/install.sh
# Requirements are ranges; what is installed of them are the versions that were tested together (constraints-3.11.txt up to
# Python 3.12, constraints-3.13.txt from 3.13 on). LATEST=1 takes the newest instead.
# Does nothing when the environment already holds exactly what these files ask for.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-run} in
  run) files=(requirements.txt) ;;
  fast) files=(requirements.txt requirements-fast.txt) ;;
  test) files=(requirements.txt requirements-fast.txt requirements-test.txt) ;;
  *) echo "error: $1: not a set of requirements; use test, fast or nothing" >&2; exit 2 ;;
esac
python=${PYTHON:-python3} venv=${VENV:-.venv}
version='import sys; print("%d.%d" % sys.version_info[:2])'
if [ -x "$venv/bin/python" ]; then
  there=$("$venv/bin/python" -c "$version") wanted=$("${PYTHON:-$venv/bin/python}" -c "$version")
  [ "$there" = "$wanted" ] || {
    echo "error: PYTHON: $PYTHON is Python $wanted, but $venv was made with $there; remove $venv, or set VENV=.venv-$wanted" >&2
    exit 2
  }
  python=$venv/bin/python
fi

minor=$("$python" -c 'import sys; print(sys.version_info.minor if sys.version_info >= (3, 11) else "old")')
[ "$minor" != old ] || {
  echo "error: $("$python" --version) is too old; rlhf_jax needs Python >= 3.11 (PYTHON=/path/to/python3 chooses another)" >&2
  exit 2
}
constraints="constraints-3.11.txt"
[ "$minor" -lt 13 ] || constraints="constraints-3.13.txt"
options=("--constraint=$constraints")
if [ -n "${LATEST:-}" ]; then
  options=(--upgrade)
  constraints=/dev/null
fi

stamp_of() { cat "$@" "$constraints" | sha256sum | cut -d' ' -f1; }
all=(requirements.txt requirements-fast.txt requirements-test.txt)
for set in 1 2 3; do # An environment that holds more is as good.
  [ "${#files[@]}" -le "$set" ] && [ -f "$venv/installed" ] &&
    grep -qx "$(stamp_of "${all[@]:0:set}")" "$venv/installed" && exit 0
done

echo "installing ${files[*]} into $venv"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${options[@]}" "${files[@]/#/-r}"
stamp_of "${files[@]}" > "$venv/installed"
