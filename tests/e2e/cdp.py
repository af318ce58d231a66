"""Headless Chromium for tests, driven over its DevTools protocol with nothing but the standard library.

    with Browser(folder) as browser:
        page = browser.open("http://127.0.0.1:8000/")
        page.drop("#zone", "photo.jpg")              # a real drag and drop of a file
        page.wait_for("document.body.dataset.done === 'photo.jpg'")
        page.screenshot("page.png")
        assert page.trouble() == []                  # exceptions, console errors, CSP violations
"""
import base64
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import time

CHROMIUM = os.environ.get("NARU_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


class WebSocket:
    """RFC 6455, client side: text messages over TCP to this machine."""

    def __init__(self, url, timeout_s=120):
        host, path = url.removeprefix("ws://").split("/", 1)
        name, port = host.rsplit(":", 1)
        self.socket = socket.create_connection((name, int(port)), timeout_s)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        assert b" 101 " in head.split(b"\r\n")[0], head

    def _more(self):
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the browser closed the connection")
        self.buffer += data

    def _take(self, n):
        while len(self.buffer) < n:
            self._more()
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def send(self, text):
        data, mask = text.encode(), os.urandom(4)
        n = len(data)
        head = struct.pack("!BB", 0x81, 0x80 | n) if n < 126 else \
            struct.pack("!BBH", 0x81, 0x80 | 126, n) if n < 65536 else struct.pack("!BBQ", 0x81, 0x80 | 127, n)
        stretched = (mask * (n // 4 + 1))[:n]
        masked = (int.from_bytes(data, "big") ^ int.from_bytes(stretched, "big")).to_bytes(n, "big")
        self.socket.sendall(head + mask + masked)

    def receive(self):
        message = b""
        while True:
            first, second = self._take(2)
            n = second & 0x7f
            if n == 126:
                n = struct.unpack("!H", self._take(2))[0]
            elif n == 127:
                n = struct.unpack("!Q", self._take(8))[0]
            payload = self._take(n)
            kind = first & 0x0f
            if kind == 8:
                raise ConnectionError("the browser closed the connection")
            if kind in (0, 1):
                message += payload
                if first & 0x80:
                    return message.decode()

    def close(self):
        self.socket.close()


class Browser:
    def __init__(self, folder, width=1200, height=900, flags=()):
        self.folder = pathlib.Path(folder) / "chromium"
        self.folder.mkdir(parents=True)
        self.next_id, self.events = 0, []
        with open(self.folder / "stderr.log", "wb") as log:
            self.process = subprocess.Popen(
                [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 "--disable-default-apps", "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars",
                 "--force-color-profile=srgb", f"--user-data-dir={self.folder / 'profile'}",
                 "--remote-debugging-port=0", f"--window-size={width},{height}", *flags,
                 "about:blank"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder / "config"),
                     "XDG_CACHE_HOME": str(self.folder / "cache")})
        self.socket = None
        try:
            self.socket = WebSocket(self._address())
        except BaseException:
            self.close()
            raise

    def _address(self, limit_s=60):
        port_file, end = self.folder / "profile" / "DevToolsActivePort", time.monotonic() + limit_s
        while time.monotonic() < end:
            lines = port_file.read_text().split("\n") if port_file.exists() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        log = (self.folder / "stderr.log").read_text(errors="replace")
        raise RuntimeError(f"Chromium did not start within {limit_s} s (exit code {self.process.poll()})\n{log[-3000:]}")

    def call(self, method, session=None, **parameters):
        self.next_id += 1
        message = {"id": self.next_id, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.receive())
            if answer.get("id") == self.next_id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def open(self, url):
        return Page(self, url)

    def close(self):
        if self.socket:
            try:
                self.call("Browser.close")
            except (OSError, RuntimeError):
                pass
            self.socket.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Page:
    def __init__(self, browser, url):
        self.browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")
        self.go(url)

    def call(self, method, **parameters):
        return self.browser.call(method, session=self.session, **parameters)

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)

    def go(self, url):
        failed = self.call("Page.navigate", url=url).get("errorText")
        assert not failed, f"{url}: {failed}"
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, script):
        """The value of an expression (a promise is waited for)."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description") or answer)
        return answer["result"].get("value")

    def wait_for(self, condition, limit_s=60):
        end = time.monotonic() + limit_s
        while True:
            try:
                value = self.evaluate(condition)
                last = ""
            except RuntimeError as e: # the document is being replaced
                value, last = None, e
            if value:
                return value
            if time.monotonic() > end:
                seen = self.evaluate("document.body.innerText")
                raise AssertionError(f"{condition} did not become true within {limit_s} s; {last} the page shows:\n{seen}")
            time.sleep(0.05)

    def settle(self):
        """Until what was changed is laid out and drawn: input goes to what is on the screen."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def middle(self, selector):
        return self.evaluate(f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                             "return [r.x + r.width / 2, r.y + r.height / 2]; })()")

    def drop(self, selector, *paths):
        """Drags files from outside over the element and lets them go, as a person does."""
        self.settle()
        x, y = self.middle(selector)
        data = {"items": [], "files": [str(pathlib.Path(p).resolve()) for p in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def choose(self, selector, *paths):
        """What a file dialogue does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(pathlib.Path(p).resolve()) for p in paths])

    def click(self, selector):
        self.settle()
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, name, code=None, number=0, text=""):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=code or name, text=text if kind == "keyDown" else "",
                      windowsVirtualKeyCode=number)

    def picture(self, selector):
        """What an image of the page shows, at its own size: the bytes of a PNG."""
        data = self.evaluate(
            f"(() => {{ const i = document.querySelector({json.dumps(selector)}), c = document.createElement('canvas');"
            "c.width = i.naturalWidth; c.height = i.naturalHeight; c.getContext('2d').drawImage(i, 0, 0);"
            "return c.toDataURL('image/png'); })()")
        return base64.b64decode(data.split(",", 1)[1])

    def emulate(self, width=None, height=None, dark=None):
        if width:
            self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                      mobile=width < 600)
        if dark is not None:
            self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme",
                                                               "value": "dark" if dark else "light"}])

    def screenshot(self, path, whole=True):
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(data))

    def trouble(self):
        """What went wrong in the page so far: exceptions, console errors, refused loads."""
        self.evaluate("0") # brings events that are under way
        found = []
        for e in self.browser.events:
            if e.get("sessionId") != self.session:
                continue
            p = e["params"]
            if e["method"] == "Runtime.exceptionThrown":
                found.append(p["exceptionDetails"].get("exception", {}).get("description") or str(p))
            elif e["method"] == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
                found.append(p["entry"]["text"] + " " + p["entry"].get("url", ""))
            elif e["method"] == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning"):
                found.append(str(p["args"]))
        return found
