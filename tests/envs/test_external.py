"""External envs: what their threads ask and tell, judged and answered; and whole runs with them."""

import threading
import time

import gymnasium
import numpy as np
import pytest

import steppe
from steppe import spaces
from steppe.envs.external import ClosedError, ExternalEnv, ExternalMultiAgentEnv
from steppe.envs.external_rows import ExternalRows
from steppe.errors import ConfigError, EnvError, IdleError, SpaceError
from steppe.types import SINGLE_AGENT, Decision, Weights
from tests.envs.test_driven import Reader, path

BOX = gymnasium.spaces.Box(-1e6, 1e6, (), np.float32)
ME = SINGLE_AGENT


class Doubling:
    """Chooses the version of its weights; ``logp`` is minus the observation. Its memory counts rows."""

    noise_size, draws = 1, False

    def __init__(self, action=None, *, remembers=False):
        self.observation = self.acting = spaces.spec_of(BOX)
        self.action = spaces.spec_of(action or gymnasium.spaces.Discrete(9))
        self.remembers, self.calls = remembers, []

    def load(self, weights):
        return weights.version

    def act(self, weights, obs, state, noise):
        n = len(obs)
        self.calls.append((weights, obs.tolist(), None if state is None else state["reward"].tolist(), noise))
        after = None if state is None else {"count": state["count"] + 1, "reward": state["reward"]}
        return Decision(np.full(n, weights, np.int64), -obs, after)

    def to_env(self, action):
        return action + 1

    def from_env(self, action):
        return action - 1

    def initial_state(self, n):
        return {"count": np.zeros(n), "reward": np.zeros(n)} if self.remembers else None


class Mapping:
    """As PolicyMapping: agents are mapped by a dict, or all to "p"."""

    def __init__(self, by=None):
        self.by, self.told = by or {}, []
        self.ids = sorted({*self.by.values()}) or ["p"]

    def __call__(self, info):
        return self.by.get(info.agent, "p")

    def ahead(self, info, chosen=""):
        self.told.append((info.agent, chosen))


class Waiting(ExternalEnv):
    """Lets the thread of the test ask and tell."""

    observation_space, action_space = BOX, gymnasium.spaces.Discrete(9)

    def __init__(self, **how):
        super().__init__(**how)
        self.over = threading.Event()

    def run(self):
        self.over.wait()


class ManyWaiting(ExternalMultiAgentEnv):
    observation_space, action_space = BOX, gymnasium.spaces.Discrete(9)
    run = Waiting.run

    def __init__(self):
        super().__init__()
        self.over = threading.Event()


@pytest.fixture
def connected():
    made = []

    def connect(env, policies=None, mapping=None, *, whole=False, evaluation=False, **how):
        deciders = []
        rows = ExternalRows([env], seeds=[5], decides=deciders.append, **how)
        made.append((env, rows))
        assert deciders == [rows]
        rows.begin(
            policies or {"p": Doubling()},
            mapping or Mapping(),
            np.random.default_rng(0),
            whole=whole,
            evaluation=evaluation,
        )
        rows.set_weights(dict.fromkeys(rows.policies, Weights(3, np.zeros(1))), True)
        assert list(rows.poll(0.0)) == []
        return env, rows

    yield connect
    for env, rows in made:
        env.over.set()
        rows.close()


def test_what_is_asked_and_told_becomes_rows(connected):
    env, rows = connected(Waiting())
    id = env.start_episode()
    assert env.get_action(id, 1.5) == 4  # 3, the version, as the env has it
    env.log_returns(id, 1.0)
    env.log_returns(id, 0.5, info={"k": 1})
    action, about = env.get_action(id, 2.5, full=True)
    assert (action, about.step, about.logp, about.weights_version) == (4, 1, -2.5, 3)
    rows.set_weights({"p": Weights(4, np.zeros(1))}, False)
    assert env.get_action(id, 3.5) == 5
    env.log_returns(id, 10.0, step=0)
    env.log_returns(id, -2)
    env.end_episode(id, 4.5)
    reader = Reader(rows).all()
    assert path(reader) == [(0, 1.5, 0.0, ""), (1, 2.5, 11.5, ""), (2, 3.5, 0.0, ""), (3, 4.5, -2.0, "T")]
    assert [row[4] for row in reader.paths[0, 0, ME]] == [(3, -1.5), (3, -2.5), (4, -3.5), None]
    assert rows.env_steps == 3
    assert [call[3] is None for call in rows.policies["p"].calls] == [False, False, True]  # explores, or not


def test_several_episodes_some_of_which_teach_nothing(connected):
    env, rows = connected(Waiting())
    ids = [env.start_episode(), env.start_episode("mine"), env.start_episode(training_enabled=False)]
    assert ids[1] == "mine"
    for t in range(2):
        for id in ids:
            env.get_action(id, float(t))
    env.log_returns(ids[2], 1.0)
    for id in ids:
        env.end_episode(id, None, truncated=True)
    reader = Reader(rows).all()
    assert sorted(reader.paths) == [(0, 0, ME), (0, 1, ME)]
    assert path(reader, 1) == [(0, 0.0, 0.0, ""), (1, 1.0, 0.0, ""), (2, 1.0, 0.0, "L")]
    assert len(reader.polls[0]) == 2  # side by side


def test_own_actions_are_logged(connected):
    env, rows = connected(Waiting())
    id = env.start_episode()
    env.log_action(id, 1.0, 7)
    env.get_action(id, 2.0)
    env.end_episode(id, 3.0)
    (first,) = rows.poll()
    assert (first.decision.action.tolist(), np.isnan(first.decision.logp).tolist()) == ([7], [True])
    (second,) = rows.poll()
    assert (second.decision.action.tolist(), second.decision.logp.tolist()) == ([3], [-2.0])


def test_a_memory_goes_from_row_to_row(connected):
    env, rows = connected(Waiting(), {"p": Doubling(remembers=True)})
    id, other = env.start_episode(), env.start_episode()
    env.get_action(id, 1.0)
    env.log_returns(id, 2.0)
    env.get_action(other, 9.0)
    env.log_action(id, 2.0, 1)
    env.log_returns(id, 4.0)
    env.get_action(id, 3.0)
    env.end_episode(id, None)
    counts = []
    for _ in range(3):
        (step,) = rows.poll()
        counts.append(step.decision.state["count"].tolist())
    assert counts == [[1.0], [2.0], [3.0]]
    assert [call[2] for call in rows.policies["p"].calls] == [[0.0], [0.0], [2.0], [4.0]]  # rewards it met


def test_agents_come_and_go_and_have_policies(connected):
    policies = {"a": Doubling(), "b": Doubling()}
    mapping = Mapping({"x": "a", "y": "b", "z": "a"})
    env, rows = connected(ManyWaiting(), policies, mapping)
    rows.set_weights({"b": Weights(6, np.zeros(1))}, True)
    id = env.start_episode()
    assert env.get_action(id, {"x": 1.0, "y": 2.0}) == {"x": 4, "y": 7}
    env.log_returns(id, {"x": 1.0, "y": 2.0}, {"y": {"k": 1}}, multiagent_done_dict={"x": True, "y": False})
    actions, about = env.get_action(id, {"y": 3.0, "z": 4.0}, full=True)
    assert actions == {"y": 7, "z": 4}
    assert about == (1, {"y": -3.0, "z": -4.0}, {"y": 6, "z": 3})
    env.log_returns(id, {"y": 5.0}, step=0)
    env.log_returns(id, {}, multiagent_done_dict={"__all__": True})
    env.end_episode(id, {})
    reader = Reader(rows).all()
    assert path(reader, agent="x") == [(0, 1.0, 0.0, ""), (1, 1.0, 1.0, "T")]
    assert path(reader, agent="y") == [(0, 2.0, 0.0, ""), (1, 3.0, 7.0, ""), (2, 3.0, 0.0, "T")]
    assert path(reader, agent="z") == [(1, 4.0, 0.0, ""), (2, 4.0, 0.0, "T")]
    assert mapping.told == [("x", "a"), ("y", "b"), ("z", "a")]  # so that the sampler says the same


def test_another_policy_goes_on_where_one_leaves(connected):
    policies = {"a": Doubling(remembers=True), "b": Doubling(remembers=True)}
    env, rows = connected(ManyWaiting(), policies, Mapping({"x": "a", "y": "b"}))
    id = env.start_episode()
    env.get_action(id, {"x": 1.0, "y": 1.0})
    rows.mapping = Mapping({"x": "a", "y": "a"})
    del policies["b"]
    rows.set_weights({"a": Weights(8, np.zeros(1))}, True)
    assert env.get_action(id, {"x": 1.0, "y": 1.0}) == {"x": 9, "y": 9}
    env.end_episode(id, None)
    steps = [step for _ in range(2) for step in rows.poll()]
    assert [step.decision.state["count"].tolist() for step in steps] == [[1.0], [1.0], [2.0, 1.0]]


def test_agents_have_spaces_of_their_own(connected):
    env = ManyWaiting()
    env.observation_space = {"x": BOX, "y": gymnasium.spaces.Box(-9, 9, (2,), np.float32)}
    two = Doubling(gymnasium.spaces.Discrete(9))
    two.act = lambda weights, obs, state, noise: Decision(np.zeros(len(obs), np.int64), -obs[:, 0])
    env, rows = connected(env, {"a": Doubling(), "b": two}, Mapping({"x": "a", "y": "b"}))
    id = env.start_episode()
    env.get_action(id, {"x": 1.0, "y": np.array([3.0, 4.0], np.float32)})
    env.end_episode(id, None)
    assert [(step.space, step.obs.tolist()) for step in rows.poll()] == [(0, [1.0]), (1, [[3.0, 4.0]])]
    with pytest.raises(SpaceError, match="no spaces for agent 'stranger'"):
        env.get_action(env.start_episode(), {"stranger": 1.0})


def misuses():
    def after(*calls):
        def misuse(env, id):
            for name, *args in calls:
                getattr(env, name)(id, *args)

        return misuse

    acted = ("get_action", 1.0)
    unknown = ValueError, "episode 'x' was not begun; start_episode"
    return {
        "unknown id": (lambda env, id: env.get_action("x", 1.0), *unknown),
        "unknown id, ended": (lambda env, id: env.end_episode("x", 1.0), *unknown),
        "ended": (after(("end_episode", None), ("log_returns", 1.0)), ValueError, "has ended"),
        "id twice": (lambda env, id: env.start_episode(id), ValueError, "is open"),
        "id no text": (lambda env, id: env.start_episode(7), ValueError, "non-empty text"),
        "too many": (lambda env, id: [env.start_episode() for _ in range(3)], ValueError, "max_concurrent"),
        "kind": (after(("get_action", "text")), EnvError, "E102"),
        "shape": (after(("get_action", [1.0, 2.0])), EnvError, "E103"),
        "nan": (after(("get_action", float("nan"))), EnvError, "E104"),
        "last": (after(acted, ("end_episode", [1.0])), EnvError, "E103"),
        "reward": (after(acted, ("log_returns", float("inf"))), EnvError, "E201"),
        "no reward": (after(acted, ("log_returns", None)), EnvError, "E201"),
        "early reward": (after(("log_returns", 1.0)), EnvError, "E404.*had no observation"),
        "info": (after(acted, ("log_returns", 1.0, 5)), EnvError, "E303"),
        "step": (
            after(acted, ("log_returns", 1.0, None, None, 1)),
            ValueError,
            "step 1 .* cannot be credited",
        ),
        "action": (after(("log_action", 1.0, "left")), EnvError, "E305"),
    }


@pytest.mark.parametrize(("misuse", "kind", "match"), misuses().values(), ids=misuses())
def test_misuse_raises_where_it_happens_and_changes_nothing(connected, misuse, kind, match):
    env, rows = connected(Waiting(max_concurrent=3))
    id = env.start_episode()
    with pytest.raises(kind, match=match):
        misuse(env, id)
    if match == "has ended":
        id = env.start_episode()
    env.get_action(id, 5.0)
    env.end_episode(id, 6.0)
    *_, acted, last = [rows for rows in Reader(rows).all().paths.values()][-1]
    assert (acted[1:4], last[1:4]) == ((5.0, 0.0, ""), (6.0, 0.0, "T"))


def test_misuse_with_agents(connected):
    env, _ = connected(ManyWaiting())
    id = env.start_episode()
    env.get_action(id, {"x": 1.0, "y": 1.0})
    env.get_action(id, {"y": 1.0})
    wrong = {
        "E301 .*obs: got 1.0": lambda: env.get_action(id, 1.0),
        "E407": lambda: env.get_action(id, {"__all__": 1.0}),
        "E404 .*agent 'z' has had no": lambda: env.log_returns(id, {"z": 1.0}),
        "E404 .*give the same agents": lambda: env.log_action(id, {"x": 1.0}, {"y": 1}),
        "agent 'x' did not act in step 1": lambda: env.log_returns(id, {"x": 1.0}, step=1),
    }
    for match, call in wrong.items():
        with pytest.raises((EnvError, ValueError), match=match):
            call()
    env.log_returns(id, {"x": 0.0}, multiagent_done_dict={"x": True})
    with pytest.raises(EnvError, match="E405"):
        env.get_action(id, {"x": 1.0})
    with pytest.raises(EnvError, match="E403"):
        env.log_returns(id, {"x": 1.0})
    env.log_returns(id, {"x": 1.0}, step=0)  # an earlier decision still can


def test_an_action_that_no_mask_allows(connected):
    policy = Doubling()

    def act(weights, obs, state, noise):
        raise spaces.BadLeaf("E107", 0, 'obs["action_mask"]', "a legal action", "9 zeros")

    policy.act = act
    env, _ = connected(Waiting(), {"p": policy})
    with pytest.raises(EnvError, match=r"E107.*obs.*a legal action"):
        env.get_action(env.start_episode(), 1.0)


def test_only_the_newest_thousand_decisions_can_be_credited(connected):
    env, rows = connected(Waiting())
    id = env.start_episode()
    for t in range(1001):
        env.get_action(id, float(t))
    env.log_returns(id, 1.0, step=1)
    with pytest.raises(ValueError, match="newest 1,000"):
        env.log_returns(id, 1.0, step=0)
    assert path(Reader(rows).all()) == [(0, 0.0, 0.0, "")]


def test_a_full_backlog_lets_new_episodes_wait(connected):
    env, rows = connected(Waiting())
    env.max_backlog = 3
    id = env.start_episode()
    for t in range(3):
        env.get_action(id, float(t))
    env.end_episode(id, None)
    begun = []
    thread = threading.Thread(target=lambda: begun.append(env.start_episode()))
    thread.start()
    time.sleep(0.1)
    assert begun == []
    rows.poll(), rows.poll()
    thread.join(5)
    assert len(begun) == 1


def test_closing_ends_run_where_it_asks():
    class Busy(Waiting):
        caught = None

        def run(self):
            try:
                while True:
                    id = self.start_episode()
                    for t in range(5):
                        try:
                            self.get_action(id, float(t))
                        except Exception as error:  # as users write it
                            Busy.caught = error
                    self.end_episode(id, None)
            except ClosedError:
                self.over.set()
                raise

    env = Busy()
    rows = ExternalRows([env], seeds=[0], decides=lambda _: None)
    rows.begin({"p": Doubling()}, Mapping(), np.random.default_rng(0), whole=False, evaluation=False)
    rows.set_weights({"p": Weights(0, np.zeros(1))}, True)
    assert rows.poll()
    rows.close()
    rows.close()
    assert env.over.is_set()
    assert Busy.caught is None
    with pytest.raises(RuntimeError, match="closed"):
        rows.poll()


def test_when_run_returns_there_are_no_more_episodes(connected, caplog):
    env, rows = connected(Waiting())
    id = env.start_episode()
    env.get_action(id, 1.0)
    env.end_episode(id, 2.0)
    env.start_episode()
    env.over.set()
    reader = Reader(rows)
    reader.poll(None), reader.poll(None)
    for _ in range(2):
        with pytest.raises(IdleError, match="nothing"):
            rows.poll()
    assert "run() of all 1 envs of Waiting has returned: no more episodes come" in caplog.messages
    assert any("with 1 episodes open" in message for message in caplog.messages)
    with pytest.raises(RuntimeError, match="end the training, or let run"):
        rows.poll()


def test_what_run_raises_comes_out_of_poll_with_a_note(connected):
    class Broken(Waiting):
        def run(self):
            self.over.wait()
            self.get_action("nobody", 1.0)

    env, rows = connected(Broken())
    env.over.set()
    with pytest.raises(ValueError, match="episode 'nobody' was not begun") as caught:
        rows.poll()
    assert caught.value.__notes__ == ["steppe: in run() of Broken, runner 0, env 0"]


def test_a_checkpoint_holds_what_was_over_and_cuts_off_what_was_open(connected):
    env, rows = connected(Waiting())
    done, open_ = env.start_episode(), env.start_episode()
    for id in (done, open_):
        env.get_action(id, 1.0)
    env.end_episode(done, 2.0)
    state = rows.get_state()
    other, again = connected(Waiting())
    (note,) = again.set_state(state)
    assert note.startswith("E402 Waiting begins new episodes, those that were open are cut off")
    id = other.start_episode()
    other.get_action(id, 8.0)
    other.end_episode(id, None)
    reader = Reader(again).all()
    assert {key[1]: [row[1] for row in rows] for key, rows in reader.paths.items()} == {0: [1, 2], 2: [8, 8]}


def test_evaluation_counts_what_was_begun_with_its_weights(connected):
    env, rows = connected(Waiting(), evaluation=True)
    old, new = [env.start_episode() for _ in range(2)], Weights(9, np.zeros(1))
    env.get_action(old[0], 1.0)
    rows.set_weights({"p": new}, False)
    ids = [env.start_episode() for _ in range(2)]
    for id in (*ids, *old):
        env.get_action(id, 2.0)
    env.end_episode(old[0], None), env.end_episode(ids[1], None)
    reader = Reader(rows)
    assert reader.poll() == []  # the first one is awaited
    env.end_episode(ids[0], None)
    assert sorted({key[1] for key in reader.all().paths}) == [2, 3]


def test_what_does_not_go_with_it():
    made = Waiting()
    with pytest.raises(
        RuntimeError, match=r"belongs to no run yet: give the class to a config, PPOConfig\(env=W"
    ):
        made.start_episode()
    for how, match in (({"max_episode_steps": 5}, "cuts one off"), ({"observing": 1}, "change them there")):
        with pytest.raises(ConfigError, match=match):
            ExternalRows([made], seeds=[0], decides=lambda _: None, **how)
    with pytest.raises(ConfigError, match="give it to a config as env=, without remote_worker_envs"):
        ExternalRows([made], seeds=[0])
    made.observation_space = None
    with pytest.raises(SpaceError, match="Waiting has no spaces"):
        ExternalRows([made], seeds=[0], decides=lambda _: None)


class Walk(ExternalEnv):
    """A line of five places; the right end earns 1. ``acts`` says what is asked of whom."""

    observation_space = gymnasium.spaces.Discrete(5)
    action_space = gymnasium.spaces.Discrete(2)
    logs, episodes, delay = False, None, 0.0

    def run(self):
        played = 0
        while self.episodes is None or played < self.episodes:
            self.play()
            played += 1
            time.sleep(self.delay)

    def play(self):
        id, place, t = self.start_episode(), 2, 0
        while 0 < place < 4 and t < 6:
            action = t % 2 if self.logs else self.get_action(id, place)
            if self.logs:
                self.log_action(id, place, action)
            place, t = place + 2 * action - 1, t + 1
            self.log_returns(id, float(place == 4))
        self.end_episode(id, place, truncated=0 < place < 4)


SMALL = {"fcnet_hiddens": [4], "write_run": False, "seed": 0}
PPO = {**SMALL, "train_batch_size": 40, "minibatch_size": 40, "num_epochs": 1}


def test_a_run_trains_evaluates_and_goes_on_from_a_checkpoint(tmp_path):
    config = steppe.PPOConfig(env=Walk, **PPO)
    with config.build() as algo:
        result = algo.train()
        assert result["timesteps_this_iter"] >= 40
        assert result["episodes_total"] > 5
        assert np.isfinite(result["info"]["default_policy"]["total_loss"])
        assert algo.evaluate(num_episodes=5)["episodes_this_iter"] == 5
        assert algo.foreach_env(lambda env: type(env).__name__) == ["Walk"]
        algo.save(tmp_path / "c")
        total = result["timesteps_total"]
    with steppe.load(tmp_path / "c", env=Walk) as again:
        (sample,) = again.runner.sample()
        assert sample.env_steps >= 40
        (rollout,) = sample.rollouts
        assert (rollout.version[rollout.acted] <= 1).all()
        assert again.get_state()["algorithm"]["env_steps"] == total


def test_what_runs_by_itself_is_there_once_unless_it_says_more():
    with steppe.PPOConfig(env=Walk, **PPO).build() as algo:
        assert algo.config.num_envs_per_env_runner > 1
        assert len(algo.runner.foreach_env(type)) == algo.runner.env.num_envs == 1


def test_rows_of_two_envs_and_their_versions():
    class TwoWalks(Walk):
        num_envs = 2

    with steppe.PPOConfig(env=TwoWalks, **PPO).build() as algo:
        seen, version = set(), 0
        while version < 3 or (seen != {0, 1} and version < 300):  # their threads take turns as they like
            (sample,) = algo.runner.sample()
            (one,) = sample.rollouts
            seen |= {*one.env[one.filled].tolist()}
            assert np.isfinite(one.logp[one.filled]).all()
            assert (one.version[one.acted] <= version).all()
            assert (np.diff(one.t, axis=0)[one.acted[:-1]] == 1).all()
            final = one.terminated & one.filled
            np.testing.assert_array_equal(one.reward[final], one.obs[final] == 4)
            weights = {id: w._replace(version=version + 1) for id, w in algo._learner.publish().items()}
            algo.runner.set_weights(weights)
            version += 1
        assert seen == {0, 1}


def test_whole_episodes_only():
    config = steppe.PPOConfig(env=Walk, batch_mode="complete_episodes", **PPO)
    with config.build() as algo:
        for _ in range(3):
            (sample,) = algo.runner.sample()
            (one,) = sample.rollouts
            assert sample.env_steps >= 40
            assert not one.lane_continues.any()
            for lane in np.flatnonzero(one.filled[0]):
                last = np.flatnonzero(one.filled[:, lane])[-1]
                assert one.terminated[last, lane] or one.truncated[last, lane]
            lengths = [episode.length for episode in sample.episodes]
            assert sum(lengths) == sample.env_steps == one.acted.sum()


class Logs(Walk):
    logs = True


def test_what_was_logged_is_learned_from_by_dqn_and_refused_by_ppo():
    how = {"num_steps_sampled_before_learning_starts": 10, "train_batch_size": 8}
    with steppe.DQNConfig(env=Logs, min_sample_timesteps_per_iteration=20, **how, **SMALL).build() as algo:
        told = algo.train()["info"]["default_policy"]
        assert told
        assert np.isfinite(list(told.values())).all()
    with (
        steppe.PPOConfig(env=Logs, **PPO).build() as algo,
        pytest.raises(ConfigError, match=r"probability that is not known.*leave log_action"),
    ):
        algo.train()


class Short(Walk):
    episodes = 2


def test_train_returns_nothing_new_when_run_has_returned(caplog):
    with steppe.PPOConfig(env=Short, **PPO).build() as algo:
        result = algo.train()
        assert 2 <= result["timesteps_this_iter"] <= 12
        assert result["episodes_this_iter"] == 2
        with pytest.raises(RuntimeError, match="no more episodes come; end the training"):
            algo.train()
    assert any("has returned: no more episodes come" in message for message in caplog.messages)


class Broken(Walk):
    def play(self):
        raise KeyError("a bug of mine")


def test_what_run_raises_ends_training_as_it_is():
    algo = steppe.PPOConfig(env=Broken, **PPO).build()
    with algo, pytest.raises(KeyError, match="bug of mine") as caught:
        algo.train()
    assert "in run() of Broken, runner 0, env 0" in caught.value.__notes__[0]


def test_masks_do_not_come_in_infos():
    with pytest.raises(ConfigError, match=r'action_mask="info": Walk .* put the mask into the observation'):
        steppe.PPOConfig(env=Walk, action_mask="info", **PPO).build()


def test_shared_evaluation_envs_are_refused():
    with pytest.raises(ConfigError, match="external ones by themselves"):
        steppe.PPOConfig(env=Walk, evaluation_envs="shared", **PPO).build()


class Two(ExternalMultiAgentEnv):
    """Two agents, of which one leaves early; observations have masks."""

    observation_space = gymnasium.spaces.Dict(
        {"action_mask": gymnasium.spaces.MultiBinary(3), "x": gymnasium.spaces.Box(-9, 9, (2,), np.float32)}
    )
    action_space = gymnasium.spaces.Discrete(3)

    def run(self):
        while True:
            id, agents = self.start_episode(), ["left", "right"]
            for t in range(6):
                mask, x = np.array([1, t % 2, 0], np.int8), np.full(2, t, np.float32)
                actions = self.get_action(id, {agent: {"action_mask": mask, "x": x} for agent in agents})
                assert all(mask[action] for action in actions.values())
                self.log_returns(id, dict.fromkeys(agents, 1.0 + t), None, {"right": t == 3})
                agents = ["left", "right"][: 1 if t >= 3 else 2]
            self.end_episode(id, None)


def test_agents_with_memories_masks_policies_and_callbacks():
    ends, starts = [], []

    class Seen(steppe.Callbacks):
        def on_episode_start(self, *, episode, **about):
            starts.append(episode.id)

        def on_episode_end(self, *, episode, **about):
            ends.append((episode.id, episode.length, dict(episode.agent_rewards)))

    remembers = {"memory": "lstm", "memory_size": 4, "prev_action": True, "prev_reward": True}
    two = {"policies": {"left": None, "right": None}, "callbacks_class": Seen}
    with steppe.PPOConfig(env=Two, **two, **remembers, **PPO).build() as algo:
        for _ in range(2):
            (sample,) = algo.runner.sample()
    assert sample.env_steps >= 40
    assert {episode.length for episode in sample.episodes} == {6}
    assert all(end[1:] == (6, {"left": 21.0, "right": 10.0}) for end in ends)
    assert starts[: len(ends)] == [end[0] for end in ends]
    left, right = sample.rollouts
    assert (left.policy, right.policy) == ("left", "right")
    assert np.isfinite(left.logp).all()
    assert {*right.t[right.terminated].tolist()} == {4}
    # A row of each trajectory's own reward is what its memory met: 1 + t - 1 of the step before.
    acted = left.acted & (left.t > 0)
    np.testing.assert_array_equal(left.reward[acted], left.t[acted])
    np.testing.assert_array_equal(left.extra["prev_reward"][acted], left.t[acted])
