# shellcheck shell=bash
# What the scripts here share; they read it with `.`.
set -euo pipefail

fail() { echo "error: $1" >&2; exit 2; }
print() { # a command, quoted so that a shell takes it
  local word line='' quote="'\\''"
  for word; do
    case $word in '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//\'/$quote}'" ;; esac
    line+="$word "
  done
  echo "${line% }"
}
