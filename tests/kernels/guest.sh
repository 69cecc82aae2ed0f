# Runs tests in a guest, as its first program: sourced by a job script that sets $kernel, the folder
# with the modules, $folder, the working directory, and PATH and HOME, and defines run_tests.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mkdir -p /run/lock
# The kernel loads modules by this program.
printf '#!/bin/sh\nexec modprobe -d %s "$@"\n' "$kernel" >/run/modprobe
chmod 755 /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe
# Where IPv6 is a module, it must be there before a test disables it.
/run/modprobe ipv6 2>/dev/null
# Makes /dev/net/tun.
/run/modprobe tun 2>/dev/null
# The guest has one processor, which is emulated unless it is user-mode Linux.
export MCASTOR_SLOWNESS=${slowness:-1}
ip link set lo up
cd "$folder" || poweroff -f
echo "guest: Linux $(uname -r)"
run_tests
echo "guest: done"
exec busybox poweroff -f
