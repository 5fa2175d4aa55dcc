"""The contracts that every part of steppe leans on.

Everything a user can bring becomes an :class:`AsyncEnv`. Its rows (:class:`TimeStep`) flow to the one
sampler, which asks policies for a :class:`Decision` and stores both in a :class:`Rollout`, the one record
of experience. Learners turn rollouts into :class:`Weights`. All columns are numpy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from steppe.spaces import Spec

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
Tree = Any
"""A column of observations or actions: one array, or dicts and tuples of arrays with one leading axis."""
State = dict[str, Any]
"""What an owner saves: JSON values and numpy arrays, nested in dicts and lists."""

AgentID = str | int
SINGLE_AGENT = "agent0"
ALONE: Mapping[AgentID, int] = {SINGLE_AGENT: 0}
"""The agents of an env that has one."""
DEFAULT_POLICY = "default_policy"


class SpacePair(NamedTuple):
    """The observation and action space that a group of slots shares."""

    observation: Spec
    action: Spec


class SlotInfo(NamedTuple):
    """Who lives in a slot; sent with the first row of that slot."""

    slot: int
    env: int
    agent: AgentID
    episode: int
    seed: int


class EpisodeEnd(NamedTuple):
    """An episode of one env is over; ``length`` counts env steps."""

    env: int
    episode: int
    length: int


@dataclass(slots=True)
class TimeStep:
    """The rows of one poll that share a space pair; ``n`` rows, at most one per slot.

    Attributes:
        slot: ``(n,)`` small ints, each naming one live (env, agent, episode); recycled after a final row.
        t: ``(n,)`` env step of this observation, 0 at reset.
        obs: tree of ``(n, ...)`` arrays in the env's own dtype.
        reward: ``(n,)`` float64, everything the agent earned since its previous row.
        terminated: ``(n,)`` set on the last row of a trajectory only.
        truncated: ``(n,)`` likewise.
        opened: a :class:`SlotInfo` for every slot whose first row is in this poll.
        closed: an :class:`EpisodeEnd` for every episode that this poll ended.
        info: the env's ``info`` by slot, empty ones left out.
        space: index into ``AsyncEnv.spaces``.
        decided: ``(n,)`` rows whose action was chosen elsewhere, or None when there are none.
        decision: for the decided rows, in their order.
        lost: an :class:`EpisodeEnd` for every episode that will not come to its end, because its env failed;
            in the first TimeStep of a poll. Its slots are free, also for what is opened in the same poll.
    """

    slot: IntArray
    t: IntArray
    obs: Tree
    reward: npt.NDArray[np.float64]
    terminated: BoolArray
    truncated: BoolArray
    opened: Sequence[SlotInfo] = ()
    closed: Sequence[EpisodeEnd] = ()
    info: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    space: int = 0
    decided: BoolArray | None = None
    decision: Decision | None = None
    lost: Sequence[EpisodeEnd] = ()


class Decision(NamedTuple):
    """What a policy chose for some rows.

    ``action`` is the policy's own sample, before squash, clip or scaling; ``logp`` its log-probability,
    shape ``(n,)``; ``state`` the recurrent state after these rows, or None; ``version`` ``(n,)`` of the
    weights that chose, where that was not the sampler's own doing. Where somebody unknown chose, ``logp`` is
    NaN, for all of the rows, and ``action`` is as the env has it.
    """

    action: Tree
    logp: FloatArray
    state: Tree = None
    version: IntArray | None = None


class Weights(NamedTuple):
    """What acting needs, and nothing else; published by an update that learned.

    Attributes:
        version: counts the updates that learned.
        params: ``(p,)`` float32, the actor's parameters, flat.
        normalizer: observation statistics as a flat list of arrays, or empty.
        scalars: schedules evaluated by the learner at the global step, such as ``epsilon``.
    """

    version: int
    params: Array
    normalizer: tuple[Array, ...] = ()
    scalars: Mapping[str, float] = {}


@dataclass(slots=True)
class Rollout:
    """Experience of one policy from one runner: columns of shape ``(rows, lanes, ...)``.

    A lane is a run of consecutive rows; when a trajectory ends, the next one continues in the lane. The
    last row of a trajectory (``terminated | truncated``) expects no action. A row is *acted* when it and
    the row below it are filled and it is not final: its action led to the row below, where the reward is.

    Attributes:
        obs: tree of ``(rows, lanes, ...)``.
        action: tree, the policy's own samples; zeros where nothing was chosen (yet).
        logp: log-probability of ``action`` under the weights that acted.
        reward: what the agent earned since the row above.
        terminated: final by the env's own rules: its value is 0.
        truncated: final by a limit: its value is bootstrapped.
        filled: False where the lane holds nothing.
        version: of the weights that acted.
        env: vector index of the row's env.
        agent: index into ``agents``.
        episode: counts the episodes of that env.
        t: env step within the episode.
        policy: id of the policy.
        runner: worker index of the runner.
        incarnation: how often this runner was restarted.
        sequence: counts the fragments of this runner.
        lane_continues: ``(lanes,)``, the next fragment's lane begins with this lane's last row.
        agents: the agent ids that ``agent`` points into.
        env_steps: env steps taken in this fragment, over all policies.
        state0: recurrent state at row 0 of each lane, or None.
        extra: further columns with the same leading shape.
    """

    obs: Tree
    action: Tree
    logp: FloatArray
    reward: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    filled: BoolArray
    version: npt.NDArray[np.int32]
    env: npt.NDArray[np.int32]
    agent: npt.NDArray[np.int32]
    episode: npt.NDArray[np.int32]
    t: npt.NDArray[np.int32]
    policy: str
    runner: int
    incarnation: int
    sequence: int
    lane_continues: BoolArray
    agents: tuple[AgentID, ...]
    env_steps: int
    state0: Tree = None
    extra: dict[str, Array] = field(default_factory=dict)

    @property
    def acted(self) -> BoolArray:
        """``(rows, lanes)``: rows whose action has its outcome in the row below."""
        final = self.terminated | self.truncated
        acted = np.zeros_like(self.filled)
        acted[:-1] = self.filled[:-1] & self.filled[1:] & ~final[:-1]
        return acted


@runtime_checkable
class AsyncEnv(Protocol):
    """Anything that can be acted in: one row per *observation*, asked for with ``poll``.

    1. At most one row per slot per poll. Only ready agents appear; no env waits for another.
    2. Agents may appear, skip turns and vanish. A silent agent's rewards wait for its next row.
    3. The last observation of a trajectory is a row of its own, the *final row*; it expects no action.
    4. The final row of a slot and the first row of its successor (another slot) may come in one poll.
    5. ``send_actions`` may answer any subset; an env steps, inside ``poll``, once its last awaited slot is
       answered. The columns of a poll belong to the env and stay valid until the next poll.
    6. A failing env raises out of ``poll`` only, and never yields a bad row.
    """

    spaces: tuple[SpacePair, ...]
    """All space pairs so far; more may come, none goes."""
    agents: Mapping[AgentID, int]
    """Agents that are known before they appear, with the index of their space pair; others may come."""
    num_envs: int
    steps_together: bool
    """Whether no env steps before the awaited slots of all are answered, as those of a vector env do."""
    env_steps: int
    """Env steps executed since construction; a step that moves many agents counts once."""

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
        """Rows that became ready, one TimeStep per space pair; waits up to ``timeout`` seconds."""

    def send_actions(self, slots: IntArray, actions: Tree) -> None:
        """Answer the rows of ``slots`` (all of one space pair) with a column of env actions."""

    def pending(self) -> Sequence[TimeStep]:
        """The rows that await an action; asked after ``set_state``.

        ``opened`` is for all their slots, and for those of silent agents.
        """

    def health(self) -> Mapping[str, int]:
        """Counts since construction of what was odd but survivable, by stable code (``"E101 obs"``)."""

    def get_sub_environments(self) -> list[Any]:
        """The envs that users would recognise as theirs, by vector index; empty if there are none."""

    def get_state(self) -> State:
        """All that is needed to go on exactly from the last poll."""

    def set_state(self, state: State) -> list[str]:
        """Go on from ``state``; returns one sentence for each env that could not be restored exactly."""

    def close(self) -> None:
        """Release the envs; may be called twice."""


class Policy(Protocol):
    """Acts on numpy columns; holds no weights of its own, so that one policy serves many versions."""

    observation: Spec
    """What it observes."""
    acting: Spec
    """What acting reads of that: all of it, but for the keys of a Dict that are for the critic alone."""
    action: Spec
    """The env's action space."""
    noise_size: int
    """Uniforms that one row needs."""
    to_env: Callable[[Tree], Tree]
    """The policy's own samples as a column inside the env's action space."""
    from_env: Callable[[Tree], Tree]
    """The way back, for actions that were chosen elsewhere."""
    draws: bool
    """Whether it needs its noise even where nothing is explored."""

    def act(self, weights: Any, obs: Tree, state: Tree, noise: FloatArray | None) -> Decision:
        """Choose an action per row of ``obs``.

        ``weights`` is what ``load`` returned. ``noise`` is ``(n, noise_size)`` in the open interval (0, 1);
        None asks for the most likely action.
        """

    def load(self, weights: Weights) -> Any:
        """Prepare published weights for ``act`` (once per version)."""

    def initial_state(self, n: int) -> Tree:
        """Recurrent state of ``n`` fresh trajectories, or None."""

    def export(self, weights: Weights) -> State:
        """What acting needs elsewhere: ``network``, ``exploration`` (JSON values) and ``arrays`` by name."""


class Input(Protocol):
    """Where experience comes from instead of an env that is stepped."""

    def build(self, env: Any, env_config: Mapping[str, Any] | None = None, **how: Any) -> AsyncEnv:
        """What delivers it; called as ``registry.build`` is, and told of ``decides`` likewise."""
