"""SAC with a memory: losses over sequences against a walk row by row, whole runs, exact resume."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.algorithms.sac import sac_losses
from steppe.errors import ConfigError
from steppe.learning.action_networks import make_action_networks
from steppe.learning.walks import Walk, acting_params, judged, opened
from steppe.models.before import Memory
from steppe.spaces import map_leaves, spec_of, take
from steppe.types import SpacePair
from tests.algorithms.test_r2d2 import Noise, sequences
from tests.states import diff, state_hash

TINY = {
    "memory": "lstm",
    "memory_size": 8,
    "max_seq_len": 5,
    "burn_in": 2,
    "num_envs_per_env_runner": 3,
    "train_batch_size": 20,
    "fcnet_hiddens": [8],
    "min_sample_timesteps_per_iteration": 60,
    "num_steps_sampled_before_learning_starts": 30,
    "replay_buffer_capacity": 500,
    "write_run": False,
    "seed": 0,
}
WHOLE = "default_policy"
OBS = spec_of(spaces.Box(-1, 1, (2,), np.float32))


def networks(space):
    nets = make_action_networks(
        SpacePair(OBS, spec_of(space)),
        np.random.default_rng(0),
        algorithm="SAC",
        unused=(),
        discrete=True,
        count=2,
        normalize=False,
        hiddens=(6,),
        activation="relu",
        conv_filters=None,
        memory=Memory("lstm", 4, 5, True, True),
    )
    form = nets.structure
    return form, form.actor.unravel(nets.actor), form.critics.unravel(nets.critics)


def walked(actor, critics, rows):
    """Parameters ``(s, l, 3)`` and values ``(2, s, l, 3)``, row by row; critics begin with zeros."""
    shape = rows["fresh"].shape
    params, values = np.zeros((*shape, 3), np.float32), np.zeros((2, *shape, 3), np.float32)
    acts = jax.jit(lambda *given: actor(*given))

    @jax.jit
    def judges(critic, obs, state):
        y, memory = critic.torso.cell(critic.torso.inputs(obs, state), state["memory"])
        return critic.mlp(y), memory

    for i in range(shape[0]):
        own, action = take(rows["state"]["memory"], i), rows["state"]["action"][i]
        if rows["fresh"][i, 0]:
            own = map_leaves(np.zeros_like, own)
        theirs = [map_leaves(np.zeros_like, own)] * 2
        for t in range(shape[1]):
            told = {"action": jnp.asarray(action), "reward": rows["earned"][i, t]}
            obs = rows["obs"][i, t]
            params[i, t], own = acts(obs, {"memory": own, **told})
            for j in range(2):
                critic = jax.tree.map(lambda a, j=j: a[j], critics)
                values[j, i, t], theirs[j] = judges(critic, obs, {"memory": theirs[j], **told})
            action = rows["action"][i, t]
    return params, values


@pytest.mark.parametrize("burn_in", [0, 3])
def test_a_walk_answers_for_each_row_what_a_step_by_step_walk_does(burn_in):
    _, actor, critics = networks(spaces.Discrete(3))
    rows = sequences()
    params, values = walked(actor, critics, rows)
    n, none = rows["fresh"].size, jnp.zeros((rows["fresh"].size, 0))
    here = Walk(rows, None, burn_in)
    np.testing.assert_allclose(acting_params(actor, here), params.reshape(n, 3), atol=1e-5)
    np.testing.assert_allclose(judged(critics, here, none), values.reshape(2, n, 3), atol=1e-5)
    there = here._replace(end=rows["end"])
    at = np.arange(3)[:, None], rows["end"]
    np.testing.assert_allclose(acting_params(actor, there), params[at].reshape(n, 3), atol=1e-5)
    np.testing.assert_allclose(judged(critics, there, none), values[:, *at].reshape(2, n, 3), atol=1e-5)


def test_the_losses_are_those_of_the_rows_that_count():
    """Against numpy, for choices: means over the rows that are learned from, weighted by their sequence's."""
    form, actor, critics = networks(spaces.Discrete(3))
    rows = sequences()
    params, values = walked(actor, critics, rows)
    noise = jnp.zeros((2, rows["fresh"].size, 1))
    learned = (actor, jnp.float32(np.log(0.5)), critics)
    _, (parts, error) = sac_losses(form, learned, critics, opened(rows, 0), (noise[0], noise[1]), 0.3)
    p = np.exp(params - params.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    soft = (p * (values.min(0) - 0.5 * np.log(p))).sum(-1)
    at = np.arange(3)[:, None], rows["end"]
    target = rows["reward"] + rows["discount"] * soft[at]
    chosen = np.take_along_axis(values, np.broadcast_to(rows["action"], (2, 3, 7))[..., None], -1)[..., 0]
    mask, weight = rows["learned"], np.broadcast_to(rows["weight"][:, None], (3, 7))
    td = chosen - target
    assert parts["critic_loss"] == pytest.approx(0.5 * (weight * td**2)[:, mask].mean(1).sum(), rel=1e-4)
    assert parts["actor_loss"] == pytest.approx(-soft[mask].mean(), abs=1e-5)
    assert parts["entropy"] == pytest.approx(-(p * np.log(p)).sum(-1)[mask].mean(), abs=1e-5)
    assert parts["td_error"] == pytest.approx(np.abs(td)[:, mask].mean(), abs=1e-5)
    np.testing.assert_allclose(error.reshape(3, 7)[mask], td[0][mask], atol=1e-4)


# --- whole runs ------------------------------------------------------------------------------------------


class Continuous(Noise):
    """The same with an action of two numbers."""

    def __init__(self, env_config):
        super().__init__(env_config)
        self.action_space = spaces.Box(-1, 2, (2,), np.float32)


def config(env=Noise, **changes):
    return steppe.SACConfig(env=env, **{**TINY, **changes})


@pytest.mark.parametrize("env", [Noise, Continuous])
def test_acting_is_what_learning_sees(env):
    """Without learning, the density of what was chosen is that of a walk from the stored states."""
    with config(env, lr=0.0, prev_action=True, prev_reward=True).build() as algo:
        learner, kept = algo._learner.learners[WHOLE], []
        add = learner.add
        learner.add = lambda rollout: (kept.append(rollout), add(rollout))
        algo.train()
        columns = learner._replay.columns(learner._replay._ready.members)
        form = learner._method.static.networks
        actor = form.actor.unravel(learner.state.params[: form.actor.size])
        params = acting_params(actor, Walk(columns, None, 0))
    walk = Walk(columns, None, 0)
    logp = form.distribution.logp(params, jax.tree.map(walk.at, columns["action"]))
    logp = np.asarray(logp).reshape(columns["filled"].shape)
    acted = {}
    for rollout in kept:
        for row, lane in np.argwhere(rollout.acted):
            acted[tuple(rollout.obs[row, lane].tolist())] = rollout.logp[row, lane]
    found = [
        (logp[i, t], acted[tuple(columns["obs"][i, t].tolist())]) for i, t in np.argwhere(columns["learned"])
    ]
    assert len(found) > 50
    assert np.std(found) > 2e-4  # a new policy is nearly even
    np.testing.assert_allclose(*np.array(found).T, atol=2e-6)


@pytest.mark.parametrize(
    ("env", "changes"),
    [
        (Noise, {"prev_action": True, "env_config": {"masked": True}}),
        (
            Continuous,
            {"memory": "gru", "prev_reward": True, "framestack": 2, "observation_filter": "MeanStdFilter"},
        ),
    ],
)
def test_a_run_learns_and_goes_on_exactly_from_its_checkpoint(tmp_path, env, changes):
    with config(env, **changes).build() as algo:
        before = algo.get_weights()[WHOLE]
        algo.train()
        algo.save(tmp_path / "c")
        assert algo.train()["info"][WHOLE]["updates_skipped"] == 0
        assert np.abs(algo.get_weights()[WHOLE] - before).max() > 0.0
        wanted = algo.get_state()
        with steppe.load(tmp_path / "c", env=env) as other:
            other.train()
            found = other.get_state()
    assert state_hash(wanted) == state_hash(found), diff(wanted, found)


def test_what_does_not_go_together_is_said():
    with pytest.raises(ConfigError, match="exploration_noise does not go with memory='lstm'"):
        config(Continuous, exploration_noise=0.1).build()
    with pytest.raises(ConfigError, match=r"memory='lstm' is not for TD3.*SACConfig or PPOConfig"):
        steppe.TD3Config(env=Continuous, memory="lstm", write_run=False).build()
