"""What callbacks and programs reach of a run under RLlib's names: the user's own envs, policies, episodes."""

import numpy as np
import pytest

import steppe
import steppe.config
from steppe.compat import DefaultCallbacks, gym
from steppe.compat.agents import ppo
from steppe.compat.ray.rllib.env import BaseEnv
from steppe.compat.ray.rllib.evaluation import MultiAgentEpisode, RolloutWorker
from steppe.compat.ray.rllib.policy import Policy
from steppe.compat.ray.rllib.policy.sample_batch import SampleBatch


class Levels(gym.Env):
    """Four steps a reward of ``phase``; the observation counts them."""

    def __init__(self, config):
        self.action_space, self.observation_space = gym.spaces.Discrete(2), gym.spaces.Discrete(5)
        self.phase = 0

    def set_phase(self, phase):
        self.phase = phase

    def reset(self):
        self.count = 0
        return 0

    def step(self, action):
        self.count += 1
        return self.count, float(self.phase), self.count == 4, {"count": self.count}


def trained(callbacks, iterations=1, env=Levels, **settings):
    trainer = ppo.PPOTrainer(env=env, config={"callbacks": callbacks, **settings})
    results = [trainer.train() for _ in range(iterations)]
    trainer.stop()
    return results


def calls(hook, function, **settings):
    """Train one iteration with one hook, which gives its arguments to ``function``."""
    cls = type("One", (DefaultCallbacks,), {hook: lambda self, **arguments: function(**arguments)})
    return trained(cls, **settings)[0]


def test_callbacks_reach_the_user_s_own_envs(quick):
    seen = []

    def start(*, worker, base_env, env_index, **_):
        envs = base_env.get_sub_environments()
        assert envs == base_env.get_unwrapped() == worker.foreach_env(lambda env: env)
        assert worker.env is envs[0]
        assert base_env.num_envs == len(envs) == 2
        envs[env_index].set_phase(env_index + 1)
        seen.append(type(envs[env_index]))

    result = calls("on_episode_start", start, num_envs_per_worker=2)
    assert set(seen) == {Levels}
    # Both envs play 8 of the 16 episodes; four steps of 1 and four of 2.
    assert (result["episode_reward_min"], result["episode_reward_max"]) == (4.0, 8.0)


def test_a_curriculum_from_the_docs(quick):
    class Curriculum(DefaultCallbacks):
        def on_train_result(self, *, trainer, result, **kwargs):
            phase = result["training_iteration"]
            trainer.workers.foreach_worker(lambda ev: ev.foreach_env(lambda env: env.set_phase(phase)))

    rewards = [result["hist_stats"]["episode_reward"][-1] for result in trained(Curriculum, 3)]
    assert rewards == [0.0, 4.0, 8.0]  # each sets the phase of the next


def test_envs_by_name_come_without_what_gymnasium_puts_around_them(quick):
    gym.register(id="levels-v0", entry_point=lambda: Levels({}), max_episode_steps=3)
    kinds = set()

    def start(*, base_env, **_):
        kinds.add(type(base_env.get_sub_environments()[0]))

    assert calls("on_episode_start", start, env="levels-v0")["episode_len_mean"] == 3
    calls("on_episode_start", start, env="CartPole-v1")
    assert {kind.__name__ for kind in kinds} == {"Levels", "CartPoleEnv"}


def test_wrappers_of_the_user_s_stay(quick):
    class Twice(gym.RewardWrapper):
        def reward(self, reward):
            return 2 * reward

    def start(*, base_env, **_):
        (env,) = base_env.get_sub_environments()
        assert type(env) is Twice
        env.set_phase(3)

    assert calls("on_episode_start", start, env=lambda c: Twice(Levels(c)))["episode_reward_max"] == 24.0


def test_a_worker(quick):
    def step(*, worker, policies, base_env, **_):
        assert isinstance(worker, RolloutWorker)
        assert isinstance(base_env, BaseEnv)
        assert (worker.worker_index, worker.in_evaluation) == (0, False)
        assert worker.policy_config["batch_mode"] == "truncate_episodes"
        assert list(worker.policy_map) == list(policies) == ["default_policy"]
        assert isinstance(policies["default_policy"], Policy)
        weights = [
            policy.get_weights()
            for policy in (worker.policy_map["default_policy"], worker.get_policy(), *policies.values())
        ]
        assert np.array_equal(weights[0], weights[1])
        assert np.array_equal(weights[0], weights[2])
        worker.seen = getattr(worker, "seen", 0) + 1
        counts.append(worker.seen)
        for what, message in (
            (lambda: worker.sample(), "trainer.train"),
            (lambda: worker.policy_mapp, "did you mean 'policy_map'"),
            (lambda: base_env.poll(), "get_sub_environments"),
        ):
            with pytest.raises(AttributeError, match=message):
                what()

    counts = []
    calls("on_episode_step", step)
    assert counts == list(range(1, 65))  # one and the same object


def test_a_worker_whose_envs_are_still_being_made(quick):
    def made(*, worker, sub_environment, env_context, **_):
        sub_environment.set_phase(5)
        with pytest.raises(AttributeError, match="still being made"):
            _ = worker.env
        told.append((worker.worker_index, env_context.vector_index, worker.policy_config["env"]))

    told = []
    assert calls("on_sub_environment_created", made)["episode_reward_mean"] == 20.0
    assert told == [(0, 0, Levels)]


def test_an_episode(quick):
    ids = set()

    class Look(DefaultCallbacks):
        def on_episode_start(self, *, episode, env_index, **kwargs):
            assert isinstance(episode, MultiAgentEpisode)
            assert (episode.length, episode.env_id, episode.total_reward) == (0, env_index, 0.0)
            assert episode.episode_id == episode.id
            episode.user_data = {"obs": []}
            episode.custom_metrics = {"before": 1.0}
            episode.own = "kept"

        def on_episode_step(self, *, episode, **kwargs):
            assert episode.last_raw_obs_for() == episode.last_observation_for() == episode.length
            assert episode.last_info_for() == {"count": episode.length}
            episode.user_data["obs"].append(int(episode.last_raw_obs_for("agent0")))

        def on_episode_end(self, *, episode, **kwargs):
            assert episode.own == "kept"
            assert episode.user_data["obs"] == [1, 2, 3, 4]
            assert episode.agent_rewards == {("agent0", "default_policy"): 0.0}
            assert (episode.get_agents(), episode.policy_for()) == (["agent0"], "default_policy")
            ids.add(episode.episode_id)
            episode.custom_metrics = {**episode.custom_metrics, "after": 2.0}
            for name, message in (
                ("last_action_for", "actions are not kept"),
                ("batch_builder", "on_postprocess_trajectory"),
                ("hist_dat", "did you mean 'hist_data'"),
                ("lenght", "did you mean 'length'"),
            ):
                with pytest.raises(AttributeError, match=message):
                    getattr(episode, name)

    (result,) = trained(Look)
    assert len(ids) == 16
    assert result["custom_metrics"]["before_mean"] == 1.0
    assert result["custom_metrics"]["after_mean"] == 2.0


def test_hist_data_of_the_episodes_of_an_iteration_stand_in_its_result(quick):
    class Hist(DefaultCallbacks):
        def on_episode_step(self, *, episode, **kwargs):
            episode.hist_data.setdefault("obs", []).append(int(episode.last_observation_for()))

    results = trained(Hist, 2, evaluation_interval=1, evaluation_num_episodes=1)
    for n, result in enumerate(results, start=1):
        assert result["hist_stats"]["obs"] == [1, 2, 3, 4] * 16
        assert result["hist_stats"]["episode_reward"] == [0.0] * 16 * n  # of the last hundred episodes
        assert result["hist_stats"]["episode_lengths"] == [4] * 16 * n


def test_batches_are_sample_batches_and_what_is_put_into_them_is_learned_from(quick):
    seen = []

    class Batches(DefaultCallbacks):
        def on_postprocess_trajectory(
            self, *, episode, agent_id, postprocessed_batch, original_batches, **kw
        ):
            assert isinstance(postprocessed_batch, SampleBatch)
            assert postprocessed_batch.count == 4
            policy, before = original_batches[agent_id]
            assert isinstance(policy, Policy)
            assert isinstance(before, SampleBatch)
            assert policy.policy_id == "default_policy"
            with pytest.raises(KeyError, match="computed by the learner"):
                postprocessed_batch[SampleBatch.VF_PREDS]
            postprocessed_batch[SampleBatch.REWARDS] = before[SampleBatch.OBS] + 1.0  # 1, 2, 3, 4

        def on_learn_on_batch(self, *, policy, train_batch, result, **kwargs):
            assert policy.config["env"] is Levels
            assert train_batch.count == 64 < len(train_batch["obs"])  # with 16 last rows and one that closes
            seen.append(float(train_batch["reward"].sum()))
            train_batch["reward"] = np.zeros_like(train_batch["reward"])
            result["mean_action"] = np.mean(train_batch["action"])
            with pytest.raises(KeyError, match="steppe's names: action"):
                train_batch[SampleBatch.ACTIONS]

    (result,) = trained(Batches)
    assert seen == [160.0]
    assert 0 < result["info"]["learner"]["default_policy"]["mean_action"] < 1


def test_dicts_of_functions_get_the_same(quick):
    def end(info):
        info["env"].get_unwrapped()[0].set_phase(1)
        info["episode"].custom_metrics["weights"] = len(info["policy"]["default_policy"].get_weights())
        info["episode"].hist_data["ones"] = [1.0]

    (result,) = trained({"on_episode_end": end})
    assert result["custom_metrics"]["weights_mean"] > 10
    assert result["hist_stats"]["ones"] == [1.0] * 16
    assert result["episode_reward_max"] == 4.0


@pytest.fixture
def trainer(quick):
    made = ppo.PPOTrainer(env=Levels)
    yield made
    made.stop()


def test_policies_act_and_say_what_they_have_not(trainer, monkeypatch, caplog):
    monkeypatch.setattr(steppe.config.messages, "_said", set())
    policy = trainer.get_policy()
    assert (policy.observation_space.n, policy.action_space.n) == (5, 2)
    actions, state, info = policy.compute_actions(np.arange(5), explore=False)
    assert isinstance(actions, np.ndarray)
    assert actions.tolist() == [trainer.compute_action(n, explore=False) for n in range(5)]
    assert (state, info) == ([], {})
    assert len({tuple(policy.compute_actions([0] * 8)[0]) for _ in range(20)}) > 1  # drawn
    one = policy.compute_single_action(3, explore=False, clip_action=True, timestep=7)
    assert one == (actions[3], [], {})
    trainer.compute_single_action(3, unsquash_action=False)
    assert "unsquash_action=False has no effect" in caplog.text
    with pytest.raises(TypeError, match=r"no argument 'explor'.*unsquash_action"):
        trainer.compute_action(3, explor=False)
    for name, message in (("model", "get_weights"), ("loss", "algorithms"), ("get_wights", "'get_weights'")):
        with pytest.raises(AttributeError, match=message):
            getattr(policy, name)


def test_all_of_several_actions(trainer):
    best = {key: trainer.compute_action(n, explore=False) for key, n in (("a", 1), ("b", 2))}
    obs = {"a": 1, "b": 2}
    assert trainer.compute_actions(obs, explore=False) == best
    fetched = trainer.compute_actions(obs, full_fetch=True, explore=False, prev_action=None)
    assert fetched == (best, {"a": [], "b": []}, {})
    with pytest.raises(TypeError, match="full_fecth"):
        trainer.compute_actions(obs, full_fecth=True)


def test_actions_of_several_parts_come_in_a_list(quick):
    class Pairs(Levels):
        def __init__(self, config):
            super().__init__(config)
            self.action_space = gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Discrete(3)])

    trainer = ppo.PPOTrainer(env=Pairs)
    actions, _, _ = trainer.get_policy().compute_actions([0, 1, 2])
    assert all(isinstance(action, tuple) and Pairs({}).action_space.contains(action) for action in actions)
    trainer.stop()


def test_workers_of_a_trainer(trainer):
    workers = trainer.workers
    assert workers.foreach_env(lambda env: env.phase) == [[0]]
    assert workers.foreach_worker(lambda worker: worker.worker_index) == [0]
    assert workers.local_worker() is trainer.workers.local_worker()
    assert workers.remote_workers() == []
    assert type(workers.local_worker().env) is Levels
    with pytest.raises(AttributeError, match="act with the newest weights"):
        workers.sync_weights()
    with pytest.raises(AttributeError, match="did you mean 'iteration'"):
        _ = trainer.iterations
    assert not hasattr(trainer, "__wrapped__")
    assert trainer.get_config() is trainer.config
    assert trainer.training_iteration == trainer.iteration == 0


def test_policies_join_and_leave_a_trainer(trainer):
    main = trainer.get_policy()
    past = trainer.add_policy("past", type(main), config={"gamma": 0.5})
    past.set_weights(main.get_weights())
    asked = []

    def mapping(agent_id, episode, worker, **kwargs):
        asked.append(worker.worker_index)
        return "new"

    trainer.add_policy("new", policies_to_train=["new", "default_policy"], policy_mapping_fn=mapping)
    assert list(trainer.workers.local_worker().policy_map) == ["default_policy", "past", "new"]
    assert trainer.train()["info"]["learner"].keys() == {"default_policy", "new"}
    assert set(asked) == {0}
    text = (
        r"policies_to_train=\['default_policy'\]: of those before 'other', \['default_policy', 'new'\] learn"
    )
    with pytest.raises(steppe.ConfigError, match=text):
        trainer.add_policy("other", policies_to_train=["default_policy"])
    trainer.remove_policy("default_policy", policies_to_train=lambda policy_id, *_: policy_id == "new")
    trainer.remove_policy("past")
    assert trainer.train()["info"]["learner"].keys() == {"new"}


def test_a_low_level_env_is_written_and_recognised():
    class Own(BaseEnv):
        def poll(self):
            raise NotImplementedError

        def send_actions(self, action_dict):
            raise NotImplementedError

    assert BaseEnv is steppe.BaseEnv
    assert isinstance(Own(), BaseEnv)
