# endpointd. `make help` lists the targets; docs/dev/README.md says more.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# One cache of compiled packages for the program and its tests: no cgo, no -trimpath (see hack/build.sh).
export CGO_ENABLED := 0

# Arguments for go test, such as: make quick ARGS='-run Golden -update'; V=1 prints passed tests too.
ARGS ?=
export V
LINT := go tool -modfile=tools/go.mod golangci-lint
FUZZTIME ?= 600s

.PHONY: help
help: ## this list
	@echo 'usage: make TARGET'
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/endpointd; cold 4 to 8 minutes on two cores, seconds afterwards
	@hack/build.sh bin/endpointd

.PHONY: demo
demo: build ## build, bring up two nodes in a temporary folder, show the main job with kubectl, take them down
	@hack/demo.sh

.PHONY: test
test: ## everything: check, quick, api, e2e; ends with the sum of all tests
	@rm -f .cache/tests
	@$(MAKE) check
	@$(MAKE) quick
	@$(MAKE) api
	@$(MAKE) e2e
	@.cache/testsum -sum .cache/tests

.PHONY: quick
quick: gcc ## tests of what does not reach k8s.io/kubernetes or k8s.io/apiserver, with the race detector
	@CGO_ENABLED=1 hack/gotest.sh quick -race $(ARGS)

.PHONY: api
api: ## tests of what does: the API server and the program put together, in this process
	@hack/gotest.sh api -timeout 15m $(ARGS)

.PHONY: e2e
e2e: build kubectl ## tests below test/: the real program, the real kubectl
	@PATH="$$PATH:$(CURDIR)/.cache/bin" hack/gotest.sh e2e -count=1 -timeout 20m $(ARGS)

.PHONY: check
check: fmt arch lint gen-check ## what needs no test: gofmt, import laws, vet and lint, generated files

.PHONY: fmt
fmt:
	@bad=$$(gofmt -l cmd internal test tools 2>/dev/null || true); \
	if [ -n "$$bad" ]; then printf 'not formatted, run gofmt -w:\n%s\n' "$$bad" >&2; exit 1; fi

.PHONY: arch
arch:
	@go test ./internal/archtest
	@go test -C tools ./testsum

.PHONY: lint
lint: ## vet, staticcheck and the few others of .golangci.yaml
	@$(LINT) run --allow-serial-runners ./...

.PHONY: gen
gen: ## write what is generated: go generate, docs/deps.txt
	@go generate ./...
	@mkdir -p .cache; hack/deps.sh >.cache/deps.txt; mv .cache/deps.txt docs/deps.txt

.PHONY: gen-check
gen-check:
	@hack/gen-check.sh

.PHONY: bpf
bpf: ## compile the programs of internal/dataplane/ebpf/bpf; needs clang-16 and llvm-strip-16
	@internal/dataplane/ebpf/build.sh

.PHONY: bench
bench: build kubectl ## tables: us beside upstream's controllers, kube-proxy, HAProxy and CoreDNS in the same run; 40 min, with ARGS=-short 3 min
	@mkdir -p .cache/bin
	@CGO_ENABLED=0 go build -C test/oracle/kubeproxy -buildvcs=false -o ../../../.cache/bin/kube-proxy .
	@CGO_ENABLED=0 go build -C test/oracle/coredns -buildvcs=false -o ../../../.cache/bin/coredns .
	@go build -buildvcs=false -o .cache/bench ./test/bench
	@PATH="$$PATH:$(CURDIR)/.cache/bin" .cache/bench $(ARGS)

.PHONY: fuzz
fuzz: ## every fuzz target in turn, FUZZTIME=600s for all of them together
	@hack/fuzz.sh $(FUZZTIME)

.PHONY: clean
clean: ## remove bin and .cache; Go's own cache stays
	@rm -rf bin .cache

.PHONY: gcc
gcc:
	@command -v gcc >/dev/null || { echo 'the race detector needs gcc: install it (Debian: apt-get install gcc libc6-dev), or run `make api` and `make e2e` alone' >&2; exit 1; }

# The stock kubectl of PATH, or else the one of the Kubernetes release in go.mod, built from source.
.PHONY: kubectl
kubectl:
	@command -v kubectl >/dev/null || go build -buildvcs=false -ldflags "-X k8s.io/component-base/version.gitVersion=$$(go list -m -f '{{.Version}}' k8s.io/kubernetes)" -o .cache/bin/kubectl k8s.io/kubernetes/cmd/kubectl
