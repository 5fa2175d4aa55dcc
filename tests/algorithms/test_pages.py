"""The pages on algorithms that learn from a replay: settings, metrics and pointers are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import steppe
from steppe.config import AlgorithmConfig, field_specs
from tests.test_docs import keys_of_table

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {"dqn": steppe.DQNConfig, "sac": steppe.SACConfig, "td3": steppe.TD3Config}
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
    env = "CartPole-v1" if name == "dqn" else "Pendulum-v1"
    with CONFIGS[name](env=env, **TINY).build() as algo:
        stats = algo.train()["info"]["default_policy"]
    assert keys_of_table(page(name), "What learning measures") == sorted(stats)


def test_every_setting_of_its_own_is_named_and_stated_defaults_are_true(name):
    text, shared = page(name), field_specs(AlgorithmConfig)
    own = {key: spec.default() for key, spec in field_specs(CONFIGS[name]).items() if key not in shared}
    assert len(own) > 10
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
