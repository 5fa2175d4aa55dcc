"""Parts of networks that several policies share are one parameter tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steppe
from steppe.learning.sharing import parts_of

STEPS = 40


def config(share=None, policies=("a", "b"), **settings):
    steppe.register_env("pair", steppe.make_multi_agent("CartPole-v1"))
    spec = {id: {"share": {"encoder": "trunk"} if share is None else share} for id in policies}
    small = {"train_batch_size": STEPS, "minibatch_size": 512, "num_epochs": 1, "fcnet_hiddens": [8, 4]}
    return steppe.PPOConfig(
        env="pair",
        env_config={"num_agents": len(policies)},
        policies={id: steppe.PolicySpec(config=own) for id, own in spec.items()},
        policy_mapping_fn=lambda agent_id: policies[int(agent_id) % len(policies)],
        num_envs_per_env_runner=1,
        grad_clip=None,
        write_run=False,
        seed=0,
    ).copy(**{**small, **settings})


def learners_of(algo):
    return algo._learner.learners


def parts(algo, id):
    learner = learners_of(algo)[id]
    return parts_of(learner.static.layout.unravel(np.asarray(learner.state.params)))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_one_step_is_that_of_the_summed_gradients():
    """Adam's first step by hand: g / (|g| + 1e-5), with both gradients summed where shared."""
    with config({"critic_encoder": "trunk"}, lr=0.01).build() as algo:
        learners, seen = learners_of(algo), {}
        before = {id: np.array(one.state.params) for id, one in learners.items()}
        for id, learner in learners.items():
            prepare = learner.prepare

            def kept(env_steps, id=id, prepare=prepare):
                seen[id] = prepare(env_steps) or seen.get(id)
                return seen[id]

            learner.prepare = kept
        algo.train()
        gradients = {}
        for id, learner in learners.items():
            static, one = learner.static, seen[id]
            index = one.order[0][: int(one.acted)]
            rows = {**jax.tree.map(lambda a, i=index: a[i], one.rows), "weight": jnp.ones(len(index))}

            def loss(params, static=static, rows=rows, one=one):
                model = static.layout.unravel(params)
                return static.method.loss(model, static.distribution, rows, one.hyper)[0]

            gradients[id] = np.asarray(jax.grad(loss)(jnp.asarray(before[id])))
        places = {}
        for id, learner in learners.items():
            layout = learner.static.layout
            numbered = layout.unravel(np.arange(layout.size))
            places[id] = np.concatenate(
                [x.ravel() for x in jax.tree.leaves(parts_of(numbered)["critic_encoder"])]
            )
        total = gradients["a"][places["a"]] + gradients["b"][places["b"]]
        assert np.abs(total).max() > 0.01
        for id, learner in learners.items():
            gradient = gradients[id].copy()
            gradient[places[id]] = total
            expected = before[id] - 0.01 * gradient / (np.abs(gradient) + 1e-5)
            clear = np.abs(gradient) > 1e-4  # below, rounding decides the direction
            assert clear.mean() > 0.3
            np.testing.assert_allclose(np.asarray(learner.state.params)[clear], expected[clear], atol=2e-4)


def test_what_is_shared_stays_equal_and_the_rest_differs():
    with config(minibatch_size=16, num_epochs=2, train_batch_size=100).build() as algo:
        for _ in range(3):
            algo.train()
        a, b = parts(algo, "a"), parts(algo, "b")
        assert same(a["encoder"], b["encoder"])
        for part in ("pi", "critic_encoder", "vf"):
            assert not same(a[part], b[part])
        moments = [one.state.opt[1] for one in learners_of(algo).values()]
        assert all(int(one.count) > 0 for one in moments)


def test_shared_parts_of_a_policy_that_does_not_learn_follow():
    with config(policies_to_train=["a"]).build() as algo:
        before = parts(algo, "b")
        algo.train()
        after = parts(algo, "b")
        assert same(after["encoder"], parts(algo, "a")["encoder"])
        assert not same(after["encoder"], before["encoder"])
        assert all(same(after[part], before[part]) for part in ("pi", "critic_encoder", "vf"))


def test_chains_of_names_make_one_team_and_a_new_policy_joins_it():
    with config(policies=("a", "b", "c", "d"), share={}).build() as algo:
        assert algo._learner._sharing is None
    cfg = config(policies=("a", "b", "c", "d"), share={})
    own = [{"encoder": "x"}, {"encoder": "x", "vf": "y"}, {"vf": "y"}, {}]
    cfg.policies = {id: steppe.PolicySpec(config={"share": s}) for id, s in zip("abcd", own, strict=True)}
    with cfg.build() as algo:
        assert algo._learner._sharing.teams == [["a", "b", "c"]]
        algo.train()
        assert same(parts(algo, "a")["encoder"], parts(algo, "b")["encoder"])
        assert same(parts(algo, "b")["vf"], parts(algo, "c")["vf"])
        assert not same(parts(algo, "a")["vf"], parts(algo, "b")["vf"])
        algo.add_policy("e", steppe.PolicySpec(config={"share": {"encoder": "x"}}))
        assert same(parts(algo, "e")["encoder"], parts(algo, "a")["encoder"])


def test_a_frozen_copy_shares_nothing_and_one_that_learns_does():
    with config().build() as algo:
        frozen = algo.add_policy("past", like="a")
        algo.add_policy("next", like="a", trained=True, policy_mapping_fn=lambda agent: "ab"[int(agent)])
        assert frozen.observation == algo.get_policy("a").observation
        before = algo.get_weights()
        for learner in learners_of(algo).values():
            learner.add = lambda rollout: None  # "next" acts for nobody
        algo.set_weights({"a": before["a"] + 1.0})
        after = algo.get_weights()
        assert np.array_equal(after["past"], before["past"])
        assert same(parts(algo, "next")["encoder"], parts(algo, "a")["encoder"])


def test_a_name_that_nobody_else_has_is_said(caplog):
    own = {"a": {"encoder": "trunk"}, "b": {"encoder": "trnuk", "vf": "v"}, "c": {"vf": "v"}}
    policies = {id: steppe.PolicySpec(config={"share": share}) for id, share in own.items()}
    with config(policies=tuple(own)).copy(policies=policies).build():
        pass
    assert "policy a shares ['trunk'] with no other policy" in caplog.text
    assert "policy b shares ['trnuk'] with no other policy" in caplog.text
    assert "policy c" not in caplog.text


def test_setting_the_weights_of_one_sets_what_it_shares():
    with config().build() as algo:
        new = algo.get_weights()["b"] + 1.0
        algo.set_weights({"b": new})
        assert np.array_equal(algo.get_weights()["b"], new)
        assert same(parts(algo, "a")["encoder"], parts(algo, "b")["encoder"])
        assert not same(parts(algo, "a")["vf"], parts(algo, "b")["vf"])


def test_a_run_that_shares_resumes_exactly():
    made = config(minibatch_size=16, num_epochs=2)
    with made.build() as algo:
        algo.train()
        path = algo.save("c")
        algo.train()
        expected = algo.get_weights()
    with steppe.load(path, policy_mapping_fn=made.policy_mapping_fn) as algo:
        algo.train()
        for id, weights in algo.get_weights().items():
            assert np.array_equal(weights, expected[id]), id


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fcnet_hiddens": [8, 5]}, "share 'trunk', whose arrays have shapes"),
        ({"lr": 0.5}, "their lr must be equal, not 0.0003 and 0.5"),
        ({"num_epochs": 3}, "their num_epochs must be equal, not 1 and 3"),
        ({"share": {"encoder": "trunk", "vf": "trunk"}}, "another part is shared as 'trunk'"),
        ({"vf_share_layers": True, "share": {"critic_encoder": "x"}}, "its networks have no such part"),
    ],
)
def test_what_cannot_be_shared_is_said(change, said):
    cfg = config()
    cfg.policies = {
        "a": steppe.PolicySpec(config={"share": {"encoder": "trunk"}}),
        "b": steppe.PolicySpec(config={"share": {"encoder": "trunk"}, **change}),
    }
    with pytest.raises(steppe.ConfigError) as error:
        cfg.build()
    assert said in str(error.value)
