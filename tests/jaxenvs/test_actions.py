"""Env actions inside compiled code are those that numpy makes."""

import jax
import numpy as np
import pytest
from gymnasium import spaces

from steppe.jaxenvs.actions import to_env
from steppe.models.actions import Actions
from steppe.spaces import leaves, spec_of

BOX = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, np.inf], np.float32))
SPACES = {
    "discrete": spaces.Discrete(4, start=-2),
    "multi_discrete": spaces.MultiDiscrete([3, 5], start=[1, -1]),
    "multi_binary": spaces.MultiBinary(3),
    "box": BOX,
    "whole numbers": spaces.Box(-3, 3, (2,), np.int32),
    "dict": spaces.Dict({"a": spaces.Discrete(3, start=5), "b": spaces.Tuple([BOX, BOX])}),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("options", [{}, {"squash": True}, {"normalize": False}, {"clip": False}], ids=str)
def test_as_in_numpy(name, options):
    actions, rng = Actions(spec_of(SPACES[name]), **options), np.random.default_rng(0)
    params = 2.0 * rng.standard_normal((64, actions.param_size)).astype(np.float32)
    chosen = actions.choose(params, rng.uniform(0.01, 0.99, (64, actions.noise_size)).astype(np.float32))
    made = jax.jit(lambda action: to_env(actions, action))(chosen)
    wanted = actions.to_env(chosen)
    assert jax.tree.structure(made) == jax.tree.structure(wanted)
    for mine, numpys in zip(leaves(made), leaves(wanted), strict=True):
        assert mine.dtype == jax.dtypes.canonicalize_dtype(numpys.dtype)
        np.testing.assert_allclose(mine, numpys, rtol=1e-6, atol=1e-6)
