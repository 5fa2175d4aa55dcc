"""The JavaScript client in headless Chromium, on a page of another origin than the server's."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conforming import SCENARIOS, check, serving

HERE = Path(__file__).resolve().parent
CLIENT = HERE.parent.parent / "clients/javascript/steppe-client.mjs"
PAGE = """<!doctype html><script type="module">
import { PolicyClient } from "./steppe-client.mjs";
import { result } from "./calls.mjs";

const { steps, address, options } = await (await fetch("./task.json")).json();
const clients = [new PolicyClient(address, options)];
const results = [];
for (const step of steps) {
  if (step.client) clients.push(new PolicyClient(address, { ...options, ...step.client }));
  results.push(await result(clients[step.client ? clients.length - 1 : 0], step));
}
await fetch("./results", { method: "POST", body: JSON.stringify(results) });
</script>"""


class Pages:
    """Serves the page, and waits for what it has to tell."""

    def __init__(self, port: int, results: queue.Queue[Any]) -> None:
        self.origin, self.task, self.results = f"http://127.0.0.1:{port}", dict[str, Any](), results


@contextmanager
def pages() -> Iterator[Pages]:
    """A web server for the page."""
    results: queue.Queue[Any] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            scripts = {"/steppe-client.mjs": CLIENT, "/calls.mjs": HERE / "calls.mjs"}
            if self.path in scripts:
                self._answer("text/javascript", scripts[self.path].read_bytes())
            elif self.path == "/task.json":
                self._answer("application/json", json.dumps(served.task).encode())
            else:
                self._answer("text/html", PAGE.encode())

        def do_POST(self) -> None:
            results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer("text/plain", b"")

        def _answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Pages(server.server_address[1], results)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


def carried_out(page: Pages, folder: Path) -> list[dict[str, Any]]:
    """What the page made of its task."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder}"]
    browser = subprocess.Popen(
        ["chromium", *flags, page.origin], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return page.results.get(timeout=60)
    finally:
        browser.terminate()
        browser.wait(10)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: `make setup-serving` installs it")
@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_a_page_passes_the_script_that_all_clients_pass(scheme, tmp_path):
    scenario = SCENARIOS["one agent"]
    with pages() as page, serving(scenario["server"], tmp_path, origins=[page.origin]) as served:
        options = {"token": scenario["server"]["token"], "timeout": 5}
        address = f"{scheme}://127.0.0.1:{served.port}"
        page.task = {"steps": scenario["steps"], "address": address, "options": options}
        results = carried_out(page, tmp_path / "browser")
    for step, result in zip(scenario["steps"], results, strict=True):
        check(step, result)
    assert served.told() == scenario["then"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: `make setup-serving` installs it")
def test_a_page_of_an_origin_that_was_not_allowed_gets_nothing(tmp_path):
    scenario = SCENARIOS["one agent"]
    with pages() as page, serving(scenario["server"], tmp_path, origins=["https://shop.example"]) as served:
        options = {"token": scenario["server"]["token"], "timeout": 0.5}
        address = f"http://127.0.0.1:{served.port}"
        page.task = {"steps": [scenario["steps"][1]], "address": address, "options": options}
        (result,) = carried_out(page, tmp_path / "browser")
    assert result["raises"]["code"] == "unreachable"  # as much as a browser tells
    assert served.told() == {}
