"""Small batches for programs that neither set nor show their own."""

import gymnasium
import pytest

from steppe.compat import ray
from steppe.compat.agents import ppo
from steppe.envs import registry
from tests.compat.seed_programs import PRINTED

SMALL = {
    "rollout_fragment_length": 64,
    "train_batch_size": 64,
    "sgd_minibatch_size": 32,
    "num_sgd_iter": 1,
    "num_workers": 0,
    "seed": 0,
}


@pytest.fixture
def quick(monkeypatch):
    """RLlib's defaults made small, as a program may do it; what was registered is put back."""
    for key, value in SMALL.items():
        monkeypatch.setitem(ppo.DEFAULT_CONFIG, key, value)
    monkeypatch.setitem(ppo.DEFAULT_CONFIG["model"], "fcnet_hiddens", [16])
    monkeypatch.setattr(registry, "REGISTERED", dict(registry.REGISTERED))
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)
    ray.shutdown()


def pytest_terminal_summary(terminalreporter):
    """What the seeds' programs printed, for the reader of a test run."""
    for name, lines in PRINTED.items():
        terminalreporter.section(f"printed by the seeds' program {name}", sep="-")
        terminalreporter.write_line("\n".join(lines))
