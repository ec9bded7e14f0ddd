"""A headless Chromium, spoken to through a pipe in its own protocol: no driver to install."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import pytest

PATIENCE = 120  # seconds until something on a page counts as missing


class Browser:
    """One page in a browser of its own; a context manager."""

    def __init__(self, profile: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None:
            pytest.skip("no Chromium")
        to_browser, ours = os.pipe()
        theirs, from_browser = os.pipe()
        command = [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "--no-first-run",
        ]
        self._process = subprocess.Popen(
            command,
            preexec_fn=lambda: _as_three_and_four(to_browser, from_browser),
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._out, self._in = os.fdopen(ours, "wb", buffering=0), os.fdopen(theirs, "rb")
        self._number, self._session = 0, None
        self.requested: list[str] = []  # addresses the pages asked for
        self.errors: list[str] = []  # that no script of theirs has caught
        target = self._do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "DOM", "Runtime"):
            self._do(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._do("Emulation.setEmulatedMedia", features=scheme)
        self._do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._out.close()
        self._in.close()

    def open(self, address: str) -> None:
        """Begins to load a page."""
        self._do("Page.navigate", url=address)

    def value(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self._do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, f"{script}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """The first value of an expression that counts as true."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if found := self.value(script):
                return found
            time.sleep(0.2)
        raise AssertionError(f"not in {PATIENCE} s: {script}")

    def choose_file(self, selector: str, path: Path) -> None:
        """Puts a file into an input element."""
        root = self._do("DOM.getDocument")["root"]["nodeId"]
        node = self._do("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._do("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: Path) -> None:
        """Writes what is to be seen of the whole page, as PNG."""
        shot = self._do("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _do(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._out.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"]))
        assert "error" not in answer, f"{method}: {answer['error']}"
        return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "the browser is gone"
            text += byte
        return dict(json.loads(text))


def _as_three_and_four(to_browser: int, from_browser: int) -> None:
    """In the browser's process: the numbers of files by which it knows its pipe."""
    copies = [fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in (to_browser, from_browser)]
    for copy, number in zip(copies, (3, 4), strict=True):
        os.dup2(copy, number)
