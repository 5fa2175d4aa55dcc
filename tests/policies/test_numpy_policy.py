"""Policies in numpy against those they come from: for the same uniforms the same actions and states."""

from __future__ import annotations

import json
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

import steppe
from steppe.errors import ConfigError
from steppe.learning.networks import ActorCriticNetworks
from steppe.models.before import Memory
from steppe.models.distributions import Distribution
from steppe.models.framestack import framed
from steppe.models.q_memory import make_memory_q
from steppe.models.q_network import make_q_network
from steppe.models.sight import sight_of
from steppe.policies.actor_critic import Layout
from steppe.policies.frames import FramesPolicy
from steppe.policies.noisy import NoisyPolicy
from steppe.policies.numpy_policy import Exported, NumpyPolicy, epsilon_greedy
from steppe.policies.q import QPolicy
from steppe.policies.recurrent_q import RecurrentQPolicy
from steppe.policies.scripted import Policy, scripted
from steppe.spaces import BadLeaf, collect, leaves, map_leaves, spec_of
from steppe.types import SpacePair, Weights

N, ROUNDS = 4, 4
BOX = spaces.Box(-3, 3, (3,), np.float32)
BOUNDED = spaces.Box(np.float32([-1, 0]), np.float32([1, 10]))
STATS = (np.float32(9), np.float32([0.5, -0.5, 0.0]), np.full(3, 36, np.float32))
TOLD = Memory("lstm", 4, 4, True, True, 4)
UPPER = 0.8413447  # of the normal distribution at 1


def masked(choices, **more):
    return spaces.Dict(x=BOX, action_mask=spaces.MultiBinary(choices), **more)


def weights_of(size, stats=(), seed=1, **scalars):
    params = np.random.default_rng(seed).normal(0, 0.4, size).astype(np.float32)
    return Weights(3, params, stats, scalars)


def actor(observation, action, *, options=None, **model):
    distribution, rng = Distribution(spec_of(action), **(options or {})), np.random.default_rng(0)
    settings = {"normalize": True, "hiddens": [5], "free_log_std": True} | model
    nets = ActorCriticNetworks(
        SpacePair(spec_of(observation), distribution.spec), distribution, rng, **settings
    )
    return nets, distribution


def acting(observation, action, **settings):
    nets, _ = actor(observation, action, **settings)
    return nets.policy, weights_of(nets.actor_size, STATS[: len(nets.published)])


def noisy(draws, correlation, framestack=1, random=0.0):
    pair, frames = SpacePair(spec_of(BOX), spec_of(BOUNDED)), None
    if framestack > 1:
        frames, pair = framed(pair, framestack)
    distribution, rng = Distribution(pair.action, squash=True), np.random.default_rng(0)
    nets = ActorCriticNetworks(pair, distribution, rng, normalize=False, hiddens=[4])
    own = {"deviation": 0.4, "correlation": correlation, "draws": draws}
    policy = NoisyPolicy(nets.policy, distribution.actions, **own)
    weights = weights_of(nets.actor_size, random=random)
    return (policy if frames is None else FramesPolicy(policy, frames)), weights


def choosing(epsilon, remembers=False, **layers):
    pair = SpacePair(spec_of(masked(4)), spec_of(spaces.Discrete(4, start=-1)))
    sight, rng = sight_of(pair, (), False), np.random.default_rng(0)
    layers = {"hiddens": [5], "masked": True} | layers
    if remembers:
        made, network = RecurrentQPolicy, make_memory_q(sight.actor, pair.action, rng, TOLD, **layers)
    else:
        made, network = QPolicy, make_q_network(sight.actor, 4, rng, **layers)
    layout = Layout.of((network, STATS))
    size = layout.size - 7
    return made(sight, pair.action, network, layout), weights_of(size, STATS, epsilon=epsilon)


CASES = {
    "many parts": lambda: acting(
        BOX,
        spaces.Tuple(
            (
                spaces.Dict(d=spaces.Box(-10, 10, (), np.float64), e=spaces.Discrete(2, start=3)),
                spaces.MultiBinary(3),
                spaces.MultiDiscrete([[2, 3]]),
            )
        ),
    ),
    "squashed, deviations of its own": lambda: acting(
        BOX, BOUNDED, options={"squash": True}, free_log_std=False
    ),
    "a chain that is masked, a secret": lambda: acting(
        masked(5, secret=spaces.Box(-1, 1, (1,), np.float32)),
        spaces.MultiDiscrete([2, 3]),
        options={"autoregressive": True},
        critic_only=["secret"],
    ),
    "remembers, two frames": lambda: acting(
        spaces.Dict(x=spaces.Box(-3, 3, (3,), np.float64), n=spaces.Box(-(2**40), 2**40, (1,), np.int64)),
        BOUNDED,
        memory=TOLD,
        framestack=2,
        normalize=False,
    ),
    "epsilon, masked": lambda: choosing(0.4),
    "epsilon, remembers": lambda: choosing(0.4, remembers=True, dueling=False, support=(-5.0, 5.0, 7)),
    "white noise on its own": lambda: noisy(draws=True, correlation=0.0),
    "noise that remembers, three frames": lambda: noisy(draws=False, correlation=0.8, framestack=3),
    "by chance": lambda: noisy(draws=False, correlation=0.8, random=1.0),
}


def twin_of(policy, weights, explore=True):
    """Through JSON, as a pipe and a checkpoint have it."""
    state = policy.export(weights)
    about = json.loads(json.dumps({name: state[name] for name in ("network", "exploration")}))
    twin = NumpyPolicy(about["network"], about["exploration"] if explore else None)
    arrays = {name: np.asarray(array) for name, array in state["arrays"].items()}
    return twin, twin.load(Exported(weights.version, arrays, weights.scalars)), state


def same(one, other, atol=1e-4):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert [*one] == [*other]
        return [same(one[key], other[key], atol) for key in one]
    if isinstance(one, tuple):
        return [same(a, b, atol) for a, b in zip(one, other, strict=True)]
    assert one is None or (one.dtype == other.dtype and one.shape == other.shape)
    return one is None or np.testing.assert_allclose(one, other, rtol=1e-4, atol=atol)


def observed(spec, space, seed):
    space.seed(seed)
    values = [space.sample() for _ in range(N)]
    for value in values:
        if isinstance(value, dict) and "action_mask" in value:
            value["action_mask"][[0, 2]] = 1
    return collect(spec, values)


def assert_alike(policy, weights, space, noises):
    """Both walk for some rounds, each by what it remembers itself."""
    twin, numpy_weights, _ = twin_of(policy, weights)
    loaded = policy.load(weights)
    assert (twin.noise_size, twin.draws) == (policy.noise_size, policy.draws)
    own, other = policy.initial_state(N), twin.initial_state(N)
    same(own, other)
    acted = []
    for seed, noise in enumerate(noises):
        obs = observed(policy.observation, space, seed)
        wanted = policy.act(loaded, obs, own, noise)
        found = twin.act(numpy_weights, obs, other, noise)
        same(tuple(wanted[:3]), tuple(found[:3]))
        same(policy.to_env(wanted.action), twin.to_env(found.action))
        same(policy.from_env(policy.to_env(wanted.action)), twin.from_env(policy.to_env(wanted.action)), 1e-3)
        acted.append(np.concatenate([np.ravel(a) for a in leaves(wanted.action)]))
        own, other = wanted.state, found.state
        if isinstance(own, dict) and "reward" in own:
            own["reward"] = other["reward"] = np.float32([1.5, -20.0, 0.0, 3.0])
    assert len({row.tobytes() for row in acted}) > 1, "rounds that all look alike prove nothing"


@pytest.mark.parametrize("case", CASES)
def test_it_explores_as_the_policy_does(case):
    policy, weights = CASES[case]()
    rng = np.random.default_rng(5)
    noises = [rng.uniform(0.001, 0.999, (N, policy.noise_size)).astype(np.float32) for _ in range(ROUNDS)]
    assert_alike(policy, weights, space_of(policy), noises)


@pytest.mark.parametrize("case", ["squashed, deviations of its own", "epsilon, remembers"])
def test_without_noise_it_does_the_likeliest(case):
    policy, weights = CASES[case]()
    assert_alike(policy, weights, space_of(policy), [None] * 2)


def space_of(policy):
    """A Gymnasium space that a policy's observations can be drawn from."""
    spec = policy.observation
    keys = {key for key, _ in spec.items} if type(spec).__name__ == "DictSpec" else set()
    if "n" in keys:
        wide = spaces.Box(-(2**40), 2**40, (1,), np.int64)
        return spaces.Dict(x=spaces.Box(-3, 3, (3,), np.float64), n=wide)
    if "secret" in keys:
        return masked(5, secret=spaces.Box(-1, 1, (1,), np.float32))
    return masked(4) if keys else BOX


def test_a_secret_may_be_there_or_not():
    policy, weights = CASES["a chain that is masked, a secret"]()
    twin, loaded, _ = twin_of(policy, weights)
    obs = observed(policy.observation, space_of(policy), 0)
    told = twin.act(loaded, obs, None, None)
    del obs["secret"]
    same(told.action, twin.act(loaded, obs, None, None).action)
    assert "secret" not in dict(twin.observation.items)


def test_epsilon_by_hand():
    """Legal are 0, 2 and 3; by chance a third each: 0 up to 1/3, 2 up to 2/3, then 3."""
    values, mask = np.float32([[0.0, -1e9, 5.0, 1.0]] * 5), np.int8([[1, 0, 1, 1]] * 5)
    noise = np.float32([[0.31, 0.1], [0.29, 0.1], [0.29, 0.5], [0.29, 0.9], [0.29, 0.999999]])
    actions, logp = epsilon_greedy(values, np.float32(0.3), mask, noise)
    assert actions.tolist() == [2, 0, 2, 3, 3]
    assert np.exp(logp).tolist() == pytest.approx([0.8, 0.1, 0.8, 0.1, 0.1], abs=1e-6)
    unmasked, logp = epsilon_greedy(values[:2], np.float32(1.0), None, np.float32([[0.5, 0.3], [0.5, 0.8]]))
    assert unmasked.tolist() == [1, 3]
    assert np.exp(logp).tolist() == pytest.approx([0.25, 0.25])


@given(
    legal=st.lists(st.booleans(), min_size=1, max_size=5).filter(any),
    epsilon=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_actions_come_as_often_as_their_probabilities_say(legal, epsilon, seed):
    """Over an even grid of uniforms."""
    middles = (np.arange(60, dtype=np.float32) + 0.5) / 60
    noise = np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2)
    mask = np.broadcast_to(np.array(legal, np.int8), (len(noise), len(legal)))
    values = np.random.default_rng(seed).normal(size=len(legal)).astype(np.float32)
    values = np.where(mask, values, np.float32(-1e9))
    actions, logp = epsilon_greedy(values, np.float32(epsilon), mask, noise)
    for action in np.unique(actions):
        assert legal[action]
        assert (actions == action).mean() == pytest.approx(np.exp(logp[actions == action][0]), abs=0.02)


def test_noise_is_added_by_hand():
    """All parameters are 0, so that the actions are the noise: deviations of 0.4, in units of the bounds."""
    policy, weights = noisy(draws=False, correlation=0.0)
    twin, loaded, _ = twin_of(policy, weights._replace(params=np.zeros_like(weights.params)))
    decision = twin.act(loaded, np.zeros((1, 3), np.float32), None, np.float32([[UPPER, 1 - UPPER]]))
    np.testing.assert_allclose(twin.to_env(decision.action), [[0.4, 5 - 0.4 * 5]], rtol=1e-5)


def test_a_mask_that_allows_nothing_is_named():
    policy, weights = choosing(0.1)
    twin, loaded, _ = twin_of(policy, weights)
    obs = {"x": np.zeros((2, 3), np.float32), "action_mask": np.int8([[1, 0, 0, 0], [0, 0, 0, 0]])}
    with pytest.raises(BadLeaf, match=r"E107.*row 1"):
        twin.act(loaded, obs, None, np.full((2, 2), 0.5, np.float32))


@pytest.mark.parametrize("case", ["remembers, two frames", "noise that remembers, three frames"])
def test_what_it_exports_is_what_it_was_made_of(case):
    policy, weights = CASES[case]()
    twin, _, state = twin_of(policy, weights)
    found = twin.export(Exported(3, state["arrays"]))
    assert json.dumps(found["network"], sort_keys=True) == json.dumps(state["network"], sort_keys=True)
    assert found["exploration"] == state["exploration"]
    assert map_leaves(np.asarray, found["arrays"]).keys() == state["arrays"].keys()


# ---------------------------------------------------------------- what is refused


def test_noisy_layers_are_refused_where_anything_is_explored():
    policy, weights = choosing(0.0, sigma0=0.5)
    with pytest.raises(ConfigError, match=r"cannot act in numpy alone.*noisy layers; set noisy=False"):
        twin_of(policy, weights)
    twin, loaded, _ = twin_of(policy, weights, explore=False)
    obs, noise = observed(policy.observation, masked(4), 0), np.full((N, policy.noise_size), 0.5, np.float32)
    wanted = policy.act(policy.load(weights), obs, None, None).action
    assert twin.noise_size == 0
    for drawn in (None, noise):
        np.testing.assert_array_equal(twin.act(loaded, obs, None, drawn).action, wanted)


class Rule(Policy):
    """Does nothing."""

    def act(self, obs, state, rng):
        return 0


def test_code_of_the_users_own_is_refused():
    rule = scripted("p", Rule, spec_of(BOX), spec_of(spaces.Discrete(2))).export(weights_of(0))
    with pytest.raises(ConfigError, match="its rule is code of your own"):
        NumpyPolicy(rule["network"], rule["exploration"])
    policy, weights = CASES["many parts"]()
    network = policy.export(weights)["network"]
    for change, said in (
        (
            {"encoder": {"kind": "custom", "name": "Mine"}},
            "encoder is code of your own, Mine; leave 'encoder'",
        ),
        ({"encoder": {"kind": "custom", "name": "Mine", "role": "actor_critic"}}, "leave 'actor_critic' out"),
        ({"torso": {"encoder": {"kind": "custom", "name": "Mine"}}}, "encoder is code of your own, Mine"),
        ({"distribution": {"own": "Mine"}}, "distribution is code of your own, Mine"),
        ({"kind": "joint"}, "chooses for a group"),
    ):
        for exploration in ({"kind": "sampled"}, None):
            with pytest.raises(ConfigError, match=said):
                NumpyPolicy({**network, **change}, exploration)
    with pytest.raises(LookupError, match="exploration of kind 'curious'"):
        NumpyPolicy(network, {"kind": "curious"})


def test_neither_jax_nor_gymnasium_is_imported():
    code = (
        "import sys, steppe.policies.actors, steppe.policies.numpy_policy; "
        "print(*{name.partition('.')[0] for name in sys.modules} & "
        "{'jax', 'equinox', 'optax', 'gymnasium', 'ray', 'scipy'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# ---------------------------------------------------------------- every algorithm


OFF = {"num_steps_sampled_before_learning_starts": 8, "train_batch_size": 8}
ALGORITHMS = {
    "PPO": (steppe.PPOConfig, BOUNDED, {"memory": "gru", "prev_action": True, "squash_actions": True}),
    "A2C": (steppe.A2CConfig, spaces.MultiDiscrete([2, 3]), {"autoregressive_actions": True}),
    "PG": (steppe.PGConfig, spaces.MultiBinary(2), {}),
    "IMPALA": (steppe.IMPALAConfig, spaces.Discrete(3), {"framestack": 2}),
    "APPO": (steppe.APPOConfig, spaces.Discrete(3), {"memory": "attention", "memory_size": 4}),
    "DQN": (steppe.DQNConfig, spaces.Discrete(3), OFF),
    "SAC": (steppe.SACConfig, BOUNDED, {**OFF, "exploration_noise": 0.2}),
    "SAC of choices": (steppe.SACConfig, spaces.Discrete(3), OFF),
    "TD3": (steppe.TD3Config, BOUNDED, {**OFF, "exploration_noise_correlation": 0.5, "framestack": 2}),
    "ES": (steppe.ESConfig, spaces.Discrete(3), {}),
}


class Plain(gymnasium.Env):
    """Chance to see, nothing to earn."""

    def __init__(self, config):
        self.observation_space, self.action_space = BOX, config["action"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action):
        return (
            self.np_random.normal(size=3).astype(np.float32),
            0.0,
            False,
            bool(self.np_random.random() < 0.2),
            {},
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithms_policy_acts_in_numpy(name):
    cls, action, changes = ALGORITHMS[name]
    settings = {"num_envs_per_env_runner": 2, "fcnet_hiddens": [5], "write_run": False, "seed": 0}
    settings |= {"observation_filter": "MeanStdFilter", **changes}
    with cls(env=Plain, env_config={"action": action}, **settings).build() as algo:
        if name != "ES":
            algo.train()
        policy, weights = algo.get_policy(), algo._learner.publish()["default_policy"]
        if name == "ES":
            with pytest.raises(ConfigError, match=r"moving its parameters \(ES\)"):
                twin_of(policy, weights)
            twin, loaded, _ = twin_of(policy, weights, explore=False)
            obs = observed(policy.observation, BOX, 0)
            wanted = policy.act(policy.load(weights), obs, policy.initial_state(N), None).action["action"]
            return np.testing.assert_array_equal(twin.act(loaded, obs, None, None).action, wanted)
        assert weights.version >= 1
        rng = np.random.default_rng(1)
        noises = [rng.uniform(0.001, 0.999, (N, policy.noise_size)).astype(np.float32) for _ in range(6)]
        assert_alike(policy, weights, BOX, noises)
    return None
