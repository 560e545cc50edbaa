#!/usr/bin/env bash
# Runs one command as N cooperating processes on this machine: a pod in miniature.
#   bash launch/local.sh N [--devices D | --gpus G] [--dry_run] -- --config=configs/sft.py --workdir=runs/sft ...
#
# N          processes; they find each other on a free port of 127.0.0.1.
# --devices  CPU devices of each process (default 1).
# --gpus     GPUs of each process, instead of CPU devices: process 0 gets the first G of them, and so on.
# --dry_run  prints the commands and starts nothing.
# What stands after -- goes to rlhf_jax.main unchanged. Process 0 prints here, the others to a log that is shown
# when they fail. When one process fails, the others are stopped; on Ctrl-C or SIGTERM all save and stop.
set -euo pipefail

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }
# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1:-} in
  '') usage >&2; exit 2 ;;
  -h | --help) usage; exit 0 ;;
esac
processes=$1; shift
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "N: '$processes' is not a number of processes; use for example 2"
devices='' gpus='' dry_run=false
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --devices | --gpus)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "$1: '${2:-}' is not a number; use for example $1 1"
      if [ "$1" = --gpus ]; then gpus=$2; else devices=$2; fi
      shift 2 ;;
    --dry_run) dry_run=true; shift ;;
    -h | --help) usage; exit 0 ;;
    *) fail "$1: not an option of local.sh; arguments of the program stand after --" ;;
  esac
done
[ $# -gt 1 ] || fail "--: missing; the program's arguments stand after it, as in -- --config=configs/sft.py --workdir=runs/sft"
shift
[ -z "$devices" ] || [ -z "$gpus" ] || fail "--gpus: cannot be given together with --devices; leave one out"

cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# The GPUs this shell may use, in order; all that there are unless CUDA_VISIBLE_DEVICES says otherwise.
visible=()
if [ -n "$gpus" ]; then
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    IFS=, read -r -a visible <<<"$CUDA_VISIBLE_DEVICES"
    [ "${#visible[@]}" -ge $((processes * gpus)) ] ||
      fail "--gpus: $processes x $gpus needs $((processes * gpus)) GPUs, but CUDA_VISIBLE_DEVICES has ${#visible[@]}; use less"
  else
    for ((i = 0; i < processes * gpus; i++)); do visible+=("$i"); done
  fi
fi

command_of() { # sets `command`, the whole command of process $1; the rest are the program's arguments
  local i=$1; shift
  command=(env "RLHF_JAX_COORDINATOR=127.0.0.1:$port" "RLHF_JAX_NUM_PROCESSES=$processes" "RLHF_JAX_PROCESS_ID=$i")
  if [ -n "$gpus" ]; then
    command+=("CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${visible[*]:i*gpus:gpus}")")
  else
    command+=("JAX_PLATFORMS=cpu" "JAX_NUM_CPU_DEVICES=${devices:-1}")
  fi
  command+=("$python" -m rlhf_jax.main "$@")
}

if $dry_run; then
  for ((i = 0; i < processes; i++)); do command_of "$i" "$@"; print "${command[@]}"; done
  exit 0
fi

logs=$(mktemp -d)
pids=() codes=() # of every process; its code is empty while it runs
running() { # notes the codes of those that have ended; true when some have not
  local i some=1
  for ((i = 0; i < ${#pids[@]}; i++)); do
    if [ -n "${codes[$i]}" ]; then continue; fi
    if kill -0 "${pids[$i]}" 2>/dev/null; then some=0; continue; fi
    codes[i]=0
    wait "${pids[$i]}" || codes[i]=$?
  done
  return "$some"
}
wait_at_most() { # $1 fifths of a second
  local tick
  for ((tick = 0; tick < $1; tick++)); do running || return 0; sleep 0.2; done
}
# shellcheck disable=SC2317,SC2329 # traps call it
tell() { # sends signal $1 to those that still run
  local i
  running || return 0
  for ((i = 0; i < ${#pids[@]}; i++)); do
    if [ -z "${codes[$i]}" ]; then kill "-$1" "${pids[$i]}" 2>/dev/null || true; fi
  done
}
# shellcheck disable=SC2317,SC2329 # traps call it
finish() { # leaves nothing behind: ten seconds to go by itself, then the axe
  trap '' INT TERM
  tell TERM
  wait_at_most 50
  tell KILL
  rm -rf "$logs"
}
told=false
# shellcheck disable=SC2317,SC2329 # traps call it
stop() {
  if $told; then exit 130; fi # asked twice
  told=true
  tell TERM # The program saves a checkpoint, on all processes after the same step, and ends with status 0.
}
trap finish EXIT
trap stop INT TERM

for ((i = 0; i < processes; i++)); do
  command_of "$i" "$@"
  if [ "$i" -eq 0 ]; then
    "${command[@]}" &
  else
    "${command[@]}" >"$logs/$i" 2>&1 &
  fi
  pids+=($!) codes+=('')
done

# The process to blame. Status 3 only says that another one has failed, and so does jax's abort (134) when one is gone.
failed=''
blame() {
  local i
  for ((i = 0; i < processes; i++)); do
    case ${codes[$i]} in
      '' | 0) ;;
      3 | 134) [ -n "$failed" ] || failed=$i ;;
      *) failed=$i; return ;;
    esac
  done
}
while running; do
  blame
  [ -z "$failed" ] || break
  sleep 0.2
done
blame
[ -n "$failed" ] || exit 0

wait_at_most 25 # The others hear of it and leave with a message.
blame
for ((i = 1; i < processes; i++)); do
  if [ -s "$logs/$i" ]; then
    echo "--- process $i, last lines:" >&2
    tail -n 15 "$logs/$i" >&2
  fi
done
echo "error: process $failed ended with status ${codes[$failed]}; the others were stopped" >&2
exit "${codes[$failed]}"
