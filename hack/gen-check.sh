#!/usr/bin/env bash
# Runs make gen and fails if that changes anything, untracked files included. Works in a tree with
# uncommitted work: what counts is the difference that generating makes.
set -euo pipefail
cd "$(dirname "$0")/.."
state() {
  git ls-files -z --cached --others --exclude-standard |
    xargs -0 sh -c 'for f; do [ -f "$f" ] && printf "%s\0" "$f"; done' _ | xargs -0 sha256sum
}
before=$(mktemp) after=$(mktemp)
trap 'rm -f "$before" "$after"' EXIT
state >"$before"
make -s gen
state >"$after"
if ! diff "$before" "$after"; then
  echo "generated files are not what make gen makes; run it and commit the result (listed above)" >&2
  exit 1
fi
