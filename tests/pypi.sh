#!/bin/sh
# Installs the programs from PyPI that tests of discovery use, in target/pypi: no Debian package has
# them. Without them, these tests are skipped.
set -eu
cd "$(dirname "$0")/.."

packages="async-upnp-client==0.49.0 WSDiscovery==2.1.2"
folder=target/pypi
[ "$(cat $folder/packages 2>/dev/null)" != "$packages" ] || exit 0
rm -rf $folder
/usr/bin/python3 -m venv $folder
# shellcheck disable=SC2086
$folder/bin/pip install --quiet --disable-pip-version-check $packages
echo "$packages" >$folder/packages
