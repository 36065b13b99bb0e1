#!/usr/bin/env bash
# The main job in seconds: a server and two nodes in a network of their own on this machine, pods that run, a Service that
# leads to those that are up. Each command is printed before its output. Fails, with the logs, if something is not as expected.
#
# Needs bash and bin/endpointd, no network, no root where user namespaces are allowed. Leaves nothing behind.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
endpointd=$PWD/bin/endpointd
dir=$(mktemp -d "${TMPDIR:-/tmp}/endpointd-demo.XXXXXX")
data=$dir/data
export HOME=$dir KUBECONFIG=$data/admin.kubeconfig
jobs=() # pids of what runs in the background

finish() { # however the script ends: no process and no folder stay behind
  code=$?
  trap - EXIT
  for job in "${jobs[@]}"; do kill "$job" 2>/dev/null || true; done
  if [ $code -ne 0 ] && [ $code -ne 130 ]; then # 130: somebody pressed Ctrl-C
    printf '\nDEMO FAILED. Pods, and the end of the logs:\n' >&2
    timeout 10 "$endpointd" kubectl describe pods >&2 || true
    tail -n 20 "$data"/logs/*.log >&2 || true
  fi
  timeout 30 "$endpointd" down --data-dir "$data" --purge >/dev/null 2>&1 || true
  rm -rf "$dir"
  exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM

title() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
fail() { printf 'expected %s\n' "$*" >&2; exit 1; }

# run prints an endpointd command and runs it; k does so with kubectl; q is kubectl without a word.
run() { printf '\n$ endpointd %s\n' "$(words "$@")"; "$endpointd" "$@"; }
k() { run kubectl "$@"; }
q() { "$endpointd" kubectl "$@"; }
words() { # quotes only what a shell would split
  local word out=
  for word; do
    case $word in *[!a-zA-Z0-9_./:=,@-]* | '') word="'$word'" ;; esac
    out+=" $word"
  done
  printf '%s' "${out# }"
}

# Ready addresses of one EndpointSlice, one a line or in one line.
readonly ready='{{range .endpoints}}{{if .conditions.ready}}{{index .addresses 0}} {{end}}{{end}}'

# addresses prints the ready addresses of a Service in order, as proxies and DNS see them: from its slices.
addresses() {
  q get endpointslices -l "kubernetes.io/service-name=$1" -o "go-template={{range .items}}$ready{{end}}" | tr ' ' '\n' | sort | xargs
}

# await runs a command until it succeeds, and fails after 20 seconds.
await() { # what, command
  local what=$1 deadline=$((SECONDS + 20))
  shift
  until "$@"; do
    [ $SECONDS -lt $deadline ] || fail "$what"
    sleep 0.02
  done
}
has() { [ "$(addresses "$1" 2>&1)" = "$2" ]; }

# watch writes a line each time the web Service's slice changes: when, and the ready addresses.
watch() {
  "$endpointd" kubectl get endpointslices -l kubernetes.io/service-name=web --watch -o "go-template=$ready{{\"\n\"}}" 2>/dev/null >"$dir/pipe" &
  jobs+=($!)
  while read -r line; do echo "$EPOCHREALTIME $line"; done <"$dir/pipe" >>"$dir/seen" &
  jobs+=($!)
}
seen() { tail -n 1 "$dir/seen" 2>/dev/null | cut -d ' ' -f 2-; } # the newest addresses

# timeline prints what came and went since a moment, in milliseconds after it.
timeline() { # the moment, the addresses then
  local at now before=" $2 " old new address
  while read -r at new; do
    [ "${at/./}" -ge "${1/./}" ] || continue
    old=$before before=" $new "
    now=$(((${at/./} - ${1/./}) / 1000))
    for address in $old; do case $before in *" $address "*) ;; *) printf '%8d ms  %s leaves\n' $now "$address" ;; esac; done
    for address in $before; do case $old in *" $address "*) ;; *) printf '%8d ms  %s is an endpoint\n' $now "$address" ;; esac; done
  done <"$dir/seen"
}

# ask sends a line to the echo server at host and port, and prints its answer. It needs nothing but bash.
ask() { (exec 3<>"/dev/tcp/$1/$2" && echo hello >&3 && read -r -t 5 -u 3 answer && echo "$answer") 2>/dev/null; }

title "A server and two nodes, each a network namespace; nothing of this machine's own network changes"
[ -x "$endpointd" ] || fail "bin/endpointd: run make build"
up=(up --nodes 2 --detach --listen 127.0.0.1:0 --data-dir "$data")
printf '\n$ endpointd %s\n' "$(words "${up[@]}")"
"$endpointd" "${up[@]}" >"$dir/out" || { cat "$dir/out" >&2; fail "up to succeed"; }
sed '/^$/,$d' "$dir/out" # without what to try next
grep -q '^endpointd is ready: ' "$dir/out" || fail "a line that says that all is ready"
k get nodes -o wide

title "A Deployment of three pods and a Service: each pod is a process with an address of its own"
k apply -f examples/web.yaml
k rollout status deployment web --timeout=30s
three() { [ "$(addresses web | wc -w)" -eq 3 ]; }
await "three endpoints of web" three
k get pods -l app=web -o wide
k get endpointslices -l kubernetes.io/service-name=web

title "Traffic: from a node to the addresses of the pods, and from this machine to the Service's node port"
for address in $(addresses web); do
  printf '%s answers: ' "$address"
  "$endpointd" exec --data-dir "$data" --node node-2 -- bash -c "$(declare -f ask); ask $address 8081" || fail "an answer of $address"
done
port=$(q get service web -o 'jsonpath={.spec.ports[?(@.name=="tcp")].nodePort}')
try() { ask 127.0.0.1 "$port"; }
await "an answer at 127.0.0.1:$port" try >/dev/null
for _ in 1 2 3; do printf '127.0.0.1:%s answers: %s\n' "$port" "$(try)"; done

title "kill -9 of one pod: its endpoint leaves, a replacement with a new address arrives"
mkfifo "$dir/pipe"
watch
same() { [ "$(seen | tr ' ' '\n' | sort | xargs)" = "$(addresses web)" ]; }
await "the watch to begin" same
read -r pod victim <<<"$(q get pods -l app=web -o 'jsonpath={.items[0].metadata.name} {.items[0].status.podIP}')"
pid=
for p in /proc/[0-9]*; do
  [ "$(tr '\0' ' ' 2>/dev/null <"$p/cmdline")" != "endpointd-pod default/$pod " ] || pid=${p#/proc/}
done
[ -n "$pid" ] || fail "a process endpointd-pod default/$pod"
before=$(seen)
printf '\n$ kill -9 %s  # endpointd-pod default/%s, %s\n' "$pid" "$pod" "$victim"
killed=$EPOCHREALTIME
kill -9 "$pid"
replaced() { local now; now=" $(seen) "; case $now in *" $victim "*) return 1 ;; esac; [ "$(wc -w <<<"$now")" -eq 3 ]; }
await "a replacement of $victim" replaced
timeline "$killed" "$before"
k get pods -l app=web -o wide
k get events --field-selector "involvedObject.name=$pod" --sort-by=.lastTimestamp

title "A rolling update, with a client that asks all the time"
client() { # counts answers and failures until the file stop is there
  local good=0 bad=0
  until [ -e "$dir/stop" ]; do
    if try >>"$dir/answers"; then good=$((good + 1)); else bad=$((bad + 1)); fi
    sleep 0.01
  done
  echo "$good $bad" >"$dir/count"
}
before=$(seen) began=$EPOCHREALTIME
client &
jobs+=($!)
client=$!
k set env deployment/web RELEASE=2
k rollout status deployment web --timeout=60s
renewed() { local a now; now=" $(seen) "; for a in $before; do case $now in *" $a "*) return 1 ;; esac; done; [ "$(wc -w <<<"$now")" -eq 3 ]; }
await "three new endpoints" renewed
touch "$dir/stop"
wait "$client"
timeline "$began" "$before"
read -r good bad <"$dir/count"
printf '%s requests were answered, by %s pods; %s were not\n' "$good" "$(cut -d ' ' -f 1 "$dir/answers" | sort -u | wc -l)" "$bad"
[ "$bad" -eq 0 ] || fail "an answer to every request"

title "A virtual machine: nothing is started, probes alone decide (here a process beside the server stands in for it)"
k apply -f examples/vm.yaml
"$endpointd" exec --data-dir "$data" -- "$endpointd" endpointd-echo --http :9376 --tcp none >/dev/null 2>&1 &
jobs+=($!)
vm=$!
await "the virtual machine as an endpoint" has database 10.200.0.1
k get endpointslices -l kubernetes.io/service-name=database
kill "$vm"
printf '\n$ kill %s  # the stand-in\n' "$vm"
await "the virtual machine to leave" has database ""
k get pod database-vm

title "Something outside: Endpoints written by hand, mirrored for proxies and DNS"
k apply -f examples/my-service.yaml
await "the mirror of my-service" has my-service 192.0.2.45
k get endpointslices -l kubernetes.io/service-name=my-service

title "How it is, and the end"
run status --data-dir "$data"
run down --data-dir "$data" --purge
[ ! -e "$data" ] || fail "no data folder after down --purge"
if "$endpointd" status --data-dir "$data" >/dev/null 2>&1; then fail "nothing to run after down"; fi
printf '\nDone: no process, namespace or file is left.\n'
