"""Results as people read them."""

from steppe.sampling.metrics import Result, block


def test_nested_keys_stand_below_and_sorted():
    values = {
        "policy_reward_mean": {"policy_1": 21.5, "policy_0": 21.25},
        "episode_reward_mean": 86.0,
        "custom_metrics": {},
        "info": {"policy_0": {"kl": 0.01, "cur_lr": 5e-05}},
    }
    expected = """\
episode_reward_mean: 86.0
info:
  policy_0:
    cur_lr: 5e-05
    kl: 0.01
policy_reward_mean:
  policy_0: 21.25
  policy_1: 21.5"""
    assert block(values) == str(Result(values)) == expected
