"""The application behind the connections: what comes in one moment is carried out together, then answered."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final

import numpy as np

from steppe.policies.actors import KEPT, Actors
from steppe.policies.numpy_policy import Exported
from steppe.serving import messages
from steppe.serving.facts import Facts, Settings
from steppe.serving.log import Log, LogWriteError
from steppe.serving.messages import PROTOCOL, READS, SCOPES, WAITING, Refused, Told
from steppe.serving.metrics import Metrics
from steppe.serving.records import decode_write
from steppe.serving.requests import Request
from steppe.serving.rows import Job, reason_of
from steppe.serving.verbs import Verbs
from steppe.spaces import describe
from steppe.types import DEFAULT_POLICY, SINGLE_AGENT, AgentID

logger = logging.getLogger("steppe.serving")

_SILENCE = 5.0
"""Seconds without a sign of the learner after which it counts as stuck."""
_TICK = 0.5


@final
class _Asked:
    """A request and what is known of it."""

    __slots__ = ("began", "body", "id", "job", "kind", "late", "request", "verb")

    def __init__(self, request: Request, late: bool) -> None:
        self.request, self.late, self.verb = request, late, request.verb
        self.began = time.perf_counter()
        self.kind = request.accept if request.verb else request.kind
        self.id: int | None = None
        self.job: Job | None = None
        self.body = b""


@final
class Server:
    """Serves policies; all methods are for the thread of the event loop.

    Args:
        facts: what is served.
        actors: act; :meth:`publish` gives them weights.
        settings: limits.
        log: takes what is done before it is answered; None: answers are given at once.
        ask: called with an agent and the number of its episode, to be told :meth:`mapped`; None: nobody has
            to be asked.
        synced: called with the position up to which the log is on disk, whenever it grew.
        say: called with a level of logging and a text that people should read.
        clock: seconds.

    Attributes:
        gauges: what the transport counts, for ``/metrics``.
    """

    def __init__(
        self,
        facts: Facts,
        actors: Actors,
        settings: Settings | None = None,
        *,
        log: Log | None = None,
        ask: Callable[[AgentID, int], None] | None = None,
        synced: Callable[[int], None] | None = None,
        say: Callable[[int, str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._facts, self._actors, self._log, self._clock = facts, actors, log, clock
        self._settings = settings or Settings()
        self._verbs = Verbs(facts, actors, self._settings, log, ask, clock)
        self._tell = synced or (lambda position: None)
        self._say = say or logger.log
        self._verbs.versions.say = lambda text: self._say(logging.WARNING, text)
        self.gauges: Callable[[], Mapping[str, float]] = dict
        self._metrics = Metrics()
        self._exports: dict[str, dict[int, Exported]] = {}
        self._blobs: dict[tuple[str, int], tuple[str, bytes]] = {}
        self._spaces = self._told_spaces()
        self._inbox: list[_Asked] = []
        self._unsynced: deque[_Asked] = deque()
        self._by_job: dict[int, _Asked] = {}
        self._syncing = self._draining = False
        self._unwritable = ""
        self._beat = self._last_sync = clock()
        self._executor = ThreadPoolExecutor(1, "steppe-log") if log is not None else None

    # --- what the trainer says ------------------------------------------------------------------------------

    def publish(self, policy: str, exported: Exported) -> None:
        """Act with these weights from now on.

        Args:
            policy: name.
            exported: its weights.
        """
        load: Any = self._actors.policies[policy].load  # of what is exported, not of Weights
        self._actors.publish(policy, load(exported), exported.version)
        exports = self._exports.setdefault(policy, {})
        exports.pop(exported.version, None)
        exports[exported.version] = exported
        self._blobs.pop((policy, exported.version), None)  # a run that went back counts the same ones again
        self._verbs.versions.published(policy, exported.version)
        acting = self._verbs.versions.acting(policy)
        for version in [*exports][:-KEPT]:
            if version != acting:
                del exports[version]
        self._blobs = {key: blob for key, blob in self._blobs.items() if key[1] in self._exports[key[0]]}

    @property
    def frozen(self) -> int | None:
        """The version that acts whatever is published; None: the newest."""
        return self._verbs.versions.frozen

    def freeze(self, version: int) -> None:
        """Let a version act whatever is published, as the server process before this one did.

        Raises:
            Refused: it is not kept.
        """
        self._verbs.versions.use(version)

    def mapped(self, agent: AgentID, number: int, policy: str) -> None:
        """Say who acts for an agent in the episode of this number."""
        self._verbs.mapped(agent, number, policy)
        self._settle()

    def taken(self, position: int) -> None:
        """Say up to where the learner has read the log."""
        self._verbs.taken = max(self._verbs.taken, position)

    def consumed(self, position: int) -> None:
        """Say up to where the log is never needed again."""
        self.taken(position)
        if self._log is not None:
            try:
                self._log.consumed(position)
            except LogWriteError as error:
                self._say(logging.WARNING, str(error))

    def beat(self) -> None:
        """Say that the learner is alive."""
        self._beat = self._clock()

    def recover(self) -> int:
        """Go on from the log; returns how many records were read.

        Raises:
            LogError: the log is damaged.
        """
        assert self._log is not None
        records = self._log.recover()
        self._verbs.books.restore(next(records))
        count = 0
        for record in records:
            self._verbs.books.apply(decode_write(record))
            count += 1
        return count

    def snapshot(self) -> bytes:
        """What the log asks for at the beginning of a segment."""
        return self._verbs.books.snapshot()

    # --- requests -------------------------------------------------------------------------------------------

    def __call__(self, request: Request) -> None:
        """Take a request; it is answered now or later."""
        asked = _Asked(request, self._draining)
        if request.verb and request.verb not in messages.WRITES:
            self._read_only(asked)
            return
        # What comes while the disk is busy has to wait for it anyway: so it is carried out together then.
        if not self._inbox and not self._syncing:
            asyncio.get_running_loop().call_soon(self._turn)
        self._inbox.append(asked)

    def _turn(self) -> None:
        """Carry out what came in this turn of the event loop, or while the disk was busy."""
        inbox, self._inbox = self._inbox, []
        jobs = []
        for asked in inbox:
            try:
                told = self._read(asked)
            except Exception as error:
                self._refuse(asked, reason_of(error))
                continue
            if asked.verb in READS:
                self._read_only(asked)
                continue
            asked.job = Job(told, asked.kind)
            self._by_job[id(asked.job)] = asked
            jobs.append(asked.job)
        self._verbs.handle(jobs)
        self._settle()

    def _read(self, asked: _Asked) -> Told:
        request = asked.request
        if request.verb:
            if request.verb == "delete":
                told = messages.read_query("delete", request.query)
            else:
                told = messages.read_body(request.verb, request.body, request.kind)
        else:
            try:
                told = messages.read_frame(request.body, request.kind)
            except Refused:
                asked.id = messages.frame_id(request.body, request.kind)
                raise
            asked.id, asked.verb = told.id, told.verb
        scope = SCOPES.get(asked.verb)
        if scope is not None and scope not in request.caller.scopes:
            raise Refused("scope", f"this token may not `{asked.verb}`: use one with the scope {scope!r}")
        if asked.late and asked.verb not in READS:
            raise Refused("not_ready", "the server is shutting down: send this again to its successor", 2)
        return told

    def _settle(self) -> None:
        """Answer what has an outcome; what was written waits for the disk."""
        done = [asked for asked in self._by_job.values() if asked.job and asked.job.outcome is not None]
        for asked in done:
            assert asked.job is not None
            del self._by_job[id(asked.job)]
            if isinstance(outcome := asked.job.outcome, Refused):
                self._refuse(asked, outcome)
            elif self._log is None:
                self._answer(asked, 200, outcome or b"")
            else:
                asked.body = outcome or b""
                self._unsynced.append(asked)
        self._sync()

    def _answer(self, asked: _Asked, status: int, body: bytes, headers: Any = ()) -> None:
        self._metrics.answered[asked.verb or "?", status] += 1
        self._metrics.seconds.add(time.perf_counter() - asked.began)
        if not asked.request.verb:
            body = messages.framed(asked.kind, asked.id, status, body)
        try:
            asked.request.answer(status, body, headers)
        except Exception:  # others wait for theirs
            logger.exception("request %s could not be answered", asked.request.request_id)

    def _refuse(self, asked: _Asked, refused: Refused) -> None:
        self._metrics.refused[refused.code] += 1
        later = refused.retry_after if refused.status in WAITING else None
        id = asked.request.request_id
        # Never what was in the body: only what it came to.
        logger.debug("request %s (%s) refused: %s", id, asked.verb, refused.code)
        in_body = None if asked.request.verb else later
        body = messages.refusal_body(asked.kind, refused.code, refused.message, id, in_body)
        headers = () if later is None else (("Retry-After", str(later)),)
        self._answer(asked, refused.status, body, headers)

    # --- the disk -------------------------------------------------------------------------------------------

    def _sync(self, *, again: bool = False) -> None:
        """Write what was appended, in a thread; ``again``: also where the disk did not take it just now."""
        if self._syncing or self._log is None or self._executor is None or (self._unwritable and not again):
            return
        if not self._unsynced and self._log.end == self._log.synced:
            return
        self._syncing = True
        group, self._unsynced = self._unsynced, deque()
        began = time.perf_counter()
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._log.sync)
        future.add_done_callback(lambda done: self._synced(done, group, began))

    def _synced(self, done: asyncio.Future[int], group: deque[_Asked], began: float) -> None:
        self._syncing = False
        asyncio.get_running_loop().call_soon(self._turn)  # whatever happens here
        if (error := done.exception()) is not None:
            if not self._unwritable:
                self._say(logging.ERROR, f"{error}; no request is answered until the disk takes it")
            self._unwritable = str(error)
            self._unsynced.extendleft(reversed(group))
            return
        if self._unwritable:
            self._say(logging.WARNING, "the disk takes the log again")
        self._unwritable, self._last_sync = "", self._clock()
        self._metrics.syncs.add(time.perf_counter() - began)
        for asked in group:
            self._answer(asked, 200, asked.body)
        self._tell(done.result())

    async def run(self) -> None:
        """Do what has its time: episodes that nobody touches, requests that wait, a disk that is full."""
        while not self._draining:
            try:
                self.tick()
            except Exception:  # the next round may do better, and requests go on being answered
                logger.exception("the server could not do what has its time")
            await asyncio.sleep(_TICK)

    def tick(self) -> None:
        """One round of :meth:`run`."""
        try:
            self._verbs.expire()
        except Refused as refused:
            logger.debug("episodes cannot be ended: %s", refused.message)  # readyz says so, too
        self._verbs.go_on()
        if self._log is not None and not self._syncing and self._clock() - self._last_sync > 4 * _TICK:
            self._log.touch()
        self._settle()
        self._sync(again=True)

    async def drain(self, timeout: float) -> None:
        """Take nothing new, and answer what is under way, for so many seconds at most."""
        self._draining = True
        until = time.monotonic() + timeout
        while (self._inbox or self._by_job or self._unsynced or self._syncing) and time.monotonic() < until:
            self._verbs.go_on()
            self._settle()
            self._sync(again=True)
            await asyncio.sleep(0.01)
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    # --- what only asks -------------------------------------------------------------------------------------

    def _read_only(self, asked: _Asked) -> None:
        try:
            status, body, headers = self._told(asked)
        except Refused as refused:
            self._refuse(asked, refused)
            return
        self._answer(asked, status, body, headers)

    def _told(self, asked: _Asked) -> tuple[int, bytes, Any]:
        match asked.verb:
            case "spaces":
                return 200, messages.encoded(asked.kind, self._spaces), ()
            case "health":
                return 200, messages.encoded(asked.kind, self.health()), ()
            case "livez":
                return 200, messages.encoded(asked.kind, {"alive": True}), ()
            case "readyz":
                health = self.health()
                return (200 if health["ready"] else 503), messages.encoded(asked.kind, health), ()
            case "versions":
                return 200, messages.encoded(asked.kind, self._verbs.versions.told()), ()
            case "metrics":
                text = ("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                return 200, self._metrics.text(self._gauges()), (text,)
            case "weights":
                return self._weights(asked.request)
            case verb:
                raise Refused("unknown_verb", f"there is no verb {verb!r}")

    def health(self) -> dict[str, Any]:
        """How the server is."""
        reasons = []
        if missing := [name for name in self._facts.policies if name not in self._verbs.versions.newest]:
            reasons.append(f"no weights yet for {', '.join(missing)}")
        if self._facts.training and (silent := self._clock() - self._beat) >= _SILENCE:
            reasons.append(f"the learner has given no sign for {silent:.0f} s")
        reasons += filter(None, (self._unwritable, self._verbs.full))
        if self._draining:
            reasons.append("the server is shutting down")
        return {
            "ready": not reasons,
            "weights_version": self._newest(),
            "frozen": self._verbs.versions.frozen is not None,
            "episodes": len(self._verbs.books.episodes),
            "clients": self._verbs.books.clients,
            "queue_bytes": self._queue(),
            "reasons": reasons,
        }

    def counts(self) -> dict[str, int]:
        """Since the beginning: what was refused, by code, and ``stale``, ``expired``, ``rows``."""
        refused = {f"refused_{code}": count for code, count in self._metrics.refused.items()}
        return {**self._verbs.counts, **refused}

    def _newest(self) -> int:
        return max(self._verbs.versions.newest.values(), default=0)

    def _queue(self) -> int:
        return 0 if self._log is None else max(0, self._log.end - self._verbs.taken)

    def _gauges(self) -> dict[str, float]:
        health, counts, more = self.health(), self._verbs.counts, self.gauges()
        return {
            "ready": health["ready"],
            "weights_version": health["weights_version"],
            "frozen": health["frozen"],
            "episodes": health["episodes"],
            "clients": health["clients"],
            "queue_bytes": health["queue_bytes"],
            "episodes_started_total": self._verbs.books.begun,
            **{f"{name}_total": count for name, count in counts.items()},
            **{name if name == "connections" else f"transport_{name}_total": n for name, n in more.items()},
        }

    def _told_spaces(self) -> dict[str, Any]:
        facts = self._facts
        told: dict[str, Any] = {"protocol": PROTOCOL, "multi_agent": facts.multi_agent}
        told["training"] = facts.training
        for name in ("observation", "action"):
            by_agent = {str(agent): describe(getattr(pair, name)) for agent, pair in facts.pairs.items()}
            if facts.everyone is not None:
                by_agent["*"] = describe(getattr(facts.everyone, name))
            told[f"{name}_space"] = by_agent if facts.multi_agent else by_agent[SINGLE_AGENT]
        told["policies"] = {
            name: {
                "observation_space": describe(one.observation),
                "action_space": describe(one.action),
                "local": one.local,
            }
            for name, one in facts.policies.items()
        }
        told["policy_of"] = {str(agent): policy for agent, policy in facts.policy_of.items()}
        told |= {"max_weight_lag": facts.max_weight_lag, "body_limit": self._settings.body_limit}
        return told

    def _weights(self, request: Request) -> tuple[int, bytes, Any]:
        """The policy as a file, or that nothing has changed."""
        policies = self._facts.policies
        only = next(iter(policies)) if len(policies) == 1 else DEFAULT_POLICY
        name = request.query.get("policy", only)
        if name not in policies:
            raise Refused("unknown_policy", f"there is no policy {name!r}; there are {', '.join(policies)}")
        if not policies[name].local:
            raise Refused("not_local", f"policy {name!r} cannot be computed by clients: ask for actions")
        if name not in self._exports:
            raise Refused("not_ready", f"policy {name!r} has no weights yet: come back in a moment")
        key = name, self._verbs.versions.acting(name)
        if key not in self._blobs:
            self._blobs[key] = self._blob(*key)
        tag, blob = self._blobs[key]
        if request.etag is not None and tag in request.etag:
            return 304, b"", (("ETag", tag),)
        return 200, blob, (("ETag", tag), ("Content-Type", "application/octet-stream"))

    def _blob(self, policy: str, version: int) -> tuple[str, bytes]:
        from safetensors.numpy import save  # for those who ask

        exported, facts = self._exports[policy][version], self._facts.policies[policy]
        arrays = {name: np.ascontiguousarray(one, np.float32) for name, one in exported.arrays.items()}
        scalars = {name: float(value) for name, value in exported.scalars.items()}
        texts = {
            "network": facts.network,
            "exploration": facts.exploration,
            "scalars": scalars,
        }
        about = {"version": str(version), "policy": policy, **{k: json.dumps(v) for k, v in texts.items()}}
        blob = save(arrays, about)
        return f'"{messages.digest_of(blob).hex()}"', blob
