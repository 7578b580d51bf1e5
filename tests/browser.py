"""A page in a real browser: headless Chromium, spoken to in the Chrome DevTools protocol over two pipes.

For tests of the report's pages, which `needed` skips where there is no Chromium, and `benchmarks/results_page.py`.
The names of methods and events are those of chromedevtools.github.io/devtools-protocol.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needed = pytest.mark.skipif(not CHROMIUM, reason="no Chromium in PATH")
FRAME = "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"  # until the next frame is painted


class Page:
    """An open page. ``errors`` are its uncaught errors, ``requests`` the addresses that it asked for, after its own."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = os.fdopen(write, "wb"), os.fdopen(read, "rb")
        self._received, self._number, self._session = b"", 0, {}
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def open(self, address: str) -> None:
        """Go to an address and wait until all of it is loaded."""
        self._loaded = False
        self.call("Page.navigate", url=address)
        while not self._loaded:
            self._handle(self._message())
        self.requests.remove(address.partition("#")[0])

    def evaluate(self, script: str) -> Any:
        """What the body of an async function in JavaScript returns, as JSON. AssertionError if it throws."""
        expression = f"(async () => {{ {script} }})()"
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]["exception"]["description"]
        return answer["result"].get("value")

    def point(self, x: float, y: float, click: bool = False) -> None:
        """Move the pointer to pixels from the upper left corner of the window, and click; wait until the page knows."""
        event = "click" if click else "mousemove"
        self.evaluate(f"window.pointed = new Promise((done) => addEventListener('{event}', done, {{ once: true }}))")
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
            button = "none" if kind == "mouseMoved" else "left"
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)
        self.evaluate(f"await window.pointed; await {FRAME}")

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while (answer := self._message()).get("id") != self._number:
            self._handle(answer)
        assert "result" in answer, answer
        return answer["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            received = os.read(self._read.fileno(), 1 << 16)
            assert received, "the browser has ended"
            self._received += received
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def _handle(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Page.loadEventFired":
            self._loaded = True
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(parameters["exceptionDetails"]["exception"]["description"])


@contextlib.contextmanager
def page() -> Iterator[Page]:
    """An empty page of a browser, which ends with the block."""
    assert CHROMIUM, "no Chromium"
    (commands, write), (read, answers) = os.pipe(), os.pipe()

    def numbered() -> None:  # as the browser expects them: commands come on 3, answers go to 4
        os.dup2(commands, 3)
        os.dup2(answers, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command += ["--remote-debugging-pipe", "--window-size=1500,1200"]
        process = subprocess.Popen(command, preexec_fn=numbered, pass_fds=(3, 4), stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(answers)
        try:
            yield Page(write, read)
        finally:
            process.terminate()
            process.wait()


def version() -> str:
    """Name and version of the browser."""
    assert CHROMIUM, "no Chromium"
    return subprocess.run([CHROMIUM, "--version"], check=True, capture_output=True, text=True).stdout.strip()
