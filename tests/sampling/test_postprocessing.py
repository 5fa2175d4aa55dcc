"""What ``postprocess_trajectory`` is given, and what becomes of what it gives back."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import steppe

SMALL = {"fcnet_hiddens": [4], "num_epochs": 1, "minibatch_size": 64, "observation_filter": "NoFilter"}


class Odd(steppe.MultiAgentEnv):
    """Agent 1 of 0, 1, 2 acts on even steps only, 2 leaves after step 3; an obs is [10 * agent + t]."""

    def __init__(self, env_config=None):
        self.possible_agents = [0, 1, 2]
        self.observation_space, self.action_space = spaces.Box(0, 99, (1,)), spaces.Discrete(2)

    def _obs(self):
        here = [0] + [1] * (self.t % 2 == 0) + [2] * (self.t <= 3)
        return {agent: np.array([10 * agent + self.t], np.float32) for agent in here}

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self._obs(), {}

    def step(self, actions):
        self.t += 1
        over = self.t == 6
        gone = {2: True} if self.t == 3 else {}
        return (
            self._obs(),
            {agent: 1.0 for agent in actions},
            {**gone, "__all__": over},
            {"__all__": False},
            {},
        )


def config(function, **settings):
    run = {"num_envs_per_env_runner": 2, "train_batch_size": 12, "write_run": False, "seed": 0}
    return steppe.PPOConfig(env=Odd, postprocess_trajectory=function, **{**run, **SMALL, **settings})


def test_rows_of_others_are_aligned_by_env_step():
    seen = []

    def look(policy, batch, others, episode):
        seen.append((policy, episode, batch, {agent: rows for agent, (_, rows) in others.items()}))

    with config(look).build() as algo:
        algo.train()
    first = {
        (episode.env_index, batch["obs"][0, 0] // 10): (batch, others) for _, episode, batch, others in seen
    }
    assert first.keys() == {(env, agent) for env in (0, 1) for agent in (0, 1, 2)}
    batch, others = first[0, 0]
    assert batch["obs"].ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["rewards"].tolist() == [1] * 6
    assert others.keys() == {0, 1, 2}
    assert others[0]["obs"].tolist() == batch["obs"].tolist()
    assert others[0]["present"].all()
    assert others[1]["obs"].ravel().tolist() == [10, 0, 12, 0, 14, 0]
    assert others[1]["present"].tolist() == [True, False] * 3
    assert others[2]["obs"].ravel().tolist() == [20, 21, 22, 0, 0, 0]
    assert others[2]["present"].tolist() == [True] * 3 + [False] * 3
    batch, others = first[1, 1]
    assert batch["obs"].ravel().tolist() == [10, 12, 14]
    assert others[0]["obs"].ravel().tolist() == [0, 2, 4]
    assert others[2]["obs"].ravel().tolist() == [20, 22, 0]
    assert {type(policy.policy_id) for policy, *_ in seen} == {str}
    assert {episode.id for _, episode, *_ in seen} == {"0-0-0", "0-1-0"}


def test_columns_reach_the_loss():
    """A column that says which row it is comes with the very row in every minibatch."""

    def mark(policy, batch, others, episode):
        batch["mark"] = batch["obs"][:, 0].astype(int) * 3
        batch["wide"] = np.stack([batch["obs"], -batch["obs"]], axis=1)

    def extra(params, batch):
        right = (batch["mark"] == (batch["obs"][:, 0] * 3).astype(jnp.int32)).all()
        right &= (batch["wide"][:, 0] == batch["obs"]).all() & (batch["wide"][:, 1] == -batch["obs"]).all()
        return jnp.where(right, 5.0, jnp.nan)

    with config(mark, extra_loss=extra, train_batch_size=24, rollout_fragment_length=4).build() as algo:
        for _ in range(3):
            stats = algo.train()["info"]["default_policy"]
            assert stats["updates_skipped"] == 0
            assert stats["extra_loss"] == 5.0
            parts = stats["policy_loss"] + 0.5 * stats["vf_loss"] + 5.0
            assert stats["total_loss"] == pytest.approx(parts, abs=1e-4)


def test_extra_loss_is_differentiated():
    def pull(params, batch):
        return 1e3 * jnp.square(params.critic.mlp.biases[-1] - 2.0).sum()

    with config(None, extra_loss=pull, lr=0.1, grad_clip=None).build() as algo:
        for _ in range(120):
            algo.train()
        learner = algo._learner.learners["default_policy"]
        bias = learner.static.layout.unravel(np.asarray(learner.state.params)).critic.mlp.biases[-1]
    assert bias == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (lambda params, batch: batch["advantages"], r"gave an array of shape \(12,\): it must be one number"),
        (lambda params, batch: None, "gave None: it must be one number"),
        (lambda params, batch: batch["speed"], r"batch\['speed'\], and there are action_logp, actions, adv"),
    ],
    ids=["array", "nothing", "missing column"],
)
def test_an_extra_loss_is_one_number_of_columns_that_are_there(extra, said):
    with config(None, extra_loss=extra).build() as algo, pytest.raises(steppe.ConfigError, match=said):
        algo.train()


def test_an_extra_loss_may_be_an_object_that_has_no_hash():
    @dataclass
    class Weighted:
        weight: float

        def __call__(self, params, batch):
            return self.weight

    with config(None, extra_loss=Weighted(2.5)).build() as algo:
        assert algo.train()["info"]["default_policy"]["extra_loss"] == 2.5


def test_what_cannot_be_called_is_said_when_it_is_set():
    with pytest.raises(
        steppe.ConfigError, match=r"function of \(policy, batch, other_agent_batches, episode\)"
    ):
        config(lambda policy, batch, others: None)
    with pytest.raises(
        steppe.ConfigError, match=r"extra_loss=.* must be a function of \(params, batch\) or None"
    ):
        config(None, extra_loss=lambda policy, model, batch: 0.0)


@pytest.mark.parametrize("scale", ["running", "none"])
def test_advantages_and_value_targets_of_ones_own_replace_ours(scale):
    """Constant targets in the unit of rewards: what the critic says of every observation ends up there."""

    def own(policy, batch, others, episode):
        n = len(batch["rewards"])
        batch["value_targets"] = np.full(n, 7.0)
        batch["advantages"] = np.where(batch["actions"] == 1, 1.0, -1.0)

    settings = {"reward_scale": scale, "lr": 0.02, "num_epochs": 20, "fcnet_hiddens": [16]}
    with config(own, **settings).build() as algo:
        for _ in range(25):
            algo.train()
        learner = algo._learner.learners["default_policy"]
        values = learner.values(np.array([[0.0], [12.0], [21.0]], np.float32))
        assert values == pytest.approx([7.0] * 3, rel=0.1)
        assert all(algo.compute_single_action(np.array([o], np.float32)) == 1 for o in (0, 12, 21))


def test_the_critic_can_be_asked():
    asked = []

    def ask(policy, batch, others, episode):
        batch["central_vf"] = policy.value(batch["obs"])
        asked.append((batch["obs"], batch["central_vf"]))

    with config(ask).build() as algo:
        algo.train()
        learner = algo._learner.learners["default_policy"]
        before = [(obs, value.copy()) for obs, value in asked]
        assert all(value.shape == (len(obs),) for obs, value in before)
        assert not np.allclose(learner.values(before[0][0]), before[0][1])  # it has learned since


def test_observations_of_the_batch_may_be_filled_in():
    """The last ``new_obs`` is a row of its own; the others are the next ``obs``."""
    learned = []

    class Look(steppe.Callbacks):
        def on_learn_on_batch(self, *, policy, train_batch, result):
            learned.append({name: np.array(column) for name, column in train_batch.items()})

    def fill(policy, batch, others, episode):
        batch["obs"][:] = 50
        batch["new_obs"][:] = 60

    with config(fill, callbacks_class=Look).build() as algo:
        algo.train()
    batch = learned[0]
    ends = (batch["terminated"] | batch["truncated"]) & batch["filled"]
    acted = batch["filled"][:-1] & batch["filled"][1:] & ~ends[:-1]
    assert (batch["obs"][:-1][acted] == 50).all()
    assert (batch["obs"][ends] == 60).all()


def test_policies_that_do_not_learn_are_seen_but_their_rows_are_not_kept():
    class Always(steppe.Policy):
        def act(self, obs, state, rng):
            return 1

    actions, values = [], []

    def look(policy, batch, others, episode):
        scripted, rows = others[1]
        actions.append(rows["actions"][rows["present"]])
        values.append(scripted)

    specs = {"learned": None, "rule": steppe.PolicySpec(Always)}
    mapping = {"policies": specs, "policy_mapping_fn": lambda agent: "rule" if agent == 1 else "learned"}
    with config(look, **mapping).build() as algo:
        result = algo.train()
    assert set(result["info"]) == {"learned"}
    assert set(np.concatenate(actions).tolist()) == {1}
    with pytest.raises(steppe.ConfigError, match="policy 'rule' is scripted: it has no critic"):
        values[0].value(np.zeros((1, 1)))


def test_a_policy_may_have_a_function_of_its_own():
    calls = []

    def mine(policy, batch, others, episode):
        calls.append(policy.policy_id)

    specs = {"a": {"postprocess_trajectory": mine}, "b": {}}
    policies = {id: steppe.PolicySpec(config=own) for id, own in specs.items()}
    mapping = {"policies": policies, "policy_mapping_fn": lambda agent: "b" if agent else "a"}
    made = config(None, **mapping)
    assert made.code_fields() == ["env", "policies", "policy_mapping_fn"]
    with made.build() as algo:
        algo.train()
    assert set(calls) == {"a"}


def test_a_run_with_columns_of_its_own_resumes_exactly():
    def mark(policy, batch, others, episode):
        batch["advantages"] = batch["obs"][:, 0] + batch["actions"]

    made = config(mark, train_batch_size=24, rollout_fragment_length=5)
    with made.build() as algo:
        algo.train()
        path = algo.save("c")
        algo.train()
        expected = algo.get_weights()["default_policy"]
    with steppe.load(path, env=Odd, postprocess_trajectory=mark) as algo:
        algo.train()
        assert np.array_equal(algo.get_weights()["default_policy"], expected)
    with pytest.raises(steppe.CheckpointError, match=r"postprocess_trajectory=[.]{3} "):
        steppe.load(path, env=Odd)


def test_fragments_in_which_nobody_acted_have_the_columns_too():
    """One step a fragment: agent 1 waits in every other one, and in the first nobody has an outcome yet."""

    def mark(policy, batch, others, episode):
        batch["mark"] = batch["obs"][:, 0].astype(int) * 3

    def extra(params, batch):
        right = (batch["mark"] == (batch["obs"][:, 0] * 3).astype(jnp.int32)) | (batch["weight"] == 0)
        return jnp.where(right.all(), 5.0, jnp.nan)

    mapping = {
        "policies": {"even", "odd"},
        "policy_mapping_fn": lambda agent: "odd" if agent == 1 else "even",
    }
    made = config(mark, extra_loss=extra, rollout_fragment_length=1, **mapping)
    code = {"env": Odd, "postprocess_trajectory": mark, "extra_loss": extra}
    with made.build() as algo:
        for iteration in range(4):
            info = algo.train()["info"]
            assert {id: stats["extra_loss"] for id, stats in info.items()} == {"even": 5.0, "odd": 5.0}
            if iteration == 1:
                path = algo.save("c")
        expected = algo.get_weights()
    with steppe.load(path, policy_mapping_fn=made.policy_mapping_fn, **code) as algo:
        algo.train()
        algo.train()
        for id, weights in algo.get_weights().items():
            assert np.array_equal(weights, expected[id]), id


def test_columns_of_learning_are_the_same_whoever_made_them():
    """Advantages of one's own come to ``extra_loss`` as ours do, standardized, and targets on their scale."""

    def own(policy, batch, others, episode):
        batch["advantages"] = batch["obs"][:, 0].astype(int)
        batch["value_targets"] = np.full(len(batch["obs"]), 700.0)

    def seen(params, batch):
        assert sorted(batch) == ["action_logp", "actions", "advantages", "obs", "value_targets", "weight"]
        return jnp.square(batch["advantages"]).mean()

    with config(own, extra_loss=seen).build() as algo:
        stats = algo.train()["info"]["default_policy"]
    assert stats["rows"] == 24  # two minibatches of twelve
    assert stats["extra_loss"] == pytest.approx(1.0, rel=1e-4)  # 151.75 as they were given


def test_the_critic_says_what_learning_starts_from():
    """``policy.value`` of the rows and the V of the update, whose targets it is by its own targets."""

    def own(policy, batch, others, episode):
        batch["value_targets"] = policy.value(batch["obs"])

    settings = {"observation_filter": "MeanStdFilter", "reward_scale": "none", "lr": 0.0, "extra_loss": None}
    with config(own, **settings).build() as algo:
        algo.train()  # before it there are no statistics to scale observations by
        assert algo.train()["info"]["default_policy"]["vf_loss"] == pytest.approx(0.0, abs=1e-8)


def test_a_run_may_go_on_with_a_function_or_more_policies_that_learn():
    """What was not kept before is kept from there on, in the middle of episodes."""
    mapping = {
        "policies": {"even", "odd"},
        "policy_mapping_fn": lambda agent: "odd" if agent == 1 else "even",
    }
    counted = []

    def count(policy, batch, others, episode):
        counted.extend((policy.policy_id, agent) for agent in others)
        assert (batch["rewards"] == 1).all()

    with config(None, **mapping, policies_to_train=["even"], train_batch_size=8).build() as algo:
        algo.train()
        path = algo.save("c")
    code = {"env": Odd, "policy_mapping_fn": mapping["policy_mapping_fn"]}
    with steppe.load(path, **code, postprocess_trajectory=count) as algo:
        algo.train()
        assert ("even", 1) in counted
    with steppe.load(path, **code, policies_to_train=["even", "odd"]) as algo:
        before = algo.get_weights()["odd"]
        algo.train()
        assert not np.array_equal(algo.get_weights()["odd"], before)


@pytest.mark.parametrize("trained", [["told"], None])
def test_actions_that_were_chosen_elsewhere_may_be_seen_but_not_learned_from(trained):
    class Logged(steppe.BaseEnv):
        """Agent y did what it wanted; nobody knows how probable that was."""

        observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)

        def __init__(self, env_config):
            self.t = 0

        def poll(self):
            self.t += 1
            obs = {0: {agent: np.zeros(1, np.float32) for agent in "xy"}}
            ends = {0: {"__all__": False}}
            return obs, {0: {"x": 0.0, "y": 1.0}}, ends, ends, {0: {}}, {0: {"y": 1}}

        def send_actions(self, action_dict):
            pass

    actions = []

    def look(policy, batch, others, episode):
        actions.extend(others["y"][1]["actions"].tolist())

    mapping = {
        "policies": {"told", "own"},
        "policy_mapping_fn": lambda agent: "told" if agent == "x" else "own",
    }
    settings = {**mapping, "policies_to_train": trained, "num_envs_per_env_runner": 1, "train_batch_size": 6}
    with config(look, **settings).copy(env=Logged).build() as algo:
        if trained is None:
            with pytest.raises(steppe.ConfigError, match="policy 'own': the action of agent 'y'"):
                algo.train()
        else:
            assert list(algo.train()["info"]) == ["told"]
            assert set(actions) == {1}


def bad_shape(policy, batch, others, episode):
    batch["x"] = np.zeros(len(batch["obs"]) + 1)


def bad_kind(policy, batch, others, episode):
    batch["x"] = ["a"] * len(batch["obs"])


def bad_number(policy, batch, others, episode):
    batch["x"] = np.full(len(batch["obs"]), np.nan)


def bad_name(policy, batch, others, episode):
    batch["logp"] = np.zeros(len(batch["obs"]))


def taken_name(policy, batch, others, episode):
    batch["weight"] = np.zeros(len(batch["obs"]))


def wide_advantages(policy, batch, others, episode):
    batch["advantages"] = np.zeros((len(batch["obs"]), 1))


def kinds(policy, batch, others, episode):
    batch["x"] = np.zeros(len(batch["obs"]), float if batch["obs"][0, 0] >= 10 else int)


def one_row(policy, batch, others, episode):
    policy.value(batch["obs"][-1])


def other_tree(policy, batch, others, episode):
    policy.value({"obs": batch["obs"]})


def bad_return(policy, batch, others, episode):
    return [1]


def sometimes(policy, batch, others, episode):
    if batch["obs"][0, 0] < 10:
        batch["x"] = np.zeros(len(batch["obs"]))


def name_of_memories(policy, batch, others, episode):
    batch["memory"] = np.zeros(len(batch["obs"]))


def changing(policy, batch, others, episode):
    batch["x"] = np.zeros((len(batch["obs"]), 1 + int(batch["obs"][0, 0] >= 10)))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (bad_shape, "a column holds numbers for each of the"),
        (bad_kind, "a column holds numbers for each of the"),
        (bad_number, "'x' with NaN or infinity"),
        (bad_name, "a column 'logp', which means something else"),
        (taken_name, "a column 'weight', which means something else"),
        (name_of_memories, "a column 'memory', which means something else"),
        (
            wide_advantages,
            r"'advantages', float64 of shape \(6, 1\): a column holds one number for each of the 6",
        ),
        (kinds, r"rows of \{'x': 'float32\[\]'\} for agent 1, and before \{'x': 'int32\[\]'\}"),
        (one_row, r"was given observations of shape \(1,\); of one row it takes \(1, 1\), as batch\['obs'\]"),
        (other_tree, r"was given observations of shape \{'obs': \(6, 1\)\}; of one row it takes \(1, 1\)"),
        (bad_return, r"returned \[1\]: return the batch, or None"),
        (sometimes, r"rows of \{\} for agent 1, and before \{'x': 'float32\[\]'\}"),
        (changing, r"rows of \{'x': 'float32\[2\]'\} for agent 1, and before \{'x': 'float32\[1\]'\}"),
    ],
)
def test_what_cannot_be_learned_from_is_said(function, said):
    with config(function).build() as algo, pytest.raises(steppe.ConfigError, match=said):
        algo.train()
