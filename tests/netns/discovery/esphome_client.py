"""Finds the device with zeroconf, connects to it by its name with aioesphomeapi, which Home
Assistant uses, and switches it on.

Argument: the address from which to ask.
"""

import asyncio
import sys

from aioesphomeapi import APIClient
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

TYPE = "_esphomelib._tcp.local."


async def main(address):
    zeroconf = AsyncZeroconf(interfaces=[address])
    names = asyncio.Queue()
    handler = lambda zeroconf, service_type, name, state_change: names.put_nowait(name)
    AsyncServiceBrowser(zeroconf.zeroconf, TYPE, handlers=[handler])
    info = AsyncServiceInfo(TYPE, await names.get())
    while not await info.async_request(zeroconf.zeroconf, 5000):
        pass
    print("found", info.name, info.parsed_addresses()[0], flush=True)
    # The name is asked for again, now by this library.
    client = APIClient(info.server.rstrip("."), info.port, zeroconf_instance=zeroconf)
    await client.connect(login=True)
    device = await client.device_info()
    entities, _ = await client.list_entities_services()
    print("connected to", device.name, flush=True)
    client.switch_command(entities[0].key, True)
    print("switched", flush=True)
    await client.disconnect()


asyncio.run(main(*sys.argv[1:]))
