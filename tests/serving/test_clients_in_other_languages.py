"""The clients in JavaScript and C#: the shared conformance script, and what goes wrong on the way."""

from __future__ import annotations

import base64
import functools
import json
import math
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.serving.certificates import make_cert
from steppe.serving.security import tls_context
from tests.serving.conforming import SCENARIOS, check, serving
from tests.serving.unreliable import LOST, UNHEARD, Answer, Said, stub

HERE = Path(__file__).resolve().parent
CLIENTS = HERE.parent.parent / "clients"
TOOLS = {"javascript": ("node",), "csharp": ("mcs", "mono")}


class Driver:
    """A client in a process of its own: calls go in, what came of them comes out, in lines of JSON."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def connect(self, address: str, **options: Any) -> Driver:
        """Makes another client, and closes the one before it."""
        self._say({"address": address, "options": {"timeout": 20, **options}})
        return self

    def _say(self, line: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def result(self, call: str, client: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
        """What a call ``gives``, or the error that it ``raises``."""
        self.ask(call, client, **arguments)
        return self.heard()

    def ask(self, call: str, client: dict[str, Any] | None = None, **arguments: Any) -> None:
        """Begins a call."""
        self._say({"call": call, "with": arguments, **({"client": client} if client else {})})

    def gives(self, call: str, **arguments: Any) -> Any:
        """The result of a call that must go well."""
        answer = self.result(call, **arguments)
        assert "gives" in answer, answer
        return answer["gives"]

    def raises(self, call: str, **arguments: Any) -> dict[str, Any]:
        """The error of a call that must not."""
        return self.result(call, **arguments)["raises"]

    def together(self, calls: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
        """Results of calls that are made side by side."""
        self._say({"together": [{"call": call, "with": arguments} for call, arguments in calls]})
        return self.heard()

    def heard(self) -> Any:
        """What came of the next call that was begun."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the client ended ({self._process.wait(5)})"
        return json.loads(line)

    def end(self) -> None:
        """Lets the process come to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            assert self._process.wait(5) == 0
        except subprocess.TimeoutExpired:  # Mono at times does not get beyond the end of Main
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Callable[[str], list[str]]:
    """What starts the driver of a language; compiled once."""

    @functools.cache
    def command(language: str) -> list[str]:
        for tool in TOOLS[language]:
            if shutil.which(tool) is None:
                pytest.skip(f"no {tool} on this machine: `make setup-serving` installs it")
        if language == "javascript":
            return node()
        program = tmp_path_factory.mktemp("csharp") / "drive.exe"
        compiled(program, HERE / "Drive.cs", CLIENTS / "csharp/SteppeClient.cs")
        return ["mono", str(program)]

    return command


@pytest.fixture(scope="module")
def driver(command) -> Iterator[Callable[[str], Driver]]:
    """The driver of a language: one process for all tests, as they take long to begin."""
    driver = functools.cache(lambda language: drivers.append(Driver(command(language))) or drivers[-1])
    drivers: list[Driver] = []
    yield driver
    for each in drivers:
        each.end()


def node() -> list[str]:
    """What starts the driver of the JavaScript client."""
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    # Node has a WebSocket from 22 on, and 20 where it is told to.
    flags = ["--experimental-websocket", "--no-warnings"] if version.startswith(("v20.", "v21.")) else []
    return ["node", *flags, str(HERE / "drive.mjs"), str(CLIENTS / "javascript/steppe-client.mjs")]


def compiled(to: Path, *sources: Path, kind: str = "exe") -> None:
    """C# as Unity and .NET Standard 2.1 take it; a warning is an error."""
    flags = ["-langversion:7.2", "-warnaserror", "-r:System.Net.Http.dll", f"-target:{kind}", f"-out:{to}"]
    done = subprocess.run(["mcs", *flags, *map(str, sources)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(params=TOOLS)
def language(request) -> str:
    """One after the other."""
    return request.param


@pytest.fixture
def drive(driver, language) -> Callable[..., Driver]:
    """Connects a client of the language."""
    return lambda address, **options: driver(language).connect(address, **options)


def kind(said: Said, _: int = 0) -> Answer:
    """What a server says that has one answer for each verb."""
    if said.verb == "act_many":
        return Answer({"actions": [len(act["obs"]) for act in said.message["acts"]]})
    acted = {"action": 1, "step": 0, "logp": -0.5, "weights_version": 3}
    bodies = {"start": {"episode_id": "made-up"}, "act": acted, "health": {"ready": True}}
    return Answer(bodies.get(said.verb, {}))


@pytest.fixture(params=["http", "ws"])
def scheme(request) -> str:
    """Over HTTP and over a WebSocket."""
    return request.param


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("lossy", [False, True])
def test_the_script_that_all_clients_pass(drive, scheme, name, lossy, tmp_path):
    """Against the server itself; what its log has is what the script says, also over a bad network."""
    scenario = SCENARIOS[name]
    with serving(scenario["server"], tmp_path, lossy=lossy) as served:
        client = drive(f"{scheme}://127.0.0.1:{served.port}", token=scenario["server"]["token"])
        for step in scenario["steps"]:
            check(step, client.result(step["call"], step.get("client"), **step["with"]))
    assert served.told() == scenario["then"]
    assert bool(served.lost) == lossy


def test_messages_are_those_of_the_protocol(drive, scheme):
    with stub(kind) as server:
        client = drive(f"{scheme}://127.0.0.1:{server.port}", token="a-token", client="shop", epoch=4)
        assert client.gives("start_episode", training_enabled=False) == "made-up"
        assert client.gives("get_action", episode_id="e", obs={"a": [0.5], "ü": 1}) == 1
        told = {"action": 1, "step": 0, "logp": -0.5, "weightsVersion": 3}
        assert client.gives("get_action", episode_id="e", obs=[[1, 2], [3, 4]], full=True, reward=0.5) == told
        assert client.gives("get_actions", obs={"e": [1], "f": [1, 2]}, rewards={"f": -1}) == {"e": 1, "f": 2}
        client.gives("log_action", episode_id="e", obs=[0.0], action=[1, 0], reward={"left": 2})
        client.gives(
            "log_returns", episode_id="e", reward=1.5, info={"why": "bought"}, dones={"left": True}, step=7
        )
        client.gives("end_episode", episode_id="e", obs=None, truncated=True)
        client.gives("delete_episode", episode_id="a/b c")
    sent = [said for said in server.heard if said.verb != "health"]
    assert [said.message.pop("seq") for said in sent] == list(range(1, 9))
    assert {(said.message.pop("client"), said.message.pop("epoch")) for said in sent} == {("shop", 4)}
    assert {said.over for said in sent[:-1]} == {"socket" if scheme == "ws" else "http"}
    assert {said.headers["authorization"] for said in sent if said.over == "http"} == {"Bearer a-token"}
    upgrade = " ".join(sent[0].headers.values())
    assert scheme == "http" or "steppe.token.a-token" in upgrade or "Bearer a-token" in upgrade
    expected = [
        ("start", {"training_enabled": False}),
        ("act", {"episode_id": "e", "obs": {"a": [0.5], "ü": 1}}),
        ("act", {"episode_id": "e", "obs": [[1, 2], [3, 4]], "full": True, "reward": 0.5}),
        (
            "act_many",
            {"acts": [{"episode_id": "e", "obs": [1]}, {"episode_id": "f", "obs": [1, 2], "reward": -1}]},
        ),
        ("log_action", {"episode_id": "e", "obs": [0.0], "action": [1, 0], "reward": {"left": 2}}),
        (
            "log_returns",
            {"episode_id": "e", "reward": 1.5, "info": {"why": "bought"}, "dones": {"left": True}, "step": 7},
        ),
        ("end", {"episode_id": "e", "obs": None, "truncated": True}),
        ("episodes/a%2Fb%20c", {}),
    ]
    assert [(said.verb, _meant(said.message)) for said in sent] == expected


def _meant(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if (name, value) != ("full", False)}


def test_a_server_may_have_a_path_behind_a_proxy(drive, scheme):
    with stub(kind) as server:
        client = drive(f"{scheme}://127.0.0.1:{server.port}/games/soccer/")
        assert client.gives("start_episode") == "made-up"
        assert client.gives("health") == {"ready": True}
    write = "/games/soccer/v1/start" if scheme == "http" else "/games/soccer/v1/socket"
    assert {said.path for said in server.heard} == {write, "/games/soccer/v1/health"}


def test_what_was_lost_or_not_heard_is_sent_again_under_its_number_and_carried_out_once(drive, scheme):
    faults = {2: LOST, 3: UNHEARD, 5: UNHEARD, 6: LOST, 8: UNHEARD}
    writes = Counter()

    def answer(said: Said, _: int) -> Answer:
        writes["all"] += "seq" in said.message
        return kind(said)._replace(fault=faults.get(writes["all"]) if "seq" in said.message else None)

    with stub(answer) as server:
        client = drive(f"{scheme}://127.0.0.1:{server.port}")
        client.gives("start_episode", episode_id="e")
        assert client.gives("get_action", episode_id="e", obs=[1]) == 1
        client.gives("log_returns", episode_id="e", reward=1)
        client.gives("end_episode", episode_id="e", obs=None)
    assert [said.message["seq"] for said in server.done] == [1, 2, 3, 4]
    assert writes["all"] == 4 + len(faults)


def test_the_wait_that_a_busy_server_asks_for_is_obeyed(drive, scheme):
    tries = Counter()

    def answer(said: Said, _: int) -> Answer:
        tries[said.verb] += 1
        if said.verb == "act" and tries["act"] < 3:
            busy = {"code": "busy", "message": "the learner is behind", "request_id": "r-1"}
            return Answer(busy, 429 if tries["act"] == 1 else 503, (("Retry-After", "0.25"),))
        return kind(said)

    with stub(answer) as server:
        client = drive(f"{scheme}://127.0.0.1:{server.port}")
        client.gives("start_episode")
        begin = time.monotonic()
        assert client.gives("get_action", episode_id="e", obs=[1]) == 1
        assert 0.5 <= time.monotonic() - begin < 4
        assert [said.message["seq"] for said in server.heard if said.message] == [1, 2, 2, 2]


def test_patience_ends_with_what_the_server_said_or_that_it_is_not_there(drive, scheme):
    busy = {"code": "busy", "message": "the learner is behind", "request_id": "r-1"}

    def answer(said: Said, _: int) -> Answer:
        return Answer(busy, 429, (("Retry-After", "7"),)) if said.verb == "act" else kind(said)

    with stub(answer) as server:
        client = drive(f"{scheme}://127.0.0.1:{server.port}", timeout=0.7)
        error = client.raises("get_action", episode_id="e", obs=[1])
        told = {"status": 429, "code": "busy", "request_id": "r-1", "retry_after": 7}
        assert told.items() <= error.items()
        assert error["message"] == "the learner is behind (429 busy)"
    error = client.raises("get_action", episode_id="e", obs=[1])
    assert (error["status"], error["code"]) == (0, "unreachable")
    assert "is the server running" in error["message"]
    assert f"127.0.0.1:{server.port}" in error["message"]
    with stub(kind, server.port):  # the client goes on when there is a server again
        assert client.gives("get_action", episode_id="e", obs=[1]) == 1


def test_a_server_that_is_started_again_meanwhile_is_not_noticed(drive, scheme):
    with stub(kind) as server:
        client = drive(f"{scheme}://127.0.0.1:{server.port}")
        client.gives("start_episode")
    client.ask("get_action", episode_id="e", obs=[1])
    time.sleep(0.15)
    with stub(kind, server.port):
        assert client.heard() == {"gives": 1}


def test_refusals_are_told_in_full_and_not_repeated(drive, scheme):
    def answer(said: Said, _: int) -> Answer:
        if said.headers.get("authorization", "Bearer no") == "Bearer no":
            return Answer({"code": "unauthorized", "message": "an unknown token", "request_id": "r-2"}, 401)
        if said.verb == "act":
            message = "obs[2]: expected float32 in [-1, 1], got 3.0"
            return Answer({"code": "out_of_space", "message": message, "request_id": "r-3"}, 422)
        return kind(said) if said.verb != "spaces" else Answer("<html>a proxy</html>", 200)

    with stub(answer) as server:
        client = drive(f"{scheme}://127.0.0.1:{server.port}", token="yes")
        assert client.gives("health") == {"ready": True}
        error = client.result("start_episode", client={"token": "no"})["raises"]
        assert error.pop("message") == "an unknown token (401 unauthorized)"
        name = error.pop("name")
        assert name in ("PolicyClientError", "PolicyClientException")
        assert error == {"status": 401, "code": "unauthorized", "request_id": "r-2", "retry_after": None}
        if scheme == "http":
            error = client.raises("get_action", episode_id="e", obs=[0, 0, 3])
            assert "obs[2]: expected float32" in error["message"]
            assert (error["status"], error["request_id"]) == (422, "r-3")
        error = client.raises("spaces")
        assert error["code"] == "malformed"
        assert "<html>a proxy" in error["message"]
        assert len(server.heard) == (4 if scheme == "http" else 3)
        error = client.raises("not_a_number")
        assert (error["code"], error["status"]) == ("value", 0)
        assert error["message"].startswith("obs.a[1]: expected a finite number")


def test_a_server_that_says_nothing_is_asked_again(drive, scheme):
    def answer(said: Said, _: int) -> Answer:
        silent = said.verb == "act" and sum(one.verb == "act" for one in server.heard) < 2
        return kind(said)._replace(delay=60 if silent else 0)

    with stub(answer) as server:
        client = drive(f"{scheme}://127.0.0.1:{server.port}", timeout=1.5)
        client.gives("start_episode")
        assert client.gives("get_action", episode_id="e", obs=[1]) == 1
    assert [said.message["seq"] for said in server.heard if said.verb == "act"] == [2, 2]
    assert len(server.done) == 2


def test_calls_under_way_end_when_the_client_is_closed(drive, scheme):
    with stub(lambda said, _: kind(said)._replace(delay=0 if said.verb == "health" else 60)) as server:
        client = drive(f"{scheme}://127.0.0.1:{server.port}")
        begin = time.monotonic()
        assert client.raises("closed_meanwhile")["code"] == "closed"
        assert client.raises("start_episode")["code"] == "closed"
        assert time.monotonic() - begin < 1.5


def test_at_most_64_requests_are_unanswered_and_those_of_an_episode_keep_their_order(drive, scheme):
    behind: list[int] = []

    def answer(said: Said, count: int) -> Answer:
        if "seq" in said.message:
            behind.append(said.message["seq"])
        return kind(said)._replace(delay=0.001 * (7 * count % 5))

    with stub(answer) as server:
        client = drive(f"{scheme}://127.0.0.1:{server.port}")
        calls = [("log_returns", {"episode_id": f"e{i % 100}", "reward": i}) for i in range(300)]
        assert client.together(calls) == [{"gives": None}] * 300
    assert sorted(behind) == list(range(1, 301))
    # 64 numbers are open at a time: none comes before one that is 64 lower.
    newest = 0
    for seq in behind:
        newest = max(newest, seq)
        assert newest - seq < 64
    for episode in range(100):
        rewards = [
            said.message["reward"] for said in server.done if said.message["episode_id"] == f"e{episode}"
        ]
        assert rewards == [episode, episode + 100, episode + 200]
    if scheme == "ws":
        assert sum(said.over == "socket" for said in server.heard) == 300
        assert server.connections <= 3  # the socket, and who asked whether there is a server


def test_a_crowd_asks_for_all_agents_at_once(driver):
    def answer(said: Said, _: int) -> Answer:
        if said.verb != "act":
            return kind(said)
        return Answer({"action": {agent: [round(obs[0]), 2] for agent, obs in said.message["obs"].items()}})

    frames = [
        {"seen": {"goalie": [1.0], "striker": [2.0]}, "earned": {}, "left": []},
        {"seen": {"goalie": [3.0]}, "earned": {"goalie": 0.5, "striker": 0.25}, "left": []},
        {"seen": {"goalie": [5.0]}, "earned": {"striker": 1.0}, "left": ["striker"]},
    ]
    with stub(answer) as server:
        taken = driver("csharp").connect(f"ws://127.0.0.1:{server.port}").gives("crowd", frames=frames)
    assert taken == [{"goalie": [1, 2], "striker": [2, 2]}, {"goalie": [3, 2]}, {"goalie": [5, 2]}]
    sent = [{name: said.message.get(name) for name in ("obs", "reward", "dones")} for said in server.done[1:]]
    assert sent == [
        {"obs": frames[0]["seen"], "reward": None, "dones": None},
        {"obs": {"goalie": [3.0]}, "reward": {"goalie": 0.5}, "dones": None},
        {"obs": None, "reward": {"striker": 1.25}, "dones": {"striker": True}},
        {"obs": {"goalie": [5.0]}, "reward": None, "dones": None},
        {"obs": None, "reward": None, "dones": None},
    ]


def test_what_a_crowd_lives_through_is_what_the_server_has(driver, tmp_path):
    scenario = SCENARIOS["many agents"]
    frames = [
        {"seen": {"left": [1.0, 0.0], "right": [0.0, 1.0]}, "earned": {}, "left": []},
        {"seen": {"left": [0.0, 2.0]}, "earned": {"left": 1.0, "right": -1.0}, "left": []},
        {
            "seen": {"left": [3.0, 0.0], "right": [4.0, 0.0]},
            "earned": {"left": 0.5, "right": 0.25},
            "left": [],
        },
        {"seen": {"left": [0.0, 5.0]}, "earned": {"right": 2.0}, "left": ["right"]},
    ]
    with serving(scenario["server"], tmp_path) as served:
        client = driver("csharp").connect(f"ws://127.0.0.1:{served.port}", token=scenario["server"]["token"])
        taken = client.gives("crowd", frames=frames)
    assert taken == [{"left": 0, "right": 1}, {"left": 1}, {"left": 0, "right": 0}, {"left": 1}]
    (told,) = served.told().values()
    wanted = scenario["then"]["duel"]
    assert told["right"] == wanted["right"]
    assert told["left"] == {**wanted["left"], "obs": [*wanted["left"]["obs"][:-1], [0.0, 5.0]]}


def test_no_frame_of_the_game_in_unity_waits_for_an_answer(command, tmp_path):
    """The sample plays, in as much of Unity as it uses, with a server that takes 0.15 s for each answer."""

    def answer(said: Said, _: int) -> Answer:
        acts = Answer({"action": {agent: [0, 1, 2] for agent in said.message.get("obs") or {}}})
        return (acts if said.verb == "act" else kind(said))._replace(delay=0.15)

    command("csharp")
    program = tmp_path / "game.exe"
    compiled(program, HERE / "UnityEngine.cs", *(CLIENTS / "csharp").glob("*.cs"))
    with stub(answer) as server:
        game = ["mono", str(program), f"ws://127.0.0.1:{server.port}"]
        done = subprocess.run(game, capture_output=True, text=True, timeout=30, check=True)
    goalie, striker, longest = done.stdout.splitlines()
    assert striker.split() == goalie.split()
    assert striker.split() == ["012"] * 6
    assert float(longest) < 100  # milliseconds, of a frame
    told = [(said.verb, said.message) for said in server.done]
    assert [verb for verb, _ in told[:4]] == ["start", "act", "act", "act"]
    seen = told[1][1]["obs"]
    assert seen["goalie"] == {
        "dtype": "float32",
        "shape": [738],
        "bytes": base64.b64encode(bytes(4 * 738)).decode(),
    }
    assert [part["shape"] for part in seen["striker"]] == [[231], [63]]
    (end,) = (message for verb, message in told if verb == "end")
    assert end["reward"] == {"goalie": -1, "striker": 1}
    assert end["truncated"] is False


@pytest.mark.parametrize("trusted", ["its own", "another's", None])
def test_only_the_server_s_own_certificate_is_trusted(driver, trusted, tmp_path):
    """Mono's WebSockets cannot be told whom to trust: over HTTP alone."""
    own = make_cert(tmp_path / "own", ["127.0.0.1"])
    files = {"its own": own, "another's": make_cert(tmp_path / "other", ["127.0.0.1"])}
    options = {} if trusted is None else {"certificate": str(files[trusted][0])}
    scenario = SCENARIOS["one agent"]
    with serving(scenario["server"], tmp_path, tls=tls_context(*own)) as served:
        address = f"https://127.0.0.1:{served.port}"
        client = driver("csharp").connect(address, token=scenario["server"]["token"], timeout=1, **options)
        result = client.result("start_episode", episode_id="e")
    if trusted == "its own":
        assert result == {"gives": "e"}
    else:
        assert result["raises"]["code"] == "unreachable"
    assert list(served.told()) == (["e"] if trusted == "its own" else [])


def _json_texts(command, texts: list[str]) -> list[str]:
    command = [*command("csharp"), "json"]
    done = subprocess.run(command, input="\n".join(texts) + "\n", capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


def test_json_in_c_sharp_reads_and_writes_what_python_does(command):
    leaf = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8)
    number = st.floats(allow_nan=False, allow_infinity=False)
    values = st.recursive(
        leaf | number, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=4), x)
    )
    made: list[Any] = [
        -0.0,
        5e-324,
        1.7976931348623157e308,
        0.1,
        1e22,
        '\U0001f600 \u2028 \x7f " \\ /',
        [[], {}, ""],
    ]

    @settings(max_examples=100)
    @given(values)
    def collect(value: Any) -> None:
        made.append(value)

    collect()
    texts = [json.dumps(value, ensure_ascii=bool(i % 2)) for i, value in enumerate(made)]
    assert [_about(json.loads(text)) for text in _json_texts(command, texts)] == [
        _about(value) for value in made
    ]


def _about(value: Any) -> Any:
    """Mono reads some numbers of 17 digits as the neighbour of what they are."""
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 2**63):
        return float(f"{value:.14g}")
    if isinstance(value, dict):
        return {key: _about(item) for key, item in value.items()}
    return [_about(item) for item in value] if isinstance(value, list) else value


def test_json_in_c_sharp_refuses_what_python_refuses(command):
    """Nothing that is damaged is taken for something else."""
    whole = '{"a": [1, -2.5e-3, "x\\u00fc\\n", true, null], "b": {"c": 0}}'
    drawn = random.Random(0)
    texts = [
        "01",
        "-",
        "1.",
        ".5",
        "+1",
        "1e",
        "NaN",
        "Infinity",
        "1e999",
        "[1,]",
        '{"a":1,}',
        "{a:1}",
        "'a'",
        "nul",
        '"\t"',
    ]
    texts += [
        '"\\x"',
        '"\\u12g4"',
        "[" * 5000,
        "[1] 2",
        "",
        "1 1",
        '"\\u12',
        '"',
        "tru",
        "{",
        '{"a"',
        '{"a":',
        "[1",
    ]
    for _ in range(2000):
        text = list(whole)
        for _ in range(drawn.randint(1, 3)):
            at = drawn.randrange(len(text))
            text[at : at + drawn.randint(0, 2)] = drawn.choice(["", *'0-.e"\\{}[],: tfn\x01u'])
        texts.append("".join(text))

    def read(text: str) -> Any:
        try:
            return json.loads(text, parse_constant=lambda _: 1 / 0, parse_float=finite)
        except (ValueError, ZeroDivisionError, RecursionError):
            return "refused"

    def finite(text: str) -> float:
        return float(text) if math.isfinite(float(text)) else 1 / 0

    answers = _json_texts(command, texts)
    assert len(answers) == len(texts)
    found = ["refused" if answer.startswith("not JSON: ") else json.loads(answer) for answer in answers]
    assert found == [read(text) for text in texts]
    assert 1000 < found.count("refused") < len(texts)
