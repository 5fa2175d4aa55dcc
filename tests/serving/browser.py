"""Headless Chromium, driven by plain WebDriver calls (https://www.w3.org/TR/webdriver2/)."""

from __future__ import annotations

import base64
import http.client
import json
import re
import subprocess
import time

_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1200,900")
_WAIT_S = 20.0


class Browser:
    """``with Browser(folder) as browser``: Chromium with a profile of its own in ``folder``."""

    def __init__(self, folder):
        self._options = {"args": [*_FLAGS, f"--user-data-dir={folder}"]}

    def __enter__(self):
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            started = (re.search(r"successfully on port (\d+)", line) for line in self._driver.stdout)
            self._port = int(next(found for found in started if found)[1])
            wanted = {"goog:chromeOptions": self._options, "goog:loggingPrefs": {"browser": "ALL"}}
            self._session = ""
            told = self._ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/{told['sessionId']}"
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_):
        try:
            self._ask("DELETE", "")
        finally:
            self._end()

    def _end(self):
        self._driver.terminate()
        self._driver.wait(10)
        self._driver.stdout.close()

    def _ask(self, method, path, body=None):
        line = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            content = None if body is None else json.dumps(body)
            line.request(method, f"/session{self._session}{path}", content)
            answer = line.getresponse()
            value = json.loads(answer.read())["value"]
            assert answer.status == 200, value
            return value
        finally:
            line.close()

    def open(self, address):
        self._ask("POST", "/url", {"url": address})

    def _find(self, css):
        return next(iter(self._ask("POST", "/element", {"using": "css selector", "value": css}).values()))

    def click(self, css):
        """As a user does: where something else covers it, or it rests, this fails."""
        element = self._find(css)
        assert self._ask("GET", f"/element/{element}/enabled"), f"{css} rests"
        self._ask("POST", f"/element/{element}/click", {})

    def text(self, css):
        return self._ask("GET", f"/element/{self._find(css)}/text")

    def until(self, css, pattern):
        """The match, once the text of an element does."""
        end = time.monotonic() + _WAIT_S
        while True:
            text = self.text(css)
            if found := re.search(pattern, text):
                return found
            assert time.monotonic() < end, f"{css} says {text!r}, and not {pattern!r}"
            time.sleep(0.02)

    def said(self):
        """What the page's console has: errors above all."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def screenshot(self):
        """A PNG."""
        return base64.b64decode(self._ask("GET", "/screenshot"))
