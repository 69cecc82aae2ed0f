"""A device that speaks the native API of ESPHome without encryption: a switch.

It has the messages of aioesphomeapi. The firmware itself needs a compiler for its hardware.
Argument: the address.
"""

import asyncio
import socket
import sys

from aioesphomeapi import api_pb2
from aioesphomeapi.core import MESSAGE_TYPE_TO_PROTO
from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

TYPES = {kind: number for number, kind in MESSAGE_TYPE_TO_PROTO.items()}


def varint(number):
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes(groups) + bytes([number])


async def read_varint(reader):
    number, shift = 0, 0
    while True:
        byte = (await reader.readexactly(1))[0]
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number


async def read_message(reader):
    """A frame is a zero, the length, the number of the type, and the message."""
    await reader.readexactly(1)
    length, number = await read_varint(reader), await read_varint(reader)
    message = MESSAGE_TYPE_TO_PROTO[number]()
    message.ParseFromString(await reader.readexactly(length))
    return message


def frame(message):
    data = message.SerializeToString()
    return b"\0" + varint(len(data)) + varint(TYPES[type(message)]) + data


def answers(message):
    match type(message).__name__:
        case "HelloRequest":
            yield api_pb2.HelloResponse(api_version_major=1, api_version_minor=10, name="lamp")
        case "AuthenticationRequest":
            yield api_pb2.AuthenticationResponse()
        case "PingRequest":
            yield api_pb2.PingResponse()
        case "DeviceInfoRequest":
            yield api_pb2.DeviceInfoResponse(name="lamp", mac_address="02:00:00:00:00:07")
        case "ListEntitiesRequest":
            yield api_pb2.ListEntitiesSwitchResponse(object_id="lamp", key=7, name="Lamp")
            yield api_pb2.ListEntitiesDoneResponse()
        case "DisconnectRequest":
            yield api_pb2.DisconnectResponse()
        case "SwitchCommandRequest":
            print("switch", message.key, "is", "on" if message.state else "off", flush=True)


async def serve(reader, writer):
    try:
        while True:
            for answer in answers(await read_message(reader)):
                writer.write(frame(answer))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main(address):
    server = await asyncio.start_server(serve, address, 6053)
    service = ServiceInfo(
        "_esphomelib._tcp.local.",
        "lamp._esphomelib._tcp.local.",
        addresses=[socket.inet_aton(address)],
        port=6053,
        properties={"mac": "020000000007", "version": "2026.10.0"},
        server="lamp.local.",
    )
    zeroconf = AsyncZeroconf(interfaces=[address])
    await (await zeroconf.async_register_service(service))
    await server.serve_forever()


asyncio.run(main(*sys.argv[1:]))
