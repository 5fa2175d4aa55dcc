"""How actor-critics learn from rows that they acted: what is the same whatever the loss is.

An algorithm gives its loss, its targets and its coefficients; here they become a learner: fragments to
batches, observations and rewards on a scale, epochs of minibatch steps, in two compiled programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from steppe import returns
from steppe.learning.independent import PolicyLearner
from steppe.learning.learner import Stats
from steppe.learning.minibatches import COLUMNS, FragmentQueue, shuffled
from steppe.learning.networks import ActorCriticNetworks, arrays_of, refilled
from steppe.learning.normalizer import deviation, moments, normalized, return_scale_init, scaled_rewards
from steppe.learning.optimizer import clipped_adam, clipped_adam_init
from steppe.learning.schedules import Schedule, adapted_penalty, points
from steppe.models.catalog import ActorCritic
from steppe.models.distributions import Distribution
from steppe.policies.actor_critic import Layout
from steppe.seeding import stream
from steppe.spaces import Spec
from steppe.types import Array, FloatArray, Rollout, SpacePair, State, Tree, Weights

if TYPE_CHECKING:
    from steppe.models.framestack import Frames


class Method(NamedTuple):
    """What one algorithm is made of; compiled programs are keyed by it.

    Attributes:
        hyper: a NamedTuple class of the numbers that may change from update to update without compiling
            anew; among them ``lr`` and ``kl_stop``.
        loss: function of the model, the action distribution, rows and hyper: the loss and its parts. Rows are
            obs, action, logp, advantage, target, weight (1 where a row counts), ``(n, ...)`` each.
        targets: function of rewards, values, log-ratios, the columns terminated, truncated and filled, all
            ``(rows, lanes)``, and hyper: advantages and value targets.
        parts: names of the loss's parts, ``kl`` and ``total_loss`` among them.
        told: coefficients that are reported.
        corrects: it corrects for rows that older weights acted: log-ratios are the log-probability of the
            action by the weights before the update less when it was chosen, and a column ``log_ratio`` of
            the rows; else they are 0.
        standardized: advantages are brought to mean 0 and deviation 1 over the batch.
    """

    hyper: Any
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    targets: Callable[..., tuple[jax.Array, jax.Array]]
    parts: tuple[str, ...]
    told: tuple[str, ...] = ()
    corrects: bool = False
    standardized: bool = True


class LearnerState(NamedTuple):
    """Everything that learning changes: flat parameters, optimizer, running statistics.

    And ``memory``: what a critic that remembers by itself knows of each lane that goes on.
    """

    params: Any
    opt: Any
    normalizer: Any
    return_scale: Any
    memory: Any = ()


class Static(NamedTuple):
    """What the compiled programs of one policy are keyed by; ``minibatch`` 0 is the whole batch.

    Where there is a memory, ``length`` is that of a sequence, and ``minibatch`` counts sequences. ``frames``
    says how observations are stacked, if they are. More than one of ``blocks`` of lanes: minibatches draw
    ``minibatch`` rows from each of them, see :mod:`steppe.learning.devices`.
    """

    method: Method
    observation: Spec
    distribution: Distribution
    layout: Layout
    minibatch: int
    grad_clip: float | None
    scale_rewards: bool
    extra_loss: Callable[..., Any] | None
    length: int = 0
    frames: Frames | None = None
    blocks: int = 1


class Team(NamedTuple):
    """Policies that take their steps together, because they share parameters; nearly always one by itself.

    Attributes:
        members: the policies.
        layout: of all their arrays as a list, each that is shared once, in one flat vector.
        places: for each member, which of these arrays are its own, in the order of its layout.
    """

    members: tuple[Static, ...]
    layout: Layout
    places: tuple[tuple[int, ...], ...]

    def models(self, arrays: Sequence[jax.Array]) -> list[ActorCritic]:
        """The members' networks, made of the arrays of the layout."""
        return [
            jax.tree.unflatten(member.layout.treedef, [arrays[i] for i in places])
            for member, places in zip(self.members, self.places, strict=True)
        ]


class Prepared(NamedTuple):
    """One policy's batch, ready to be learned from; ``count`` of its rows, or sequences, are learned from."""

    rows: dict[str, Any]
    statistics: tuple[Any, ...]
    explained: Any
    order: Array
    count: Any
    hyper: Any
    acted: int


@lru_cache(maxsize=64)
def compiled_rows(static: Static) -> Any:
    """From a batch to rows; shared by all policies of this structure.

    A program beside that of the update: compiled together they take 490 MB at the peak, one by one 425 MB.
    """
    return jax.jit(partial(_rows, static))


@lru_cache(maxsize=64)
def compiled_update(team: Team) -> Any:
    """All epochs over one batch; shared by all teams of this structure."""
    return jax.jit(partial(_update, team))


def _rows(
    static: Static, state: LearnerState, batch: Any, continues: Any, hyper: Any
) -> tuple[dict[str, Any], tuple[Any, ...], jax.Array]:
    """The batch as flat rows with advantages and targets, the new statistics, and the explained variance."""
    acted = returns.acted(batch["terminated"], batch["truncated"], batch["filled"])
    obs = batch["obs"]
    if static.frames is not None:
        from steppe.learning.frames import along_lanes  # most see one observation at a time

        obs = along_lanes(static.frames, batch)
    obs, normalizer, first = normalized(static.observation, state.normalizer, obs, acted)
    reward, return_scale = batch["reward"], state.return_scale
    if static.scale_rewards:
        reward, return_scale = scaled_rewards(return_scale, batch, acted, continues, hyper.gamma)

    value, ask, steps, memory = _asked(static, state, obs, batch, continues)
    flat = partial(_flat, static.blocks)
    obs, action = flat(obs), flat(batch["action"])
    # A first batch's ratios start from the policy as its fresh statistics make it.
    then = flat(batch["logp"])
    logp = jax.lax.cond(first, lambda: static.distribution.logp(ask(), action), lambda: then)
    log_ratio, ends = jnp.zeros(acted.shape), (batch["terminated"], batch["truncated"], batch["filled"])
    if static.method.corrects:
        now = static.distribution.logp(ask(), action)
        log_ratio = jnp.where(acted, _by_lane(static.blocks, now - logp, acted.shape), 0.0)
    advantage, target = static.method.targets(reward, value, log_ratio, ends, hyper)
    advantage = batch.get("advantages", advantage)
    if "value_targets" in batch:
        target = batch["value_targets"] / (deviation(return_scale) if static.scale_rewards else 1.0)
    if static.method.standardized:
        mean, variance = moments(advantage, acted)
        advantage = (advantage - mean) / (jnp.sqrt(variance) + 1e-8)
    unexplained, total = moments(target - value, acted)[1], moments(target, acted)[1]
    rows = {"obs": obs, "action": action, "logp": logp, "advantage": flat(advantage), "target": flat(target)}
    if static.method.corrects:
        rows["log_ratio"] = flat(log_ratio)
    if static.extra_loss is not None:
        known = (*COLUMNS, *rows, "advantages", "value_targets", "state0")
        rows |= {name: flat(column) for name, column in batch.items() if name not in known}
    if static.length:
        from steppe.learning.sequences import cut

        rows = cut(rows, steps, acted, static.length)
    return rows, (normalizer, return_scale, memory), 1.0 - unexplained / jnp.maximum(total, 1e-8)


def _flat(blocks: int, tree: Any) -> Any:
    """Columns of ``(rows, lanes, ...)`` as ``(rows * lanes, ...)``, one block of lanes after the other."""
    split = jax.tree.map(lambda a: a.reshape(len(a), blocks, -1, *a.shape[2:]).swapaxes(0, 1), tree)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[3:]), split)


def _by_lane(blocks: int, column: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The opposite of :func:`_flat`, of one number a row."""
    return column.reshape(blocks, shape[0], -1).swapaxes(0, 1).reshape(shape)


def _asked(
    static: Static, state: LearnerState, obs: Tree, batch: Any, continues: Any
) -> tuple[jax.Array, Callable[[], jax.Array], dict[str, Any], Any]:
    """What the weights that acted say of each row.

    Returns:
        Values ``(rows, lanes)``; a function that gives distribution parameters ``(rows * lanes, P)``; and of
        policies that remember the steps of their memory, and :class:`LearnerState`'s next one.
    """
    model = static.layout.unravel(state.params)
    if static.length:
        from steppe.learning.sequences import walked  # most policies remember nothing

        value, params, steps, memory = walked(model, obs, batch, continues, state.memory)
        return value, lambda: params, steps, memory
    rows = _flat(static.blocks, obs)
    value = _by_lane(static.blocks, jax.vmap(model.value)(rows), batch["filled"].shape)
    return value, lambda: jax.vmap(model.actor)(rows), {}, ()


def _update(
    team: Team, params: Any, opt: Any, old: Any, new: Any, rows: Any, orders: Any, counts: Any, hypers: Any
) -> tuple[Any, list[dict[str, jax.Array]]]:
    """All epochs over one batch; if a number in it is not finite, everything stays as it was.

    Args:
        team: the policies; what follows but for ``params`` and ``opt`` is a list with an item for each.
        params: ``(p,)``, all parameters, those that are shared once.
        opt: the optimizer's state.
        old: running statistics.
        new: the same with this batch.
        rows: the batch.
        orders: ``(epochs, capacity)``, lists the acted rows anew for each epoch.
        counts: how many acted rows there are: a traced loop bound, so that time follows the acted rows and
            shapes do not.
        hypers: coefficients.

    Returns:
        Parameters, optimizer and statistics; and the parts of the losses.
    """
    params_now, opt_now, sums, epochs, steps = _epochs(team, params, opt, rows, orders, counts, hypers)
    after, before = (params_now, opt_now, new), (params, opt, old)
    fine = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((after, sums))]).all()
    parts = [
        {**{n: total / steps for n, total in own.items()}, "epochs": epochs, "skipped": ~fine} for own in sums
    ]
    return jax.tree.map(partial(jnp.where, fine), after, before), parts


def _loss(
    static: Static, model: ActorCritic, rows: dict[str, Any], hyper: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The method's loss, and what the user adds to it."""
    loss, parts = static.method.loss(model, static.distribution, rows, hyper)
    if static.extra_loss is None:
        return loss, parts
    from steppe.learning.extra_loss import extra_of  # most runs have none

    extra = extra_of(static.extra_loss, model, rows)
    return loss + extra, {**parts, "extra_loss": extra, "total_loss": loss + extra}


def _part(static: Static, rows: Any, orders: Any, count: Any, size: int, at: tuple[Any, ...]) -> Any:
    """Its rows of a minibatch; ``at`` is epoch, place, number of minibatches, whether it learns alone."""
    epoch, i, minibatches, alone = at
    if static.blocks > 1:
        from steppe.learning.devices import drawn  # most runs have one device

        return drawn(rows, orders[epoch], count, i, minibatches, size)
    place = jnp.arange(size)
    if alone:
        # The order repeats itself behind the last row: only a batch below one minibatch has idle rows.
        start, weight = i * size, (place < count) | (count >= size)
    else:
        start = i * count // minibatches
        weight = place < (i + 1) * count // minibatches - start
    index = jax.lax.dynamic_slice(orders, (epoch, start), (1, size))[0]
    chosen = jax.tree.map(lambda a: a[index], rows)
    if static.length:
        from steppe.learning.sequences import opened

        chosen, weight = opened(chosen, weight)
    return {**chosen, "weight": weight.astype(jnp.float32)}


def _epochs(team: Team, params: Any, opt: Any, rows: Any, orders: Any, counts: Any, hypers: Any) -> Any:
    """Minibatch steps, epoch by epoch, until all are done or a policy has moved too far."""
    members, optimizer = range(len(team.members)), clipped_adam(team.members[0].grad_clip)
    sizes = [team.members[k].minibatch or orders[k].shape[-1] for k in members]
    alone = len(team.members) == team.members[0].blocks == 1
    if alone:
        minibatches = jnp.maximum((counts[0] + sizes[0] // 2) // sizes[0], 1)
    else:  # as many for all, so that each step has rows of everybody, and of every block
        minibatches = jnp.stack([-(-counts[k] // sizes[k]) for k in members]).max()

    def step(i: jax.Array, carry: Any) -> Any:
        epoch, params, opt, sums = carry
        at = epoch, i, minibatches, alone
        batch = [_part(team.members[k], rows[k], orders[k], counts[k], sizes[k], at) for k in members]

        def loss(arrays: list[jax.Array]) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
            models = team.models(arrays)
            losses = [_loss(team.members[k], models[k], batch[k], hypers[k]) for k in members]
            return jnp.stack([one for one, _ in losses]).sum(), [parts for _, parts in losses]

        # By parts, then joined: through the slices of a flat vector each part would cost the whole length.
        by_part, parts = jax.grad(loss, has_aux=True)(team.layout.unravel(params))
        gradient = jnp.concatenate([leaf.reshape(-1) for leaf in by_part])
        norm = jnp.linalg.norm(gradient)
        change, opt = optimizer.update(gradient, opt)
        sums = jax.tree.map(jnp.add, sums, [{**own, "grad_norm": norm} for own in parts])
        return epoch, params - hypers[0].lr * change, opt, sums

    def epoch_step(carry: Any) -> Any:
        epoch, params, opt, before, _ = carry
        _, params, opt, sums = jax.lax.fori_loop(0, minibatches, step, (epoch, params, opt, before))
        kl = jnp.stack([sums[k]["kl"] - before[k]["kl"] for k in members]) / minibatches
        return epoch + 1, params, opt, sums, kl

    def goes_on(carry: Any) -> jax.Array:
        near = carry[4] <= jnp.stack([hyper.kl_stop for hyper in hypers])
        return jnp.logical_and(carry[0] < orders[0].shape[0], near.all())

    zero = []
    for member in team.members:
        names = (*member.method.parts, "grad_norm", *(["extra_loss"] if member.extra_loss else []))
        zero.append({name: jnp.float32(0.0) for name in names})
    start = (jnp.int32(0), params, opt, zero, jnp.zeros(len(members)))
    epochs, params, opt, sums, _ = jax.lax.while_loop(goes_on, epoch_step, start)
    return params, opt, sums, epochs, epochs * minibatches


@final
class OnPolicyLearner(PolicyLearner):
    """Learns one policy from the rows that it acted.

    Args:
        method: of the algorithm.
        pair: spaces of the policy.
        seed: parameters and minibatches are drawn from streams of their own.
        coefficients: the fields of the method's ``hyper`` but ``kl_coeff``, each a number or a schedule.
        train_batch_size: env steps that one update learns from.
        minibatch_size: rows of one gradient step; None takes the whole batch.
        num_epochs: passes over each batch.
        grad_clip: largest norm of a gradient, or None.
        scale_rewards: divide rewards by the running deviation of the discounted return.
        kl_coeff: initial weight of a penalty on the divergence, None where the method has none; adapted,
            if it is not 0, to ``kl_target``.
        kl_target: see ``kl_coeff``.
        extra_loss: see the setting of that name.
        share: likewise.
        num_learners: likewise.
        actions: arguments of :class:`~steppe.models.distributions.Distribution` besides the space.
        model: arguments of :class:`~steppe.learning.networks.ActorCriticNetworks` besides the spaces.

    Attributes:
        state: everything that learning changes.
        pace: what policies that share parameters must agree on, by name.
        share: parts of the networks by the name that they are shared under.
        static: what its compiled programs are keyed by.
    """

    def __init__(
        self,
        method: Method,
        pair: SpacePair,
        seed: int,
        *,
        coefficients: Mapping[str, Schedule],
        train_batch_size: int,
        minibatch_size: int | None,
        num_epochs: int,
        grad_clip: float | None,
        scale_rewards: bool,
        kl_coeff: float | None = None,
        kl_target: float = 0.0,
        extra_loss: Callable[..., Any] | None,
        share: Mapping[str, str],
        num_learners: int,
        actions: Mapping[str, Any],
        model: Mapping[str, Any],
    ) -> None:
        self._rng, self.share = stream(seed, "minibatches"), dict(share)
        self.takes_older_rows = method.corrects
        distribution = Distribution(pair.action, **actions)
        self.networks = nets = ActorCriticNetworks(pair, distribution, stream(seed, "parameters"), **model)
        size, length = min(minibatch_size or 0, train_batch_size), nets.length
        size = max(size // length, 1) if size and length else size
        if extra_loss is not None and getattr(extra_loss, "__hash__", None) is None:  # such as a dataclass
            extra_loss = partial(extra_loss)
        about = (nets.seen, distribution, nets.layout, size, grad_clip, scale_rewards, extra_loss, length)
        self.static = Static(method, *about, nets.frames)
        programs: Any = compiled_rows, compiled_update, shuffled
        if num_learners:
            from steppe.learning.devices import in_blocks

            self.static, *programs = in_blocks(num_learners, self.static, share)
        arrays = Layout.of([np.zeros(shape) for shape in nets.layout.shapes])
        alone = Team((self.static,), arrays, (tuple(range(len(nets.layout.shapes))),))
        self._rows, self._update, self._shuffled = programs[0](self.static), programs[1](alone), programs[2]
        self._points = {name: points(given) for name, given in coefficients.items()}
        self._epochs, self._kl_target = num_epochs, kl_target
        steps = {"num_epochs": num_epochs, "minibatch_size=None": minibatch_size is None}
        self.pace: dict[str, Any] = {"lr": coefficients["lr"], **steps, "grad_clip": grad_clip}
        self._penalty = {} if kl_coeff is None else {"kl_coeff": kl_coeff}
        self.policy = nets.policy
        opt = clipped_adam_init(nets.params)
        self.state = LearnerState(nets.params, opt, nets.normalizer, return_scale_init(), nets.remembered)
        self._queue = FragmentQueue(train_batch_size, length or int(nets.frames is not None))
        self._capacity = self._version = self._skipped = 0

    def add(self, rollout: Rollout) -> None:
        """Queue a fragment."""
        self._queue.add(rollout)

    def update(self, env_steps: int) -> Stats | None:
        """Learn from a batch once it is full."""
        if (one := self.prepare(env_steps)) is None:
            return self._queue.answer
        params, opt, *old = self.state
        given = ([tuple(old)], [one.statistics], [one.rows], [one.order], [one.count], [one.hyper])
        (params, opt, (new,)), (parts,) = self._update(params, opt, *given)
        return self.learned(LearnerState(params, opt, *new), parts, one)

    @property
    def answer(self) -> Stats | None:
        """Of an update for which :meth:`prepare` gave nothing."""
        return self._queue.answer

    def prepare(self, env_steps: int) -> Prepared | None:
        """Rows and their order, once there is a batch."""
        if (taken := self._queue.take(self.on_batch)) is None:
            return None
        batch, acted, continues = taken
        size = self.static.minibatch or 1  # a whole batch is of any size
        learned, length = acted, self.static.length
        if length:
            from steppe.learning.sequences import acted_sequences, longer

            learned = acted_sequences(acted, length)
            self.state = self.state._replace(memory=longer(self.state.memory, len(continues)))
        order, count = self._shuffled(self._rng, learned, self._epochs, size, self._capacity)
        self._capacity = order.shape[-1]
        *measured, old = self.state.return_scale
        carry = np.zeros(len(continues), np.float32)  # lanes that are new begin with nothing
        carry[: len(old)] = old
        self.state = self.state._replace(return_scale=(*measured, carry))
        numbers = {name: np.interp(env_steps, *given) for name, given in self._points.items()} | self._penalty
        hyper = self.static.method.hyper(**{name: np.float32(value) for name, value in numbers.items()})
        rows, statistics, explained = self._rows(self.state, batch, continues, hyper)
        return Prepared(rows, statistics, explained, order, np.int32(count), hyper, int(acted.sum()))

    def learned(self, state: LearnerState, parts: dict[str, Any], one: Prepared) -> Stats:
        """Take over what an update made; returns its statistics."""
        self.state = state
        parts["vf_explained_var"] = one.explained
        stats = {name: float(value) for name, value in jax.device_get(parts).items()}
        self._version += 1
        self._skipped += int(stats.pop("skipped"))
        told = {name: float(getattr(one.hyper, name)) for name in self.static.method.told}
        if any(self._penalty.values()):
            self._penalty = {
                "kl_coeff": adapted_penalty(self._penalty["kl_coeff"], stats["kl"], self._kl_target)
            }
        told |= {"cur_lr": float(one.hyper.lr), "updates_skipped": float(self._skipped)}
        told |= {f"cur_{name}": value for name, value in self._penalty.items()}
        return stats | told | {"rows": float(one.acted)}

    def values(self, obs: Tree) -> FloatArray:
        """What the critic makes of some observations ``(n, ...)``, in the unit of the rewards.

        Returns:
            ``(n,)``, by this iteration's weights.

        Raises:
            ConfigError: it needs to know what came before them.
        """
        from steppe.learning.judging import judged  # asked for by functions of the user's alone

        return judged(self.static, self.state, obs)

    def publish(self) -> Weights:
        """The actor, and statistics of what it observes."""
        actor = np.asarray(self.state.params)[: self.networks.actor_size]
        statistics = (self.state.normalizer[i] for i in self.networks.published)
        return Weights(self._version, actor, tuple(np.asarray(a) for a in statistics))

    def get_weights(self) -> FloatArray:
        """Parameters of actor and critic, flat."""
        flat: FloatArray = np.asarray(self.state.params).copy()
        return flat

    def set_weights(self, weights: Array) -> None:
        """Replace the parameters; the optimizer keeps its moments."""
        self.state = self.state._replace(params=np.array(weights, np.float32))
        self._version += 1

    def summary(self) -> str:
        """Network and parameter count."""
        return self.networks.summary()

    def get_state(self) -> State:
        """Parameters, optimizer, statistics, stream, queue and counters."""
        return {
            "arrays": arrays_of(self.state),
            "rng": self._rng.bit_generator.state,
            "queue": self._queue.get_state(),
            "counters": [self._version, self._skipped, self._capacity],
            "penalty": self._penalty,
        }

    def checked(self, state: State) -> LearnerState:
        """The arrays in their places; open returns and what is remembered, one a lane, are of any number."""
        return refilled(self.state, state["arrays"], ragged=1 + len(jax.tree.leaves(self.state.memory)))

    def set_state(self, state: State, checked: LearnerState) -> None:
        """Go on from ``state``."""
        self.state, self._penalty = checked, dict(state["penalty"])
        self._rng.bit_generator.state = state["rng"]
        self._queue.set_state(state["queue"])
        self._version, self._skipped, self._capacity = (int(value) for value in state["counters"])
