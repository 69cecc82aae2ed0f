#!/bin/sh
# Moves an interface of this host into a running container, as pipework does. The container then
# receives and sends multicast on it without mcastor. The host loses the interface until the container
# ends; then it returns, down and without addresses.
#
#   moved-interface.sh INTERFACE CONTAINER ADDRESS/LENGTH
#
# Needs root. To keep the interface on the host, move a macvlan of it instead:
#   ip link add mv0 link eth0 type macvlan mode bridge
set -eu
interface=$1 container=$2 address=$3
pid=$(docker inspect --format '{{.State.Pid}}' "$container")
ip link set "$interface" netns "$pid"
nsenter --target "$pid" --net ip address add "$address" dev "$interface"
nsenter --target "$pid" --net ip link set "$interface" up
