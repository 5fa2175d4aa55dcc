"""A learner on several devices learns what it learns on one."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import steppe
from steppe.learning.devices import BLOCKS, dealt, drawn, places, shuffled_by_block

SMALL = {
    "env": "CartPole-v1",
    "train_batch_size": 160,
    "num_envs_per_env_runner": 10,
    "fcnet_hiddens": [8],
    "write_run": False,
    "seed": 0,
}

RUNS = """
import functools, json, re, sys
import numpy as np
import steppe
from steppe.learning import devices

SMALL, texts = json.loads(sys.argv[1]), []

def run(cls, n, **settings):
    with cls(**SMALL, num_learners=n, **settings).build() as algo:
        for _ in range(3):
            result = algo.train()
        params = algo._learner.learners["default_policy"].state.params
        return np.asarray(params), result["info"]["default_policy"], len(params.sharding.device_set)

def read(compiled):
    @functools.cache
    def of(key):
        program, ready = compiled(key), []
        def run(*placed):
            if not ready:
                ready.append(program.lower(*placed).compile())
                texts.append(ready[0].as_text())
            return ready[0](*placed)
        return run
    return of

def moved(text):
    sizes = [0]
    for line in text.splitlines():
        found = re.search(r"= (.*?) (all-|reduce-scatter|collective|ragged)", line)
        if found and "-done(" not in line:
            shapes = re.findall(r"\\w+\\[([\\d,]*)\\]", found[1])
            sizes.append(sum(int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes))
    return max(sizes)

ppo, appo, told = {"minibatch_size": 32, "num_epochs": 2}, {"minibatch_size": 64, "framestack": 2}, {}
for name, settings, numbers in ("PPO", ppo, (2, 4)), ("APPO", appo, (4,)):
    cls = getattr(steppe, name + "Config")
    kept, stats, _ = run(cls, 1, **settings)
    if name == "APPO":
        devices.compiled_rows = read(devices.compiled_rows)
        devices.compiled_update = read(devices.compiled_update)
    for n in numbers:
        weights, own, count = run(cls, n, **settings)
        told[f"{name} {n}"] = [float(abs(weights - kept).max()), max(abs(own[k] - stats[k]) for k in stats)]
print(json.dumps({"apart": told, "devices": count, "moved": [*map(moved, texts)], "parameters": kept.size}))
"""


@pytest.fixture(scope="module")
def runs():
    """What a process with four devices says of the same runs on one, two and four of them."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", RUNS, json.dumps(SMALL)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_several_devices_learn_what_one_learns(runs):
    assert runs["apart"].keys() == {"PPO 2", "PPO 4", "APPO 4"}
    assert max(apart for one in runs["apart"].values() for apart in one) < 1e-5
    assert runs["devices"] == 4


def test_nothing_larger_than_the_gradient_goes_between_devices(runs):
    rows, update = runs["moved"]
    assert rows <= runs["parameters"]
    # Sums of the loss's parts travel with the gradient; a batch has ten times as many numbers.
    assert runs["parameters"] <= update <= runs["parameters"] + 16


@pytest.mark.parametrize(
    ("cls", "envs", "more"),
    [
        (steppe.A2CConfig, 3, {}),
        (steppe.PGConfig, 20, {}),
        (steppe.IMPALAConfig, 20, {"framestack": 3}),
        (
            steppe.A2CConfig,
            20,
            {"extra_loss": lambda params, batch: (batch["weight"] * batch["advantages"]).sum()},
        ),
    ],
)
def test_a_step_over_the_whole_batch_does_not_depend_on_blocks(cls, envs, more):
    """The order of the rows does not matter then, and an implementation without blocks is the reference."""
    told = []
    for n in (0, 1):
        settings = SMALL | {"num_envs_per_env_runner": envs, "min_sample_timesteps_per_iteration": 0, **more}
        with cls(**settings, num_learners=n).build() as algo:
            stats = [algo.train()["info"]["default_policy"] for _ in range(3)]
            told.append((algo.get_weights()["default_policy"], stats))
    (plain, stats), (blocked, own) = told
    np.testing.assert_allclose(blocked, plain, atol=2e-6)
    for one, other in zip(own, stats, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_run_on_one_of_many_goes_on_exactly(tmp_path):
    config = steppe.PPOConfig(**SMALL, num_learners=1, minibatch_size=64, num_epochs=2)
    with config.build() as algo:
        algo.train()
        path = algo.save(str(tmp_path / "c"))
        algo.train()
        wanted = algo.get_weights()["default_policy"]
    with steppe.load(path, write_run=False) as algo:
        algo.train()
        assert np.array_equal(algo.get_weights()["default_policy"], wanted)
    with steppe.load(path, write_run=False, num_learners=0) as algo:
        assert algo.train()["info"]["default_policy"]["rows"] == 160
        assert not np.array_equal(algo.get_weights()["default_policy"], wanted)  # other minibatches


def test_lanes_are_dealt_in_turn():
    lanes = np.arange(10)[None]
    assert dealt(lanes).reshape(BLOCKS, -1).tolist() == [[0, 8], [1, 9], *([lane, 0] for lane in range(2, 8))]
    images = np.arange(2 * 8 * 3).reshape(2, 8, 3)
    assert np.array_equal(dealt(images), images)


def numbered(rows, lanes):
    """Rows numbered from 1, and the same as the learner flattens them: block by block."""
    ids = np.arange(1, rows * lanes + 1).reshape(rows, lanes)
    return ids, dealt(ids).reshape(rows, BLOCKS, -1).swapaxes(0, 1).reshape(-1)


@given(
    rows=st.integers(1, 6), lanes=st.integers(1, 20), filled=st.floats(0.05, 1.0), seed=st.integers(0, 999)
)
def test_the_order_of_a_block_lists_its_acted_rows(rows, lanes, filled, seed):
    acted = np.random.default_rng(seed).random((rows, lanes)) < filled
    order, count = shuffled_by_block(np.random.default_rng(seed), acted, 2, 3)
    ids, flat = numbered(rows, lanes)
    assert order.shape == (2, BLOCKS, count.max() + 3)
    for epoch in order:
        met = [flat.reshape(BLOCKS, -1)[block, epoch[block, : count[block]]] for block in range(BLOCKS)]
        assert sorted(np.concatenate(met)) == sorted(ids[acted])
        assert all({(id - 1) % lanes % BLOCKS for id in own} <= {block} for block, own in enumerate(met))


@pytest.mark.parametrize(("lanes", "filled", "size"), [(16, 1.0, 4), (20, 0.4, 3), (3, 0.9, 2)])
def test_an_epoch_learns_from_each_acted_row_once(lanes, filled, size):
    acted = np.random.default_rng(0).random((7, lanes)) < filled
    (order,), count = shuffled_by_block(np.random.default_rng(0), acted, 1, size)
    ids, flat = numbered(7, lanes)
    minibatches = -(-int(count.max()) // size)
    take = jax.jit(
        lambda i: drawn({"id": jnp.asarray(flat)}, jnp.asarray(order), count, i, minibatches, size)
    )
    parts = [take(i) for i in range(minibatches)]
    met = np.concatenate([np.asarray(one["id"])[np.asarray(one["weight"]) > 0] for one in parts])
    assert sorted(met) == sorted(ids[acted])
    loads = [int(one["weight"].sum()) for one in parts]
    assert max(loads) - min(loads) <= BLOCKS
    assert all(len(one["id"]) == BLOCKS * size for one in parts)


def test_the_room_for_rows_grows_in_few_steps():
    rng, capacity, seen = np.random.default_rng(0), 0, set()
    for rows in range(100, 140):
        order, _ = shuffled_by_block(rng, np.ones((rows, 8), np.bool_), 1, 16, capacity)
        capacity = order.shape[-1]
        seen.add(capacity)
    assert len(seen) <= 3


@pytest.mark.parametrize(
    ("cls", "settings", "said"),
    [
        (
            steppe.PPOConfig,
            {"num_learners": 3},
            r"num_learners=3: lanes are dealt out in 8 blocks.* write 1, 2",
        ),
        (steppe.DQNConfig, {"num_learners": 2}, r"'default_policy' learns by DQN, on one device.*PPOConfig"),
        (
            steppe.PPOConfig,
            {"num_learners": 1, "memory": "lstm"},
            "with memory learn on one device; write num_l",
        ),
        (
            steppe.PPOConfig,
            {"num_learners": 1, "share": {"vf": "v"}},
            "policies with share learn on one device",
        ),
    ],
)
def test_what_cannot_be_is_said_when_a_run_is_built(cls, settings, said):
    with pytest.raises(steppe.ConfigError, match=said):
        cls(**SMALL, **settings).build()


def test_a_policy_of_another_kind_is_named():
    steppe.register_env("two", steppe.make_multi_agent("CartPole-v1"))
    policies = {"0": None, "1": steppe.PolicySpec(policy_class=steppe.DQNConfig)}
    config = steppe.PPOConfig(**SMALL | {"env": "two"}, env_config={"num_agents": 2}, policies=policies)
    with pytest.raises(steppe.ConfigError, match="policy '1' learns by DQN"):
        config.copy(num_learners=2).validate()


def test_a_policy_that_joins_is_refused_for_the_same_reason():
    with steppe.PPOConfig(**SMALL, num_learners=1).build() as run:
        with pytest.raises(
            steppe.ConfigError, match="policy 'other' learns by DQN, on one device; leave it out"
        ):
            run.add_policy("other", steppe.PolicySpec(policy_class=steppe.DQNConfig))
        run.add_policy("like", like="default_policy")
        assert run.get_weights().keys() == {"default_policy", "like"}


def test_devices_that_are_not_there_are_not_waited_for(monkeypatch):
    places.cache_clear()
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]] * 3)
    with pytest.raises(
        steppe.ConfigError, match=r"num_learners=4: JAX lists 3 device\(s\) \(cpu\); write num_learners=2\."
    ):
        places(4)


def test_a_minibatch_that_the_blocks_do_not_share_evenly_is_rounded_and_said(caplog):
    steppe.PPOConfig(**SMALL, num_learners=1, minibatch_size=45).validate()
    assert "minibatch_size=45 is no multiple of 8 blocks: a step takes 40 rows" in caplog.text


def test_rllibs_spellings_set_it():
    assert steppe.PPOConfig().learners(num_learners=4).num_learners == 4
    assert steppe.PPOConfig.from_dict({"num_learner_workers": 2}).num_learners == 2
