"""The spaces of what is served, from whatever says them."""

import json

import gymnasium
import numpy as np
import pytest

import steppe
from steppe.envs import registry
from steppe.errors import ConfigError
from steppe.serving.stubs import served
from steppe.spaces import describe, spec_of
from steppe.types import ALONE, SpacePair

BOX, THREE = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32), gymnasium.spaces.Discrete(3)
WIDE = gymnasium.spaces.Box(-1.0, 1.0, (9,), np.float32)
PAIR, OTHER = SpacePair(spec_of(BOX), spec_of(THREE)), SpacePair(spec_of(WIDE), spec_of(THREE))


class OfClass:
    observation_space, action_space = BOX, THREE

    def __init__(self):
        raise AssertionError("nothing is made that says its spaces before")


class OfObject:
    def __init__(self, env_config):
        self.observation_space, self.action_space = BOX, gymnasium.spaces.Discrete(env_config["n"])


class WithProperty:
    @property
    def observation_space(self):
        return BOX

    action_space = THREE


class Many(steppe.MultiAgentEnv):
    possible_agents = ("a", "b")
    observation_space = {"a": BOX, "b": WIDE}  # noqa: RUF012
    action_space = THREE

    def reset(self, *, seed=None, options=None):
        raise NotImplementedError

    def step(self, action_dict):
        raise NotImplementedError


class Crowd:
    """Not of our classes: anybody may come."""

    possible_agents = ()
    observation_space, action_space = BOX, THREE


@pytest.fixture
def named(monkeypatch):
    monkeypatch.setattr(registry, "REGISTERED", {"my_stub": OfObject})


@pytest.mark.parametrize(
    "stub",
    [OfClass, object.__new__(OfClass), WithProperty, WithProperty(), lambda: object.__new__(OfClass)],
)
def test_one_agent(stub):
    assert served(stub, None) == ((PAIR,), ALONE, None, False)


def test_what_has_to_be_made_gets_its_config(named):
    for stub in (OfObject, "my_stub", f"{__file__}:OfObject"):
        assert served(stub, {"n": 3}).pairs == (PAIR,)
    with pytest.raises(KeyError):
        served("my_stub", {})


def test_an_id_of_gymnasium_and_spaces_that_override_its_own():
    spaces = served("CartPole-v1", None).pairs[0]
    assert (spaces.observation.shape, spaces.action.n) == ((4,), 2)
    assert served("CartPole-v1", None, (BOX, None)).pairs == (SpacePair(spec_of(BOX), spaces.action),)
    assert served(None, None, (BOX, THREE)).pairs == (PAIR,)


def test_many_agents():
    for stub in (Many, Many()):
        assert served(stub, None) == ((PAIR, OTHER), {"a": 0, "b": 1}, None, True)
    assert served(Crowd, None) == ((PAIR,), {}, 0, True)
    assert served(None, None, of_policies=[PAIR, OTHER, PAIR]) == ((PAIR, OTHER), {}, None, True)
    assert served(None, None, of_policies=[PAIR, PAIR]) == ((PAIR,), {}, 0, True)


def test_a_file_of_spaces(tmp_path):
    file = tmp_path / "spaces.json"
    one, other = (
        {"observation_space": describe(p.observation), "action_space": describe(p.action)}
        for p in (PAIR, OTHER)
    )
    file.write_text(json.dumps({**one, "protocol": 1}))
    assert served(str(file), None) == ((PAIR,), ALONE, None, False)
    by_agent = {key: {"a": one[key], "b": other[key]} for key in one}
    file.write_text(json.dumps(by_agent))
    assert served(str(file), None) == ((PAIR, OTHER), {"a": 0, "b": 1}, None, True)
    anybody = {key: {"*": value} for key, value in one.items()}  # as a server tells it
    file.write_text(json.dumps(anybody))
    assert served(str(file), None) == ((PAIR,), {}, 0, True)
    for broken, said in (
        ("{", "cannot be read"),
        ("[]", "describes no spaces"),
        ('{"observation_space": 3}', "no spaces"),
    ):
        file.write_text(broken)
        with pytest.raises(ConfigError, match=said):
            served(str(file), None)


@pytest.mark.parametrize(
    ("stub", "said"),
    [
        (object(), "no observation_space"),
        (type("Half", (), {"observation_space": BOX}), "no action_space"),
        (type("Nobody", (), {"possible_agents": ("a",)}), "nothing says the spaces of the agents of Nobody"),
        (None, "nothing says the spaces"),
        ("no_such_stub", "no env named 'no_such_stub'"),
    ],
)
def test_what_says_no_spaces(stub, said):
    with pytest.raises(ConfigError, match=said):
        served(stub, None)
