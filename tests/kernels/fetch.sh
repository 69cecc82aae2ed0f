#!/bin/sh
# Downloads the kernel of a Debian suite and unpacks it: fetch.sh SUITE FOLDER. Uses apt with lists
# of its own, so that the packages of this machine do not change. An unpacked kernel is kept.
#
# FOLDER gets `version`, `vmlinuz` and `lib/modules`. MCASTOR_MIRROR replaces the mirror of Debian
# that this machine uses.
set -eu
suite=$1 folder=$2
[ -e "$folder/version" ] && exit 0
# Returns the address of the archive with this label, as the machine has it.
archive() {
  apt-get indextargets --format "\$(REPO_URI)" 'Identifier: Packages' "Label: $1" | head -n 1
}
main=${MCASTOR_MIRROR:-$(archive Debian)}
security=${MCASTOR_MIRROR:+}${MCASTOR_MIRROR-$(archive Debian-Security)}
[ -n "$main" ] || { echo "this machine has no package archive of Debian"; exit 1; }

rm -rf "$folder"
apt=$folder/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
echo "deb $main $suite main" >"$apt/sources.list"
# Suites that are no release, such as sid, have no security archive.
case $suite in
  sid | *-backports) ;;
  *) [ -z "$security" ] || echo "deb $security $suite-security main" >>"$apt/sources.list" ;;
esac
cat >"$apt/apt.conf" <<EOF
APT::Sandbox::User "root";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
EOF
export APT_CONFIG="$apt/apt.conf"
apt-get update -qq

# Prints the kernel packages that the newest version of a package depends on. The meta package names
# the kernel. Since Linux 7, image and modules are packages of their own.
kernel_packages() {
  apt-cache show --no-all-versions "$1" | sed -n 's/^Depends: //p' | tr ',' '\n' |
    sed -n 's/^ *\(linux-\(image\|binary\|modules\)-[^ ]*\).*/\1/p'
}
packages=$(kernel_packages linux-image-amd64)
for package in $packages; do
  packages="$packages $(kernel_packages "$package")"
done
cd "$apt"
# shellcheck disable=SC2086
apt-get download -qq $packages
for file in *.deb; do
  dpkg-deb --extract "$file" root
done
mkdir "$folder/lib"
mv root/lib/modules "$folder/lib/" 2>/dev/null || mv root/usr/lib/modules "$folder/lib/"
version=$(ls "$folder/lib/modules")
mv "root/boot/vmlinuz-$version" "$folder/vmlinuz" 2>/dev/null ||
  mv "$folder/lib/modules/$version/vmlinuz" "$folder/vmlinuz"
depmod --basedir "$folder" "$version"
cd /
rm -rf "$apt"
echo "$version" >"$folder/version"
