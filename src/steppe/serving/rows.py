"""What came, as columns: the observations and actions of all requests of a moment, by their space."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

from steppe.envs.driven import Acted
from steppe.serving.facts import Facts
from steppe.serving.messages import Refused, Told
from steppe.serving.values import column_of, row_of, sample_space
from steppe.spaces import BadLeaf, Spec
from steppe.types import SINGLE_AGENT, AgentID, SpacePair, Tree

logger = logging.getLogger("steppe.serving")


@dataclass(slots=True)
class Row:
    """One value that a client sent: from ``column`` on filled in once it was read, and once it is acted upon.

    Attributes:
        column: the values of that space of this moment, ``at`` is its row there.
        refused: why it does not fit.
        episode: id of the episode, in which ``policy`` meets step ``t`` with ``state``.
        acted: what was chosen, and ``action`` the same for the client.
    """

    name: str
    agent: AgentID
    spec: Spec
    value: Any
    path: str
    column: Tree = None
    at: int = 0
    refused: Refused | None = None
    episode: str = ""
    policy: str = ""
    t: int = 0
    state: Tree = None
    acted: Acted | None = None
    action: Any = None

    def tree(self) -> Tree:
        """The value as a column of one row."""
        return row_of(self.column, self.at)


class Values(NamedTuple):
    """The observations of one step by agent, and what was done there, if the client says that."""

    obs: list[Row]
    actions: list[Row]


@dataclass(slots=True)
class Job:
    """A request on its way.

    Attributes:
        told: what it says.
        kind: encoding of the answer.
        given_up: when it no longer waits.
        values: of each of its steps.
        outcome: the answer's body, or why not; None: not yet.
    """

    told: Told
    kind: str
    given_up: float = math.inf
    values: list[Values] = field(default_factory=list)
    outcome: bytes | Refused | None = None


@final
class Reader:
    """Reads the values of requests.

    Args:
        facts: what is served.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._names = {str(agent): agent for agent in facts.pairs}
        shared: dict[Spec, Spec] = {}
        self._pairs = {
            agent: SpacePair(*(shared.setdefault(spec, spec) for spec in pair))
            for agent, pair in [*facts.pairs.items(), (None, facts.everyone)]
            if pair is not None
        }
        self._samples = {
            id(pair.action): shared.setdefault(sample := sample_space(pair.action), sample)
            for pair in self._pairs.values()
        }

    def read(self, jobs: Sequence[Job]) -> None:
        """The values of all requests, in one column for each space."""
        bad = False
        for rows in self._gathered(jobs):
            column, why = column_of(rows[0].spec, [row.value for row in rows], [row.path for row in rows])
            for at, row in enumerate(rows):
                row.column, row.at = column, at
            for row, reason in zip(rows, why, strict=False):
                row.refused, bad = reason, True
        for job in jobs if bad else ():
            if job.outcome is None:
                all_rows = (row for values in job.values for part in values for row in part)
                job.outcome = next((row.refused for row in all_rows if row.refused is not None), None)

    def _gathered(self, jobs: Sequence[Job]) -> Iterable[list[Row]]:
        """All values by their space. Specs are shared, see __init__: they would take long to compare."""
        groups: dict[int, list[Row]] = {}
        for job in jobs:
            try:
                job.values = self._values_of(job.told)
            except Exception as error:
                job.outcome = reason_of(error)
                continue
            for values in job.values:
                for row in values.obs:
                    groups.setdefault(id(row.spec), []).append(row)
                for row in values.actions:
                    groups.setdefault(id(row.spec), []).append(row)
        return groups.values()

    def _values_of(self, told: Told) -> list[Values]:
        message = told.message
        match told.verb:
            case "act":
                return [Values(self._by_agent(message.obs, "obs"), [])]
            case "act_many":
                return [
                    Values(self._by_agent(one.obs, f"acts[{i}].obs"), [])
                    for i, one in enumerate(message.acts)
                ]
            case "log_action" | "end":
                return [self._values(told.verb, message, "")]
            case "report":
                return [
                    self._values(item.__struct_config__.tag, item, f"items[{i}].")
                    for i, item in enumerate(message.items)
                ]
            case _:
                return []

    def _values(self, verb: str, message: Any, path: str) -> Values:
        if verb == "end":
            return Values([] if message.obs is None else self._by_agent(message.obs, f"{path}obs"), [])
        if verb not in ("act", "log_action"):
            return Values([], [])
        obs, name = self._by_agent(message.obs, f"{path}obs"), "action" if verb == "log_action" else "sample"
        actions = self._by_agent(getattr(message, name), path + name, of="action")
        if verb == "act":
            for row in actions:
                row.spec = self._samples[id(row.spec)]
        if {row.name for row in actions} != {row.name for row in obs}:
            raise Refused("malformed", f"{path}{name}: expected one for each agent of obs")
        by_name = {row.name: row for row in actions}
        return Values(obs, [by_name[row.name] for row in obs])

    def _by_agent(self, value: Any, path: str, of: str = "observation") -> list[Row]:
        which = 0 if of == "observation" else 1
        if not self._facts.multi_agent:
            return [Row("", SINGLE_AGENT, self._pairs[SINGLE_AGENT][which], value, path)]
        rows = []
        for name, part in self._named(value, path):
            agent = self.agent(name, path)
            pair = self._pairs.get(agent) or self._pairs[None]
            rows.append(Row(name, agent, pair[which], part, f'{path}["{name}"]'))
        return rows

    def _named(self, value: Any, path: str) -> list[tuple[str, Any]]:
        if type(value) is not dict or not value or not all(type(name) is str for name in value):
            raise Refused("malformed", f"{path}: expected an object by agent with one agent at least")
        return list(value.items())

    def agent(self, name: str, path: str) -> AgentID:
        """Who is meant by a name.

        Raises:
            Refused: nobody is.
        """
        agent = self._names.get(name)
        if agent is None and self._facts.everyone is None:
            known = ", ".join(sorted(self._names)[:20])
            raise Refused("unknown_agent", f"{path}: there is no agent {name!r}; there are {known}")
        return name if agent is None else agent


def reason_of(error: Exception) -> Refused:
    """Why a request is not carried out; a fault of the server's own is said in its log."""
    if isinstance(error, Refused):
        return error.bare()
    if isinstance(error, BadLeaf):
        return Refused("out_of_space", f"{error.leaf}: expected {error.expected}, got {error.got}")
    logger.error("a request failed inside the server", exc_info=error)
    return Refused("internal", f"a fault of the server's own, which its log tells of: {type(error).__name__}")
