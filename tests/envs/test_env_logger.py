"""What envs log: it goes where steppe's own messages go, and says which env it is from."""

import copy
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import steppe
from tests.envs_for_tests import NeverEnds


class Talker(NeverEnds):
    """Says when it is reset, with a number in the text."""

    def __init__(self, env_config):
        super().__init__()
        self.context, self.logger = env_config, env_config.logger
        self.share = env_config.get("share", 7)

    def reset(self, *, seed=None, options=None):
        self.logger.warning("fuel at %d%%", self.share)
        self.logger.debug("nothing to see")
        return super().reset(seed=seed)


def test_records_say_which_env_they_are_from(caplog):
    context = steppe.EnvContext({}, worker_index=2, vector_index=5)
    context.logger.warning("fuel at %d%%", 7)
    context.logger.warning({"not": "a text"})
    with_args, plain = caplog.records
    assert with_args.getMessage() == "runner 2 env 5: fuel at 7%"
    assert plain.getMessage() == "runner 2 env 5: {'not': 'a text'}"
    assert {(r.worker_index, r.vector_index) for r in caplog.records} == {(2, 5)}
    assert type(context.logger) is logging.Logger
    assert context.logger is context.logger
    assert context.logger.name.startswith("steppe.env.")
    assert steppe.EnvContext({}, 2, 5).logger is context.logger
    assert steppe.EnvContext({}, 2, 6).logger is not context.logger


def test_it_has_the_level_of_the_run(caplog):
    logger = steppe.EnvContext({}, 1, 1).logger
    before = logging.getLogger("steppe").level
    try:
        logging.getLogger("steppe").setLevel("ERROR")
        logger.warning("not said")
        logging.getLogger("steppe").setLevel("DEBUG")
        logger.debug("said")
    finally:
        logging.getLogger("steppe").setLevel(before)
    assert [record.getMessage() for record in caplog.records] == ["runner 1 env 1: said"]


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_contexts_and_envs_that_hold_a_logger_can_be_copied(way):
    env = Talker(steppe.EnvContext({"share": 3}, 1, 4, 2, remote=True))
    same = way(env)
    assert same.logger is env.logger
    assert (same.context, same.context.vector_index, same.context.remote) == ({"share": 3}, 4, True)


OTHER_PROCESS = """
import pickle, sys
context = pickle.loads(sys.stdin.buffer.read())
context.logger.info("fuel at %d%%", 7)
context.logger.debug("nothing to see")
"""


def test_it_brings_its_level_to_the_process_of_a_remote_env():
    before = logging.getLogger("steppe").level
    try:
        logging.getLogger("steppe").setLevel("INFO")
        sent = pickle.dumps(steppe.EnvContext({}, 0, 3, remote=True))
    finally:
        logging.getLogger("steppe").setLevel(before)
    done = subprocess.run([sys.executable, "-c", OTHER_PROCESS], input=sent, capture_output=True, check=True)
    assert done.stderr.decode() == "runner 0 env 3: fuel at 7%\n"


def test_it_is_in_the_log_of_the_run(tmp_path):
    sizes = {"num_envs_per_env_runner": 2, "train_batch_size": 8, "minibatch_size": 8, "num_epochs": 1}
    config = steppe.PPOConfig(env=Talker, fcnet_hiddens=[4], seed=0, run_dir=str(tmp_path / "run"), **sizes)
    with config.build() as algo:
        algo.train()
    lines = [line.split(" ", 2)[2] for line in Path(tmp_path / "run/log.txt").read_text().splitlines()]
    said = [line for line in lines if "fuel" in line]
    assert said == [f"WARNING runner 0 env {i}: fuel at 7%" for i in range(2)]
    assert not any("nothing to see" in line for line in lines)
