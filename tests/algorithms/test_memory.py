"""All algorithms that learn from what they acted learn from sequences, and go on from a checkpoint."""

import jax.numpy as jnp
import numpy as np
import pytest

import steppe
from steppe.errors import ConfigError
from tests.learning_core.test_sequences import SMALL, Crowd, Numbers
from tests.states import diff, state_hash

FAMILY = {
    "ppo": steppe.PPOConfig,
    "pg": steppe.PGConfig,
    "a2c": steppe.A2CConfig,
    "impala": steppe.IMPALAConfig,
    "appo": steppe.APPOConfig,
}


def small(algorithm, env=Numbers, **changes):
    """A config of an algorithm in small; each has some of the settings."""
    config = FAMILY[algorithm](env=env, memory="lstm")
    own = {name: value for name, value in {**SMALL, **changes}.items() if name in vars(config)}
    return config.copy(min_sample_timesteps_per_iteration=0, **own)


def hashes(algo):
    return {owner: state_hash(state) for owner, state in algo.get_state().items()}


def without_time(result):
    return {key: value for key, value in result.items() if key != "time"}


@pytest.mark.parametrize(("algorithm", "kind"), [*((name, "lstm") for name in FAMILY), ("ppo", "attention")])
def test_it_goes_on_exactly(algorithm, kind, tmp_path):
    """Agents come and go, skip turns, and are in the middle of something: nothing of it is lost."""
    config = small(algorithm, Crowd, memory=kind)
    with config.build() as straight:
        for _ in range(2):
            info = straight.train()["info"]["default_policy"]
            assert np.isfinite([*info.values()]).all()
        path = straight.save(tmp_path / "c")
        with steppe.load(path, env=Crowd) as resumed:
            assert hashes(resumed) == hashes(straight)
            for _ in range(2):
                first, second = straight.train(), resumed.train()
                assert diff(without_time(first), without_time(second)) == []
            assert hashes(resumed) == hashes(straight)


WHOLE = {"minibatch_size": 10**6, "num_epochs": 1, "train_batch_size": 90}


def assert_acted(info):
    """One step on the whole batch was taken from where acting was: no row has moved yet."""
    assert abs(info["kl"]) < 1e-6
    assert info["rows"] > 20


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("ppo", {"observation_filter": "MeanStdFilter"}),
        ("pg", {"batch_mode": "complete_episodes"}),
        ("a2c", {"vf_share_layers": True}),
        ("impala", {"max_seq_len": 7, "fcnet_hiddens": []}),
        ("appo", {"evaluation_interval": 1, "evaluation_duration": 2, "evaluation_envs": "shared"}),
    ],
    ids=str,
)
def test_the_first_step_begins_where_acting_was(algorithm, changes):
    """Whatever the cuts, the scale of observations, and what happens between two batches."""
    with small(algorithm, **{**WHOLE, **changes}).build() as algo:
        for _ in range(3):
            assert_acted(algo.train()["info"]["default_policy"])


def test_policies_that_come_and_go_take_over_from_the_next_row(tmp_path):
    """Agents in the middle of an episode begin anew with another policy; what they remember is its own."""
    policies = {id: steppe.PolicySpec(None) for id in "ab"}
    config = small("a2c", Crowd, **WHOLE).copy(policies=policies, policy_mapping_fn=by_number("ab"))
    with config.build() as algo:
        algo.train()
        algo.add_policy("c", like="a", trained=True, policy_mapping_fn=by_number("abc"))
        for _ in range(2):
            for info in algo.train()["info"].values():
                assert_acted(info)
        algo.remove_policy("a", policy_mapping_fn=by_number("bc"))
        for _ in range(2):
            for info in algo.train()["info"].values():
                assert_acted(info)


def by_number(ids):
    return lambda agent: ids[int(agent) % len(ids)]


def test_a_loss_of_ones_own_asks_the_model_about_sequences():
    """Its rows are those of the batch; a large one moves the policy."""
    seen = {}

    def extra(params, batch):
        logits, value = params.outputs(batch)
        seen.update({name: np.shape(batch[name]) for name in ("obs", "actions", "advantages")})
        seen["outputs"] = (logits.shape, value.shape)
        return 100.0 * jnp.mean(value**2)

    config = small("ppo", extra_loss=extra, prev_action=False)
    with config.build() as algo:
        assert algo.train()["info"]["default_policy"]["extra_loss"] > 0
    rows = SMALL["minibatch_size"] // SMALL["max_seq_len"] * SMALL["max_seq_len"]
    assert seen["obs"] == (rows, 2)
    assert seen["outputs"][1] == seen["advantages"] == (rows,)
    assert seen["actions"][0] == rows


def test_what_came_before_is_not_known_of_single_observations():
    def asks(policy, batch, other_agent_batches, episode):
        policy.value(batch["obs"])

    config = small("ppo", postprocess_trajectory=asks)
    with config.build() as algo, pytest.raises(ConfigError, match="what came before them"):
        algo.train()


def test_rewards_that_are_changed_for_learning_are_remembered_as_they_were():
    """Else rows would be met with other states than they were acted on with."""

    def doubled(policy, batch, other_agent_batches, episode):
        batch["rewards"] = 100 * batch["rewards"]

    with small("a2c", postprocess_trajectory=doubled).build() as algo:
        for _ in range(2):
            assert abs(algo.train()["info"]["default_policy"]["kl"]) < 1e-6


def test_shared_parts_are_refused_with_a_memory():
    policies = {id: steppe.PolicySpec(config={"share": {"encoder": "eye"}}) for id in ("a", "b")}
    config = small("ppo", Crowd).copy(policies=policies, policy_mapping_fn=lambda agent: "ab"[int(agent) % 2])
    with pytest.raises(ConfigError, match="networks with a memory"):
        config.build()


def test_policies_of_a_run_remember_or_do_not():
    """One of each, and a third whose critic is made of its policy's features."""
    kinds = {"a": {"memory": "none"}, "b": {"memory": "gru"}, "c": {"vf_share_layers": True}}
    policies = {id: steppe.PolicySpec(config=config) for id, config in kinds.items()}
    mapped = {"policies": policies, "policy_mapping_fn": lambda agent: "abc"[int(agent) % 3]}
    with small("ppo", Crowd).copy(**mapped).build() as algo:
        for _ in range(2):
            info = algo.train()["info"]
        assert sorted(info) == ["a", "b", "c"]
        memories = [algo._learner.learners[id].state.memory for id in "abc"]
        assert [bool(memory) for memory in memories] == [False, True, False]
