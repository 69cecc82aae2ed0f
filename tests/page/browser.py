#!/usr/bin/env python3
"""Uses the page of a router in headless Chromium, as a reader with eyes, keyboard or phone would.

Usage: browser.py URL AXE PICTURES FLOWS

AXE is the path of axe.min.js. PICTURES is the folder for screenshots. FLOWS is the number of idle
flows that the router has. Prints what was measured. Exits with an error at the first fault.
"""

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import time

import websocket

URL, AXE, PICTURES, FLOWS = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
TIMEOUT = 60
VIEWS = ["overview", "interfaces", "routes", "flows", "streams", "groups", "drops", "tunnels",
         "discovery", "mnat"]
DESKTOP = {"width": 1100, "height": 800, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
MAX_PICTURE = 150_000


class Browser:
    """A tab of Chromium, driven over the DevTools protocol."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars",
             "--remote-debugging-port=0", "--remote-allow-origins=*",
             f"--user-data-dir={folder}", "about:blank"],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for line in self.process.stderr:
            found = re.search(r"DevTools listening on (ws://\S+)", line)
            if found:
                break
        else:
            sys.exit("chromium does not listen")
        # Otherwise the pipe would fill.
        subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)
        self.socket = websocket.create_connection(found[1], timeout=TIMEOUT)
        self.number, self.session, self.faults, self.hosts = 0, None, [], set()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Returns the result of a command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.number:
                if "error" in answer:
                    sys.exit(f"{method}: {answer['error']}")
                return answer["result"]
            self.note(answer)

    def note(self, event):
        """Collects errors of the page, and the hosts of its requests."""
        parameters = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.faults.append(parameters["exceptionDetails"])
        elif event["method"] == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.faults.append(parameters["entry"])
        elif event["method"] == "Network.requestWillBeSent":
            self.hosts.add("/".join(parameters["request"]["url"].split("/")[:3]))

    def run(self, script):
        """Returns the value of a script; waits for a promise."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True,
                           returnByValue=True)
        if "exceptionDetails" in result:
            sys.exit(f"{script[:200]}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, what, script):
        """Waits until a script returns something true, and returns that."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            value = self.run(script)
            if value:
                return value
            time.sleep(0.05)
        sys.exit(f"not within {TIMEOUT} s: {what}\n{self.run('document.body.innerText')[:3000]}")

    def press(self, key, code=None, text=None):
        """Presses and releases a key."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27}
        event = {"key": key, "code": code or key, "windowsVirtualKeyCode": codes.get(key, 0)}
        if key == "Enter":
            text = "\r"
        if text:
            event["text"] = text
        self.call("Input.dispatchKeyEvent", type="keyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def show(self, size, scheme):
        """Sets the size of the window, and the colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open_view(self, name):
        # The router notices within two seconds that a stream of events was closed, and has at most 16
        # of them.
        time.sleep(0.2)
        self.run(f"location.hash = '#/{name}'")
        self.wait(f"the view {name}",
                  "document.querySelector('nav a[aria-current]')?.getAttribute('href') "
                  f"=== '#/{name}' && !document.querySelector('main').innerText.includes('Waiting for data')")

    def picture(self, name):
        os.makedirs(PICTURES, exist_ok=True)
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        print(f"{name}: {len(data)} bytes")
        check(len(data) < MAX_PICTURE, f"{name} has {len(data)} bytes")
        with open(os.path.join(PICTURES, name), "wb") as file:
            file.write(data)

    def accessibility(self, where):
        """Fails if axe-core finds a violation."""
        if not self.run("typeof axe === 'object'"):
            # Evaluated by the debugger, which the policy of the page permits.
            with open(AXE, encoding="utf-8") as file:
                self.run(file.read() + "; 1")
        found = self.run("axe.run(document, {resultTypes: ['violations']}).then(r => "
                         "[r.passes.length, r.violations.map(v => v.id + ': ' + v.help + ' ' + "
                         "v.nodes.map(n => n.html + ' ' + n.failureSummary).join(' '))])")
        check(found[0] > 10, f"{where}: axe-core examined nothing")
        check(not found[1], f"{where}: axe-core found: {found[1]}")


def check(condition, message):
    if not condition:
        sys.exit(message)


def number(text):
    return float(re.sub(r"[^0-9.]", "", text) or 0)


def figures_move(browser):
    """The received packets of an interface and the rate grow while packets arrive."""
    rate = browser.wait("a rate", "document.querySelector('.figure')?.innerText.match(/^[0-9].*s$/)?.[0]")
    browser.open_view("interfaces")
    cell = ("[...document.querySelectorAll('tbody tr')].find(r => r.cells[0].innerText === 'in')"
            "?.cells[3].querySelector('.quiet').innerText")
    first = number(browser.wait("packets", cell))
    more = browser.wait("more packets", f"(Number(({cell}).replace(/[^0-9]/g, '')) > {first + 100}) && ({cell})")
    print(f"received: {first:.0f}, later {number(more):.0f} packets; {rate} in the overview")
    points = browser.wait("a line", "document.querySelector('tbody polyline[points]')"
                          "?.getAttribute('points').split(' ').length > 2")
    check(points, "no line")
    browser.open_view("streams")
    browser.wait("the health of a stream", "/225.1.2.3[^]*fine/.test(document.querySelector('tbody')?.innerText)")


def search(browser):
    """One of many flows is found by typing, and pages are turned."""
    browser.open_view("flows")
    # Those of the streams come on top: 10,003.
    total = f"{FLOWS:,}"[:-2]
    browser.wait("all flows", f"/Rows 1 to 50 of {total}/.test(document.body.innerText)")
    browser.run("window.longest = 0; new PerformanceObserver(list => { for (const e of list.getEntries())"
                " window.longest = Math.max(window.longest, e.duration); }).observe({type: 'longtask'}); 1")
    browser.run("document.querySelector('input[type=search]').focus()")
    started = time.monotonic()
    for letter in "239.7.13.144":
        browser.press(letter, text=letter)
    browser.wait("one row", "document.querySelectorAll('tbody tr').length === 1 && "
                 "document.querySelector('tbody th').innerText.includes('239.7.13.144')")
    took = time.monotonic() - started
    check(browser.run("location.hash").endswith("search=239.7.13.144"), "the address has no search")
    browser.wait("the announcement", "document.querySelector('[role=status]').textContent.includes('1 row matches')")
    browser.run("location.hash = '#/flows?order=address'")
    browser.wait("the first page", "/Rows 1 to 50 of/.test(document.body.innerText)")
    browser.run("[...document.querySelectorAll('.pages button')].find(b => b.innerText === 'Next').click()")
    browser.wait("the second page", "/Rows 51 to 100 of/.test(document.body.innerText)")
    time.sleep(3)
    longest = browser.run("window.longest")
    print(f"search in {FLOWS} flows: {took:.2f} s with typing; longest task of the page: {longest:.0f} ms")
    # An idle machine takes 50 to 320 ms.
    check(longest < 1000, f"the page did not respond for {longest} ms")


def keyboard(browser):
    """Skip link, sorting and the dialog work without a pointer."""
    browser.open_view("drops")
    browser.run("document.activeElement.blur(); getSelection().removeAllRanges();"
                "document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")
    browser.press("Tab")
    check(browser.run("document.activeElement.className") == "skip", "the first stop is no skip link")
    outline = browser.run("getComputedStyle(document.activeElement).outlineStyle")
    check(outline != "none", "the focus is not visible")
    browser.press("Enter")
    check(browser.run("document.activeElement.id") == "title", "the skip link does not skip")
    stops = []
    for _ in range(20):
        browser.press("Tab")
        stops.append(browser.run("document.activeElement.innerText || document.activeElement.type"))
        if stops[-1].strip() == "In all":
            break
    else:
        sys.exit(f"no button sorts by packets: {stops}")
    browser.press("Enter")
    browser.wait("the sorted column", "document.querySelector('th[aria-sort=descending]')?.innerText.startsWith('In all')")
    check(browser.run("document.activeElement.innerText").startswith("In all"), "the focus was lost")
    browser.run("[...document.querySelectorAll('tbody button')][0].focus()")
    browser.press("Enter")
    browser.wait("the explanation", "/Arrives on in/.test(document.querySelector('dialog[open]')?.innerText)")
    browser.accessibility("the dialog")
    browser.press("Escape")
    browser.wait("no dialog", "!document.querySelector('dialog')")
    focused = browser.run("document.activeElement.innerText")
    check(focused == "Explain", f"the focus is on {focused!r} after the dialog")


def pause(browser):
    button = "[...document.querySelectorAll('header button')][0]"
    browser.run(f"{button}.click()")
    browser.wait("a pause", "document.querySelector('[role=status]').innerText.startsWith('Paused')")
    text = browser.run("document.querySelector('main').innerText")
    time.sleep(2)
    check(browser.run("document.querySelector('main').innerText") == text, "the page moves during a pause")
    browser.run(f"{button}.click()")
    browser.wait("live", "document.querySelector('[role=status]').innerText.startsWith('Live')")


def main():
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(folder)
        try:
            browser.show(DESKTOP, "light")
            browser.call("Page.navigate", url=URL)
            browser.wait("live data", "document.querySelector('[role=status]')?.innerText.startsWith('Live')")
            figures_move(browser)
            search(browser)
            keyboard(browser)
            pause(browser)
            for size, name in [(DESKTOP, "desktop"), (PHONE, "phone")]:
                for scheme in ["light", "dark"]:
                    browser.show(size, scheme)
                    for view in VIEWS:
                        browser.open_view(view)
                        width = browser.run("document.documentElement.scrollWidth")
                        check(width <= size["width"], f"{view} on a {name} is {width} wide")
                        browser.accessibility(f"{view}, {name}, {scheme}")
            for scheme in ["light", "dark"]:
                browser.show(DESKTOP, scheme)
                browser.open_view("overview")
                # For lines of some length.
                time.sleep(15 if scheme == "light" else 1)
                browser.picture(f"page-{scheme}.png")
            browser.show(PHONE, "light")
            browser.open_view("flows")
            time.sleep(3)
            browser.picture("page-phone.png")
            check(not browser.faults, f"errors of the page: {browser.faults}")
            hosts = {host for host in browser.hosts if host.startswith("http")}
            check(hosts == {URL.rstrip("/")}, f"requests to {hosts}")
        finally:
            browser.process.terminate()
            browser.process.wait()
    print(f"{len(VIEWS)} views, 2 sizes, 2 colour schemes: axe-core found nothing")


main()
