"""EnvPool's own envs, where it is installed: each row is what Gymnasium's env of the same name would give."""

import gymnasium
import numpy as np
import pytest

import steppe
from steppe.envs.registry import build
from steppe.envs.vector import VectorRows
from steppe.errors import ConfigError

envpool = pytest.importorskip("envpool", reason="EnvPool is not installed (extra envpool)")

# Gymnasium's word on the bounds that EnvPool gives to its spaces.
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")


def poles(ctx):
    return envpool.make_gymnasium(
        "CartPole-v1", num_envs=ctx.num_envs, seed=ctx.get("seed", 1), max_episode_steps=20
    )


def test_every_row_is_where_gymnasium_s_env_would_be():
    """Both take the same actions from the same states: no row is lost or invented, last ones among them."""
    n, rng = 6, np.random.default_rng(0)
    env = build(poles, num_envs=n, run_seed=0)
    twins = [gymnasium.make("CartPole-v1").unwrapped for _ in range(n)]
    for twin in twins:
        twin.reset()
    (step,) = env.poll()
    owner, actions, ended, cut = {}, {}, 0, 0
    for _ in range(200):
        owner |= {info.slot: info.env for info in step.opened}
        chosen = {}
        for row, slot in enumerate(step.slot.tolist()):
            twin, t = twins[owner[slot]], int(step.t[row])
            if t == 0:
                twin.state, twin.steps_beyond_terminated = tuple(step.obs[row].astype(float)), None
                assert np.abs(step.obs[row]).max() <= 0.05
                assert step.reward[row] == 0
            else:
                expected, reward, over, _, _ = twin.step(actions[slot])
                np.testing.assert_allclose(step.obs[row], expected, atol=1e-4)
                # At its limit EnvPool says that an episode was truncated, even if it terminated, too.
                flags = bool(step.terminated[row]), bool(step.truncated[row])
                assert (step.reward[row], *flags) == (reward, over and t < 20, t == 20)
            if step.terminated[row] or step.truncated[row]:
                ended, cut = ended + 1, cut + int(step.truncated[row])
            else:
                chosen[slot] = int(rng.integers(2))
        actions = chosen
        if actions:
            env.send_actions(np.array(list(actions)), np.array(list(actions.values())))
        (step,) = env.poll()
    assert ended > 20
    assert 0 < cut < ended
    assert env.health() == {"E401 seed": 1}
    env.close()


@pytest.mark.parametrize("name", ["Pendulum-v1", "FrozenLake-v1", "Catch-v0", "Pong-v5"])
def test_spaces_of_every_kind_are_stepped(name):
    env = VectorRows(envpool.make_gymnasium(name, num_envs=2), seeds=[0, 1])
    space = env._batch.env.single_action_space
    (step,) = env.poll()
    for _ in range(12):
        waiting = env.pending()
        if waiting:
            actions = np.array([space.sample() for _ in waiting[0].slot])
            env.send_actions(waiting[0].slot, actions)
        (step,) = env.poll()
    assert env.env_steps > 12
    assert np.isfinite(step.obs).all()
    assert set(env.health()) == {"E401 seed"}
    env.close()


def test_training_evaluation_and_going_on(tmp_path):
    small = {"num_envs_per_env_runner": 4, "train_batch_size": 64, "minibatch_size": 64, "num_epochs": 1}
    small |= {"fcnet_hiddens": [8], "write_run": False, "seed": 0}
    evaluation = {"evaluation_interval": 1, "evaluation_duration": 3}
    evaluation |= {"evaluation_config": {"env_config": {"seed": 2}}}
    with steppe.PPOConfig(env=poles, env_config={"seed": 1}, **small, **evaluation).build() as algo:
        result = algo.train()
        first = algo.runner.env.pending()[0].opened
        path = algo.save(tmp_path / "saved")
    assert result["evaluation"]["episodes_this_iter"] == 3
    assert result["episode_len_mean"] <= 20
    with steppe.load(path, env=poles, env_config={"seed": 3}) as again:
        assert again.config.env_config == {"seed": 3}
        now = again.runner.env.pending()[0]
        assert [info.episode for info in now.opened] == [info.episode + 1 for info in first]
        assert now.t.tolist() == [0] * 4
        again.train()


def test_its_asynchronous_mode_and_a_limit_from_outside_are_refused():
    with pytest.raises(ConfigError, match="batch_size=2 of 4 envs: EnvPool would step some of its envs"):
        VectorRows(envpool.make_gymnasium("CartPole-v1", num_envs=4, batch_size=2), seeds=range(4))
    with pytest.raises(
        ConfigError, match=r"EnvPool cannot be asked to reset one.*give the limit to its constr"
    ):
        build(poles, num_envs=2, run_seed=0, max_episode_steps=5)
