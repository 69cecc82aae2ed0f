"""A device that speaks the protocol of Chromecast (Cast V2): it has a volume.

It has the messages of pychromecast; no such device is free software. Argument: the address.
"""

import asyncio
import datetime
import json
import socket
import ssl
import struct
import sys
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pychromecast.generated.cast_channel_pb2 import CastMessage
from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf


def context():
    """TLS with a certificate that is signed by itself, as such devices have."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cast")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    with tempfile.NamedTemporaryFile() as file:
        secret = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write(secret + certificate.public_bytes(pem))
        file.flush()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file.name)
    return context


volume = {"level": 0.75, "muted": False}


def answer(data):
    match data.get("type"):
        case "PING":
            return {"type": "PONG"}
        case "SET_VOLUME":
            volume.update(data["volume"])
            print("volume", volume["level"], flush=True)
        case "GET_STATUS":
            pass
        case _:
            return None
    status = {"applications": [], "volume": volume}
    return {"type": "RECEIVER_STATUS", "requestId": data["requestId"], "status": status}


async def serve(reader, writer):
    try:
        while True:
            (length,) = struct.unpack(">I", await reader.readexactly(4))
            message = CastMessage.FromString(await reader.readexactly(length))
            data = answer(json.loads(message.payload_utf8))
            if data is None:
                continue
            reply = CastMessage(
                protocol_version=message.protocol_version,
                source_id=message.destination_id,
                destination_id=message.source_id,
                namespace=message.namespace,
                payload_type=message.payload_type,
                payload_utf8=json.dumps(data),
            ).SerializeToString()
            writer.write(struct.pack(">I", len(reply)) + reply)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main(address):
    server = await asyncio.start_server(serve, address, 8009, ssl=context())
    service = ServiceInfo(
        "_googlecast._tcp.local.",
        "Chromecast-07._googlecast._tcp.local.",
        addresses=[socket.inet_aton(address)],
        port=8009,
        properties={"id": "0" * 31 + "7", "md": "Chromecast", "fn": "Living Room"},
        server="chromecast-07.local.",
    )
    zeroconf = AsyncZeroconf(interfaces=[address])
    await (await zeroconf.async_register_service(service))
    await server.serve_forever()


asyncio.run(main(*sys.argv[1:]))
