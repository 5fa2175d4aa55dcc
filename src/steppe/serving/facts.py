"""What a policy server is told before it begins: the spaces, the policies, the limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from steppe.spaces import Spec
from steppe.types import AgentID, SpacePair


class PolicyFacts(NamedTuple):
    """One policy, without its weights.

    Attributes:
        observation: what it observes.
        action: what it chooses from.
        network: its network, as JSON values; None where clients cannot compute it.
        exploration: how it explores, likewise.
        recurrent: whether it remembers; clients then have to ask for actions.
    """

    observation: Spec
    action: Spec
    network: Mapping[str, Any] | None
    exploration: Mapping[str, Any] | None
    recurrent: bool = False

    @property
    def local(self) -> bool:
        """Whether clients may act with its weights."""
        return self.network is not None and not self.recurrent


class Facts(NamedTuple):
    """What is served.

    Attributes:
        pairs: the spaces of each agent that is known before it appears.
        policies: by name.
        policy_of: who acts for the agents of which that is known before they appear.
        everyone: the spaces of all agents that ``pairs`` does not name; None: there are no others.
        multi_agent: whether observations come by agent.
        training: whether anybody learns from what comes.
        off_policy: whether actions are welcome that the policy did not choose.
        max_weight_lag: how many versions older than the newest one the weights may be with which a client
            decided; None: any.
    """

    pairs: Mapping[AgentID, SpacePair]
    policies: Mapping[str, PolicyFacts]
    policy_of: Mapping[AgentID, str]
    everyone: SpacePair | None = None
    multi_agent: bool = False
    training: bool = True
    off_policy: bool = False
    max_weight_lag: int | None = None


class Settings(NamedTuple):
    """Limits of a server.

    Attributes:
        episode_ttl: seconds after which an open episode that nobody touched ends as truncated.
        most_episodes: that may be open at a time.
        most_clients: that are remembered; those that were idle the longest are forgotten.
        queue_bytes: of experience that the learner has not taken yet, above which requests have to wait.
        held_rows: newest rows of an open episode whose decisions can still be credited.
        guard: mean reward of 100 episodes: once it was reached, the best version that is kept acts when it
            is not any more; None: never.
        body_limit: longest body in bytes.
    """

    episode_ttl: float = 300.0
    most_episodes: int = 10_000
    most_clients: int = 10_000
    queue_bytes: int = 64 << 20
    held_rows: int = 1_000
    guard: float | None = None
    body_limit: int = 1 << 20
