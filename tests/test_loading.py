"""load_policy: acts as the algorithm does, imports no JAX, and says what is wrong with what it is given.

Most checkpoints here are made from drawn networks; a few come from training. ``tests/test_every_space.py``
holds the loaded policy against the algorithm for every kind of space.
"""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe import checkpoint
from steppe.cli.saved import find
from steppe.learning.networks import ActorCriticNetworks
from steppe.models.distributions import Distribution
from steppe.spaces import spec_of
from steppe.tracking.record import list_runs
from steppe.types import SpacePair, Weights

BOX = spaces.Box(-5, 5, (3,), np.float32)


def exported(observation=BOX, action=None, *, seed=0, scale=1.0, **options):
    action = spec_of(spaces.Discrete(4, start=-1) if action is None else action)
    distribution, rng = Distribution(action, **options), np.random.default_rng(seed)
    pair = SpacePair(spec_of(observation), action)
    nets = ActorCriticNetworks(pair, distribution, rng, normalize=True, hiddens=[8])
    params = nets.params[: nets.actor_size] + scale * rng.normal(size=nets.actor_size).astype(np.float32)
    shape = BOX.shape
    stats = (np.float32(9), np.full(shape, 0.5, np.float32), np.full(shape, 36, np.float32))
    return nets.policy.export(Weights(1, params.astype(np.float32), stats))


def written(path, run_id="r", **policies):
    owners = {"policies": policies or {"default_policy": exported()}, "learner": {"w": np.zeros(9)}}
    return checkpoint.save(path, owners, {"run_id": run_id})


@pytest.fixture
def saved(tmp_path):
    return written(tmp_path / "saved")


def observations(n, seed=0, space=BOX):
    space.seed(seed)
    return [space.sample() for _ in range(n)]


# ---------------------------------------------------------------- acting


class Env(gymnasium.Env):
    """Random observations of any space."""

    def __init__(self, config):
        self.observation_space, self.action_space = config["observation"], config["action"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), float(self.t % 2), self.t == 6, False, {}


TRAINED = {
    "squashed": (BOX, spaces.Box(-3, 1, (2,), np.float32), {"squash_actions": True}),
    "image, shared layers": (
        spaces.Box(0, 255, (16, 16, 1), np.uint8),
        spaces.Discrete(3, start=2),
        {"vf_share_layers": True, "fcnet_activation": "relu"},
    ),
    "nested, deviations from the network, unnormalised": (
        spaces.Dict(a=BOX, b=spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(2)))),
        spaces.Dict(go=spaces.Box(-2, 2, (1,), np.float64), how=spaces.MultiDiscrete([2, 3])),
        {"free_log_std": False, "observation_filter": "NoFilter", "normalize_actions": False},
    ),
}


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.allclose(one, other, rtol=1e-5, atol=1e-5)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("name", TRAINED)
def test_it_acts_as_the_algorithm_that_was_saved(name, tmp_path):
    observation, action, settings = TRAINED[name]
    config = steppe.PPOConfig(
        env=Env,
        env_config={"observation": observation, "action": action},
        num_envs_per_env_runner=2,
        train_batch_size=32,
        minibatch_size=16,
        num_epochs=2,
        lr=0.01,
        fcnet_hiddens=[4],
        seed=0,
        write_run=False,
        **settings,
    )
    with config.build() as algo:
        algo.train()
        policy = steppe.load_policy(algo.save(tmp_path / "c"))
        for obs in observations(8, space=observation):
            assert same(policy.act(obs), algo.compute_single_action(obs))
        with pytest.raises(steppe.SpaceError) as theirs:
            algo.compute_single_action("no observation")
        with pytest.raises(steppe.SpaceError) as ours:
            policy.act("no observation")
        assert str(ours.value) == str(theirs.value)
        algo.train()
        assert not same(policy.arrays, steppe.load_policy(algo.save(tmp_path / "c")).arrays), (
            "the newest weights are saved"
        )


def test_a_state_comes_back(saved):
    policy, [obs] = steppe.load_policy(saved), observations(1)
    action = policy.act(obs)
    assert isinstance(action, int)
    assert policy.act(obs, {"h": 1}) == (action, {"h": 1})


def test_a_batch_is_what_its_rows_are(saved):
    policy, several = steppe.load_policy(saved), observations(40)
    actions = policy.act_batch(several)
    assert actions == [policy.act(obs) for obs in several]
    assert len(set(actions)) > 1
    assert policy.act_batch([]) == []


def test_exploring_draws_from_the_distribution(tmp_path):
    policy, [obs] = steppe.load_policy(written(tmp_path / "c")), observations(1)
    logits = policy.outputs(obs)
    expected = np.exp(logits - logits.max())
    drawn = np.array(policy.act_batch([obs] * 4000, explore=True, rng=np.random.default_rng(0)))
    found = np.bincount(drawn + 1, minlength=4) / 4000  # the space starts at -1
    np.testing.assert_allclose(found, expected / expected.sum(), atol=4 * 0.5 / 4000**0.5)
    assert 0.1 < found.max() < 0.99

    box = written(
        tmp_path / "b", default_policy=exported(action=spaces.Box(-4, 2, (2,)), clip=False, scale=0.3)
    )
    policy = steppe.load_policy(box)
    mean, deviation = np.split(policy.outputs(obs), 2)
    drawn = np.array(policy.act_batch([obs] * 4000, explore=True, rng=np.random.default_rng(0)))
    deviation = 3 * np.exp(deviation)  # 1 in policy units is 3 in this Box, whose middle is -1
    np.testing.assert_allclose(drawn.mean(0), 3 * mean - 1, atol=4 * deviation.max() / 4000**0.5)
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.06)


def test_a_seed_repeats_the_draws(saved):
    policy, several = steppe.load_policy(saved), observations(30)
    runs = []
    for _ in range(2):
        policy.seed(7)
        runs.append([policy.act(obs, explore=True) for obs in several])
    assert runs[0] == runs[1] != [policy.act(obs, explore=True) for obs in several]
    own = [policy.act_batch(several, explore=True, rng=np.random.default_rng(7)) for _ in range(2)]
    assert own[0] == own[1]
    assert steppe.load_policy(saved).act_batch(several) == policy.act_batch(several)


def test_the_arrays_and_the_description_are_enough_to_write_it_anew(saved):
    policy = steppe.load_policy(saved)
    a, count = policy.arrays, policy.arrays["normalizer.obs.count"]
    for obs in observations(5):
        scale = np.sqrt(a["normalizer.obs.m2"] / count + 1e-8)
        x = np.clip((obs - a["normalizer.obs.mean"]) / scale, -10, 10)
        hidden = np.tanh(x @ a["mlp.weights.0"] + a["mlp.biases.0"])
        logits = hidden @ a["mlp.weights.1"] + a["mlp.biases.1"]
        np.testing.assert_allclose(policy.outputs(obs), logits, atol=1e-5)
        assert policy.act(obs) == int(np.argmax(logits)) - 1
    assert json.loads(json.dumps(policy.description))["mlp"] == {"sizes": [3, 8, 4], "activation": "tanh"}
    assert policy.observation_space["kind"] == "Box"
    assert policy.action_space == {"kind": "Discrete", "n": 4, "start": -1}
    assert repr(policy) == "LoadedPolicy('default_policy', Box to Discrete)"
    with pytest.raises(ValueError, match="read-only"):
        a["mlp.weights.0"][:] = 0


def test_it_needs_numpy_alone(saved):
    program = (
        "import sys, steppe\n"
        "policy = steppe.load_policy(sys.argv[1])\n"
        "print(policy.act([0.0, 1.0, 2.0]), policy.act([0.0, 1.0, 2.0], explore=True))\n"
        "heavy = {'jax', 'equinox', 'optax', 'gymnasium', 'ray', 'tensorboardX', 'click'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(saved)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines[0].split()) == 2
    assert lines[1] == ""


# ---------------------------------------------------------------- what is loaded


def run_folder(path, rewards):
    """A run with a checkpoint per step count; each policy differs."""
    entries = [{"steps": steps, "reward": reward} for steps, reward in rewards.items()]
    path.mkdir()
    record = {"run_id": "r", "status": "finished", "checkpoints": entries}
    (path / "run.json").write_text(json.dumps(record))
    for seed, steps in enumerate(rewards):
        written(path / "checkpoints" / str(steps), default_policy=exported(seed=seed))
    return path


def bias(policy):
    return policy.arrays["mlp.biases.1"].tolist()


def test_a_run_means_its_latest_checkpoint_and_best_its_best(tmp_path):
    run = run_folder(tmp_path / "ppo-1", {100: 5.0, 200: 1.0})
    (run / "best").symlink_to("checkpoints/100")
    first, second = (bias(steppe.load_policy(run / "checkpoints" / name)) for name in ("100", "200"))
    assert first != second
    assert bias(steppe.load_policy(run)) == second
    assert bias(steppe.load_policy(str(run / "best"))) == first
    (run / "best").unlink()
    (run / "best").write_text("checkpoints/100\n")  # where links cannot be made
    assert bias(steppe.load_policy(run / "best")) == first


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(steppe.CheckpointError, match="no checkpoint yet"):
        steppe.load_policy(run_folder(tmp_path / "ppo-1", {}))


def test_the_folder_of_checkpoints_in_a_run_means_the_latest(tmp_path):
    run = run_folder(tmp_path / "ppo-1", {100: 5.0, 200: 1.0})
    assert bias(steppe.load_policy(run / "checkpoints")) == bias(steppe.load_policy(run))
    (run / "checkpoints").rename(tmp_path / "loose")
    inside = re.escape(str(tmp_path / "loose" / "200"))
    with pytest.raises(
        steppe.CheckpointError, match=rf"has no manifest.json; the newest .* in it is {inside}"
    ):
        steppe.load_policy(tmp_path / "loose")
    with pytest.raises(steppe.CheckpointError, match=rf"it is a file, of the checkpoint {inside}"):
        steppe.load_policy(tmp_path / "loose" / "200" / "meta.json")


LINES = {
    "no entries": 5,
    "an entry that is a number": [100],
    "an entry without steps": [{"reward": 1.0}],
    "steps that lead out of the run": [{"steps": "../../outside", "reward": 1.0}],
    "steps below 0": [{"steps": -1, "reward": 1.0}],
    "steps that are a flag": [{"steps": True, "reward": 1.0}],
    "a reward that is text": [{"steps": 100, "reward": "high"}],
}


@pytest.mark.parametrize("what", LINES)
def test_a_damaged_record_of_a_run_is_named_and_what_is_intact_offered(what, tmp_path):
    run = run_folder(tmp_path / "ppo-1", {100: 5.0})
    written(tmp_path / "outside")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "checkpoints": LINES[what]}))
    for path in (run, run / "checkpoints"):
        with pytest.raises(steppe.CheckpointError, match=r"run\.json is damaged: .*intact.*checkpoints/100$"):
            steppe.load_policy(path)
    with pytest.raises(steppe.ConfigError, match=r"run\.json is damaged"):
        find(run)
    (tmp_path / "Env").mkdir()
    run.rename(tmp_path / "Env" / "ppo-1")
    [summary] = list_runs(tmp_path)
    assert summary.status == "unreadable"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"[" * 9000, b'{"run_id": 1}'], ids=range(5))
def test_a_record_of_nonsense_is_named(content, tmp_path):
    run = run_folder(tmp_path / "ppo-1", {})
    (run / "run.json").write_bytes(content)
    with pytest.raises(steppe.CheckpointError, match=r"run\.json is damaged"):
        steppe.load_policy(run)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"../../outside",
        b"checkpoints/../../outside",
        b"checkpoints/..",
        b"/etc",
        b"\xff\xfe",
        b"outside",
        b".",
    ],
    ids=repr,
)
def test_a_link_of_text_leads_to_a_checkpoint_of_its_run_and_nowhere_else(content, tmp_path):
    run = run_folder(tmp_path / "ppo-1", {100: 5.0})
    written(tmp_path / "outside")
    (run / "best").write_bytes(content)
    with pytest.raises(steppe.CheckpointError, match=r"best (is damaged|cannot be read): .*checkpoints/100$"):
        steppe.load_policy(run / "best")
    with pytest.raises(steppe.SteppeError, match="best"):
        find(run / "best")


def test_a_link_of_text_may_come_from_a_system_with_other_slashes(tmp_path):
    run = run_folder(tmp_path / "ppo-1", {100: 5.0, 200: 1.0})
    (run / "best").write_text("checkpoints\\100\n")
    assert bias(steppe.load_policy(run / "best")) == bias(steppe.load_policy(run / "checkpoints" / "100"))
    assert find(run / "best").checkpoint == (run / "checkpoints" / "100").resolve()
    assert find(run / "checkpoints") == (run / "checkpoints" / "200", run)
    other = tmp_path / "best"  # a checkpoint of that name is one
    assert bias(steppe.load_policy(written(other))) == bias(steppe.load_policy(run / "checkpoints" / "100"))


def test_one_of_several_policies(tmp_path):
    folder = written(tmp_path / "c", left=exported(seed=1), right=exported(seed=2))
    left, right = (steppe.load_policy(folder, policy_id=name) for name in ("left", "right"))
    assert (left.policy_id, right.policy_id) == ("left", "right")
    assert bias(left) != bias(right)
    with pytest.raises(steppe.ConfigError, match="no policy 'default_policy'; there are left, right"):
        steppe.load_policy(folder)


def test_a_bad_observation_is_named_as_the_algorithm_names_it(saved):
    policy = steppe.load_policy(saved)
    for obs, code in (([0.0, np.nan, 1.0], "E104"), ([1.0], "E103"), ("north", "E102")):
        with pytest.raises(steppe.SpaceError, match=f"'default_policy' cannot act .*{code}"):
            policy.act(obs)
    assert isinstance(policy.act([1, 2, 3]), int)  # safe conversions are made


def test_only_what_is_needed_is_read(saved):
    (saved / "learner.safetensors").write_bytes(b"damaged")
    assert isinstance(steppe.load_policy(saved).act(np.zeros(3)), int)
    with pytest.raises(steppe.CheckpointError, match="learner"):
        checkpoint.load(saved)


def test_damage_is_named_and_the_one_before_is_offered(tmp_path):
    run = run_folder(tmp_path / "ppo-1", {100: 5.0, 200: 1.0})
    file = run / "checkpoints" / "200" / "policies.safetensors"
    *rest, last = file.read_bytes()
    file.write_bytes(bytes([*rest, last ^ 1]))
    with pytest.raises(steppe.CheckpointError, match=r"policies.safetensors.*intact.*checkpoints/100"):
        steppe.load_policy(run)
    with pytest.raises(steppe.CheckpointError, match="there is no checkpoint at"):
        steppe.load_policy(tmp_path / "nowhere")


def test_a_checkpoint_without_policies_says_what_it_holds(tmp_path):
    checkpoint.save(tmp_path / "c", {"learner": {"w": np.zeros(2)}}, {"run_id": "r"})
    with pytest.raises(steppe.CheckpointError, match=r"holds no policies, only learner\. .*save it again$"):
        steppe.load_policy(tmp_path / "c")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "dreamer"},
        {"encoder": {"kind": "transformer"}},
        {"observation": {"kind": "Box"}},
        {"mlp": None},
        {"distribution": {"beta": True}},
    ],
    ids=str,
)
def test_a_network_of_a_later_version_is_refused(change, tmp_path):
    state = exported()
    state["network"] = {**state["network"], **change}
    folder = written(tmp_path / "c", default_policy=state)
    with pytest.raises(steppe.CheckpointError, match=r"cannot be rebuilt.*the version of steppe that wrote"):
        steppe.load_policy(folder)


class Bomb:
    def __reduce__(self):
        return (Path("exploded").write_text, ("x",))


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["rllib_checkpoint.json", "algorithm_state.pkl"], "an RLlib checkpoint"),
        (["checkpoint-000010", ".is_checkpoint", ".tune_metadata"], "an RLlib checkpoint"),
        (["checkpoint_000010/checkpoint-10", "params.pkl"], "a folder of Tune with RLlib checkpoints"),
        (["checkpoint_000010/algorithm_state.pkl", "params.json"], "a folder of Tune with RLlib checkpoints"),
        (["learner/state.pkl", "metadata.json"], "an RLlib checkpoint"),
        (["model.pt"], "made of pickle files"),
    ],
    ids=["Ray 2", "Ray 1", "Tune 1", "Tune 2", "learner", "torch"],
)
def test_what_others_wrote_is_named_and_never_unpickled(files, named, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    config = steppe.PPOConfig(
        env="CartPole-v1", num_envs_per_env_runner=1, fcnet_hiddens=[4], write_run=False
    )
    with config.build() as algo:
        for load in (steppe.load_policy, steppe.load, algo.restore):
            with pytest.raises(steppe.CheckpointError, match=f"{named}.*never unpickles"):
                load(folder)
    assert not Path("exploded").exists()


def test_a_checkpoint_of_steppe_in_a_folder_named_as_rllib_names_them_is_offered(tmp_path):
    path = written(tmp_path / "checkpoint_3" / "checkpoint-3")
    with pytest.raises(steppe.CheckpointError, match=rf"newest checkpoint in it is {re.escape(str(path))}"):
        steppe.load_policy(tmp_path / "checkpoint_3")


def test_resuming_does_not_depend_on_the_policies_kept_beside(tmp_path):
    """The learner's own arrays decide; the acting copy is for others."""
    config = steppe.PPOConfig(
        env="CartPole-v1", num_envs_per_env_runner=1, fcnet_hiddens=[4], write_run=False
    )
    with config.build() as algo:
        owners, meta = checkpoint.load(algo.save(tmp_path / "c"))
        del owners["policies"]
        checkpoint.save(tmp_path / "d", owners, meta)
        algo.restore(tmp_path / "d")
    other = steppe.PPOConfig(env="CartPole-v1", num_envs_per_env_runner=1, fcnet_hiddens=[5], write_run=False)
    with other.build() as algo, pytest.raises(steppe.CheckpointError, match="do not fit"):
        algo.restore(tmp_path / "c")
