#!/bin/sh
# Makes the captures of this folder: in a network namespace with a veth pair d0 and d1, where d0 has 10.0.0.10/24,
# and a route of 239.0.0.0/8 to it. Needs ffmpeg, tcpdump and editcap (wireshark-common) of Debian 12.
set -eu
capture() {
    tcpdump -q -i d0 -s 0 --immediate-mode -w "$1" "udp and dst port 5004" 2>/dev/null &
    dump=$!
    sleep 1
    shift
    ffmpeg -loglevel error -re "$@"
    sleep 1
    kill $dump
    wait $dump || true
}
video="-f lavfi -i testsrc=size=160x120:rate=25 -t 3 -c:v mpeg2video -b:v 100k -maxrate 100k -bufsize 100k"
capture ts.pcap $video -muxrate 200k -f mpegts "udp://239.1.1.1:5004?pkt_size=1316&localaddr=10.0.0.10"
capture rtp_ts.pcap $video -muxrate 200k -f rtp_mpegts "rtp://239.1.1.2:5004?pkt_size=1328&localaddr=10.0.0.10"
capture pcmu.pcap -f lavfi -i sine=frequency=440:sample_rate=8000 -t 3 -c:a pcm_mulaw -f rtp "rtp://239.1.1.3:5004?pkt_size=172&localaddr=10.0.0.10"
# Packets are dropped by their number in the capture.
editcap -F pcap ts.pcap ts_lost.pcap 11 20-22
editcap -F pcap rtp_ts.pcap rtp_ts_lost.pcap 10 12 15-18
editcap -F pcap pcmu.pcap pcmu_lost.pcap 20 22 24-27 80
