#!/usr/bin/env bash
# Fuzzes every Fuzz function of the tree in turn; the time given (such as 600s) is for all of them together.
set -euo pipefail
cd "$(dirname "$0")/.."
total=${1:-600s}
total=${total%s}
mapfile -t targets < <(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' cmd internal test 2>/dev/null |
  sed -E 's|^(.*)/[^/]*:func (Fuzz.*)$|\1 \2|' | sort)
if [ ${#targets[@]} -eq 0 ]; then
  echo "no Fuzz functions found; expected some" >&2
  exit 1
fi
each=$((total / ${#targets[@]}))
[ $each -ge 1 ] || each=1
for target in "${targets[@]}"; do
  read -r dir name <<<"$target"
  echo "== $name in $dir, $each s"
  go test -run '^$' -fuzz "^$name\$" -fuzztime "${each}s" "./$dir"
done
