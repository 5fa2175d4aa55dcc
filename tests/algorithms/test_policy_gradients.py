"""What PG, A2C, IMPALA and APPO have in common: exact resume, the command line, company, scaled rewards."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.cli import main
from steppe.config import AlgorithmConfig, field_specs
from tests.algorithms.naive import TINY
from tests.states import diff, state_hash

CONFIGS = {
    "PG": steppe.PGConfig,
    "A2C": steppe.A2CConfig,
    "IMPALA": steppe.IMPALAConfig,
    "APPO": steppe.APPOConfig,
}
every = pytest.mark.parametrize("cls", CONFIGS.values(), ids=CONFIGS)
NORMALISED = {**TINY, "observation_filter": "MeanStdFilter", "reward_scale": "running"}


@every
def test_a_run_goes_on_exactly_from_its_checkpoint(cls, tmp_path):
    """Fragments of 5 steps: the batch is not full where the checkpoint is taken; agents differ in number."""
    config = cls(**{**NORMALISED, "env": "CartPole-v1", "env_config": {}}, rollout_fragment_length=5)
    with config.build() as whole, config.build() as half:
        for _ in range(2):
            whole.train()
            half.train()
        saved = half.save(tmp_path / "half")
        with steppe.load(saved) as resumed:
            for _ in range(2):
                results = [algo.train() for algo in (whole, resumed)]
            for owner, state in whole.get_state().items():
                assert diff(state, resumed.get_state()[owner]) == []
                assert state_hash(state) == state_hash(resumed.get_state()[owner])
    assert results[0]["info"] == results[1]["info"]


@every
def test_a_loaded_policy_acts_as_the_algorithm_does(cls, tmp_path):
    with cls(**NORMALISED).build() as algo:
        algo.train()
        policy = steppe.load_policy(algo.save(tmp_path / "c"))
        for obs in range(5):
            assert policy.act(obs, explore=False) == algo.compute_single_action(obs, explore=False)


@every
def test_it_learns_beside_ppo_in_one_run(cls):
    mine = cls(train_batch_size=32, fcnet_hiddens=[8])
    other = steppe.PPOConfig(train_batch_size=48, minibatch_size=16, num_epochs=2, fcnet_hiddens=[8])
    config = cls(
        env=steppe.make_multi_agent("CartPole-v1"),
        env_config={"num_agents": 2},
        policies={"mine": (mine, None, None, {}), "other": (other, None, None, {})},
        policy_mapping_fn=lambda agent_id, *_: ("mine", "other")[agent_id],
        num_envs_per_env_runner=2,
        min_sample_timesteps_per_iteration=0,
        rollout_fragment_length=8,
        write_run=False,
        seed=0,
    )
    with config.build() as algo:
        info = algo.train()["info"]
    assert 0 < info["mine"]["rows"] <= 32  # an agent that has fallen takes no more of the env's steps
    assert 0 < info["other"]["rows"] <= 48
    assert (info["mine"]["epochs"], info["other"]["epochs"]) == (2 if cls is steppe.APPOConfig else 1, 2)


@every
def test_an_update_that_is_not_finite_is_skipped_and_counted(cls):
    class Huge(gymnasium.Env):
        observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(2, np.float32), {}

        def step(self, action):
            return np.zeros(2, np.float32), 3e38, False, False, {}

    with cls(**{**TINY, "env": Huge, "env_config": {}}).build() as algo:
        before = algo.get_weights()["default_policy"]
        stats = algo.train()["info"]["default_policy"]
        assert np.array_equal(before, algo.get_weights()["default_policy"])
    assert stats["updates_skipped"] == 1


@every
def test_what_is_added_to_the_loss_is_learned_from_and_told(cls):
    def smaller(params, batch):
        return (batch["advantages"] * 0).sum() + 0.25

    with cls(**TINY, extra_loss=smaller).build() as algo:
        stats = algo.train()["info"]["default_policy"]
    assert stats["extra_loss"] == pytest.approx(0.25)
    parts = stats["policy_loss"] + 0.5 * stats["vf_loss"] + 0.25
    assert stats["total_loss"] == pytest.approx(parts, abs=1e-5)


def test_the_command_line_knows_them_and_their_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [
        "--train-batch-size",
        "64",
        "--min-sample-timesteps-per-iteration",
        "0",
        "--fcnet-hiddens",
        "[4]",
    ]
    with pytest.raises(SystemExit) as done:
        main(
            ["train", "--env", "CartPole-v1", "--algo", "a2c", "--stop-iters", "2", "--lambda", "0.9", *flags]
        )
    assert not done.value.code, capsys.readouterr()
    (run,) = tmp_path.glob("runs/CartPole-v1/a2c-*")
    rows = [json.loads(line) for line in (run / "result.jsonl").read_text().splitlines()]
    assert [row["timesteps_total"] for row in rows] == [64, 128]
    assert json.loads((run / "params.json").read_text())["lambda_"] == 0.9


@every
def test_its_page_explains_every_figure_and_setting_and_points_at_code(cls):
    page = Path(__file__).parents[2] / "docs" / "algorithms" / f"{cls.algo_name.lower()}.md"
    text = page.read_text()
    with cls(**TINY).build() as algo:
        stats = algo.train()["info"]["default_policy"]
    metrics = text.partition("## Learning curves")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", metrics, re.MULTILINE)) == set(stats)
    own = field_specs(cls).keys() - field_specs(AlgorithmConfig).keys()
    assert {name for name in own if f"`{name}" not in text} == set()
    pointers = re.findall(r"`([\w/]+)\.py::(\w+)`", text)
    assert len(pointers) >= 5
    for module, name in pointers:
        assert getattr(import_module(f"steppe.{module.replace('/', '.')}"), name)
