"""The policies of a run in numpy alone, exploring as they do in training: for processes that serve them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import numpy as np

from steppe.errors import ConfigError
from steppe.models.actions import Actions
from steppe.models.before import repeated
from steppe.models.framestack import Frames, stacked_spec
from steppe.models.numpy_forward import Network, fresh_state
from steppe.models.numpy_logp import logp_of
from steppe.models.observations import MASK
from steppe.policies.frames import FramesPolicy
from steppe.policies.noisy import NoisyPolicy
from steppe.spaces import describe, from_description
from steppe.types import Array, Decision, FloatArray, IntArray, Policy, State, Tree


class Exported(NamedTuple):
    """Published weights as they come elsewhere: of :class:`~steppe.types.Weights` and a policy's ``export``.

    Attributes:
        version: counts the updates that learned.
        arrays: of the network, by name.
        scalars: such as ``epsilon``.
    """

    version: int
    arrays: Mapping[str, Array]
    scalars: Mapping[str, float] = {}


@final
class NumpyPolicy:
    """Acts as the policy does that was exported, up to rounding; see :class:`steppe.types.Policy`.

    The same uniforms pick the same actions, with the same log-probabilities and states.

    Args:
        network: as the policy's ``export`` gave it: JSON values.
        exploration: likewise; None acts without: noise is ignored.

    Raises:
        ConfigError: the policy acts by what is not in numpy: code of the user's own, for a group, or by an
            exploration that moves its parameters.
        LookupError, ValueError, TypeError: the description is damaged.
    """

    def __init__(self, network: Mapping[str, Any], exploration: Mapping[str, Any] | None) -> None:
        _check(network, exploration)
        self.observation = self.acting = from_description(network["observation"])
        frames = None
        if (depth := network.get("framestack", 1)) > 1:
            frames = Frames(self.observation, depth, tuple(network["unstacked"]))
            network = {**network, "observation": describe(stacked_spec(frames)), "framestack": 1}
        plain = _Plain(network, exploration)
        policy: Policy = plain
        if exploration is not None and exploration["kind"] == "added_noise":
            settings = {name: value for name, value in exploration.items() if name != "kind"}
            policy = NoisyPolicy(plain, plain.actions, **settings)
        if frames is not None:
            policy = FramesPolicy(policy, frames)
        self.action, self.noise_size, self.draws = policy.action, policy.noise_size, policy.draws
        self.to_env, self.from_env = policy.to_env, policy.from_env
        self.act, self.initial_state = policy.act, policy.initial_state
        self.load: Callable[[Any], Any] = policy.load  # of what is Exported, as export is
        self.export: Callable[[Any], State] = policy.export


@final
class _Plain:
    """One network's own choices: the likeliest, drawn ones, or by chance those of ``epsilon_greedy``."""

    def __init__(self, network: Mapping[str, Any], exploration: Mapping[str, Any] | None) -> None:
        self.observation = self.acting = from_description(network["observation"])
        self.actions = Actions(from_description(network["action"]), **network["distribution"])
        self.action, self.draws = self.actions.spec, False
        self.to_env: Callable[[Tree], Tree] = self.actions.to_env_direct
        self.from_env: Callable[[Tree], Tree] = self.actions.from_env
        self._network, self._exploration, self._greedy = network, exploration, network.get("greedy", False)
        self._fresh, self._masked = fresh_state(network, self.actions), network.get("masked", False)
        self.noise_size = 2 if self._greedy else self.actions.noise_size
        self.noise_size *= exploration is not None

    def load(self, weights: Any) -> Any:
        """The network; and the probability of a uniform choice."""
        return Network(self._network, weights.arrays), np.float32(weights.scalars.get("epsilon", 0.0))

    def act(self, weights: Any, obs: Tree, state: Tree, noise: FloatArray | None) -> Decision:
        """Choose actions; see :meth:`steppe.types.Policy.act`.

        Raises:
            BadLeaf: the mask of a row allows nothing.
        """
        network: Network = weights[0]
        network.check(obs)
        params, found = network.met(obs, state)
        noise = None if self._exploration is None else noise
        with np.errstate(all="ignore"):  # as compiled code is: silent, and the result says it
            if self._greedy and noise is not None:
                action, logp = epsilon_greedy(params, weights[1], obs[MASK] if self._masked else None, noise)
            else:
                action = self.actions.choose(params, noise)
                certain = np.zeros(len(params), np.float32)
                logp = certain if self._greedy else logp_of(self.actions, params, action)
        return Decision(action, logp, network.after(found, action, state))

    def initial_state(self, n: int) -> Tree:
        """Zeros; None without a memory."""
        return None if self._fresh is None else repeated(self._fresh, n)

    def export(self, weights: Any) -> State:
        """What it was made of."""
        arrays = dict(weights.arrays)
        return {"network": self._network, "arrays": arrays, "exploration": self._exploration}


def epsilon_greedy(
    values: FloatArray, epsilon: np.float32, mask: Array | None, noise: FloatArray
) -> tuple[IntArray, FloatArray]:
    """The best legal action, or with probability ``epsilon`` any legal one.

    Args:
        values: ``(n, A)``.
        epsilon: ``()``.
        mask: ``(n, A)`` of the legal ones; None where all are.
        noise: ``(n, 2)`` uniforms: whether to choose by chance, and which.

    Returns:
        Actions ``(n,)`` int32, and the logarithms of their probabilities ``(n,)``.
    """
    reached = np.cumsum(np.ones_like(values) if mask is None else mask != 0, axis=-1, dtype=np.float32)
    any_one = np.argmax(reached > noise[:, 1:] * reached[:, -1:], axis=-1)
    best = values.argmax(-1)
    action = np.where(noise[:, 0] < epsilon, any_one, best)
    probability = epsilon / reached[:, -1] + (np.float32(1.0) - epsilon) * (action == best)
    return action.astype(np.int32), np.log(probability)


def _check(network: Mapping[str, Any], exploration: Mapping[str, Any] | None) -> None:
    """Refuse what numpy cannot do.

    Raises:
        ConfigError: see :class:`NumpyPolicy`.
    """
    kind = network["kind"]
    if kind == "scripted":
        raise _refusal("its rule is code of your own", "act with it where your code is")
    if kind == "joint":
        raise _refusal(
            "it chooses for a group that acts together (QMIX, VDN)", "let a DQNConfig learn for each agent"
        )
    torso = network.get("torso") or {}
    for part, role in ((network.get("encoder"), "encoder"), (torso.get("encoder"), "encoder")):
        if part is not None and part["kind"] == "custom":
            role = part.get("role", role)
            raise _refusal(f"its {role} is code of your own, {part['name']}", f"leave {role!r} out of models")
    if "own" in network["distribution"]:
        own = network["distribution"]["own"]
        raise _refusal(f"its distribution is code of your own, {own}", "leave 'distribution' out of models")
    if exploration is None or exploration["kind"] in ("sampled", "epsilon_greedy", "added_noise"):
        return
    if exploration["kind"] == "noisy_layers":
        raise _refusal("it explores by noisy layers", "set noisy=False, so that it explores by epsilon")
    if exploration["kind"] == "perturbed":
        raise _refusal("it explores by moving its parameters (ES)", "let PPOConfig learn")
    raise LookupError(f"exploration of kind {exploration['kind']!r} is not known here")


def _refusal(why: str, fix: str) -> ConfigError:
    """To be raised by the caller."""
    return ConfigError(f"this policy cannot act in numpy alone, as a process of its own does: {why}; {fix}")
