#!/usr/bin/env bash
# Builds endpointd into the file that is named as argument. The one place that knows the build's flags:
# make and the tests call it, so that they share Go's cache and never link the program twice.
#
# Static (CGO_ENABLED=0), and without -trimpath: with it, nothing that `go test` compiled could be used again.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: hack/build.sh FILE}

kubernetes=$(go list -m -f '{{.Version}}' k8s.io/kubernetes) # v1.37.2; kubectl wants to read it as a version
IFS=. read -r major minor _ <<<"${kubernetes#v}"
version=unknown commit=unknown date=1970-01-01T00:00:00Z tree=clean
if git rev-parse --verify -q HEAD >/dev/null 2>&1; then
  version=$(git describe --tags --always --dirty)
  commit=$(git rev-parse HEAD)
  # The commit's date, not today's: the same tree gives the same program, and no needless linking.
  date=$(TZ=UTC git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ)
  case $version in *-dirty) tree=dirty ;; esac
fi

k=k8s.io/component-base/version
CGO_ENABLED=0 go build -buildvcs=false -o "$out" -ldflags "\
  -X $k.gitVersion=$kubernetes -X $k.gitMajor=$major -X $k.gitMinor=$minor \
  -X $k.gitCommit=$commit -X $k.gitTreeState=$tree -X $k.buildDate=$date \
  -X github.com/endpointd/endpointd/internal/cli.version=$version" ./cmd/endpointd
