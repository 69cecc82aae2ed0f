#!/bin/sh
# Compiles the BPF programs: build.sh OUTPUT. Any machine with these versions writes the same bytes.
set -eu
output=$(realpath "$1")
cd "$(dirname "$0")"
clang-14 -O2 -g -target bpf -mcpu=v2 -Wall -Werror -ffile-prefix-map="$PWD"=. \
    -I"/usr/include/$(uname -m)-linux-gnu" -c forward.c -o "$output.new"
# Keeps BTF, which the loader needs, and drops DWARF.
llvm-strip-14 -g "$output.new"
mv "$output.new" "$output"
