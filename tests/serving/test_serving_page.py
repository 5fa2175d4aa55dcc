"""The pages on serving are true: their programs run, and what they name and count exists."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from http.client import HTTPConnection

import pytest

from steppe.cli import cli, serve
from steppe.errors import ConfigError
from steppe.serving.env import PolicyServer
from steppe.serving.limits import Limits
from steppe.serving.messages import SCOPES, STATUS
from steppe.serving.settings import settings_of
from steppe.serving.stubs import spaces_file
from tests.serving.conforming import SCENARIOS, serving
from tests.serving.live import Live
from tests.test_docs import DOCS, ROOT, blocks, rows_below

PAGE, PROTOCOL = DOCS / "serving.md", DOCS / "protocol.md"
CLIENTS = ROOT / "clients"
SCENARIO = SCENARIOS["one agent"]["server"]
UNITY = """
namespace UnityEngine {
    public class MonoBehaviour {}
    public static class Debug { public static void Log(object said) { System.Console.WriteLine(said); } }
}
static class Scene {
    static void Main() {
        var flags = System.Reflection.BindingFlags.NonPublic | System.Reflection.BindingFlags.Instance;
        typeof(Runner).GetMethod("Start", flags).Invoke(new Runner(), null);
        System.Console.ReadLine();
    }
}
"""


def program(language):
    """The page's first one of this language."""
    return next(text for kind, _, text in blocks(PAGE) if kind == language)


@pytest.fixture
def served(tmp_path):
    """The spaces of the page, with a token, which the programs of the page do without."""
    folder = tmp_path / "server"
    folder.mkdir()
    with serving(SCENARIO, folder) as served:
        yield served
    (episode,) = served.told().values()
    assert episode["end"] == "terminated"
    assert sum(episode["rewards"]) == len(episode["actions"])


def test_the_spaces_are_those_of_all_programs(tmp_path):
    said = json.loads(program("json"))
    assert {name: SCENARIO[name] for name in said} == said
    (tmp_path / "spaces.json").write_text(program("json"))
    assert spaces_file(str(tmp_path / "spaces.json")).action_space.n == 2


def test_a_web_page_acts(served, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("no node on this machine: `make setup-serving` installs it")
    options = json.dumps({"token": SCENARIO["token"]})
    code = program("js").replace('"http://127.0.0.1:9900"', f'"http://127.0.0.1:{served.port}", {options}')
    assert str(served.port) in code
    shutil.copy(CLIENTS / "javascript/steppe-client.mjs", tmp_path)
    (tmp_path / "page.mjs").write_text(code + "client.close();\n")
    done = subprocess.run(["node", "page.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("banner 0\n", "")


@pytest.mark.slow
def test_a_game_engine_acts(served, tmp_path):
    for tool in ("mcs", "mono"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on this machine: `make setup-serving` installs it")
    options = f'new PolicyClientOptions {{ Token = "{SCENARIO["token"]}" }}'
    code = program("csharp").replace('"ws://127.0.0.1:9900"', f'"ws://127.0.0.1:{served.port}", {options}')
    code, end = code.rstrip().removesuffix("  }\n}"), '    Debug.Log("over");\n  }\n}\n'
    (tmp_path / "Runner.cs").write_text(code + end + UNITY)
    sources = ["Runner.cs", str(CLIENTS / "csharp/SteppeClient.cs")]
    flags = ["-langversion:7.2", "-warnaserror", "-r:System.Net.Http.dll", "-out:game.exe"]
    subprocess.run(["mcs", *flags, *sources], cwd=tmp_path, check=True)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(["mono", "game.exe"], cwd=tmp_path, **pipes) as game:
        assert game.stdout.readline() == "move 0\n"
        assert game.stdout.readline() == "over\n"
        game.communicate("\n", timeout=10)


def test_a_robot_acts(served, tmp_path):
    shutil.copy(ROOT / "src/steppe/serving/client.py", tmp_path / "steppe_client.py")
    address = f'"http://127.0.0.1:{served.port}", token="{SCENARIO["token"]}",'
    (tmp_path / "robot.py").write_text(program("python").replace('"http://127.0.0.1:9900",', address))
    command = [sys.executable, "robot.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "last push 1\n"


def test_the_protocol_s_first_minute_is_lived_so(served):
    """What it says is sent; each answer has the fields that it says, and the episode is over."""
    text = next(text for kind, _, text in blocks(PROTOCOL) if kind == "text")
    lines = re.findall(r"^POST (\S+) +(\{.*\}) +-> (\{.*\})$", text, re.MULTILINE)
    assert [path for path, *_ in lines] == [f"/v1/{v}" for v in ("start", "act", "log_returns", "act", "end")]
    head = {"Content-Type": "application/json", "Authorization": f"Bearer {SCENARIO['token']}"}
    line, id = HTTPConnection("127.0.0.1", served.port, timeout=5), ""
    for path, body, answer in lines:
        line.request("POST", path, body.replace("5f0c...", id), head)
        response = line.getresponse()
        told = json.loads(response.read())
        assert (response.status, told.keys()) == (200, json.loads(answer).keys())
        assert response.headers["Steppe-Protocol"] == "1"
        id = told.get("episode_id", id)
    line.close()


def test_the_script_for_systemd_and_docker_is_one(tmp_path):
    (tmp_path / "serve.sh").write_text(next(t for _, _, t in blocks(PAGE) if t.startswith("#!/bin/sh")))
    stub, run = tmp_path / "steppe", tmp_path / "runs/spaces.json/ppo-2"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)

    def ran():
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = ["sh", "serve.sh"]
        return subprocess.run(
            command, cwd=tmp_path, env=path, capture_output=True, text=True, check=True
        ).stdout

    flags = "--port 9900 --token-file tokens.txt --allow-host policy.example\n"
    run.mkdir(parents=True)
    assert ran() == f"serve --spaces spaces.json {flags}"
    (run / "latest").mkdir()
    assert ran() == f"serve --resume runs/spaces.json/ppo-2 {flags}"


def test_columns_are_short():
    for language in ("js", "csharp", "python"):
        code = program(language)
        assert len(code.splitlines()) <= 18
        assert max(map(len, code.splitlines())) <= 45


def test_links_of_the_columns_lead_somewhere():
    links = re.findall(r'href="([^"]+)"', PAGE.read_text())
    assert len(links) == 4
    assert all((DOCS / link).exists() for link in links)


def test_who_has_not_installed_the_extra_is_told_so(monkeypatch, tmp_path):
    for name in ("alone", "child", "transport", "http"):
        monkeypatch.delitem(sys.modules, f"steppe.serving.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "httptools", None)
    said = r"needs httptools: pip install 'steppe\[serve\]'"
    with pytest.raises(ConfigError, match=said):
        PolicyServer()
    with pytest.raises(ConfigError, match=said):
        cli.main(["serve", str(tmp_path), "--no-train"], standalone_mode=False)
    assert "`pip install '.[serve]'`" in PAGE.read_text()


def test_metrics_that_are_named_exist():
    async def asked():
        async with Live() as live:
            await live.post("start", begin=1)
            return (await live.http("GET", "/metrics")).body.decode()

    there = asyncio.run(asked())
    named = set(re.findall(r"`(steppe_\w+)", PAGE.read_text()))
    assert len(named) > 5
    for name in named:
        assert f"# TYPE {name} " in there, name
    assert 'steppe_refused_total{code="unknown_field"} 1' in there


def test_flags_that_are_named_exist():
    with serve.command.make_context("serve", ["x"]) as context:
        known = {flag for option in context.command.params for flag in option.opts + option.secondary_opts}
    with serve.command.make_context("serve", ["x", "--no-train"]) as context:
        known |= {flag for option in context.command.params for flag in option.opts}
    text = "\n".join(
        line for line in PAGE.read_text().splitlines() if "pip" not in line and "docker" not in line
    )
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    others = {"--network"}
    assert named - known - others == set()


def test_limits_are_as_the_pages_say():
    text, limits, settings = PAGE.read_text(), Limits(), settings_of("127.0.0.1")
    assert f"{limits.header >> 10} KiB; {limits.body >> 20} MiB" in text
    assert f"| {limits.deadline:.0f} s; {limits.idle:.0f} s |" in text
    assert f"| connections | {limits.connections:,} |" in text
    assert f"{limits.rate:,.0f} a second | 429 `rate`" in text
    assert f"{limits.wrong_tokens:.0f} a second | 429 `rate`" in text
    assert f"{settings.queue_bytes >> 20} MiB (`queue_bytes`)" in text
    assert settings.episode_ttl == 300
    assert len(fields(Limits)) == 9
    told = " ".join(PROTOCOL.read_text().split())
    assert f"not complete after {limits.deadline:.0f} seconds" in told
    assert f"of more than {limits.connections:,} the one" in told
    assert f"header above {limits.header >> 10} KiB" in told


def test_the_protocol_lists_every_refusal():
    table = PROTOCOL.read_text().partition("\n| status | code |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    listed = {code: int(row[0]) for row in rows for code in re.findall(r"`(\w+)`", row[1])}
    assert listed == STATUS


def test_the_protocol_lists_every_scope():
    rows = rows_below(PROTOCOL.read_text(), "| scope |")
    table = PROTOCOL.read_text().partition("\n| scope |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) == len(table) == 4
    listed = {
        verb: re.findall(r"`(\w+)`", row)[0]
        for row in table
        for verb in row.split("|")[2].strip().split(", ")
    }
    assert listed == SCOPES


@pytest.mark.slow
def test_the_page_s_server_serves_and_learns(tmp_path):
    code = next(text for _, _, text in blocks(PAGE) if text.startswith("# server.py"))
    small = "train_batch_size=64, minibatch_size=32, num_epochs=1"
    code = code.replace("port=9900", "port=0").replace("seed=0", f"seed=0, {small}")
    (tmp_path / "server.py").write_text(code)
    shutil.copy(ROOT / "src/steppe/serving/client.py", tmp_path / "steppe_client.py")
    with subprocess.Popen(
        [sys.executable, "-u", "server.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            address = server.stdout.readline().split()[-1]
            robot = program("python").replace('"http://127.0.0.1:9900"', f'"{address}"')
            (tmp_path / "robot.py").write_text(robot)
            for _ in range(2):
                done = subprocess.run([sys.executable, "robot.py"], cwd=tmp_path, timeout=60)
                assert done.returncode == 0
            steps, mean = server.stdout.readline().split()
            assert int(steps) >= 64
            assert float(mean) == 50.0
        finally:
            server.terminate()
