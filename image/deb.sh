#!/usr/bin/env bash
# Packs the binaries that image/dist.sh built as Debian packages: deb.sh TARGET...
# Cargo.toml, [package.metadata.deb], says what is in them. Needs dpkg.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo_deb=3.8.0
out=target/dist-packages
if [ "$(cargo deb --version 2>/dev/null)" != "cargo-deb $cargo_deb" ]; then
  # A debug build takes less time to compile.
  echo "installing: cargo-deb $cargo_deb"
  cargo install --quiet --locked --force --debug --version "$cargo_deb" cargo-deb
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)
date=$(git log -1 --format=%cD 2>/dev/null || date -R)
for target in "$@"; do
  binary=target/$target/dist/mcastor
  run=$binary
  [ "${target%%-*}" = "$(uname -m)" ] || run="qemu-${target%%-*}-static $binary"
  # The files besides the binary are those of `make install`.
  rm -rf target/package/deb
  make --no-print-directory --silent install-files PREFIX=/usr DESTDIR=target/package/deb \
    BINARY="$binary" RUN="$run"
  printf 'mcastor (%s-1) unstable; urgency=medium\n\n  * Release %s; NEWS.md has the changes.\n\n -- %s  %s\n' \
    "$version" "$version" "$maintainer" "$date" > target/package/deb/changelog
  cargo deb --quiet --no-build --no-strip --profile dist --target "$target" --output "$out/"
done
(cd "$out" && rm -f SHA256SUMS && sha256sum -- * > SHA256SUMS && ls -l -- *.deb)
