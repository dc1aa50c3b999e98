"""Chromium without a window, told what to do by its DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

# 3 and 4 are the file descriptors that Chromium speaks through.
_START = 'exec "$0" "$@" 3<&"$NMF_COMMANDS" 4>&"$NMF_ANSWERS"'
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync",
    "--hide-scrollbars", "--window-size=1240,900", "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT = 60.0


def chromium() -> str | None:
    """The browser's path, None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One browser with one tab. `events` holds all that it told unasked, `errors` what went wrong in pages."""

    def __init__(self, profile: Path) -> None:
        command_out, self._commands = os.pipe()
        self._answers, answer_in = os.pipe()
        environment = {
            **os.environ,
            "HOME": str(profile),
            "NMF_COMMANDS": str(command_out),
            "NMF_ANSWERS": str(answer_in),
        }
        path = chromium()
        assert path is not None
        self._process = subprocess.Popen(
            ["bash", "-c", _START, path, *_FLAGS, f"--user-data-dir={profile / 'profile'}", "about:blank"],
            env=environment,
            pass_fds=(command_out, answer_in),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_out)
        os.close(answer_in)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Performance"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next(method)
            if found.get("id") == self._number:
                assert "error" not in found, (method, found["error"])
                return found["result"]
            self.events.append(found)

    def _next(self, method: str) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium has no answer to {method} within {TIMEOUT:g} s"
            data = os.read(self._answers, 1 << 20)
            assert data, f"Chromium ended before it answered {method}: {self._process.poll()}"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, page: Path) -> float:
        """Load a file and wait until its script is done; the seconds that took."""
        self.events.clear()
        started = time.perf_counter()
        self.call("Page.navigate", url=page.as_uri())
        while not self.run("document.documentElement?.dataset.ready === 'true'"):
            assert time.perf_counter() - started < TIMEOUT, (page, self.errors)
            assert not self.errors, self.errors
            time.sleep(0.02)
        # A frame that is painted: the page is there for whoever looks.
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        return time.perf_counter() - started

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """A real click of the mouse in the middle of an element."""
        place = f"document.querySelector({json.dumps(selector)})"
        x, y = self.run(
            f"(() => {{ {place}.scrollIntoView({{block: 'center'}}); const r = {place}.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A key of the keyboard, down and up, for what has the focus."""
        code = {
            "ArrowRight": 39,
            "ArrowLeft": 37,
            "ArrowDown": 40,
            "ArrowUp": 38,
            "Home": 36,
            "End": 35,
            "Enter": 13,
        }[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more
            )

    def type(self, text: str) -> None:
        """Text for what has the focus, in place of what is selected there."""
        self.call("Input.insertText", text=text)

    @property
    def errors(self) -> list[Any]:
        """What the console shows of the page that is open, of any level, and exceptions nobody caught."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [one["params"] for one in self.events if one["method"] in kinds]

    @property
    def requests(self) -> list[str]:
        """The addresses that the page that is open asked for."""
        kind = "Network.requestWillBeSent"
        return [one["params"]["request"]["url"] for one in self.events if one["method"] == kind]

    def screenshot(self, file: Path) -> None:
        """The page from top to bottom, as PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))
