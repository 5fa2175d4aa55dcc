"""Serves the scenarios of ``clients/conformance.json``, also over a bad network, and keeps its books."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from steppe.envs.driven import Acted, Began, Earned, Ended, Left
from steppe.policies.actors import Actors
from steppe.policies.numpy_policy import Exported, NumpyPolicy
from steppe.serving.facts import Facts, PolicyFacts
from steppe.serving.gate import Gate
from steppe.serving.limits import Limits
from steppe.serving.log import Log, Tail
from steppe.serving.records import decode_write
from steppe.serving.security import Tokens
from steppe.serving.server import Server
from steppe.serving.transport import Transport
from steppe.spaces import from_description
from steppe.types import DEFAULT_POLICY, SINGLE_AGENT, SpacePair

SCENARIOS = {
    scenario["name"]: scenario
    for scenario in json.loads(
        (Path(__file__).resolve().parent.parent.parent / "clients/conformance.json").read_text()
    )["scenarios"]
}


class Served:
    """A scenario's server on a thread of its own.

    Attributes:
        port: to be asked at.
        lost: requests and answers that the network lost.
        publish: gives the same weights another version.
    """

    def __init__(self, server: dict[str, Any], folder: Path, *, lossy: bool, **how: Any) -> None:
        self.server, self.folder, self.lossy, self.how = server, folder, lossy, how
        self.port = self.lost = self.end = 0
        self.publish: Callable[[int], object]
        self.tokens = folder / "tokens"
        self.tokens.touch(0o600)
        self.tokens.write_text(f"{server['token']} act,submit,weights,admin\n")

    def told(self) -> dict[str, Any]:
        """What the server has by now, in the form of a scenario's ``then``."""
        books = Books(self.server["multi_agent"])
        for entry in self.entries():
            books.take(entry)
        return books.told()

    def entries(self) -> list[Any]:
        """What happened, in order."""
        records = Tail(self.folder / "log").read(self.end, 1 << 30)
        writes = [decode_write(record) for record in records]
        return [entry for write in writes for entry in write.entries]

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """While it does."""
        policies, facts = self._facts()
        actors = Actors(policies, explore=True, rng=np.random.default_rng(0))
        log = Log(self.folder / "log", snapshot=lambda: server.snapshot())
        server = Server(facts, actors, log=log)
        arrays = {name: np.array(array, np.float32) for name, array in self.server["arrays"].items()}
        scalars, loop = self.server.get("scalars", {}), asyncio.get_running_loop()

        def publish(version: int) -> None:
            server.publish(DEFAULT_POLICY, Exported(version, arrays, scalars))

        self.publish = lambda version: loop.call_soon_threadsafe(publish, version)
        publish(0)
        gate = Gate(Tokens(self.tokens), Limits(), origins=self.how.get("origins", ()))
        transport = Transport(server, gate, Limits(), tls=self.how.get("tls"))
        self.port = await transport.listen("127.0.0.1", 0)
        running = asyncio.create_task(server.run())
        network = BadNetwork(self.port) if self.lossy else None
        if network is not None:
            self.port = await network.listen()
        yield
        if network is not None:
            self.lost = network.lost
            await network.close()
        await server.drain(2.0)
        await transport.drain(0.5)
        running.cancel()
        self.end = log.synced
        log.close()

    def _facts(self) -> tuple[dict[str, NumpyPolicy], Facts]:
        told = self.server
        policy = NumpyPolicy(told["network"], told["exploration"])
        one = PolicyFacts(policy.observation, policy.action, told["network"], told["exploration"])
        observation, action = told["observation_space"], told["action_space"]
        if not told["multi_agent"]:
            observation, action = {SINGLE_AGENT: observation}, {SINGLE_AGENT: action}
        pairs = {
            agent: SpacePair(from_description(observation[agent]), from_description(action[agent]))
            for agent in observation
        }
        acts = dict.fromkeys(pairs, DEFAULT_POLICY)
        return {DEFAULT_POLICY: policy}, Facts(
            pairs,
            {DEFAULT_POLICY: one},
            acts,
            multi_agent=told["multi_agent"],
            off_policy=True,
            max_weight_lag=self.how.get("max_weight_lag"),
        )


class BadNetwork:
    """Carries bytes to a server and back, until it does not: then the connection is gone."""

    def __init__(self, port: int) -> None:
        self._port, self._drawn, self._carried, self.lost = port, random.Random(0), 0, 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> int:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        ways = [asyncio.create_task(self._way(*way)) for way in ((reader, back), (there, writer))]
        self._tasks.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (back, writer):
            end.transport.abort()

    async def _way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                self._carried += 1
                if self._carried == 4 or self._drawn.random() < 0.1:
                    self.lost += 1
                    return
                writer.write(data)
                await writer.drain()


class Books:
    """What entries come to, by episode and agent."""

    def __init__(self, multi_agent: bool) -> None:
        self._multi_agent = multi_agent
        self._episodes: dict[str, dict[Any, dict[str, Any]]] = {}

    def take(self, entry: Any) -> None:
        """One more; episodes without training leave no books."""
        if isinstance(entry, Began):
            if entry.training:
                self._episodes[entry.episode] = {}
        elif (episode := self._episodes.get(entry.episode)) is None:
            return
        elif isinstance(entry, Ended):
            for agent, one in episode.items():
                if one["end"] is None:
                    seen = _plain(entry.obs[agent]) if agent in entry.obs else one["obs"][-1]
                    _seen(one, seen, None)
                    one["end"] = "truncated" if entry.truncated else "terminated"
        else:
            fresh = {"obs": [], "actions": [], "rewards": [], "end": None, "steps": [], "owed": 0.0}
            self._take(entry, episode.setdefault(entry.agent, fresh))

    def _take(self, entry: Any, one: dict[str, Any]) -> None:
        if isinstance(entry, Acted):
            _seen(one, _plain(entry.obs), entry.t)
            one["actions"].append(_plain(entry.action))
        elif isinstance(entry, Left):
            _seen(one, one["obs"][-1], None)
            one["end"] = "terminated"
        elif isinstance(entry, Earned):
            row = len(one["obs"]) - 1 if entry.t is None else one["steps"].index(entry.t)
            if row < len(one["rewards"]):
                one["rewards"][row] += entry.reward
            else:
                one["owed"] += entry.reward

    def told(self) -> dict[str, Any]:
        """By episode; with many agents by agent in it."""
        names = ("obs", "actions", "rewards", "end")
        by_agent = {
            id: {agent: {name: one[name] for name in names} for agent, one in episode.items()}
            for id, episode in self._episodes.items()
        }
        if self._multi_agent:
            return by_agent
        return {id: episode.get(SINGLE_AGENT, {}) for id, episode in by_agent.items()}


def _seen(one: dict[str, Any], obs: Any, t: int | None) -> None:
    if one["obs"]:
        one["rewards"].append(one["owed"])
    one["owed"] = 0.0
    one["obs"].append(obs)
    one["steps"].append(t)


def _plain(column: Any) -> Any:
    return np.asarray(column)[0].tolist()


@contextmanager
def serving(server: dict[str, Any], folder: Path, *, lossy: bool = False, **how: Any) -> Iterator[Served]:
    """A scenario's server, with ``origins`` and ``tls``; what it was told can be asked for afterwards."""
    served, loop = Served(server, folder, lossy=lossy, **how), asyncio.new_event_loop()
    over, begun = asyncio.Event(), threading.Event()

    async def serve() -> None:
        async with served.listening():
            begun.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert begun.wait(5)
        yield served
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


def check(step: dict[str, Any], result: dict[str, Any]) -> None:
    """What came of a step is what the script says."""
    if "raises" in step:
        assert "raises" in result, (step, result)
        assert step["raises"].items() <= result["raises"].items(), (step, result)
        return
    assert "gives" in result, (step, result)
    if "gives_about" in step:
        told = result["gives"]
        assert {"action": step["gives"], **step["gives_about"]}.items() <= told.items(), (step, result)
    elif "gives" in step:
        assert result["gives"] == step["gives"], (step, result)
