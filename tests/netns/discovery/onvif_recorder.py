"""A recorder, with WSDiscovery: asks for cameras, and prints their URLs."""

from wsdiscovery import QName
from wsdiscovery.discovery import ThreadedWSDiscovery

discovery = ThreadedWSDiscovery()
discovery.start()
kind = QName("http://www.onvif.org/ver10/network/wsdl", "NetworkVideoTransmitter")
while True:
    for service in discovery.searchServices(types=[kind], timeout=2):
        for address in service.getXAddrs():
            print("found", address, flush=True)
