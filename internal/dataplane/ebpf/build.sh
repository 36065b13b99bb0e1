#!/usr/bin/env bash
# Compiles the programs with clang-16 and writes program_bpf*.{o,go}: build.sh [FOLDER], this one if none is given.
# clang's version is fixed, so that the same sources give the same bytes. Needs nothing but it, llvm-strip-16 and Go.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-.}
go tool -modfile=../../../tools/go.mod bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel,bpfeb -go-package ebpf \
  -type addr_port -type frontend -type slot_key -type member_key -type record -type connection -output-dir "$out" \
  program bpf/program.c -- -mcpu=v3 -Wall -Wextra -Werror -nostdinc
