#!/usr/bin/env bash
# Runs one command on all workers of a Cloud TPU VM or pod, by gcloud.
#   bash launch/tpu_vm.sh run NAME --zone Z --type v6e-8 [options] -- --config=configs/sft.py --workdir=runs/sft ...
#   bash launch/tpu_vm.sh logs NAME --zone Z [--worker 3]    follows the run; its exit status becomes this one's
#   bash launch/tpu_vm.sh stop NAME --zone Z                 the run saves a checkpoint and ends; the VM stays
#   bash launch/tpu_vm.sh delete NAME --zone Z               gives the VM back; what is only on its disk is lost
#
# run  creates the VM, or takes the one that is there (a preempted one is replaced); copies this checkout to all
#      workers; installs; starts the command on all of them; follows worker 0. Ctrl-C or a lost connection ends
#      only the following.
# --zone Z       where it is, such as us-east5-b.
# --type T       what to create, such as v6e-8, v5p-16, v5litepod-8, v4-32.
# --version V    its software; by default the one for the type.
# --project P    by default gcloud's own.
# --spot         creates a spot VM: cheaper, and taken away at any time. The same command then goes on where it
#                stopped, if the workdir is not on the VM's own disk.
# --worker W     of logs: whose log (default 0).
# --dry_run      prints the commands and runs none.
# What stands after -- goes to rlhf_jax.main unchanged; relative paths in it are below ~/rlhf_jax on the workers.
# With more than one worker the workdir must be a folder that all see, such as a Filestore or gcsfuse mount.
set -euo pipefail

usage() { sed -n '2,23s/^# \{0,1\}//p' "$0"; }
# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1:-} in
  run | logs | stop | delete) action=$1; shift ;;
  -h | --help) usage; exit 0 ;;
  '') usage >&2; exit 2 ;;
  *) fail "$1: not a command of tpu_vm.sh; use run, logs, stop or delete" ;;
esac
case ${1:-} in
  '' | -*) fail "NAME: missing; the name of the TPU VM stands after $action" ;;
esac
name=$1; shift
zone='' type='' version='' project='' worker=0 spot=false dry_run=false
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --zone | --type | --version | --project | --worker)
      case ${2:-} in '' | -*) fail "$1: a value is missing after it" ;; esac
      printf -v "${1#--}" %s "$2"
      shift 2 ;;
    --spot) spot=true; shift ;;
    --dry_run) dry_run=true; shift ;;
    -h | --help) usage; exit 0 ;;
    *) fail "$1: not an option of tpu_vm.sh; arguments of the program stand after --" ;;
  esac
done
[ -n "$zone" ] || fail "--zone: missing; use for example --zone us-east5-b"
if [ "$action" = run ]; then
  [ $# -gt 1 ] || fail "--: missing; the program's arguments stand after it, as in -- --config=configs/sft.py --workdir=runs/sft"
  shift
  if [ -z "$version" ]; then
    case $type in
      v6e-*) version=v2-alpha-tpuv6e ;;
      v5p-*) version=v2-alpha-tpuv5 ;;
      v5litepod-*) version=v2-alpha-tpuv5-lite ;;
      v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
      '') fail "--type: missing; use for example --type v6e-8" ;;
      *) fail "--type: the software for '$type' is not known here; add --version (gcloud compute tpus versions list)" ;;
    esac
  fi
elif [ $# -gt 0 ]; then
  fail "--: $action takes no arguments for the program; leave it out"
fi
$dry_run || command -v gcloud >/dev/null || fail "gcloud: not found; see https://cloud.google.com/sdk/docs/install"
cd "$(dirname "$0")/.."

where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")
run() { if $dry_run; then print "$@"; else "$@"; fi; }
tpu() { run gcloud compute tpus tpu-vm "$@" "${where[@]}"; }
on() { tpu ssh "$name" "--worker=$1" "--command=$2"; } # a shell line on worker $1, or on all

create() {
  local options=("--accelerator-type=$type" "--version=$version")
  if $spot; then options+=(--spot); fi
  tpu create "$name" "${options[@]}"
}

create_or_reuse() {
  if $dry_run; then
    tpu describe "$name" '--format=value(state)'
    echo '# when there is none yet:'
    create
    return
  fi
  local state
  state=$(tpu describe "$name" '--format=value(state)' 2>/dev/null || true)
  case $state in
    READY) ;;
    '') create ;;
    STOPPED) tpu start "$name" ;;
    PREEMPTED | TERMINATED)
      echo "tpu_vm.sh: $name is $state; replacing it" >&2
      tpu delete "$name" --quiet
      create ;;
    *) fail "NAME: $name is $state; wait until it is READY, or: bash launch/tpu_vm.sh delete $name --zone $zone" ;;
  esac
}

worker_script=rlhf_jax/launch/tpu_worker.sh
# Not while a run needs the files. What the workers made themselves stays: the environment, the runs, the last log.
unpack="{ [ ! -e $worker_script ] || bash $worker_script idle; } && mkdir -p rlhf_jax && cd rlhf_jax"
unpack+=" && find . -mindepth 1 -maxdepth 1 ! -name .venv ! -name runs ! -name 'run.*' -exec rm -rf {} +"
unpack+=" && tar -xzf ../rlhf_jax.tar.gz"

case $action in
  run)
    create_or_reuse
    archive=${TMPDIR:-/tmp}/rlhf_jax-$name.tar.gz
    run tar -czf "$archive" --exclude=./.git '--exclude=./.venv*' --exclude=./benchmarks/.peers --exclude=./runs --exclude=__pycache__ .
    tpu scp "$archive" "$name:rlhf_jax.tar.gz" --worker=all
    on all "$unpack"
    on all "bash $worker_script install"
    printf -v arguments ' %q' "$@"
    on all "bash $worker_script start$arguments"
    echo "# Ctrl-C leaves it running; to see more: bash launch/tpu_vm.sh logs $name ${where[*]/=/ }"
    on 0 "bash $worker_script follow" ;;
  logs) on "$worker" "bash $worker_script follow" ;;
  stop) on all "bash $worker_script stop" ;;
  delete) tpu delete "$name" --quiet ;;
esac
