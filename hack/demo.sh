#!/usr/bin/env bash
# The main job in seconds: starts a server in a temporary folder, shows how endpoints follow pods, stops it.
# Each command is printed before its output. Fails, with the server's log, if the endpoints are not as expected.
#
# No agent runs here, so the script says in the place of one that a pod runs, is ready, or is gone.
set -euo pipefail
cd "$(dirname "$0")/.."
endpointd=$PWD/bin/endpointd
dir=$(mktemp -d "${TMPDIR:-/tmp}/endpointd-demo.XXXXXX")
server=

finish() { # however the script ends: no server and no folder stay behind
  code=$?
  if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
    kill -KILL "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  if [ $code -ne 0 ]; then
    printf '\nDEMO FAILED. The end of the log of the server:\n' >&2
    cat "$dir/out" >&2 || true
    tail -n 40 "$dir/log" >&2 || true
  fi
  rm -rf "$dir"
  exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM

title() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
fail() { printf 'expected %s\n' "$*" >&2; exit 1; }

# k runs endpointd kubectl and prints the command first; q runs it without a word.
k() { printf '\n$ endpointd kubectl %s\n' "$(words "$@")"; q "$@"; }
q() { "$endpointd" kubectl "$@"; }
words() { # quotes only what a shell would split
  local word out=
  for word; do
    case $word in *[!a-zA-Z0-9_./:=,@-]* | '') word="'$word'" ;; esac
    out+=" $word"
  done
  printf '%s' "${out# }"
}

# addresses prints the ready addresses of a Service in order, as proxies and DNS see them: from its slices.
addresses() {
  q get endpointslices -l "kubernetes.io/service-name=$1" -o 'go-template={{range .items}}{{range .endpoints}}{{if .conditions.ready}}{{index .addresses 0}}{{"\n"}}{{end}}{{end}}{{end}}' |
    sort | xargs
}

# expect waits until the ready addresses of a Service are as wanted, and fails after ten seconds.
expect() { # service, addresses in order
  local service=$1 want=$2 got deadline=$((SECONDS + 10))
  until got=$(addresses "$service" 2>&1) && [ "$got" = "$want" ]; do
    [ $SECONDS -lt $deadline ] || fail "endpoints of $service: '$want', got '$got'"
    sleep 0.05
  done
}

# status says what an agent would say of a pod: its address, and whether it is ready.
status() { # pod, address, True or False
  local ready=${3,}
  k patch pod "$1" --subresource=status -p "{\"status\":{\"phase\":\"Running\",\"podIP\":\"$2\",\"podIPs\":[{\"ip\":\"$2\"}],\"conditions\":[{\"type\":\"Ready\",\"status\":\"$3\"}],\"containerStatuses\":[{\"name\":\"web\",\"ready\":$ready,\"restartCount\":0,\"image\":\"example.test/web\",\"imageID\":\"\",\"state\":{\"running\":{}}}]}}"
}

title "A server in a temporary folder"
port=$((20000 + RANDOM % 10000))
while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((20000 + RANDOM % 10000)); done
printf '$ endpointd server --data-dir %s --listen 127.0.0.1:%s\n' "$dir/data" "$port"
"$endpointd" server --data-dir "$dir/data" --listen "127.0.0.1:$port" >"$dir/out" 2>"$dir/log" &
server=$!
deadline=$((SECONDS + 30))
until grep -m 1 '^endpointd is ready:' "$dir/out"; do
  kill -0 "$server" 2>/dev/null || fail "the server to start, but it ended"
  [ $SECONDS -lt $deadline ] || fail "the server to be ready within 30 s"
  sleep 0.02
done
export HOME=$dir KUBECONFIG=$dir/data/admin.kubeconfig
k version

title "Two nodes, a Service with the selector run=some-run, and three pods"
k apply -f examples/nodes.yaml -f examples/some-run.yaml -f examples/some-run-pods.yaml

title "The pods become ready, and the Service leads to them"
status some-run-1 10.1.0.11 True
status some-run-2 10.1.1.12 True
status some-run-3 10.1.1.13 True
expect some-service "10.1.0.11 10.1.1.12 10.1.1.13"
k get ep
k get endpointslices
k describe service some-service
k describe pods -l run=some-run

title "One pod dies; the one that takes its place has another address"
k delete pod some-run-2 --force --grace-period=0
expect some-service "10.1.0.11 10.1.1.13"
k apply -f examples/some-run-replacement.yaml
status some-run-4 10.1.0.14 True
expect some-service "10.1.0.11 10.1.0.14 10.1.1.13"
k get pods -o wide
k get ep some-service

title "A pod fails its probe: it stays, but gets no traffic; a headless Service still shows it to its peers"
k apply -f examples/headless.yaml
status some-run-3 10.1.1.13 False
expect some-service "10.1.0.11 10.1.0.14"
expect some-run-members "10.1.0.11 10.1.0.14 10.1.1.13"
k get ep some-service some-run-members

title "Something outside the cluster: Endpoints written by hand, mirrored for proxies and DNS"
k apply -f examples/my-service.yaml
expect my-service "192.0.2.45"
k get endpointslices -l kubernetes.io/service-name=my-service -o wide
k describe service my-service

title "A Deployment: its ReplicaSet makes the pods and replaces them"
web_pods() { q get pods -l app=web -o name | sort; }
two_pods() { # waits until the ReplicaSet has made two pods
  local deadline=$((SECONDS + 15))
  until [ "$(web_pods | wc -l)" -eq 2 ]; do
    [ $SECONDS -lt $deadline ] || fail "two pods of deployment web, got: $(web_pods | xargs)"
    sleep 0.05
  done
}
k apply -f examples/deployment.yaml
two_pods
mapfile -t web < <(web_pods)
status "${web[0]#pod/}" 10.1.0.21 True
status "${web[1]#pod/}" 10.1.0.22 True
expect web "10.1.0.21 10.1.0.22"
k delete "${web[0]}" --force --grace-period=0
expect web "10.1.0.22"
two_pods
replacement=$(web_pods | grep -v -x -F "${web[1]}")
status "${replacement#pod/}" 10.1.0.23 True
expect web "10.1.0.22 10.1.0.23"
k get deployment,replicaset,pods -l app=web -o wide
k get ep web

title "The server stops"
printf '$ kill -TERM %s\n' "$server"
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
[ $code -eq 0 ] || fail "exit code 0 on SIGTERM, got $code"
echo "exit code 0; removing $dir"
