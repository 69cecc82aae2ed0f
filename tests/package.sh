#!/usr/bin/env bash
# Tests a Debian package under a real systemd: package.sh DEB
#
# Makes a Debian 12 with debootstrap, boots it in namespaces of its own (mounts, processes, network,
# cgroups), so that it sees no interface of this machine, and installs the package there. Then checks
# the service, a packet from one veth to another, reloads, restarts, the stop, and that a purge leaves
# nothing. Needs root. Prints what it checks; the last line counts. MCASTOR_MIRROR is the mirror of
# Debian that debootstrap uses, MCASTOR_SUITE another version of Debian, such as trixie.
set -euo pipefail
cd "$(dirname "$0")/.."

deb=$(realpath "${1:?usage: package.sh DEB}")
suite=${MCASTOR_SUITE:-bookworm}
work=$(mktemp --directory /tmp/mcastor-package.XXXXXX)
root=$work/root
base=$PWD/target/package-test/$suite.tar
passed=0 failed=0 skipped=0
init='' cgroup=''

cleanup() {
  # Ends the init that this script started; its processes end with it.
  [ -z "$init" ] || kill -KILL "$init" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf --one-file-system "$work"
  # Empty when the last process has ended. Those of systemd are in groups below.
  if [ -n "$cgroup" ]; then
    find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
  fi
}
trap cleanup EXIT

pass() { passed=$((passed + 1)); echo "ok: $*"; }
fail() { failed=$((failed + 1)); echo "FAILED: $*" >&2; }
skip() { skipped=$((skipped + 1)); echo "skipped: $*"; }
# check TEXT COMMAND...: the command succeeds.
check() {
  local text=$1 printed
  shift
  if printed=$("$@" 2>&1); then pass "$text"; else fail "$text: $*: $printed"; fi
}
# refuse TEXT COMMAND...: the command fails.
refuse() {
  local text=$1
  shift
  if "$@" >/dev/null 2>&1; then fail "$text: $* succeeded"; else pass "$text"; fi
}
# equal TEXT EXPECTED FOUND
equal() { if [ "$2" = "$3" ]; then pass "$1: $2"; else fail "$1: expected '$2', found '$3'"; fi; }
# Repeats a command until it succeeds, for at most 20 s.
await() {
  for _ in $(seq 100); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.2
  done
  return 1
}

# --- a fresh Debian -------------------------------------------------------------------------------
if [ ! -e "$base" ]; then
  echo "debootstrap: $suite"
  mkdir -p "$(dirname "$base")"
  debootstrap --variant=minbase --include=systemd,systemd-sysv,libnss-systemd,iproute2,procps "$suite" "$work/base" \
    "${MCASTOR_MIRROR:-http://deb.debian.org/debian}" > "$work/debootstrap.log" ||
    { tail -n 20 "$work/debootstrap.log" >&2; exit 1; }
  # Neither a getty nor the network of the host.
  rm -f "$work"/base/etc/resolv.conf
  tar --create --file "$base" --directory "$work/base" --xattrs .
  rm -rf --one-file-system "$work/base"
fi
mkdir "$root"
tar --extract --file "$base" --directory "$root" --xattrs --same-owner

# --- boot ------------------------------------------------------------------------------------------
# A cgroup of its own, in the hierarchy of version 2: systemd inside sees only this part.
hierarchy=$(findmnt --noheadings --output TARGET --types cgroup2 | head -n 1)
cgroup=$hierarchy/mcastor-package.$$
mkdir "$cgroup"
cat > "$work/boot" <<'EOF'
set -eu
root=$1 cgroup=$2
echo $$ > "$cgroup/cgroup.procs"
exec unshare --cgroup --fork --pid --mount --uts --ipc --net --kill-child --propagation private \
  sh -euc '
    root=$1
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    for node in null zero full random urandom tty; do
      touch "$root/dev/$node"
      mount --bind "/dev/$node" "$root/dev/$node"
    done
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    cd "$root"
    mkdir -p .old
    pivot_root . .old
    hostname mcastor-package
    umount -l /.old
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=other /sbin/init \
      --log-target=console --show-status=no
  ' sh "$root"
EOF
sh "$work/boot" "$root" "$cgroup" > "$work/console" 2>&1 < /dev/null &
launcher=$!
# The init of the new namespaces is the child of unshare, which took the place of the launcher.
find_init() { init=$(tr -d ' ' < "/proc/$launcher/task/$launcher/children" 2>/dev/null) && [ -n "$init" ]; }
inside() { nsenter --target "$init" --mount --uts --ipc --net --pid --cgroup --root --wd -- "$@"; }
is_booted() { case $(inside systemctl is-system-running 2>/dev/null) in running | degraded) ;; *) false ;; esac; }
if ! await find_init || ! await is_booted; then
  tail -n 30 "$work/console" >&2
  echo "systemd does not start in namespaces of this machine" >&2
  exit 1
fi

pass "boots: $(inside systemctl --version | head -n 1), $(inside uname -r)"
equal "interfaces of the machine that it sees" "lo" "$(inside ls /sys/class/net | tr '\n' ' ' | sed 's/ $//')"
# Some units of Debian fail in namespaces, such as one that loads kernel modules.
failed_units() { inside systemctl --failed --plain --no-legend | awk '{ print $1 }' | tr '\n' ' '; }
failed_before=$(failed_units)

# Lists the files of the root, without those that systemd and dpkg write all the time.
list_files() {
  inside find / -xdev -not -path '/var/log/*' -not -path '/var/cache/*' -not -path '/var/lib/dpkg/*' \
    -not -path '/var/lib/systemd/*' -not -path '/var/tmp/*' | sort
  inside find /run -not -path '/run/systemd/*' -not -path '/run/log/*' -not -path '/run/udev/*' \
    -not -path /run/private | sort
}
list_files > "$work/before"

# --- installation ---------------------------------------------------------------------------------
cp "$deb" "$root/root/mcastor.deb"
rm -f "$work/before.deb"
unit() { inside systemctl show mcastor --property "$1" --value; }
check "the package installs" inside dpkg --install /root/mcastor.deb
equal "service after the installation" "disabled inactive" \
  "$(inside systemctl is-enabled mcastor) $(inside systemctl is-active mcastor)"
equal "configuration files" "/etc/mcastor/mcastor.toml" \
  "$(inside dpkg-query --show --showformat '${Conffiles}\n' mcastor | awk 'NF { print $1 }')"
check "the settings of the package are valid" inside mcastor check
commands=$(inside mcastor --help | sed -n '/^Commands:/,/^Options:/s/^  \([a-z][-a-z]*\) .*/\1/p' | grep -v '^help$')
missing=
for command in $commands; do
  inside test -e "/usr/share/man/man1/mcastor-$command.1.gz" || missing="$missing $command"
done
equal "commands without a manual page, of $(wc -w <<< "$commands")" "" "$missing"
for file in /usr/share/man/man1/mcastor.1.gz /usr/share/man/man5/mcastor.toml.5.gz \
  /usr/share/bash-completion/completions/mcastor /usr/share/zsh/vendor-completions/_mcastor \
  /usr/share/fish/vendor_completions.d/mcastor.fish /usr/share/doc/mcastor/copyright \
  /usr/share/doc/mcastor/LICENSE-APACHE /usr/share/doc/mcastor/LICENSE-MIT; do
  inside test -s "$file" || inside test -s "$file.gz" || fail "$file is missing"
done

# --- the service ----------------------------------------------------------------------------------
# sender - in0 | mcastor | out0 - receiver
for end in in out; do
  inside ip netns add "$end"
  inside ip link add "${end}0" type veth peer name eth0 netns "$end"
  inside ip link set "${end}0" up
  inside ip -n "$end" link set eth0 up
done
inside ip address add 10.1.0.1/24 dev in0
inside ip address add 10.2.0.1/24 dev out0
inside ip -n in address add 10.1.0.2/24 dev eth0
inside ip -n out address add 10.2.0.2/24 dev eth0

# settings GROUP
settings() {
  printf '[[route]]\nname = "test"\nfrom = "in0"\ngroup = "%s"\nto = ["out0"]\n' "$1" \
    > "$root/etc/mcastor/mcastor.toml"
}
# Sends 20 packets to a group; prints how many of them arrive behind mcastor.
forwarded() {
  inside ip netns exec out mcastor recv --interface eth0 --group "$1" --seconds 4 --json \
    > "$work/received" 2>&1 &
  local receiver=$!
  sleep 1
  inside ip netns exec in mcastor send --interface eth0 --group "$1" --count 20 --rate 20 >/dev/null
  wait "$receiver" || true
  sed -n 's/^{.*"lost":\([0-9]*\),.*"port":[0-9]*,"received":\([0-9]*\),.*/\2/p' "$work/received" | grep . ||
    cat "$work/received"
}
settings 225.1.2.3
check "the service starts" inside systemctl enable --now mcastor
equal "service" "enabled active" \
  "$(inside systemctl is-enabled mcastor) $(inside systemctl is-active mcastor)"
equal "packets forwarded between two veths" 20 "$(forwarded 225.1.2.3)"
check "show, as root over the control socket" inside mcastor show routes
pid=$(unit MainPID)
equal "user of the process" mcastor "$(inside ps -o user= -p "$pid" 2>/dev/null || inside stat --format %U "/proc/$pid")"
equal "capabilities of the process: CAP_NET_RAW" 0000000000002000 \
  "$(inside awk '/CapEff/ { print $2 }' "/proc/$pid/status")"
equal "NoNewPrivs and seccomp of the process" "1 2" \
  "$(inside awk '/NoNewPrivs|^Seccomp:/ { print $2 }' "/proc/$pid/status" | tr '\n' ' ' | sed 's/ $//')"
equal "control socket" "600 mcastor" "$(inside stat --format '%a %U' /run/mcastor/mcastor.sock)"
equal "watchdog of the unit" "30s" "$(unit WatchdogUSec)"
if inside journalctl --version >/dev/null 2>&1; then
  equal "warnings in the log" "" "$(inside journalctl --unit mcastor --output cat | grep -E 'WARN|ERROR' || true)"
else
  skip "warnings in the log: no journalctl"
fi
inside systemd-analyze security mcastor --no-pager 2>/dev/null | tail -n 1 || true

# --- reloads --------------------------------------------------------------------------------------
settings 225.1.2.4
check "a reload of valid settings succeeds" inside systemctl reload mcastor
equal "status after the reload" "reloaded, routes: 1" "$(unit StatusText)"
equal "packets of the new group" 20 "$(forwarded 225.1.2.4)"
equal "service after the reload" "active $pid" "$(inside systemctl is-active mcastor) $(unit MainPID)"
settings 10.0.0.1
refuse "a reload of invalid settings fails" inside systemctl reload mcastor
equal "service after the refused reload" "active running $pid" \
  "$(unit ActiveState) $(unit SubState) $(unit MainPID)"
settings 225.1.2.5
inside kill -HUP "$pid"
reloaded_by_signal() { inside mcastor show routes | grep -q 225.1.2.5; }
check "SIGHUP reloads" await reloaded_by_signal
equal "service after SIGHUP" "active running" "$(unit ActiveState) $(unit SubState)"

# drop_in LINE...: adds lines to [Service] of the unit until the next call. Restarts it.
drop_in() {
  local file=/etc/systemd/system/mcastor.service.d/test.conf
  inside mkdir -p "${file%/*}"
  printf '%s\n' '[Service]' "$@" > "$root$file"
  inside systemctl daemon-reload
  inside systemctl restart mcastor || { inside systemctl status --lines 20 mcastor; false; }
}
capabilities() { inside awk '/CapEff/ { print $2 }' "/proc/$(unit MainPID)/status"; }
check "the additions of docs/install.md for bursts" drop_in "AmbientCapabilities=CAP_NET_ADMIN CAP_BPF" \
  "CapabilityBoundingSet=CAP_NET_ADMIN CAP_BPF" "SystemCallFilter=bpf"
equal "packets with them" 20 "$(forwarded 225.1.2.5)"
equal "capabilities with them: CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF" 0000008000003000 "$(capabilities)"
check "the additions of docs/install.md for forwarding in the kernel" drop_in \
  "AmbientCapabilities=CAP_NET_ADMIN CAP_BPF CAP_PERFMON" \
  "CapabilityBoundingSet=CAP_NET_ADMIN CAP_BPF CAP_PERFMON" "SystemCallFilter=bpf"
equal "packets with them" 20 "$(forwarded 225.1.2.5)"
is_in_kernel() { inside mcastor show flows --json | grep -q '"plane": "ebpf"'; }
check "the kernel forwards the flow" is_in_kernel

# --- an unexpected end ----------------------------------------------------------------------------
# Prints how many of 200 looks, while the process is killed and started again, found the group joined.
joined_during_restart() {
  inside sh -c '
    kill -KILL "$1"
    joined=0
    for look in $(seq 200); do
      if ip maddress show dev in0 | grep -q "225\.1\.2\.5"; then joined=$((joined + 1)); fi
      sleep 0.01
    done
    echo "$joined"' sh "$(unit MainPID)"
}
stored() { [ "$(unit NFileDescriptorStore)" -gt 0 ]; }
check "the service manager holds sockets of memberships" await stored
pid=$(unit MainPID)
equal "looks that find the group joined, during kill and restart" 200 "$(joined_during_restart)"
# The process first: the state is still that of the killed one for a moment.
is_restarted() {
  case $(unit MainPID) in 0 | "$pid") false ;; *) [ "$(unit ActiveState)" = active ] ;; esac
}
check "the process is another one" await is_restarted
# Kills the process, which systemd does not start again, and forwards without it.
in_kernel=("AmbientCapabilities=CAP_NET_ADMIN CAP_BPF CAP_PERFMON"
  "CapabilityBoundingSet=CAP_NET_ADMIN CAP_BPF CAP_PERFMON" "SystemCallFilter=bpf" "Restart=no")
without_process() {
  forwarded 225.1.2.5 > /dev/null
  await is_in_kernel
  inside systemctl kill --signal=KILL mcastor
  await is_failed
  forwarded 225.1.2.5
}
is_failed() { [ "$(unit ActiveState)" = failed ]; }
drop_in "${in_kernel[@]}"
equal "packets without the process, by filters" 20 "$(without_process)"
inside mount -t bpf bpf /sys/fs/bpf
mapfile -t pinning < <(grep -E '^(ExecStartPre|ReadWritePaths)=' docs/install.md)
equal "lines of docs/install.md for a BPF file system" 2 "${#pinning[@]}"
check "the additions of docs/install.md for a BPF file system" drop_in "${in_kernel[@]}" "${pinning[@]}"
check "programs are pinned" inside sh -c 'find /sys/fs/bpf/mcastor -type f | grep .'
equal "packets without the process, by pinned programs" 20 "$(without_process)"
check "the next process starts" inside systemctl start mcastor
equal "packets with it" 20 "$(forwarded 225.1.2.5)"
check "the service stops" inside systemctl stop mcastor
refuse "nothing is pinned after a stop" inside sh -c 'find /sys/fs/bpf/mcastor -mindepth 1 | grep .'
inside umount /sys/fs/bpf

# systemd 253 and newer wait for the messages of a reload by themselves.
version=$(inside systemctl --version | awk 'NR == 1 { print $2 }')
if [ "$version" -ge 253 ]; then
  check "Type=notify-reload" drop_in Type=notify-reload ExecReload=
  settings 225.1.2.6
  check "a reload by signal" inside systemctl reload mcastor
  equal "status after it" "reloaded, routes: 1" "$(unit StatusText)"
else
  skip "Type=notify-reload: needs systemd 253, this is $version"
fi
inside rm -r /etc/systemd/system/mcastor.service.d
inside systemctl daemon-reload

# --- failure and stop -----------------------------------------------------------------------------
settings 10.0.0.1
refuse "a restart with invalid settings fails" inside systemctl restart mcastor
equal "restarts after invalid settings" "failed 0" "$(unit ActiveState) $(unit NRestarts)"
settings 225.1.2.3
check "the service starts again" inside systemctl restart mcastor
pid=$(unit MainPID)
inside kill -KILL "$pid"
check "a killed process is restarted" await is_restarted
equal "packets after the restart" 20 "$(forwarded 225.1.2.3)"
pid=$(unit MainPID)
check "an installation over it succeeds" inside dpkg --install /root/mcastor.deb
check "it restarts the service" await is_restarted
equal "changed settings after it" "225.1.2.3" "$(sed -n 's/^group = "\(.*\)"/\1/p' "$root/etc/mcastor/mcastor.toml")"
check "the service stops" inside systemctl stop mcastor
equal "result of the stop" "inactive success 0" "$(unit ActiveState) $(unit Result) $(unit ExecMainStatus)"
refuse "the folder of the socket is gone" inside test -e /run/mcastor

# --- purge ----------------------------------------------------------------------------------------
inside systemctl start mcastor
check "the package is purged while the service runs" inside dpkg --purge mcastor
refuse "no process is left" inside pgrep --exact mcastor
for end in in out; do inside ip netns delete "$end"; done
inside rm -f /root/mcastor.deb
inside rmdir /run/netns 2>/dev/null || inside umount /run/netns 2>/dev/null || true
inside rm -rf /run/netns
list_files > "$work/after"
equal "files that the package leaves" "" "$(diff "$work/before" "$work/after" | grep '^[<>]' || true)"
equal "failed units of the system, as before" "$failed_before" "$(failed_units)"

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
