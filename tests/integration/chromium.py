"""A page in headless Chromium, driven by its DevTools protocol over a pair of pipes. Needs nothing but the browser."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXECUTABLE = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


class Page:
    """One tab. console: what the page complained about. requests: every address it asked for. Use as a context manager.

    width, height: CSS pixels. is_phone: touch, and the viewport that the page's meta element asks for.
    """

    def __init__(
        self, profile: Path, width: int = 1280, height: int = 900, *, is_phone: bool = False, dark: bool = False
    ):
        assert EXECUTABLE is not None
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        self._process = subprocess.Popen(
            # The protocol reads descriptor 3 and writes descriptor 4. Root, as in a container, has no sandbox.
            ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "chromium", EXECUTABLE, "--headless",
             "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-pipe",
             "--hide-scrollbars", f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self.console: list[str] = []
        self.requests: list[str] = []
        self._buffer = b""
        self._last_id = 0
        self._events: list[str] = []
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path) -> None:
        """Loads a file and waits until its scripts have run and it is drawn."""
        self.send("Page.navigate", url=path.resolve().as_uri())
        self._wait(lambda: "Page.loadEventFired" in self._events)
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")

    def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression, of a promise what it resolves to. Raises RuntimeError if it throws."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def move_mouse(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a protocol command. Raises RuntimeError if the browser refuses it."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer: dict[str, Any] = {}
        self._wait(lambda: bool(answer), answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def _wait(self, is_done: Callable[[], bool], answer: dict[str, Any] | None = None, seconds: float = 60) -> None:
        """Takes messages until is_done; the answer to the last command goes into `answer`."""
        end = time.monotonic() + seconds
        while not is_done():
            if b"\0" not in self._buffer:
                if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                    raise TimeoutError(f"Chromium did not answer within {seconds:g} s")
                chunk = os.read(self._read, 1 << 20)
                if not chunk:
                    raise RuntimeError("Chromium ended")
                self._buffer += chunk
                continue
            raw, _, self._buffer = self._buffer.partition(b"\0")
            message = json.loads(raw)
            if message.get("id") == self._last_id and answer is not None:
                answer.update(message)
            elif "method" in message:
                self._take_event(message["method"], message["params"])

    def _take_event(self, method: str, parameters: dict[str, Any]) -> None:
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.console.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.console.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.console.append(json.dumps(parameters["args"]))
