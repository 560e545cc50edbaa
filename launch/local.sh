#!/usr/bin/env bash
# Runs one command as N cooperating processes on this machine: a pod in miniature.
#   bash launch/local.sh N [--devices D] [--dry_run] -- --config=configs/sft.py --workdir=runs/sft ...
#
# N          processes; they find each other on a free port of 127.0.0.1.
# --devices  CPU devices of each process (default 1).
# --dry_run  prints the commands and starts nothing.
# What stands after -- goes to rlhf_jax.main unchanged. Process 0 prints here, the others to a log that is shown
# when they fail. When one process fails, the others are stopped.
set -euo pipefail

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 1 ] || usage
processes=$1; shift
[[ $processes =~ ^[1-9][0-9]*$ ]] || { echo "error: N: '$processes' is not a number of processes" >&2; exit 2; }
devices=1 dry_run=false
while [ $# -gt 0 ]; do
  case $1 in
    --devices) devices=$2; shift 2 ;;
    --dry_run) dry_run=true; shift ;;
    --) shift; break ;;
    *) echo "error: $1: not an option of local.sh; arguments of the program stand after --" >&2; exit 2 ;;
  esac
done
[ $# -gt 0 ] || usage

cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

environment=("RLHF_JAX_COORDINATOR=127.0.0.1:$port" "RLHF_JAX_NUM_PROCESSES=$processes" "JAX_NUM_CPU_DEVICES=$devices")
if $dry_run; then
  for ((i = 0; i < processes; i++)); do
    echo env "${environment[@]}" "RLHF_JAX_PROCESS_ID=$i" "$python" -m rlhf_jax.main "$@"
  done
  exit 0
fi

logs=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$logs"' EXIT
for ((i = processes - 1; i >= 0; i--)); do
  if [ "$i" -eq 0 ]; then
    env "${environment[@]}" RLHF_JAX_PROCESS_ID=0 "$python" -m rlhf_jax.main "$@" &
  else
    env "${environment[@]}" "RLHF_JAX_PROCESS_ID=$i" "$python" -m rlhf_jax.main "$@" >"$logs/$i" 2>&1 &
  fi
  pids+=($!)
done
status=0
for _ in "${pids[@]}"; do
  wait -n "${pids[@]}" || { status=$?; break; }
done
if [ "$status" -ne 0 ]; then
  for ((i = 1; i < processes; i++)); do
    [ -s "$logs/$i" ] && { echo "--- process $i, last lines:" >&2; tail -n 15 "$logs/$i" >&2; }
  done
fi
exit "$status"
