#!/usr/bin/env bash
# Runs one command as a workload on the TPUs of a GKE cluster, by xpk (pip install xpk; it makes the cluster, too).
#   bash launch/gke_xpk.sh NAME --cluster C --type v6e-8 --zone Z [options] -- --config=configs/sft.py --workdir=/runs/sft ...
#
# --cluster C   the GKE cluster.            --zone Z      where it is, such as us-east5-b.
# --type T      the TPU slice: v6e-8, v5p-16, v5litepod-16, ...
# --project P   by default xpk's own.
# --image I     an image that has this checkout as its working folder and all requirements installed; without it
#               the checkout is laid on python:3.12 and installs when it starts.
# --restarts N  starts again after a failure, each time from the last checkpoint (default 3).
# --xpk OPTION  goes to `xpk workload create` as it is; may be repeated: --xpk --priority=high
# --dry_run     prints the commands and runs none.
# What stands after -- goes to rlhf_jax.main unchanged. The workdir must be on storage that all pods see: attach a
# Filestore or a bucket with `xpk storage attach`. A run that is told to stop saves and ends with status 0, which the
# cluster takes for finished: the same command goes on from there.
# xpk sends usage data to Google unless: xpk config set send-telemetry false
set -euo pipefail

usage() { sed -n '2,18s/^# \{0,1\}//p' "$0"; }
# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1:-} in
  '') usage >&2; exit 2 ;;
  -h | --help) usage; exit 0 ;;
esac
name=$1; shift
[[ $name =~ ^[a-z]([-a-z0-9]{0,37}[a-z0-9])?$ ]] ||
  fail "NAME: '$name' is no workload name; use up to 39 lower-case letters, digits and dashes, as in sft-7b"
cluster='' type='' zone='' project='' image='' restarts=3 dry_run=false
more=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --cluster | --type | --zone | --project | --image | --restarts)
      case ${2:-} in '' | -*) fail "$1: a value is missing after it" ;; esac
      printf -v "${1#--}" %s "$2"
      shift 2 ;;
    --xpk)
      case ${2:-} in -?*) more+=("$2") ;; *) fail "--xpk: an option of xpk is missing after it, as in --xpk --priority=high" ;; esac
      [ "$2" != -- ] || fail "--xpk: an option of xpk is missing after it, as in --xpk --priority=high"
      shift 2 ;;
    --dry_run) dry_run=true; shift ;;
    -h | --help) usage; exit 0 ;;
    *) fail "$1: not an option of gke_xpk.sh; arguments of the program stand after --" ;;
  esac
done
[ $# -gt 1 ] || fail "--: missing; the program's arguments stand after it, as in -- --config=configs/sft.py --workdir=/runs/sft"
shift
[ -n "$cluster" ] || fail "--cluster: missing; the name of the GKE cluster (gcloud container clusters list)"
[ -n "$type" ] || fail "--type: missing; use for example --type v6e-8"
[ -n "$zone" ] || fail "--zone: missing; use for example --zone us-east5-b"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts: '$restarts' is not a number; use for example --restarts 3"
$dry_run || command -v xpk >/dev/null || fail "xpk: not found; install it: pip install xpk"
cd "$(dirname "$0")/.."

run() { if $dry_run; then print "$@"; else "$@"; fi; }
where=("--cluster=$cluster" "--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")

# xpk hands this line to bash in every pod. With exec the program is the process that is told to stop.
printf -v command '%q ' exec python -m rlhf_jax.main "$@"
command=${command% }
if [ -n "$image" ]; then
  what=("--docker-image=$image")
else
  staged=${TMPDIR:-/tmp}/rlhf_jax-$name
  command="pip install --quiet -r requirements.txt 'jax[tpu]' && $command"
  what=(--base-docker-image=python:3.12 "--script-dir=$staged")
  # xpk packs a whole folder: without the environment, the runs and the history.
  run rm -rf "$staged"
  run mkdir -p "$staged"
  run tar -czf "$staged.tar.gz" --exclude=./.git '--exclude=./.venv*' --exclude=./benchmarks/.peers --exclude=./runs --exclude=__pycache__ .
  run tar -xzf "$staged.tar.gz" -C "$staged"
fi
# Three minutes to save. "User code" here is also what ends because another pod was taken away.
run xpk workload create "--workload=$name" "${where[@]}" "--tpu-type=$type" "${what[@]}" "--max-restarts=$restarts" \
  --restart-on-user-code-failure --termination-grace-period-seconds=180 ${more[@]+"${more[@]}"} "--command=$command"
echo "# to wait for its end: xpk workload list ${where[*]} --wait-for-job-completion=$name"
echo "# to end it:           xpk workload delete ${where[*]} --workload=$name"
