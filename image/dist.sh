#!/usr/bin/env bash
# Builds and checks the static binary for each TARGET, and packs it: dist.sh TARGET...
#
# target/dist-packages then has for each target a tarball with the binary, licences, manual pages,
# completions, unit and settings, and the bill of materials (SBOM) in the format of CycloneDX; and
# SHA256SUMS of all files. Times and owners in the tarballs do not depend on the machine.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
cyclonedx=0.5.9
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
out=target/dist-packages

if [ "$(cargo cyclonedx --version 2>/dev/null)" != "cargo-cyclonedx-cyclonedx $cyclonedx" ]; then
  # A debug build takes less time to compile, and the program runs for a second.
  echo "installing: cargo-cyclonedx $cyclonedx"
  cargo install --quiet --locked --force --debug --version "$cyclonedx" cargo-cyclonedx
fi

image/build.sh "$@"
rm -rf "$out"
mkdir -p "$out"
for target in "$@"; do
  arch=${target%%-*}
  name=mcastor-$version-$arch
  binary=target/$target/dist/mcastor
  run=("$binary")
  [ "$arch" = "$(uname -m)" ] || run=("qemu-$arch-static" "$binary")

  echo "== $name: $(stat --format=%s "$binary") bytes"
  "${run[@]}" --version
  "${run[@]}" check conf/mcastor.toml | head -n 1
  "${run[@]}" check conf/systemd/mcastor.toml

  rm -rf "target/package/$target"
  make --no-print-directory --silent install-files PREFIX= DESTDIR="target/package/$target/$name" \
    BINARY="$binary" RUN="${run[*]}"
  # The unit and the settings in the tarball are those for /usr/local.
  sed 's|/usr/bin|/usr/local/bin|' conf/systemd/mcastor.service \
    > "target/package/$target/$name/lib/systemd/system/mcastor.service"
  sed '1s|/usr|/usr/local|' conf/systemd/mcastor.toml \
    > "target/package/$target/$name/etc/mcastor/mcastor.toml"
  sed --in-place '1s|/share|/usr/local/share|' "target/package/$target/$name"/share/doc/mcastor/examples/*.toml
  tar --create --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner \
    --directory "target/package/$target" "$name" | gzip --no-name -9 > "$out/$name.tar.gz"

  SOURCE_DATE_EPOCH=$epoch cargo cyclonedx --quiet --format json --spec-version 1.5 --target "$target" \
    --override-filename "$name.cdx"
  # Without the folder of this build, and with the scripts of the page.
  sed --in-place "s|path+file://$PWD#||g" "$name.cdx.json"
  python3 image/sbom.py "$name.cdx.json" "$out/$name.cdx.json"
  rm "$name.cdx.json"
done
(cd "$out" && sha256sum -- * > SHA256SUMS && cat SHA256SUMS)
