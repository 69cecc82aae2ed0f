#!/bin/busybox sh
# The first program in a guest. Mounts the root of the host below an overlay, so that the guest sees
# the programs of the host and changes nothing, and runs the script `job=` of the command line there.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do
  insmod "$module" 2>/dev/null
done </modules/order
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro host /lower 2>/dev/null ||
  mount -t hostfs -o ro,/ none /lower || poweroff -f
mount -t tmpfs tmpfs /upper
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /root ||
  poweroff -f
for job in $(cat /proc/cmdline); do
  case $job in job=*) break ;; esac
done
exec switch_root /root /bin/sh "${job#job=}"
