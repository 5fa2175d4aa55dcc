"""VDN: the sum of the members' values, in a loss by hand and in a game that a sum cannot say."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import steppe
from examples.two_step_game import config
from steppe.learning.joint_q import joint_loss
from tests.algorithms.test_qmix import batch, how, shows


def test_the_gradient_is_shared_by_the_members():
    """Of a sum, each member's value moves by the whole error: nobody's part is told apart."""
    members, model = shows(0)
    _, target = shows(2)

    def loss(m):
        return joint_loss(m, target, batch(), how(members))[0]

    gradient = jax.grad(loss)(model).network.advantage[0].bias
    # errors -1.5 (actions 0 and 1) and 5 (actions 1 and 0), over two rows
    np.testing.assert_allclose(gradient, [(-1.5 + 5.0) / 2, (-1.5 + 5.0) / 2], rtol=1e-5)


@pytest.mark.parametrize(("algo", "reached"), [(steppe.VDNConfig, 7.0), (steppe.QMIXConfig, 8.0)])
def test_a_sum_takes_the_sure_seven_where_all_is_explored_evenly(algo, reached):
    """As in table 1 of the QMIX paper: of random play, only the mixer sees that 8 is to be had."""
    small = {"lr": 2e-3, "num_steps_sampled_before_learning_starts": 200, "target_network_update_freq": 100}
    with config(algo, write_run=False, fcnet_hiddens=[32], gamma=0.99, **small).build() as algorithm:
        for _ in range(5):
            result = algorithm.train()
        assert algorithm.evaluate(num_episodes=1)["episode_reward_mean"] == reached
    assert np.isfinite(list(result["info"]["team"].values())).all()


def test_a_mixer_is_no_setting_of_a_sum():
    with pytest.raises(steppe.ConfigError, match="mixing_embed_dim"):
        steppe.VDNConfig(mixing_embed_dim=4)
