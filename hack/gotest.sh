#!/usr/bin/env bash
# go test for people and for the count at the end: hack/gotest.sh CLASS [flags of go test]
# prints what go test prints, and adds the number of tests to .cache/tests.
set -euo pipefail
cd "$(dirname "$0")/.."
class=${1:?usage: hack/gotest.sh quick|api|e2e [flags]}
shift
mapfile -t packages < <(hack/packages.sh "$class")
if [ ${#packages[@]} -eq 0 ]; then
  echo "no packages of class $class"
  exit 0
fi
mkdir -p .cache
CGO_ENABLED=0 go build -C tools -o ../.cache/testsum ./testsum
go test -json "$@" "${packages[@]}" | .cache/testsum -add .cache/tests ${V:+-v}
