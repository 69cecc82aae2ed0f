#!/bin/sh
# Installs Debian packages that are missing, without starting the services they bring: routing
# daemons and a container engine have no business on the interfaces of this machine.
set -eu
missing=
for package in "$@"; do
  # A package that was removed is still known to dpkg.
  [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
    missing="$missing $package"
done
[ -n "$missing" ] || exit 0
echo "installing:$missing"
if [ "$(id -u)" != 0 ]; then
  # shellcheck disable=SC2086
  exec sudo "$0" $missing
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT INT TERM
  printf '#!/bin/sh\n# Services do not start.\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing
