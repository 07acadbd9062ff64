"""A real browser for the pages: headless Chromium, spoken to over its debugging pipe.

No package is needed: the protocol is JSON over two file descriptors (Chrome DevTools Protocol).
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60.0
"""Seconds to wait for any answer: a busy machine starts a browser slowly."""

_EXEC = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_QUIET = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe"
)


class Chromium:
    """One browser with one page. `faults` and `requests` collect what the page should not do."""

    def __init__(self, program: str, profile: Path) -> None:
        # Descriptors above those that the browser wants as 3 and 4.
        ends = [
            fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for pair in (os.pipe(), os.pipe()) for fd in pair
        ]
        theirs, self.write, self.read, answers = ends
        command = [program, *_QUIET.split(), f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, str(theirs), str(answers), *command],
            pass_fds=(theirs, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        os.close(answers)
        self.rest, self.last, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        self.faults: list[str] = []
        self.requests: list[str] = []
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self.last += 1
        message = {"id": self.last, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (got := self._message()).get("id") != self.last:
            pass
        assert "error" not in got, f"{method}: {got['error']}"
        result: dict[str, Any] = got["result"]
        return result

    def _message(self) -> dict[str, Any]:
        """Return the next message; what it says of the page is noted."""
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self.read, 1 << 20) if ready else b""
            assert chunk, f"the browser said nothing for {PATIENCE:g} s, or ended"
            self.rest += chunk
        line, self.rest = self.rest.split(b"\0", 1)
        got: dict[str, Any] = json.loads(line)
        kind, about = got.get("method", ""), got.get("params", {})
        if kind:
            self.events.append(got)
        if kind == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif kind in ("Runtime.exceptionThrown", "Log.entryAdded") or (
            kind == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert")
        ):
            self.faults.append(json.dumps(about))
        return got

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a file at a width, as a phone does below 600 pixels."""
        self.faults, self.requests, self.events = [], [], []
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._message()

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        got = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    def click(self, query: str, at: int = 0) -> None:
        """Click with the mouse in the middle of an element, brought into view first."""
        x, y = self.run(f"""(() => {{
          const found = document.querySelectorAll({json.dumps(query)})[{at}];
          found.scrollIntoView({{block: 'center', behavior: 'instant'}});
          const box = found.getBoundingClientRect();
          return [box.x + Math.min(box.width, innerWidth - box.x) / 2, box.y + box.height / 2];
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key: its name, its Windows code, and the character it types."""
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed,
            )  # fmt: skip

    def type(self, text: str) -> None:
        """Type text into what has the focus."""
        self.call("Input.insertText", text=text)

    def shoot(self, path: Path, whole: bool = True) -> Path:
        """Save a picture of the page."""
        got = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(got["data"]))
        return path

    def close(self) -> None:
        """End the browser."""
        os.close(self.write)  # it ends when nobody speaks to it any more
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.read)


def _pipe() -> tuple[int, int]:
    """Return a pipe whose ends lie above those that the browser wants as 3 and 4."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low)
    for end in low:
        os.close(end)
    return high[0], high[1]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """Start a browser, or skip where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is on the PATH")
    browser = Chromium(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()
