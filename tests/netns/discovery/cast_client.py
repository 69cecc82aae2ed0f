"""Finds the device with pychromecast, connects to it, and changes its volume.

Argument: the address from which to ask.
"""

import sys

import pychromecast
import zeroconf

zeroconf = zeroconf.Zeroconf(interfaces=[sys.argv[1]])
casts, _ = pychromecast.get_listed_chromecasts(
    friendly_names=["Living Room"], discovery_timeout=50, zeroconf_instance=zeroconf
)
cast = casts[0]
print("found", cast.cast_info.friendly_name, cast.cast_info.host, flush=True)
cast.wait(timeout=50)
print("volume", cast.status.volume_level, flush=True)
cast.set_volume(0.25)
print("changed", flush=True)
cast.disconnect()
