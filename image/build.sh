#!/usr/bin/env bash
# Builds target/TARGET/dist/mcastor for each TARGET: optimised, stripped, and linked statically with
# glibc. The explicit target keeps these flags out of the other build folders.
set -euo pipefail
cd "$(dirname "$0")/.."

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=${CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER:-aarch64-linux-gnu-gcc}
[ "$(uname -m)" != aarch64 ] || unset CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER

for target in "$@"; do
  if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
    rustup target add "$target"
  fi
  RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile dist --locked --bin mcastor --target "$target"
  if readelf --program-headers "target/$target/dist/mcastor" | grep -q INTERP; then
    echo "target/$target/dist/mcastor is not static" >&2
    exit 1
  fi
done
