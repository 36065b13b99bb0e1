#!/usr/bin/env bash
# Prints the packages of one class, one a line. The classes are computed from what packages and their tests
# import, so a new package is in the right one by itself:
#   quick  reaches neither k8s.io/kubernetes nor k8s.io/apiserver: compiles in seconds, tested with -race
#   api    reaches one of them
#   e2e    everything below test/, which runs the program itself
set -euo pipefail
cd "$(dirname "$0")/.."
class=${1:?usage: hack/packages.sh quick|api|e2e}

# P.test is the test binary of P: its Deps are those of P, of its tests and of its external tests.
go list -test -f '{{.ImportPath}}{{"\t"}}{{join .Deps " "}}' ./... | awk -F'\t' -v class="$class" '
  $1 ~ / \[/ { next }
  {
    name = $1; sub(/\.test$/, "", name)
    if (!(name in kind)) { order[++n] = name; kind[name] = "quick" }
    if ((" " $2 " ") ~ / k8s\.io\/(kubernetes|apiserver)[\/ ]/) kind[name] = "api"
    if (name ~ /\/test\//) kind[name] = "e2e"
  }
  END { for (i = 1; i <= n; i++) if (kind[order[i]] == class) print order[i] }'
