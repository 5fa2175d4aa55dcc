"""The Python client: the shared script, what goes wrong on the way, and deciding with numpy alone."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import socket
import threading
import time

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from safetensors.numpy import save

import steppe
from steppe.models.actions import Actions
from steppe.policies.numpy_policy import Exported, NumpyPolicy
from steppe.serving.client import (
    AsyncPolicyClient,
    BusyError,
    PolicyClient,
    PolicyClientError,
    RefusedError,
    UnauthorizedError,
    UnreachableError,
    _decider,
    _Network,
    _text,
)
from steppe.spaces import collect, describe, rows, spec_of, take
from tests.serving.conforming import SCENARIOS, check, serving
from tests.serving.unreliable import LOST, UNHEARD, Answer, stub

SCHEMES = pytest.mark.parametrize("scheme", ["http", "ws"])


def called(client, step):
    """What a step of the script came to."""
    arguments = dict(step["with"])
    if "dones" in arguments:
        arguments["multiagent_done_dict"] = arguments.pop("dones")
    try:
        found = getattr(client, step["call"])(**arguments)
    except PolicyClientError as error:
        return {"raises": {"status": error.status, "code": error.code}}
    return {"gives": {"action": found[0], **found[1]._asdict()} if arguments.get("full") else found}


@SCHEMES
@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("mode", ["remote", "local"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_script_that_every_client_runs(name, mode, lossy, scheme, tmp_path):
    scenario = SCENARIOS[name]
    with serving(scenario["server"], tmp_path, lossy=lossy) as served:

        def client(token):
            address = f"{scheme}://127.0.0.1:{served.port}"
            return PolicyClient(address, mode, token=token, timeout=10)

        with client(scenario["server"]["token"]) as own:
            for step in scenario["steps"]:
                if step.get("mode", mode) == mode:
                    one = client(step["client"]["token"]) if "client" in step else own
                    check(step, called(one, step))
                    if one is not own:
                        one.close()
    assert served.told() == scenario["then"]


# --- what goes wrong on the way ----------------------------------------------------------------------------


def act_of(said, count):
    return Answer({"act": {"action": 7}, "act_many": {"actions": [1, 2]}}.get(said.verb, {}))


def heard(made, *names):
    return [(said.verb, *(said.message.get(name) for name in names)) for said in made.heard]


def remote(made, scheme="http", **options):
    return PolicyClient(f"{scheme}://127.0.0.1:{made.port}", "remote", **{"timeout": 5, **options})


@SCHEMES
@pytest.mark.parametrize("fault", [LOST, UNHEARD])
def test_what_got_lost_is_sent_again_as_the_same_request(scheme, fault):
    def answer(said, count):
        return act_of(said, count)._replace(fault=fault if count in (2, 3) else None)

    with stub(answer) as made, remote(made, scheme) as client:
        client.start_episode("e")
        assert client.get_action("e", [1.0]) == 7
        client.end_episode("e", None)
    assert heard(made, "seq") == [("start", 1), ("act", 2), ("act", 2), ("act", 2), ("end", 3)]
    assert [said.verb for said in made.done] == ["start", "act", "end"]
    assert len({said.message["client"] for said in made.heard}) == 1
    assert made.connections == 3, "one that failed is not used again, one that works is"


def test_rewards_travel_with_the_next_observation_and_with_close():
    with stub(act_of) as made, remote(made) as client:
        for id in ("a", "b", "c"):
            client.start_episode(id)
        client.log_returns("a", 0.5)
        client.log_returns("a", np.float32(0.25))
        assert client.get_actions({"a": [1.0], "b": [2.0]}) == {"a": 1, "b": 2}
        client.log_returns("b", {"left": 1.0, "right": 2.0})
        client.log_returns("b", {"left": 0.5})
        client.log_returns("b", {"left": 9.0}, step=3)
        client.end_episode("b", None, truncated=True)
        client.log_returns("c", -1.0)
    rest = [said.message for said in made.heard[3:]]
    many = [{"episode_id": "a", "obs": [1.0], "reward": 0.75}, {"episode_id": "b", "obs": [2.0]}]
    assert rest[0]["acts"] == many
    assert (rest[1]["step"], rest[1]["reward"]) == (3, {"left": 9.0})
    assert (rest[2]["reward"], rest[2]["truncated"]) == ({"left": 1.5, "right": 2.0}, True)
    assert (rest[3]["episode_id"], rest[3]["reward"]) == ("c", -1.0)
    assert len(rest) == 4


def test_what_is_refused_changes_nothing_and_says_what_is_unsent():
    refusal = {"code": "out_of_space", "message": "obs: expected 2 numbers", "request_id": "r9"}

    def answer(said, count):
        return Answer(refusal, 422) if count == 1 else act_of(said, count)

    with stub(answer) as made, remote(made) as client:
        client.log_returns("e", 1.0)
        with pytest.raises(
            RefusedError, match=r"expected 2 numbers \(422 out_of_space, request r9\)"
        ) as info:
            client.get_action("e", [1, 2, 3])
        assert (info.value.status, info.value.code, info.value.request_id) == (422, "out_of_space", "r9")
        assert info.value.unsent.startswith('act {"episode_id":"e","obs":[1,2,3]')
        assert client.get_action("e", [1, 2]) == 7
    assert heard(made, "seq", "reward") == [("act", 1, 1.0), ("act", 2, 1.0)]


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_what_nobody_answered_is_settled_before_anything_else(scheme):
    gone = threading.Event()

    def answer(said, count):
        return act_of(said, count)._replace(fault=UNHEARD if gone.is_set() else None)

    with stub(answer) as made, remote(made, scheme, timeout=0.3) as client:
        client.start_episode("e")
        client.log_returns("e", 1.0)
        gone.set()
        with pytest.raises(UnreachableError, match="is the server running there") as info:
            client.get_action("e", [1.0])
        assert "act" in info.value.unsent
        assert info.value.status == 0
        client.log_returns("e", 5.0)
        with pytest.raises(UnreachableError):
            client.end_episode("e", [2.0])
        gone.clear()
        assert client.get_action("e", [1.0]) == 7, "the same call, and the same answer"
        client.end_episode("e", [2.0])
    verbs = [(said.verb, said.message["seq"], said.message.get("reward")) for said in made.done]
    assert verbs == [("start", 1, None), ("act", 2, 1.0), ("end", 3, 5.0)]


def test_another_call_is_made_after_the_one_that_nobody_answered():
    gone = threading.Event()

    def answer(said, count):
        return act_of(said, count)._replace(fault=LOST if gone.is_set() else None)

    with stub(answer) as made, remote(made, retries=0) as client:
        gone.set()
        begun = time.monotonic()
        with pytest.raises(UnreachableError):
            client.get_action("e", [1.0])
        assert time.monotonic() - begun < 2.0, "no retries"
        gone.clear()
        client.end_episode("e", [2.0])
    assert [(said.verb, said.message["seq"]) for said in made.done] == [("act", 1), ("end", 2)]


@pytest.mark.parametrize(("scheme", "wait"), [("http", "1"), ("ws", "0.3")])
def test_a_server_that_asks_to_wait_is_obeyed(scheme, wait):
    times = []

    def answer(said, count):
        times.append(time.monotonic())
        busy = Answer({"code": "busy", "message": "wait"}, 429, (("Retry-After", wait),))
        return busy if count == 1 else act_of(said, count)

    with stub(answer) as made, remote(made, scheme) as client:
        assert client.get_action("e", [1.0]) == 7
    assert float(wait) <= times[1] - times[0] < float(wait) + 3.0
    assert heard(made, "seq") == [("act", 1), ("act", 1)]


def test_a_server_that_asks_to_wait_for_too_long_is_an_error_at_once():
    def answer(said, count):
        away = Answer({"code": "not_ready", "message": "no weights yet"}, 503, (("Retry-After", "60"),))
        return away if count == 1 else act_of(said, count)

    with stub(answer) as made, remote(made) as client:
        with pytest.raises(BusyError, match=r"no weights yet \(503 not_ready"):
            client.get_action("e", [1.0])
        client.end_episode("e", None)
    assert heard(made, "seq") == [("act", 1), ("act", 1), ("end", 2)]


def test_an_answer_that_takes_its_time_is_waited_for_or_asked_for_again():
    def answer(said, count):
        return act_of(said, count)._replace(delay=0.4 if count == 1 else 0.0)

    with stub(answer) as made, remote(made, timeout=3) as client:
        assert client.get_action("e", [1.0]) == 7
    assert len(made.heard) == 1


def request_on(connection):
    data = b""
    while not data.endswith(b"}"):
        data += connection.recv(1 << 16)
    return data


def test_a_server_that_hears_and_says_nothing_is_asked_again_on_another_connection():
    listening, heard = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        silent = listening.accept()[0]
        other = listening.accept()[0]
        heard.append(request_on(other))
        other.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"action":4}')
        heard.append(request_on(silent))
        silent.close()
        other.close()

    thread = threading.Thread(target=serve)
    thread.start()
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with PolicyClient(address, "remote", timeout=1.2) as client:
        assert client.get_action("e", [1.0]) == 4
        thread.join()
    listening.close()
    again, first = (data.partition(b"\r\n\r\n")[2] for data in heard)
    assert again == first, "the same request, word by word"


@SCHEMES
def test_an_answer_that_was_not_waited_for_is_nobody_elses(scheme, monkeypatch):
    def answer(said, count):
        return Answer({"action": count}, delay=0.1 if count == 1 else 0.0)

    def interrupted(*_):
        raise KeyboardInterrupt

    with stub(answer) as made, remote(made, scheme) as client:
        with monkeypatch.context() as patch:
            patch.setattr("steppe.serving.client._Socket._message", interrupted)
            patch.setattr("http.client.HTTPConnection.getresponse", interrupted) if scheme == "http" else None
            with pytest.raises(KeyboardInterrupt):
                client.get_action("e", [1.0])
        assert client.get_action("e", [2.0]) == 3
    assert heard(made, "seq") == [("act", 1), ("act", 1), ("act", 2)]


def test_a_token_is_sent_read_anew_and_asked_for(tmp_path, monkeypatch):
    file = tmp_path / "tokens"
    file.write_text("# mine\nfirst act,submit me\nsecond admin\n")

    def answer(said, count):
        right = said.headers.get("authorization") == "Bearer first"
        return act_of(said, count) if right else Answer({"code": "unauthorized", "message": "who?"}, 401)

    with stub(answer) as made:
        with pytest.raises(UnauthorizedError, match=r"who\?; give the server's token: token='env:NAME'"):
            remote(made).get_action("e", [1.0])
        monkeypatch.setenv("MY_TOKEN", "first")
        for token in ("first", "first\n", "env:MY_TOKEN", f"file:{file}"):
            with remote(made, token=token) as client:
                assert client.get_action("e", [1.0]) == 7
        file.write_text("old")
        with remote(made, token=f"file:{file}") as client:
            with pytest.raises(UnauthorizedError):
                client.get_action("e", [1.0])
            file.write_text("first")
            assert client.get_action("e", [1.0]) == 7
        for token in ("env:NO_SUCH_VARIABLE", f"file:{tmp_path}/none"):
            with pytest.raises(PolicyClientError, match="names no token"):
                remote(made, token=token).get_action("e", [1.0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"address": "localhost:9900"}, "expected http://HOST:PORT"),
        ({"address": "ftp://localhost"}, "expected http://HOST:PORT"),
        ({"address": "http://localhost", "inference_mode": "Local"}, "expected 'local' or 'remote'"),
        ({"address": "https://localhost", "ca": "no-such-file"}, "no certificate that can be read"),
    ],
)
def test_arguments_that_make_no_sense_are_said_at_once(arguments, words):
    with pytest.raises(PolicyClientError, match=words):
        PolicyClient(**arguments)


def test_what_cannot_be_sent_is_said_before_anything_is():
    with stub(act_of) as made, remote(made) as client:
        for obs in ([float("nan")], np.array([np.inf], np.float32)):
            with pytest.raises(PolicyClientError, match="NaN and infinity cannot be sent"):
                client.get_action("e", obs)
        with pytest.raises(PolicyClientError, match="NaN and infinity"):
            client.log_returns("e", float("nan"))
        with pytest.raises(PolicyClientError, match="a set cannot be sent"):
            client.get_action("e", {1, 2})
        large = np.arange(20, dtype=np.uint8).reshape(4, 5)
        client.get_action("e", {"few": np.float32([0.5]), "many": large[:, ::-1], "one": np.int64(3)})
    (said,) = made.heard
    assert said.message["obs"]["few"] == [0.5]
    assert said.message["obs"]["one"] == 3
    many = said.message["obs"]["many"]
    read = np.frombuffer(base64.b64decode(many["bytes"]), many["dtype"]).reshape(many["shape"])
    np.testing.assert_array_equal(read, large[:, ::-1])


def test_agents_are_named_as_the_caller_names_them():
    told = {
        "action": {"0": 5, "1": 6},
        "step": 3,
        "logp": {"0": -1, "1": -2},
        "weights_version": {"0": 4, "1": 4},
    }
    with stub(lambda said, count: Answer(told)) as made, remote(made) as client:
        action, about = client.get_action("e", {0: [1.0], 1: [2.0]}, full=True)
    assert action == {0: 5, 1: 6}
    assert made.heard[0].message["obs"] == {"0": [1.0], "1": [2.0]}
    assert (about.step, about.logp, about.weights_version) == (3, {0: -1, 1: -2}, {0: 4, 1: 4})


def test_who_is_done_is_said_at_once_and_for_all_by_the_end():
    with stub(act_of) as made, remote(made) as client:
        client.log_returns(
            "e", {0: 1.0, 1: 2.0}, multiagent_done_dict={0: np.True_, 1: False, "__all__": False}
        )
        client.log_returns("e", {1: 2.0}, {}, {"__all__": True})
        client.end_episode("e", None)
    told = [(said.verb, said.message.get("reward"), said.message.get("dones")) for said in made.heard]
    assert told[0] == ("log_returns", {"0": 1.0, "1": 2.0}, {"0": True, "1": False})
    assert told[1:] == [("end", {"1": 2.0}, None)], "an empty info is no reason for a request"


def test_closing_sends_what_can_be_sent_and_says_what_cannot():
    def answer(said, count):
        known = said.message["episode_id"] == "known"
        return Answer(
            {} if known else {"code": "unknown_episode", "message": "no such"}, 200 if known else 404
        )

    with stub(answer) as made:
        client = remote(made)
        for id in ("gone", "known", "lost"):
            client.log_returns(id, 2.0)
        with pytest.raises(RefusedError, match=r"no such.*Unsent: log_returns .*lost.*2.0"):
            client.close()
        client.close()
    assert [said.message["episode_id"] for said in made.done] == ["known"]
    assert len(made.heard) == 3


def test_something_else_that_listens_there_is_no_policy_server():
    for page, status, kind, words in (
        ("<html>Welcome</html>", 200, UnreachableError, "is the server running there"),
        ("[]", 200, UnreachableError, "that is no policy server"),
        ("<html>Not here</html>", 404, RefusedError, r"Not here.* \(404"),
    ):
        told = Answer(page, status)
        with stub(lambda said, count, told=told: told) as made, pytest.raises(kind, match=words):
            remote(made, timeout=0.1).start_episode()


@SCHEMES
def test_threads_may_share_a_client(scheme):
    def answer(said, count):
        return Answer({"action": said.message.get("obs")})

    with stub(answer) as made, remote(made, scheme) as client:
        found = {}

        def drive(i):
            found[i] = [client.get_action(f"e{i}", 100 * i + k) for k in range(20)]

        threads = [threading.Thread(target=drive, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {i: [100 * i + k for k in range(20)] for i in range(4)}
    assert sorted(said.message["seq"] for said in made.heard) == [*range(1, 81)]


def test_an_async_client_lets_others_go_on():
    def answer(said, count):
        return act_of(said, count)._replace(delay=0.1 if said.verb == "act" else 0.0)

    async def main(port):
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        other = asyncio.create_task(tick())
        async with AsyncPolicyClient(f"http://127.0.0.1:{port}", "remote", timeout=5) as client:
            id = await client.start_episode()
            assert await client.get_action(id, [1.0]) == 7
            assert await client.get_actions({id: [1.0], "b": [2.0]}) == {id: 1, "b": 2}
            await client.log_returns(id, 1.0)
            await client.end_episode(id, None)
        other.cancel()
        return ticks

    with stub(answer) as made:
        assert asyncio.run(main(made.port)) > 2
    assert [said.verb for said in made.heard] == ["start", "act", "act_many", "end"]


# --- deciding here -----------------------------------------------------------------------------------------

RNG = np.random.default_rng(7)
FLAT, VECTOR = {"kind": "flat"}, spaces.Box(-5.0, 5.0, (3,))
SAMPLED = {"kind": "sampled"}
MIXED = spaces.Dict(
    {
        "b": spaces.Tuple([spaces.Discrete(3, start=-1), spaces.MultiBinary(2)]),
        'an odd "key"': spaces.Box(-1e3, 1e3, (2, 2), np.float64),
        "c": spaces.MultiDiscrete([2, 1500, 3]),
        "d": spaces.Box(0, 255, (3,), np.uint8),
    }
)


def choices(counts, starts=None, large=()):
    return {"kind": "choices", "counts": counts, "starts": starts or [0] * len(counts), "large": [*large]}


def parts(keys, *encoders):
    return {"kind": "parts", "keys": keys, "parts": [*encoders]}


MIXED_ENCODER = parts(
    sorted(MIXED.keys()), FLAT, parts(None, choices([3], [-1]), FLAT), choices([2, 1500, 3], large=[1]), FLAT
)


class Made:
    """A policy as a server exports it, with random numbers."""

    def __init__(
        self, observation, action, encoder=FLAT, size=3, outputs=None, how=SAMPLED, scalars=None,
        normalized=(), tables=(), **network,
    ):  # fmt: skip
        options = {"squash": False, "normalize": True, "clip": True, "autoregressive": False}
        about = {"kind": "actor", "normalizer": bool(normalized), "critic_only": [], "encoder": encoder}
        about |= {"observation": describe(spec_of(observation)), "action": describe(spec_of(action))}
        about |= {"free_log_std": False, "masked": False, "bounded_log_std": 0, "distribution": options}
        sizes = [size, 8, outputs]
        self.network = {**about, "mlp": {"sizes": sizes, "activation": "tanh"}, **network}
        self.how, self.scalars, self.arrays = how, scalars or {}, {}
        for i, shape in enumerate(itertools.pairwise(sizes)):
            self.arrays[f"mlp.weights.{i}"] = RNG.normal(0, 0.7, shape)
            self.arrays[f"mlp.biases.{i}"] = RNG.normal(0, 0.3, shape[1])
        if self.network["free_log_std"]:
            self.arrays["log_std"] = RNG.normal(-1, 0.5, 2)
        for path, shape, count in normalized:
            self.arrays[f"normalizer.{path}.count"] = np.array(count)
            self.arrays[f"normalizer.{path}.mean"] = RNG.normal(0, 1, shape)
            self.arrays[f"normalizer.{path}.m2"] = RNG.uniform(0, 100, shape)
        self.arrays |= {name: RNG.normal(0, 1, (1500, 64)) for name in tables}
        self.arrays = {name: np.asarray(array, np.float32) for name, array in self.arrays.items()}

    def file(self, version=5):
        texts = {"network": self.network, "exploration": self.how, "scalars": self.scalars}
        about = {"version": str(version), "policy": "p", **{k: json.dumps(v) for k, v in texts.items()}}
        return save(self.arrays, about)

    def reference(self):
        policy = NumpyPolicy(self.network, self.how)
        return policy, policy.load(Exported(5, self.arrays, self.scalars))


DISCRETE = spaces.Discrete(4, start=2)
MASKABLE = spaces.Dict({"action_mask": spaces.MultiBinary(5), "x": VECTOR})
BOX = spaces.Box(np.float32([-1.0, 0.0]), np.float32([1.0, 50.0]))
MANY = spaces.Dict(
    {
        "bits": spaces.MultiBinary(3),
        "box": spaces.Box(-np.inf, np.inf, (2, 1)),
        "pair": spaces.Tuple([spaces.Discrete(2), spaces.Box(-3, 3, (), np.int32)]),
    }
)
SQUASHED = {"squash": True}
GREEDY = {"how": {"kind": "epsilon_greedy"}, "scalars": {"epsilon": 0.5}, "distribution": {}, "greedy": True}
NOISY = {"kind": "added_noise", "deviation": 0.3, "correlation": 0.0, "draws": False}
POLICIES = {
    "choices": lambda: Made(VECTOR, DISCRETE, outputs=4),
    "every encoder": lambda: Made(
        MIXED,
        DISCRETE,
        MIXED_ENCODER,
        4 + 3 + 2 + 5 + 64 + 3,
        4,
        tables=["encoder.parts.2.tables.0"],
        normalized=[('obs["an odd \\"key\\""]', (2, 2), 40), ('obs["d"]', (3,), 1)],
    ),
    "masked choices": lambda: Made(
        MASKABLE, spaces.MultiDiscrete([3, 2]), parts(["x"], FLAT), outputs=5, masked=True
    ),
    "numbers": lambda: Made(VECTOR, BOX, outputs=2, free_log_std=True),
    "squashed numbers": lambda: Made(VECTOR, BOX, outputs=4, distribution=SQUASHED, bounded_log_std=2),
    "rounded numbers": lambda: Made(
        VECTOR,
        spaces.Box(-3, 3, (2,), np.int64),
        outputs=2,
        free_log_std=True,
        distribution={"normalize": False},
    ),
    "numbers as they are": lambda: Made(
        VECTOR, BOX, outputs=4, distribution={"normalize": False, "clip": False}
    ),
    "all at once": lambda: Made(VECTOR, MANY, outputs=3 + 2 + 2 + 1 + 3),
    "the likeliest": lambda: Made(VECTOR, MANY, outputs=3 + 2 + 2 + 1 + 3, how=None),
    "epsilon": lambda: Made(VECTOR, DISCRETE, outputs=4, **GREEDY),
    "epsilon of legal ones": lambda: Made(
        MASKABLE, spaces.Discrete(5), parts(["x"], FLAT), outputs=5, masked=True, **GREEDY
    ),
    "epsilon of returns": lambda: Made(VECTOR, DISCRETE, outputs=4 * 3, support=[-2.0, 2.0, 3], **GREEDY),
    "added noise": lambda: Made(VECTOR, BOX, outputs=4, how=NOISY, distribution=SQUASHED, bounded_log_std=2),
    "noise alone": lambda: Made(
        VECTOR, BOX, outputs=4, how=NOISY, distribution=SQUASHED, bounded_log_std=2, scalars={"random": 1.0}
    ),
}
ACTIVATIONS = ("tanh", "relu", "swish", "silu", "elu", "linear")


def near(found, expected):
    """The same form, and the same numbers up to rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        return all(near(found[key], expected[key]) for key in expected)
    if isinstance(expected, tuple):
        return len(found) == len(expected) and all(map(near, found, expected))
    assert np.shape(found) == np.shape(expected)
    return np.allclose(found, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", POLICIES)
def test_it_decides_as_steppe_does_for_the_same_uniforms(name):
    made = POLICIES[name]()
    space = MASKABLE if made.network["masked"] else MIXED if name == "every encoder" else VECTOR
    space.seed(0)
    for activation in ACTIVATIONS if name == "choices" else ["tanh"]:
        made.network["mlp"]["activation"] = activation
        (policy, weights), (decide, version) = made.reference(), _decider("p", made.file())
        assert version == 5
        assert decide.__self__.noise_size == policy.noise_size or made.how is None
        for _ in range(25):
            obs = space.sample()
            if made.network["masked"]:
                obs["action_mask"][[0, 3]] = 1
            noise = RNG.uniform(1e-3, 1 - 1e-3, decide.__self__.noise_size).astype(np.float32)
            column = collect(policy.acting, [obs])
            expected = policy.act(weights, column, None, noise[None] if made.how else None)
            action, sample, logp, told = decide(obs, noise)
            assert told == 5
            assert near(sample, take(expected.action, 0)), (obs, noise)
            assert near(action, rows(policy.action, policy.to_env(expected.action))[0])
            assert logp == pytest.approx(float(expected.logp[0]), rel=1e-3, abs=2e-3)
            json.dumps([action, sample, logp], allow_nan=False)


def test_what_it_draws_by_itself_comes_as_often_as_it_should():
    made = Made(VECTOR, DISCRETE, outputs=4)
    obs = np.float32([0.3, -0.2, 0.9])
    decide, _ = _decider("p", made.file())
    found = [decide(obs)[:3] for _ in range(4000)]
    share = {action: sum(one[0] == action for one in found) / 4000 for action in (2, 3, 4, 5)}
    for action, _, logp in found[:50]:
        assert share[action] == pytest.approx(np.exp(logp), abs=0.04)
    assert sum(share.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("obs", "words"),
    [
        ([1.0, 2.0], r"obs: expected finite numbers of shape \(3,\)"),
        ([1.0, 2.0, float("nan")], "finite numbers"),
        (["a", "b", "c"], "finite numbers"),
        ({"x": 1}, "finite numbers"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused_here(obs, words):
    decide, _ = _decider("p", Made(VECTOR, DISCRETE, outputs=4).file())
    with pytest.raises(RefusedError, match=words) as info:
        decide(obs)
    assert (info.value.status, info.value.code) == (422, "out_of_space")


def test_parts_and_masks_that_do_not_fit_are_refused_by_name():
    decide, _ = _decider("p", POLICIES["masked choices"]().file())
    for obs, words in (
        ({"x": [0, 0, 0]}, "action_mask"),
        ({"action_mask": [1, 1, 1, 1, 1]}, "'x'"),
        ({"x": [0, 0, 0], "action_mask": [1, 1, 1, 0, 0]}, "allows nothing"),
        ({"x": [0, 0, 0], "action_mask": [1, 1, 1]}, "reshape"),
        ({"x": [0, 0], "action_mask": [1, 1, 1, 1, 1]}, r'obs\["x"\]: expected'),
    ):
        with pytest.raises(RefusedError, match=words):
            decide(obs)
    decide, _ = _decider("p", POLICIES["epsilon of legal ones"]().file())
    with pytest.raises(RefusedError, match="allows nothing"):
        decide({"x": [0, 0, 0], "action_mask": np.zeros(5)})
    decide, _ = _decider("p", POLICIES["every encoder"]().file())
    obs = MIXED.sample()
    with pytest.raises(RefusedError, match=r'obs\["c"\]: .* outside its space'):
        decide({**obs, "c": [2, 0, 0]})


def test_what_this_file_cannot_compute_is_left_to_steppe_where_it_is_installed():
    made = Made(VECTOR, spaces.MultiDiscrete([2, 3]), outputs=0)
    chained = {**made.network["distribution"], "autoregressive": True}
    actions = Actions(spec_of(spaces.MultiDiscrete([2, 3])), **chained)
    made = Made(
        VECTOR, spaces.MultiDiscrete([2, 3]), outputs=actions.param_size - actions.chain.weight_size,
        distribution=chained, free_log_std=True,
    )  # fmt: skip
    made.arrays["log_std"] = RNG.normal(0, 1, actions.chain.weight_size).astype(np.float32)
    decide, version = _decider("p", made.file())
    action, sample, logp, told = decide(np.float32([1, 2, 3]))
    assert (version, told) == (5, 5)
    assert type(action) is list
    assert spaces.MultiDiscrete([2, 3]).contains(np.asarray(action))
    assert json.loads(_text([action, sample])) == [action, sample]
    assert logp <= 0


def test_what_nobody_can_compute_here_is_said():
    made = Made(VECTOR, DISCRETE, outputs=4, how={"kind": "perturbed"})
    with pytest.raises(PolicyClientError, match=r"cannot be computed here \(it has perturbed;.*'remote'"):
        _decider("p", made.file())


class Dictionary(gymnasium.Env):
    observation_space, action_space = MASKABLE, spaces.Discrete(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"action_mask": np.ones(5, np.int8), "x": np.zeros(3, np.float32)}, {}

    def step(self, action):
        return self.reset()[0], 0.0, False, True, {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "env", "settings"),
    [
        ("PPO", "CartPole-v1", {}),
        ("PPO", Dictionary, {"vf_share_layers": True}),
        ("PPO", "Pendulum-v1", {"free_log_std": True}),
        ("DQN", "CartPole-v1", {"num_atoms": 5, "v_min": 0.0, "v_max": 50.0}),
        ("SAC", "Pendulum-v1", {}),
        ("TD3", "Pendulum-v1", {}),
    ],
)
def test_networks_of_real_runs_are_computed_as_steppe_does(kind, env, settings, tmp_path):
    config = getattr(steppe, f"{kind}Config")(env=env, fcnet_hiddens=[8], write_run=False, **settings)
    with config.build() as algo:
        algo.train()
        loaded = steppe.load_policy(algo.save(tmp_path / "c"))
    about = {"network": loaded.description, "exploration": None, "scalars": {}, "version": 1}
    network = _Network(about, loaded.arrays)
    space = MASKABLE if env is Dictionary else gymnasium.make(env).observation_space
    space.seed(1)
    for _ in range(20):
        obs = space.sample()
        if env is Dictionary:
            obs["action_mask"][2] = 1
        np.testing.assert_allclose(network._params(obs), loaded.outputs(obs), rtol=1e-4, atol=1e-4)
        assert near(network.decide(obs)[0], loaded.act(obs))
