#!/bin/sh
# Installs the programs and libraries from PyPI that tests of discovery use, in target/pypi (20 MB): no
# Debian package has them. Without them, these tests are skipped.
set -eu
cd "$(dirname "$0")/.."

packages="async-upnp-client==0.49.0 WSDiscovery==2.1.2 zeroconf==0.154.0 HAP-python==5.0.0 \
aiohomekit==4.0.1 aioesphomeapi==46.23.0 PyChromecast==14.0.10 pyatv==0.18.0"
folder=target/pypi
[ "$(cat $folder/packages 2>/dev/null)" != "$packages" ] || exit 0
rm -rf $folder
/usr/bin/python3 -m venv $folder
# shellcheck disable=SC2086
$folder/bin/pip install --quiet --disable-pip-version-check $packages
echo "$packages" >$folder/packages
