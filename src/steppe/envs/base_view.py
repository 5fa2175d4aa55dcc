"""Any env as a BaseEnv: the dicts of ``poll`` and ``send_actions`` over the rows of its adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from steppe import spaces
from steppe.envs import registry
from steppe.envs.base_env import ASYNC_RESET_RETURN, BaseEnv
from steppe.envs.multi_agent import ALL
from steppe.errors import ConfigError
from steppe.types import AsyncEnv, SlotInfo, TimeStep

ByEnv = dict[int, dict[Any, Any]]


def to_base_env(
    env: Any, num_envs: int = 1, *, env_config: Mapping[str, Any] | None = None, seed: int = 0
) -> BaseEnv:
    """Any env as a :class:`~steppe.BaseEnv`.

    ``poll`` returns six items. An env whose episode ended stays ended until ``try_reset(i)``, which returns
    the first observations of the next one, and actions to it raise a ValueError until then.

    Args:
        env: an env of any kind (one agent or many, old or new, a vector), what builds one (class, function,
            name), or an ``AsyncEnv``. A BaseEnv is returned as it is.
        num_envs: how many are built. Vector envs count for themselves.
        env_config: what is built gets this.
        seed: root of the seeds that the envs get.

    Raises:
        ConfigError: the spelling is unknown, or several copies of one object are asked for.
    """
    if isinstance(env, BaseEnv):
        return env
    if isinstance(env, AsyncEnv):
        return RowsView(env)
    if registry.is_made(env):
        if num_envs != 1 and not registry.is_vector(env):
            raise ConfigError(f"{num_envs} envs cannot be made of one object: give its class or a function")
        made = env
        return RowsView(registry.build(lambda: made, num_envs=getattr(env, "num_envs", 1), run_seed=seed))
    return RowsView(registry.build(env, env_config, num_envs=num_envs, run_seed=seed))


class _Seen(NamedTuple):
    """A row, with who it is of."""

    who: SlotInfo
    obs: Any
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    taken: list[Any]
    """The action that was chosen elsewhere, if there is one."""


@final
class RowsView(BaseEnv):
    """The view of an :class:`~steppe.types.AsyncEnv`; first rows are held back, as it resets by itself."""

    def __init__(self, env: AsyncEnv) -> None:
        self._env, self.num_envs = env, env.num_envs
        self._who: dict[int, SlotInfo] = {}
        self._space: dict[int, int] = {}
        self._awaits: dict[int, dict[Any, int]] = {i: {} for i in range(env.num_envs)}
        self._ended: dict[int, int] = {}  # the episode that ended, until it is reset
        self._held: dict[int, list[_Seen]] = {}
        self._met = set[Any]()

    @property
    def observation_space(self) -> Any:
        """The Spec that all agents share, or one for each known agent."""
        return self._spaces(0)

    @property
    def action_space(self) -> Any:
        """Likewise."""
        return self._spaces(1)

    def _spaces(self, axis: int) -> Any:
        if len(self._env.spaces) == 1:
            return self._env.spaces[0][axis]
        return {agent: self._env.spaces[space][axis] for agent, space in self._env.agents.items()}

    def get_agent_ids(self) -> set[Any]:
        """Everyone who is known beforehand or has appeared."""
        return {*self._env.agents, *self._met}

    def poll(self) -> tuple[ByEnv, ByEnv, ByEnv, ByEnv, ByEnv, ByEnv]:
        """What became ready: observations, rewards, flags (two items), infos, off-policy actions.

        A first observation has a reward only if something was earned before it. Who ended has a last one.
        """
        steps = self._env.poll()
        over = {end.env: end.episode for step in steps for end in step.closed}
        self._ended |= over
        rows = [row for step in steps for row in self._read(step)]
        now, fresh = [], {info for step in steps for info in step.opened}
        for row in rows:
            ended = self._ended.get(row.who.env)
            if ended is not None and row.who.episode > ended:
                self._held.setdefault(row.who.env, []).append(row)
            else:
                now.append(row)
        out: tuple[ByEnv, ...] = tuple({i: {} for i in [*(r.who.env for r in now), *over]} for _ in range(6))
        obs, rewards, terminateds, truncateds, infos, taken = out
        for row in now:
            i, agent = row.who.env, row.who.agent
            obs[i][agent], infos[i][agent] = row.obs, row.info
            terminateds[i][agent], truncateds[i][agent] = row.terminated, row.truncated
            if row.reward or row.who not in fresh:
                rewards[i][agent] = row.reward
            if row.taken:
                taken[i][agent] = row.taken[0]
            elif not (row.terminated or row.truncated):
                self._awaits[i][agent] = row.who.slot
        for i in obs:
            truncated = i in over and any(truncateds[i].values())
            terminateds[i][ALL], truncateds[i][ALL] = i in over and not truncated, truncated
        return obs, rewards, terminateds, truncateds, infos, taken

    def _read(self, step: TimeStep) -> Iterable[_Seen]:
        """The rows of a TimeStep one by one, as copies."""
        pair = self._env.spaces[step.space]
        for info in step.opened:
            self._who[info.slot], self._space[info.slot] = info, step.space
            self._met.add(info.agent)
        values = spaces.rows(pair.observation, step.obs)
        taken: list[list[Any]] = [[] for _ in values]
        if step.decided is not None and step.decision is not None:
            actions = spaces.rows(pair.action, step.decision.action)
            for row, action in zip(np.flatnonzero(step.decided).tolist(), actions, strict=True):
                taken[row] = [action]
        for row, slot in enumerate(step.slot.tolist()):
            ended = bool(step.terminated[row]), bool(step.truncated[row])
            told = dict(step.info.get(slot, {}))
            yield _Seen(self._who[slot], values[row], float(step.reward[row]), *ended, told, taken[row])

    def send_actions(self, action_dict: Mapping[int, Mapping[Any, Any]]) -> None:
        """Take actions for some of those that had an observation; all or none of them.

        Raises:
            ValueError: an env has ended, an agent awaits no action, or an action is not in its space.
        """
        by_space: dict[int, tuple[list[int], list[Any]]] = {}
        for i, actions in action_dict.items():
            if i in self._ended:
                raise ValueError(
                    f"the episode of env {i} is over: call try_reset({i}) before you send actions"
                )
            for agent, action in actions.items():
                waiting = self._awaits.get(i, {})
                if agent not in waiting:
                    who = ", ".join(map(repr, waiting)) or "nobody"
                    raise ValueError(f"agent {agent!r} of env {i} awaits no action; {who} does")
                slots, values = by_space.setdefault(self._space[waiting[agent]], ([], []))
                slots.append(waiting[agent])
                values.append(action)
        columns = {space: self._column(space, values) for space, (_, values) in by_space.items()}
        for i, actions in action_dict.items():
            for agent in actions:
                del self._awaits[i][agent]
        for space, (slots, _) in by_space.items():
            self._env.send_actions(np.array(slots, np.int64), columns[space])

    def _column(self, space: int, values: Sequence[Any]) -> Any:
        try:
            return spaces.collect(self._env.spaces[space].action, values, root="action")
        except spaces.BadLeaf as bad:
            raise ValueError(f"{bad.leaf}: expected {bad.expected}, got {bad.got}") from None

    def try_reset(self, env_id: int | None = None) -> Any:
        """Go on with the next episode of an env that has ended, or of all that have.

        Returns:
            ``(observations, infos)`` by env and agent, or ``ASYNC_RESET_RETURN`` where they come with a poll.

        Raises:
            ValueError: the env has not ended.
        """
        if env_id is not None and env_id not in self._ended:
            raise ValueError(
                f"env {env_id} has not ended: episodes begin with the first poll(), or after an end"
            )
        chosen = list(self._ended) if env_id is None else [env_id]
        held = {i: self._held.pop(i) for i in chosen if i in self._held}
        for i in chosen:
            del self._ended[i]
            self._awaits[i] = {row.who.agent: row.who.slot for row in held.get(i, ())}
        if not held:
            return ASYNC_RESET_RETURN
        obs = {i: {row.who.agent: row.obs for row in rows} for i, rows in held.items()}
        return obs, {i: {row.who.agent: row.info for row in rows} for i, rows in held.items()}

    def get_sub_environments(self, as_dict: bool = False) -> Any:
        """The envs inside as a list, or a dict by env, where there are such objects."""
        envs = self._env.get_sub_environments()
        return dict(enumerate(envs)) if as_dict else envs

    def try_render(self, env_id: int | None = None) -> Any:
        """Draw one env, the first by default."""
        return self._env.get_sub_environments()[env_id or 0].render()

    def stop(self) -> None:
        """Close the envs."""
        self._env.close()
