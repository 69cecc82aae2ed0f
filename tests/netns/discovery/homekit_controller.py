"""Finds the accessory with aiohomekit, which Home Assistant uses, pairs with it, and switches it on.

Argument: the address from which to ask.
"""

import asyncio
import sys

from aiohomekit import Controller
from aiohomekit.zeroconf import ZeroconfServiceListener
from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

# The characteristic On of HomeKit.
ON = "00000025-0000-1000-8000-0026BB765291"


async def main(address):
    zeroconf = AsyncZeroconf(interfaces=[address])
    types = ["_hap._tcp.local.", "_hap._udp.local."]
    AsyncServiceBrowser(zeroconf.zeroconf, types, listener=ZeroconfServiceListener())
    controller = Controller(async_zeroconf_instance=zeroconf)
    await controller.async_start()
    found = await controller.async_find("02:00:00:00:00:07", 50)
    print("found", found.description.name, found.description.address, flush=True)
    finish = await found.async_start_pairing("lamp")
    pairing = await finish("031-45-154")
    print("paired", flush=True)
    accessories = await pairing.list_accessories_and_characteristics()
    switches = [
        (accessory["aid"], characteristic["iid"])
        for accessory in accessories
        for service in accessory["services"]
        for characteristic in service["characteristics"]
        if characteristic["type"].upper() == ON
    ]
    await pairing.put_characteristics([(*switches[0], True)])
    print("switched", flush=True)


asyncio.run(main(*sys.argv[1:]))
