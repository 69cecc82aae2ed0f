#!/bin/sh
# Installs what the programs of the MNAT prototype need besides Debian packages, in
# target/mnat-prototype: no Debian package has python-libpcap, which is built from its source.
set -eu
cd "$(dirname "$0")/.."

packages="python-libpcap==0.5.4"
folder=target/mnat-prototype
[ "$(cat $folder/packages 2>/dev/null)" != "$packages" ] || exit 0
rm -rf $folder
/usr/bin/python3 -m venv --system-site-packages $folder
# shellcheck disable=SC2086
$folder/bin/pip install --quiet --disable-pip-version-check $packages
echo "$packages" >$folder/packages
