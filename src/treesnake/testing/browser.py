"""A browser without a window, for pages that only a browser can check.

Chromium is asked by its DevTools protocol: JSON over a websocket on the loopback interface.
"""

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
"""None where none is installed."""

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
LISTENING = "DevTools listening on "
PATIENCE_S = 120

TEXT, LAST, MASKED, NO_MASK = 0x1, 0x80, 0x80, b"\0\0\0\0"
"""Of a websocket's frames (RFC 6455): a kind, two bits, and a mask that changes nothing."""


class BrowserPage:
    """A page that is open.

    Args:
        address: of its websocket.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._socket = socket.create_connection((parts.hostname, parts.port), PATIENCE_S)
        self._stream: BinaryIO = self._socket.makefile("rb")
        self._num_calls = 0
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while self._stream.readline().strip():
            pass

    def open(self, address: str) -> None:
        """Opens a page and waits until it is read."""
        self._call("Page.navigate", url=address)
        self.wait_until("document.readyState === 'complete'")

    def close(self) -> None:
        """Lets the page go."""
        self._stream.close()
        self._socket.close()

    def evaluate(self, expression: str) -> Any:
        """Returns what an expression of JavaScript gives, or the promise that it is."""
        options = {"awaitPromise": True, "returnByValue": True}
        answer = self._call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_until(self, condition: str) -> None:
        """Waits until an expression of JavaScript is true."""
        look = f"const look = () => ({condition}) ? done() : setTimeout(look, 20); look();"
        self.evaluate(f"new Promise((done) => {{ {look} }})")

    @property
    def html(self) -> str:
        """The page as it is now."""
        return self.evaluate("document.documentElement.outerHTML")

    def picture(self) -> bytes:
        """Returns what the page looks like, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._num_calls += 1
        asked = {"id": self._num_calls, "method": method, "params": params}
        self._send(json.dumps(asked).encode())
        while (answer := json.loads(self._receive())).get("id") != self._num_calls:
            pass  # an event
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _send(self, data: bytes) -> None:
        if len(data) < 126:
            head = struct.pack("!BB", LAST | TEXT, MASKED | len(data))
        else:
            head = struct.pack("!BBQ", LAST | TEXT, MASKED | 127, len(data))
        self._socket.sendall(head + NO_MASK + data)

    def _receive(self) -> bytes:
        message, is_last = b"", False
        while not is_last:
            first, size = self._stream.read(2)
            if size == 126:
                [size] = struct.unpack("!H", self._stream.read(2))
            elif size == 127:
                [size] = struct.unpack("!Q", self._stream.read(8))
            message += self._stream.read(size)
            is_last = bool(first & LAST)
        return message


@contextmanager
def browser_page(
    address: str, profile: Path, *, width: int = 1280, height: int = 800
) -> Iterator[BrowserPage]:
    """Opens a page in Chromium, which must be there.

    Args:
        address: of the page.
        profile: an empty folder for what the browser keeps.
        width: of the window, in pixels.
        height: of the window, in pixels.
    """
    assert CHROMIUM is not None, "there is no Chromium here; the test should be skipped"
    own = (f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank")
    with subprocess.Popen([CHROMIUM, *OPTIONS, *own], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            listening = next(line for line in process.stderr if line.startswith(LISTENING))
            page = BrowserPage(_page_address(listening.removeprefix(LISTENING).strip()))
            page.open(address)
            yield page
            page.close()
        finally:
            process.terminate()
            process.stderr.read()


def _page_address(browser: str) -> str:
    """Returns the websocket of the one page of a browser."""
    connection = HTTPConnection(urlsplit(browser).netloc, timeout=PATIENCE_S)
    connection.request("GET", "/json/list")
    targets = json.load(connection.getresponse())
    connection.close()
    return next(each["webSocketDebuggerUrl"] for each in targets if each["type"] == "page")
