"""A HomeKit accessory of HAP-python: a lamp with the code 031-45-154.

Arguments: the address, and the file in which pairings are kept.
"""

import sys

from pyhap.accessory import Accessory
from pyhap.accessory_driver import AccessoryDriver


class Lamp(Accessory):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        service = self.add_preload_service("Lightbulb")
        service.configure_char("On", setter_callback=self.switch)

    def switch(self, value):
        print("the lamp is", "on" if value else "off", flush=True)


address, file = sys.argv[1:]
driver = AccessoryDriver(
    address=address,
    port=51826,
    persist_file=file,
    pincode=b"031-45-154",
    mac="02:00:00:00:00:07",
    interface_choice=[address],
)
driver.add_accessory(Lamp(driver, "Lamp"))
driver.start()
