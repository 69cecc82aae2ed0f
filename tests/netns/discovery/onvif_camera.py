"""A camera as ONVIF describes it, with WSDiscovery: offers itself. Argument: its URL."""

import sys
import time

from wsdiscovery import QName, Scope
from wsdiscovery.publishing import ThreadedWSPublishing

publisher = ThreadedWSPublishing()
publisher.start()
kind = QName("http://www.onvif.org/ver10/network/wsdl", "NetworkVideoTransmitter")
publisher.publishService([kind], [Scope("onvif://www.onvif.org/name/door")], [sys.argv[1]])
time.sleep(1000)
