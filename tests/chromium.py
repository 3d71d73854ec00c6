"""A page in headless Chromium, driven as a person would: real fingers, keys and sizes, by the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the page in")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-port=0 --remote-allow-origins=*"
)


class Browser:
    """One page; `with Browser(folder, 390, 844, phone=True) as page`. What goes wrong in it is in `complaints`.

    Parameters
    ----------
    folder : Path
        For the browser's profile.
    width, height : int
        [CSS pixels]
    phone : bool
        Fingers, three pixels for one, and the phone's way to lay out.
    """

    def __init__(self, folder: Path, width: int, height: int, phone: bool = False) -> None:
        self._folder, self._size, self._phone = Path(folder), (width, height), phone
        self._loop = asyncio.new_event_loop()
        self._sent = 0
        self.complaints: list[str] = []

    def __enter__(self) -> Browser:
        self._process = subprocess.Popen(
            [str(CHROMIUM), *_FLAGS.split(), f"--user-data-dir={self._folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._socket = self._connect()
            width, height = self._size
            scale = 3 if self._phone else 1
            self("Page.enable")
            self("Runtime.enable")
            self("Log.enable")
            self("Emulation.setFocusEmulationEnabled", enabled=True)
            self(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=scale,
                mobile=self._phone,
            )
            if self._phone:
                self("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=5)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._loop.close()

    def _connect(self) -> WebSocketClientConnection:
        file = self._folder / "DevToolsActivePort"
        wait_for(lambda: file.is_file() and file.read_text().count("\n"), "the browser to start", 30)
        port = int(file.read_text().split()[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
            (address,) = [each["webSocketDebuggerUrl"] for each in json.load(answer) if each["type"] == "page"]
        return self._loop.run_until_complete(asyncio.wait_for(_open(address), 20))

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its answer."""
        return self._loop.run_until_complete(asyncio.wait_for(self._ask(method, parameters), 60))

    async def _ask(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._sent += 1
        await self._socket.write_message(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while True:
            text = await self._socket.read_message()
            assert text is not None, "the browser closed the connection"
            message = json.loads(text)
            if message.get("id") == self._sent:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        about = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"])[:500])
        if message.get("method") == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(about["entry"]["text"])

    def open(self, address: str, ready: str = "document.readyState === 'complete'", seconds: float = 30) -> None:
        """Go there, and wait until an expression is true."""
        self("Page.navigate", url=address)
        self.until(f"location.href !== 'about:blank' && !!document.documentElement && ({ready})", seconds)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression, or the promise that it gives, comes to."""
        answer = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{expression}: {json.dumps(answer['exceptionDetails'])[:500]}"
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 10) -> None:
        wait_for(lambda: self.value(expression) is True, expression, seconds)

    def touch(self, *paths: list[tuple[float, float]]) -> None:
        """Fingers put down together, moved along their paths, and lifted."""
        for k, places in enumerate(zip(*paths, strict=True)):
            points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(places)]
            self("Input.dispatchTouchEvent", type="touchMove" if k else "touchStart", touchPoints=points)
        self("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, key: str) -> None:
        """Press and lift a key, such as "ArrowLeft" or "p"."""
        typed = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        codes = {"Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36}
        code = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        self("Input.dispatchKeyEvent", type="keyDown", key=key, **typed, **code)
        self("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def picture(self, path: Path) -> Path:
        """What is seen now, as a PNG."""
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))
        return path


async def _open(address: str) -> WebSocketClientConnection:
    return await websocket_connect(address, max_message_size=2**30)


def wait_for(there: Callable[[], Any], what: str, seconds: float) -> None:
    """Ask again and again; fails with what was waited for."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)
