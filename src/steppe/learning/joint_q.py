"""How teams learn the values of their members' actions from what the team earns: QMIX and VDN alike.

Members share one network. A mixer makes the team's value of the values of what its members chose; it never
falls when one of these rises, so that the best for the team is the best for each, which each finds by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.errors import ConfigError
from steppe.learning.off_policy import Buffer, LearnerState, Method, OffPolicyLearner, followed
from steppe.learning.optimizer import (
    clipped_adam,
    clipped_adam_form,
    clipped_adam_init,
    descended,
    global_norm,
)
from steppe.learning.policy_gradient import averaged
from steppe.learning.schedules import Schedule
from steppe.models.before import Memory
from steppe.models.encoders import Encoder, make_encoder
from steppe.models.members import Members
from steppe.models.mixers import Mixer, Total, make_monotonic
from steppe.models.observations import norm_init
from steppe.models.q_memory import MemoryQ, make_memory_q
from steppe.models.q_network import QNetwork, make_q_network
from steppe.policies.actor_critic import Layout
from steppe.policies.joint import JointPolicy
from steppe.spaces import Spec
from steppe.types import Tree

UNUSED = (
    *("critic_only", "share", "extra_loss", "vf_share_layers", "models", "framestack"),
    *("action_embeddings", "autoregressive_actions"),
)
"""Settings that mean nothing here."""


@final
class JointValue(eqx.Module):
    """What a team's actions are worth; ``network`` alone is what acting needs.

    Attributes:
        network: values of one member's actions.
        encoder: of the state that the mixer sees; None where it sees none.
        mixer: values of what the members chose to that of the team.
    """

    network: QNetwork | MemoryQ
    encoder: Encoder | None
    mixer: Mixer

    def values(self, rows: Tree) -> jax.Array:
        """``(n, members, actions)`` of the rows ``(n, members, ...)`` of members that remember nothing."""
        assert isinstance(self.network, QNetwork)
        return jax.vmap(jax.vmap(self.network))(rows)[..., 0]

    def legal(self, values: jax.Array, rows: Tree) -> jax.Array:
        """Values ``(..., members, actions)`` with those of illegal actions far below all others."""
        head = self.network.out if isinstance(self.network, MemoryQ) else self.network
        return head.legal(values, rows)

    def total(self, chosen: jax.Array, state: Tree) -> jax.Array:
        """Values ``(...)`` of the team from its members' ``(..., members)`` and states ``(..., ...)``."""

        def one(values: jax.Array, state: Tree) -> jax.Array:
            return self.mixer(values, jnp.zeros(0) if self.encoder is None else self.encoder(state))

        mixed: Any = one
        for _ in range(chosen.ndim - 1):
            mixed = jax.vmap(mixed)
        total: jax.Array = mixed(chosen, state)
        return total


def make_joint_value(
    members: Members,
    rng: np.random.Generator,
    *,
    algorithm: str,
    unused: Sequence[str],
    memory: Sequence[Any] | None,
    mixing: int | None,
    hiddens: Sequence[int],
    activation: str,
    conv_filters: Sequence[Sequence[int]] | None,
) -> JointValue:
    """Draw the networks of a team.

    Args:
        members: its form.
        rng: source of the initial parameters.
        algorithm: its name, for messages.
        unused: settings that it has no use for, as they were written.
        memory: what :class:`~steppe.models.before.Memory` is made of, each member's own; None for none.
        mixing: width of QMIX's mixer; None is the sum.
        hiddens: widths of the hidden layers of the members' network.
        activation: after each of them.
        conv_filters: ``[channels, kernel, stride]`` a layer, for images; chosen by size if None.

    Raises:
        ConfigError: an unused setting, or layers that cannot be.
    """
    if unused:
        raise ConfigError(f"{algorithm}: {unused[0]} has no meaning here; leave it out, or use PPOConfig")
    layers: dict[str, Any] = {"hiddens": hiddens, "activation": activation, "conv_filters": conv_filters}
    layers |= {"dueling": False, "masked": members.masked}
    network: QNetwork | MemoryQ
    if memory is None:
        network = make_q_network(members.seen, members.choices.n, rng, **layers)
    else:
        network = make_memory_q(members.seen, members.choices, rng, Memory(*memory), **layers)
    if mixing is None:
        return JointValue(network, None, Total())
    encoder = make_encoder(members.state, rng, conv_filters=conv_filters)
    return JointValue(network, encoder, make_monotonic(members.size, encoder.size, mixing, rng))


class Hyper(NamedTuple):
    """Numbers that may change from update to update without compiling anew."""

    lr: Any
    tau: Any


class Static(NamedTuple):
    """What compiled programs are keyed by."""

    members: Members
    double_q: bool
    td_error_loss: str
    grad_clip: float | None
    adam_epsilon: float
    burn_in: int = 0


def joint_loss(
    model: JointValue, target: JointValue, batch: Mapping[str, Any], static: Any
) -> tuple[jax.Array, tuple[dict[str, jax.Array], jax.Array]]:
    """The loss of the team's values against their targets (equation 6 of the QMIX paper).

    Args:
        model: what learns.
        target: its slowly following copy.
        batch: see :class:`~steppe.learning.off_policy.Method`; the action is a tuple, one part a member.
        static: ``members``, ``double_q``, ``td_error_loss`` and ``burn_in``.

    Returns:
        The loss, its parts, and the TD error of each row ``(n,)``, of sequences its mean size.
    """
    members, along = static.members, "end" in batch
    action = jnp.stack(batch["action"], axis=-1)
    if along:
        rows = after = members.rows(batch["obs"], jnp.stack, lead=2)
        values, then = (values_along(one, static, batch, rows, action) for one in (model, target))
        judged, later, learned = values if static.double_q else then, batch["obs"], batch["learned"]
    else:
        rows, after = (members.rows(batch[name], jnp.stack) for name in ("obs", "next_obs"))
        values, then = model.values(rows), target.values(after)
        judged = model.values(after) if static.double_q else then
        later, learned = batch["next_obs"], jnp.ones(action.shape[:-1], bool)
    best = picked(then, target.legal(judged, after).argmax(-1))
    outcome = jax.lax.stop_gradient(target.total(best, members.state_of(later)))
    if along:
        outcome = jnp.take_along_axis(outcome, batch["end"], 1)
    chosen = picked(values, action)
    total = model.total(chosen, members.state_of(batch["obs"]))
    error = jnp.where(learned, total - (batch["reward"] + batch["discount"] * outcome), 0.0)
    small, size = 0.5 * error**2, jnp.abs(error)
    by_row = small if static.td_error_loss == "mse" else jnp.where(size <= 1.0, small, size - 0.5)
    count = jnp.maximum(learned.sum(), 1)
    weight = batch["weight"][:, None] if along else batch["weight"]
    parts = {"total_loss": (weight * by_row).sum() / count, "mean_td_error": error.sum() / count}
    parts |= averaged({"mean_q": total, "mean_member_q": chosen.mean(-1)}, learned)
    parts["min_q"] = jnp.where(learned, total, jnp.inf).min()
    parts["max_q"] = jnp.where(learned, total, -jnp.inf).max()
    return parts["total_loss"], (parts, size.mean(1) if along else error)


def values_along(
    model: JointValue, static: Any, batch: Mapping[str, Any], rows: Tree, action: jax.Array
) -> jax.Array:
    """``(s, l, members, actions)`` of sequences, which every member goes along with a memory of its own.

    Args:
        model: whose network remembers.
        static: ``members`` and ``burn_in``.
        batch: columns of the group, ``(s, l, ...)``, and ``state`` of ``(s, ...)``.
        rows: what members see, ``(s, l, members, ...)``.
        action: what they did, ``(s, l, members)``.
    """
    assert isinstance(model.network, MemoryQ)
    shape = action.shape
    shared = {name: jnp.broadcast_to(batch[name][..., None], shape) for name in ("earned", "fresh")}
    columns = jax.tree.map(
        lambda a: a.swapaxes(1, 2).reshape(-1, shape[1], *a.shape[3:]),
        {"obs": rows, "action": action, **shared},
    )
    states = static.members.states(batch["state"], jnp)
    out = model.network.sequences({**columns, "state": states}, static.burn_in)[..., 0]
    return out.reshape(shape[0], shape[2], shape[1], -1).swapaxes(1, 2)


def picked(values: jax.Array, action: jax.Array) -> jax.Array:
    """Of all values ``(..., members, actions)`` those of the actions ``(..., members)``."""
    taken = action[..., None] == np.arange(values.shape[-1])
    return jnp.where(taken, values, 0.0).sum(-1)  # no gather: its gradient is a slow scatter on CPU


def update(
    static: Static, state: LearnerState, batch: dict[str, Any], hyper: Hyper, key: jax.Array
) -> tuple[LearnerState, dict[str, jax.Array], jax.Array]:
    """One step of Adam, then of the target; see :class:`~steppe.learning.off_policy.Method`."""
    gradient, (parts, error) = jax.grad(joint_loss, has_aux=True)(state.params, state.target, batch, static)
    change, opt = clipped_adam(static.grad_clip, static.adam_epsilon).update(gradient, state.opt)
    params = descended(state.params, change, hyper.lr)
    after = followed(state.target, params, batch["sync"], hyper.tau)
    parts["grad_norm"] = global_norm(gradient)
    return state._replace(params=params, target=after, opt=opt), parts, error


def values(static: Static, model: JointValue, obs: Tree) -> jax.Array:
    """The team's value if each takes what is best for it, ``(n,)``."""
    rows = static.members.rows(obs, jnp.stack)
    best = model.legal(model.values(rows), rows).max(-1)
    total: jax.Array = model.total(best, static.members.state_of(obs))
    return total


def make_joint_learner(
    model: JointValue,
    members: Members,
    seed: int,
    *,
    action: Spec,
    replay: Buffer,
    normalize: bool,
    double_q: bool,
    td_error_loss: str,
    grad_clip: float | None,
    adam_epsilon: float,
    lr: Schedule,
    tau: Schedule,
    epsilon: Schedule,
    batch_size: int,
    updates_per_step: float,
    learning_starts: int,
    target_update_freq: int,
    burn_in: int,
) -> OffPolicyLearner:
    """The learner of one team; arguments as of :class:`~steppe.learning.off_policy.OffPolicyLearner`.

    Args:
        model: its networks.
        members: its form.
        seed: its place in the run's tree.
        action: the space of its actions.
        replay: what it remembers.
        normalize: keep observation statistics.
        double_q: the network chooses the actions whose values the target says.
        td_error_loss: "mse" or "huber".
        grad_clip: largest norm of a gradient.
        adam_epsilon: of the optimizer.
        lr: learning rate.
        tau: how far the target follows.
        epsilon: with which each member chooses by chance.
        batch_size: rows of one update.
        updates_per_step: updates an env step is worth.
        learning_starts: env steps before the first update.
        target_update_freq: env steps between updates of the targets.
        burn_in: rows before those of a sequence.
    """
    layout, normalizer = Layout.of(model), norm_init(members.covered) if normalize else ()
    params, acting = layout.ravel(model), Layout.of(model.network).size
    form = LearnerState(layout, layout, clipped_adam_form(layout), None)
    static = Static(members, double_q, td_error_loss, grad_clip, adam_epsilon, burn_in)
    remembers = isinstance(model.network, MemoryQ)
    return OffPolicyLearner(
        Method(Hyper, update, values, static, form, members.covered, None, remembers),
        JointPolicy(members, action, model.network, normalized=bool(normalizer)),
        LearnerState(params, params.copy(), clipped_adam_init(params), normalizer),
        seed,
        replay=replay,
        coefficients={"lr": lr, "tau": tau},
        acting=acting,
        batch_size=batch_size,
        updates_per_step=updates_per_step,
        learning_starts=learning_starts,
        target_update_freq=target_update_freq,
        scalars={"epsilon": epsilon},
        about=f"{layout.size} parameters, {acting} of them act\n{model}",
    )
