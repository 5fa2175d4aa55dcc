"""The page on the protocol suffices to write a client: one in Perl, which was, passes the shared script."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.serving.conforming import SCENARIOS, check, serving
from tests.serving.test_clients_in_other_languages import Driver
from tests.serving.unreliable import Answer, Said, stub

HERE = Path(__file__).resolve().parent


@pytest.fixture
def perl():
    needed = ["perl", "-MHTTP::Tiny", "-MJSON::PP", "-MTime::HiRes", "-e", "1"]
    if shutil.which("perl") is None or subprocess.run(needed, capture_output=True).returncode != 0:
        pytest.skip("no perl on this machine, or without its own modules: `apt-get install perl`")
    driver = Driver(["perl", str(HERE / "drive.pl")])
    yield driver
    driver.end()


@pytest.mark.parametrize("name", SCENARIOS)
def test_it_passes_the_script_over_a_bad_network(perl, name, tmp_path):
    scenario = SCENARIOS[name]
    with serving(scenario["server"], tmp_path, lossy=True) as served:
        perl.connect(f"http://127.0.0.1:{served.port}", token=scenario["server"]["token"], timeout=5)
        for step in scenario["steps"]:
            check(step, perl.result(step["call"], step.get("client"), **step["with"]))
    assert served.told() == scenario["then"]
    assert served.lost


def test_it_waits_as_the_server_asks_and_gives_up_in_time(perl):
    def answer(said: Said, count: int) -> Answer:
        if said.verb == "act":
            return Answer({"code": "busy", "message": "later"}, 429, (("Retry-After", "1"),))
        return Answer({"episode_id": "e"})

    with stub(answer) as server:
        perl.connect(f"http://127.0.0.1:{server.port}", timeout=1.2)
        assert perl.gives("start_episode") == "e"
        begin = time.monotonic()
        error = perl.raises("get_action", episode_id="e", obs=[1])
        assert error == {"status": 429, "code": "busy", "message": "later"}
        assert 1 <= time.monotonic() - begin < 1.2
    assert [said.message["seq"] for said in server.heard if said.verb == "act"] == [2, 2]


def test_nobody_there_is_said_with_a_status_of_its_own(perl):
    perl.connect("http://127.0.0.1:9", timeout=0.2)
    error = perl.raises("start_episode")
    assert (error["status"], error["code"]) == (0, "unreachable")
