#!/bin/sh
# Builds the AMT driver of Linux for a kernel that fetch.sh unpacked: amt.sh FOLDER. Debian's kernels
# lack the driver, but its source is in Debian. A module that was built is kept.
set -eu
here=$(dirname "$(readlink -f "$0")")
folder=$(readlink -f "$1")
version=$(cat "$folder/version")
modules=$folder/lib/modules/$version
[ -e "$modules/extra/amt.ko" ] && exit 0
series=$(echo "$version" | cut -d . -f 1,2)

"$here/../install.sh" gcc make xz-utils "linux-headers-$version"
build=$folder/amt
rm -rf "$build"
mkdir -p "$build"
cd "$build"
apt-get download -qq -o APT::Sandbox::User=root "linux-source-$series"
dpkg-deb --extract linux-source-*.deb source
tar --extract --file "source/usr/src/linux-source-$series.tar.xz" --strip-components 3 --occurrence=1 \
  "linux-source-$series/drivers/net/amt.c"
echo 'obj-m := amt.o' >Makefile
make --no-print-directory -C "/usr/src/linux-headers-$version" M="$build" modules
mkdir -p "$modules/extra"
strip --strip-debug amt.ko -o "$modules/extra/amt.ko"
cd /
rm -rf "$build"
depmod --basedir "$folder" "$version"
