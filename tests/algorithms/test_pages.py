"""The pages on algorithms that learn from a replay: settings, metrics and pointers are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import steppe
from examples import two_step_game
from steppe.config import AlgorithmConfig, field_specs
from tests.test_docs import keys_of_table

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    "dqn": steppe.DQNConfig,
    "qmix": steppe.QMIXConfig,
    "sac": steppe.SACConfig,
    "td3": steppe.TD3Config,
    "vdn": steppe.VDNConfig,
}
ENVS = {"dqn": "CartPole-v1", "qmix": two_step_game.grouped, "vdn": two_step_game.grouped}
TINY = {
    "train_batch_size": 8,
    "fcnet_hiddens": [4],
    "num_steps_sampled_before_learning_starts": 8,
    "min_sample_timesteps_per_iteration": 32,
    "write_run": False,
    "seed": 0,
}

pytestmark = pytest.mark.parametrize("name", CONFIGS)


def page(name):
    return (ROOT / "docs" / "algorithms" / f"{name}.md").read_text()


def test_what_learning_measures_is_explained(name):
    with CONFIGS[name](env=ENVS.get(name, "Pendulum-v1"), **TINY).build() as algo:
        stats = algo.train()["info"]["default_policy"]
    assert keys_of_table(page(name), "What learning measures") == sorted(stats)


def test_every_setting_of_its_own_is_named_and_stated_defaults_are_true(name):
    text, shared = page(name), field_specs(AlgorithmConfig)
    own = {key: spec.default() for key, spec in field_specs(CONFIGS[name]).items() if key not in shared}
    assert len(own) > 8
    for key, default in own.items():
        assert re.search(rf"`{key}(`|=)", text), key
        stated = re.findall(rf"`{key}` \(([\d.,e-]+)\)", text)
        assert all(float(value.replace(",", "")) == default for value in stated), key


def test_code_that_it_points_to_is_there(name):
    pointers = re.findall(r"`([\w/]+\.py)::(\w+)`", page(name))
    assert len(pointers) > 6
    for file, what in pointers:
        source = (ROOT / "src" / "steppe" / file).read_text()
        assert re.search(rf"^(?:def|class) {what}\b", source, re.MULTILINE), f"{file}::{what}"


def test_its_program_makes_a_config(name):
    programs = re.findall(r"^```python\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL)
    namespace = {"steppe": steppe, "range": lambda n: range(min(n, 2))}  # trained for long in tests/learning
    for code in programs:
        exec(code, namespace)
    assert type(namespace["config"]) is CONFIGS[name]
