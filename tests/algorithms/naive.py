"""One gradient step written out plainly, to hold the updates of on-policy learners against."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import steppe
from tests.envs_for_tests import SimpleCorridor

TINY = {
    "env": SimpleCorridor,
    "env_config": {"corridor_length": 4},
    "max_episode_steps": 6,
    "num_envs_per_env_runner": 3,
    "train_batch_size": 48,
    "min_sample_timesteps_per_iteration": 0,
    "fcnet_hiddens": [8],
    "observation_filter": "NoFilter",
    "reward_scale": "none",
    "gamma": 0.9,
    "write_run": False,
    "seed": 0,
}
"""No running statistics, so that a batch is what it is; episodes that end in both ways and at the edge."""


def one_update(config: steppe.config.AlgorithmConfig, shift: float = 0.0):
    """Sample a batch, move the weights by ``shift`` times noise, and learn from it.

    Returns:
        The learner; its parameters as they were before the update; the batch; the statistics.
    """
    with config.build() as algo:
        learner, (sample,) = algo._learner.learners["default_policy"], algo.runner.sample()
        learner.add(sample.rollouts[0])
        seen = []
        learner.on_batch = seen.append
        weights = learner.get_weights()
        noise = np.random.default_rng(0).normal(size=weights.shape)
        learner.set_weights(weights + shift * noise.astype(np.float32))
        before = learner.get_weights()
        stats = learner.update(48)
    return learner, before, {name: np.asarray(column) for name, column in seen[0].items()}, stats


def acted_rows(batch):
    """Trajectories of a batch, each a list of (row, lane) that ends with the row that bootstraps it."""
    found = []
    for lane in range(batch["filled"].shape[1]):
        open_rows = []
        for row in np.flatnonzero(batch["filled"][:, lane]):
            open_rows.append((int(row), lane))
            if batch["terminated"][row, lane] or batch["truncated"][row, lane]:
                found.append(open_rows)
                open_rows = []
        found.append(open_rows)
    return [rows for rows in found if len(rows) > 1]


def network(learner, params, batch):
    """Values and log-probabilities of the batch's actions by some parameters, ``(rows, lanes)`` each."""
    model = learner.networks.layout.unravel(jnp.asarray(params))
    flat = jnp.asarray(batch["obs"].reshape(-1, *batch["obs"].shape[2:]))
    outputs, value = jax.vmap(model)(flat)
    logp = learner.static.distribution.logp(outputs, jnp.asarray(batch["action"].reshape(-1)))
    return np.asarray(value).reshape(batch["filled"].shape), np.asarray(logp).reshape(batch["filled"].shape)


def vtrace_by_loop(batch, value, log_ratio, gamma, clip_rho=1.0, lam=1.0):
    """Advantages and targets by the recursion of the paper, trajectory by trajectory.

    With ``log_ratio`` 0 they are those of GAE.
    """
    advantage, target = {}, {}
    for rows in acted_rows(batch):
        v = [float(value[place]) for place in rows]
        if batch["terminated"][rows[-1]]:
            v[-1] = 0.0
        excess = 0.0
        for i in reversed(range(len(rows) - 1)):
            ratio = float(np.exp(log_ratio[rows[i]]))
            rho, c = min(clip_rho, ratio), lam * min(1.0, ratio)
            error = float(batch["reward"][rows[i + 1]]) + gamma * v[i + 1] - v[i]
            advantage[rows[i]] = rho * (error + gamma * lam * excess)
            excess = rho * error + gamma * c * excess
            target[rows[i]] = v[i] + excess
    return advantage, target


def first_step(learner, params, batch, loss, *, lr, grad_clip):
    """Parameters after Adam's first step on ``loss(logp, value, entropy)`` of the acted rows.

    At the first step Adam's estimates of the moments are the gradient and its square.
    """
    places = [place for rows in acted_rows(batch) for place in rows[:-1]]
    obs = jnp.asarray(np.stack([batch["obs"][place] for place in places]))
    action = jnp.asarray(np.stack([batch["action"][place] for place in places]))

    def total(flat):
        outputs, value = jax.vmap(learner.networks.layout.unravel(flat))(obs)
        distribution = learner.static.distribution
        return loss(places, distribution.logp(outputs, action), value, distribution.entropy(outputs))

    gradient = np.asarray(jax.grad(total)(jnp.asarray(params)), np.float64)
    norm = np.linalg.norm(gradient)
    gradient *= min(1.0, grad_clip / norm)
    return params - lr * gradient / (np.abs(gradient) + 1e-5), norm


def column(by_place, places):
    """A dict by (row, lane) as an array in the order of ``places``."""
    return jnp.asarray([by_place[place] for place in places], jnp.float32)
