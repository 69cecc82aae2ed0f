"""A device that speaks the part of AirPlay with which a video is played.

No such device is on PyPI. Argument: the address.
"""

import http.server
import plistlib
import socket
import sys

from zeroconf import ServiceInfo, Zeroconf


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/play":
            print("plays", plistlib.loads(body)["Content-Location"], flush=True)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        """Ends the connection, which is the end of the video."""
        self.close_connection = True


address = sys.argv[1]
server = http.server.ThreadingHTTPServer((address, 7000), Handler)
service = ServiceInfo(
    "_airplay._tcp.local.",
    "Living Room._airplay._tcp.local.",
    addresses=[socket.inet_aton(address)],
    port=7000,
    # The features are video, photo and its cache; without version 2 of the protocol.
    properties={"deviceid": "02:00:00:00:00:07", "features": "0x7", "model": "AppleTV3,2"},
    server="living-room.local.",
)
Zeroconf(interfaces=[address]).register_service(service)
server.serve_forever()
