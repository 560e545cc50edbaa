#!/usr/bin/env bash
# What tpu_vm.sh has each worker do, in ~/rlhf_jax there: idle, install, start ARGUMENTS, follow, stop.
# run.log is what the program says, run.pid its process, run.status its exit status once it has ended.
set -euo pipefail
cd "$(dirname "$0")/.."

running() { [ -s run.pid ] && kill -0 "$(cat run.pid)" 2>/dev/null; }
fail() { echo "error: $(hostname): $1" >&2; exit 1; }

action=${1:-}
[ $# -eq 0 ] || shift
case $action in
  idle)
    ! running || fail "a run is under way; stop it first: bash launch/tpu_vm.sh stop" ;;
  install)
    export PATH="$HOME/.local/bin:$PATH"
    command -v uv >/dev/null || python3 -m pip install --quiet --user uv
    [ -x .venv/bin/python ] || uv venv --quiet --python 3.12 .venv # the system's own is too old
    uv pip install --quiet -r requirements.txt 'jax[tpu]' ;;
  start)
    rm -f run.pid run.status
    nohup bash launch/tpu_worker.sh hold "$@" >run.log 2>&1 </dev/null & # outlives the connection
    until [ -s run.pid ]; do sleep 0.1; done ;;
  hold)
    .venv/bin/python -m rlhf_jax.main "$@" &
    echo $! >run.pid
    status=0
    wait $! || status=$?
    echo "$status" >run.status ;;
  follow)
    [ -s run.pid ] || fail "nothing was started here yet; start it: bash launch/tpu_vm.sh run"
    tail -n +1 -F "--pid=$(cat run.pid)" run.log 2>/dev/null
    for _ in {1..50}; do [ ! -s run.status ] || break; sleep 0.2; done
    [ -s run.status ] || fail "the run has ended without an exit status; the machine was restarted, or memory ran out"
    exit "$(cat run.status)" ;;
  stop)
    running || fail "no run is under way"
    kill -TERM "$(cat run.pid)" # The program saves a checkpoint, on all workers after the same step.
    while running; do sleep 0.2; done ;;
  *) fail "$action: use idle, install, start, follow or stop" ;;
esac
