"""What the verbs do: requests are checked, acted upon in batches, logged, and only then noted in the books.

Nothing here waits and nothing here knows of connections: many requests in, an outcome for each.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from steppe.envs.driven import Acted, Began, Dropped, Earned, Ended, Entry, Left
from steppe.policies.actors import Actors
from steppe.serving.books import Books, Draft, Episode, Sight
from steppe.serving.facts import Facts, Settings
from steppe.serving.log import Log, LogFullError
from steppe.serving.messages import Refused, as_kind, encoded
from steppe.serving.records import Write, encode_write
from steppe.serving.rows import Job, Reader, Row, Values, reason_of
from steppe.serving.values import number, plain_rows, row_of, shown
from steppe.serving.versions import Versions
from steppe.spaces import take
from steppe.types import SINGLE_AGENT, AgentID, Tree

_PATIENCE = 10.0
"""Seconds that a request waits until somebody says who acts for an agent."""


class _Plan(NamedTuple):
    """A request for actions that was found good; rows by episode."""

    job: Job
    earned: list[Entry]
    steps: list[list[Row]]


class _WaitsError(Exception):
    """The request cannot be carried out yet."""


@final
class Verbs:
    """Carries requests out.

    Args:
        facts: what is served.
        actors: act.
        settings: limits.
        log: takes what was done, or None.
        ask: called with an agent and the number of its episode; whoever knows says :meth:`mapped`.
        clock: seconds.

    Attributes:
        books: episodes and clients.
        versions: of the weights.
        waiting: requests that wait for :meth:`mapped`.
        taken: position in the log up to which the learner has taken what is there.
        full: why the log takes nothing, if it does not.
        counts: what was odd, by name.
    """

    def __init__(
        self,
        facts: Facts,
        actors: Actors,
        settings: Settings,
        log: Log | None,
        ask: Callable[[AgentID, int], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self._facts, self._actors, self._settings, self._log, self._ask = facts, actors, settings, log, ask
        self._clock = clock
        self.books, self.versions = Books(settings.most_clients, clock), Versions(actors, settings.guard)
        self.books.on_end = self._ended
        self.waiting: list[Job] = []
        self.taken, self.full = 0, ""
        self.counts = dict.fromkeys(("stale", "expired", "rows"), 0)
        self._mapped: dict[int, dict[AgentID, str | None]] = {}
        self._reader = Reader(facts)
        self._wave: list[_Plan] = []
        self._in_wave: set[Any] = set()
        self._do: Mapping[str, Callable[[Sight, Any, Sequence[Values]], tuple[list[Entry], Any]]] = {
            "start": self._start,
            "log_action": self._log_action,
            "log_returns": self._log_returns,
            "end": self._end,
            "delete": self._delete,
            "report": self._report,
            "rollback": self._rollback,
            "release": self._release,
        }

    # --- a tick ---------------------------------------------------------------------------------------------

    def handle(self, jobs: Sequence[Job]) -> None:
        """Carry out requests, in order. Afterwards each has its outcome or is among those waiting."""
        self._reader.read(jobs)
        for job in jobs:
            if job.outcome is None:
                self._attempt(job)
        self._flush()

    def _attempt(self, job: Job) -> None:
        try:
            self._carry_out(job)
        except _WaitsError:
            if job.given_up == math.inf:
                job.given_up = self._clock() + _PATIENCE
            self.waiting.append(job)
        except Exception as error:
            job.outcome = reason_of(error)

    def _carry_out(self, job: Job) -> None:
        verb, _, message, digest = job.told
        # What was asked for actions in this tick is not in the books yet; others seldom need what it changes.
        if verb not in ("act", "act_many") or (message.client, message.seq) in self._in_wave:
            self._flush()
        stored = self.books.repeated(message.client, message.epoch, message.seq, digest)
        if stored is not None:
            job.outcome = as_kind(job.kind, stored)
            return
        if self._log is not None and self._log.end - self.taken > self._settings.queue_bytes:
            text = "the learner is behind: send this again after the seconds that Retry-After says"
            raise Refused("busy", text)
        if verb == "act":
            self._plan(job, [message])
        elif verb == "act_many":
            self._plan(job, message.acts)
        else:
            entries, reply = self._do[verb](self.books, message, job.values)
            self._commit(job, entries, reply)

    def _commit(self, job: Job, entries: list[Entry], reply: Any) -> None:
        message, body = job.told.message, encoded(job.kind, reply)
        self._note(Write(message.client, message.epoch, message.seq, job.told.digest, body, entries))
        job.outcome = body

    def _note(self, write: Write) -> None:
        """Log, then the books: a snapshot that the log takes is of what came before."""
        if self._log is not None:
            try:
                record = encode_write(write)
            except (TypeError, OverflowError, ValueError, RecursionError) as error:
                raise Refused("malformed", f"info: cannot be kept: {error}") from None
            try:
                self._log.append(record)
                self.full = ""
            except LogFullError as error:
                self.full = str(error)
                raise Refused("not_ready", f"the server's log takes no more: {error}", 10) from None
        self.books.apply(write)

    # --- acting ---------------------------------------------------------------------------------------------

    def _plan(self, job: Job, ones: Sequence[Any]) -> None:
        """Check a request for actions; it is acted upon with the others of this tick."""
        ids = [one.episode_id for one in ones]
        if len(ids) > 1 and len(set(ids)) < len(ids):
            raise Refused("malformed", "acts: an episode can be in there once; send the next step afterwards")
        if not self._in_wave.isdisjoint(ids):
            self._flush()
        earned: list[Entry] = []
        steps = []
        for i, (one, values) in enumerate(zip(ones, job.values, strict=True)):
            episode = self.books.find(one.episode_id)
            if one.reward is not None:
                earned += self._earned(episode, one, f"acts[{i}].reward" if ones[1:] else "reward")
            self._meet(values.obs, one.episode_id, episode)
            _remind(values.obs, episode, earned)
            steps.append(values.obs)
        self._wave.append(_Plan(job, earned, steps))
        self._in_wave.update(ids)
        message = job.told.message
        self._in_wave.add((message.client, message.seq))
        if not self.books.counts(message.client, message.epoch):
            self._flush()  # what comes next in this tick has to be judged by that

    def _meet(self, rows: Sequence[Row], id: str, episode: Episode) -> None:
        """Find out who acts for observations, and with which memory."""
        waits = False
        for row in rows:
            try:
                self._meet_one(row, id, episode)
            except _WaitsError:  # meanwhile others can be asked for
                waits = True
        if waits:
            raise _WaitsError

    def _meet_one(self, row: Row, id: str, episode: Episode) -> None:
        seat = episode.seats.get(row.agent)
        if seat is None:
            row.policy = self._policy_of(episode, row.agent)
            row.state = self._actors.initial_state(row.policy)
        elif seat.done:
            raise Refused("agent_done", f"{row.path}: agent {row.name!r} is done in this episode")
        else:
            row.policy, row.state = seat.policy, seat.state
        if row.policy not in self.versions.newest:
            raise Refused("not_ready", f"policy {row.policy!r} has no weights yet: come back in a moment")
        row.episode, row.t = id, episode.t

    def _policy_of(self, episode: Episode, agent: AgentID) -> str:
        """Who acts for an agent that appears."""
        known = self._facts.policy_of.get(agent)
        if known is not None:
            return known
        if self._ask is None:
            if len(self._facts.policies) == 1:
                return next(iter(self._facts.policies))
            raise Refused("unknown_agent", f"nobody says which policy acts for agent {agent!r}")
        answers = self._mapped.setdefault(episode.number, {})
        if agent not in answers:
            answers[agent] = None
            self._ask(agent, episode.number)
        if (policy := answers[agent]) is None:
            raise _WaitsError
        return policy

    def mapped(self, agent: AgentID, number: int, policy: str) -> None:
        """Who acts for an agent; those who waited for it can go on."""
        self._mapped.setdefault(number, {})[agent] = policy
        self.go_on()

    def go_on(self) -> list[Job]:
        """Try those again that waited, and give up what waited for too long; returns what has an outcome."""
        waited, self.waiting = self.waiting, []
        now = self._clock()
        for job in waited:
            if job.given_up <= now:
                text = "the learner did not say which policy acts for a new agent: send this again later"
                job.outcome = Refused("not_ready", text)
        self.handle([job for job in waited if job.outcome is None])
        return [job for job in waited if job.outcome is not None]

    def _flush(self) -> None:
        """Act for all that was planned, one batch for each policy."""
        if not self._wave:
            return
        wave, self._wave = self._wave, []
        self._in_wave.clear()
        try:
            self._choose([row for plan in wave for rows in plan.steps for row in rows])
        except Exception as error:  # most likely a mask that allows nothing
            if len(wave) == 1:
                wave[0].job.outcome = reason_of(error)
            for plan in wave if len(wave) > 1 else ():
                self._wave = [plan]
                self._flush()
            return
        for plan in wave:
            entries = plan.earned
            for rows in plan.steps:
                self.counts["rows"] += len(rows)
                entries += [row.acted for row in rows if row.acted is not None]
            try:
                self._commit(plan.job, entries, self._reply(plan))
            except Exception as error:
                plan.job.outcome = reason_of(error)

    def _choose(self, all_rows: Sequence[Row]) -> None:
        """Act, in one batch for each policy."""
        groups: dict[str, list[Row]] = {}
        for row in all_rows:
            groups.setdefault(row.policy, []).append(row)
        for policy, rows in groups.items():
            # All observations of a space are in one column.
            column, index = rows[0].column, [row.at for row in rows]
            if index != [*range(_length(column))]:
                column = take(column, np.array(index))
            decision, env_actions, states = self._actors.act(policy, column, [row.state for row in rows])
            assert decision.version is not None
            if not np.isfinite(decision.logp).all():  # nobody should do what such weights say
                raise ArithmeticError(f"policy {policy!r} chose with a probability that is no number")
            several = zip(
                *(rows, plain_rows(self._facts.policies[policy].action, env_actions)),
                *(decision.logp.tolist(), decision.version.tolist(), states),
                strict=True,
            )
            for i, (row, row.action, logp, version, state) in enumerate(several):
                at = (row.episode, row.agent, policy, row.t)
                row.acted = Acted(*at, row_of(column, i), row_of(decision.action, i), logp, version, state)

    def _reply(self, plan: _Plan) -> dict[str, Any]:
        message, many = plan.job.told.message, plan.job.told.verb == "act_many"
        if not (message.full or many or self._facts.multi_agent):
            return {"action": plan.steps[0][0].action}

        def told(value: Callable[[Row], Any]) -> Any:
            if self._facts.multi_agent:
                several = [{row.name: value(row) for row in rows} for rows in plan.steps]
            else:
                several = [value(rows[0]) for rows in plan.steps]
            return several if many else several[0]

        reply: dict[str, Any] = {"action": told(lambda row: row.action)}
        if message.full:
            steps = [rows[0].t for rows in plan.steps]
            reply["step"] = steps if many else steps[0]
            reply["logp"] = told(lambda row: row.acted and row.acted.logp)
            reply["weights_version"] = told(lambda row: row.acted and row.acted.version)
        return {f"{name}s": value for name, value in reply.items()} if many else reply

    # --- the other verbs ------------------------------------------------------------------------------------

    def _start(self, sight: Sight, message: Any, values: Sequence[Values]) -> tuple[list[Entry], Any]:
        id = secrets.token_hex(8) if message.episode_id is None else message.episode_id
        if sight.is_known(id):
            raise Refused(
                "episode_exists", f"there is or was an episode {id!r}: choose another id, or leave it out"
            )
        if sight.open >= self._settings.most_episodes:
            text = f"{self._settings.most_episodes} episodes are open: end some, or come back later"
            raise Refused("too_many_episodes", text, 10)
        return [Began(id, message.training_enabled)], {"episode_id": id}

    def _log_action(self, sight: Sight, message: Any, values: Sequence[Values]) -> tuple[list[Entry], Any]:
        episode = sight.find(message.episode_id)
        if episode.training and self._facts.training and not self._facts.off_policy:
            text = "the algorithm learns from its policy's own actions alone: ask for them with act, "
            raise Refused("off_policy", f"{text}or start the episode with training_enabled false")
        entries = self._earned(episode, message, "reward") if message.reward is not None else []
        self._meet(values[0].obs, message.episode_id, episode)
        _remind(values[0].obs, episode, entries)
        acted: list[Entry] = []
        for row, action in zip(*values[0], strict=True):
            version, after = self.versions.acting(row.policy), self._after(row, action.tree())
            at = (row.episode, row.agent, row.policy, row.t)
            acted.append(Acted(*at, row.tree(), action.tree(), math.nan, version, after))
        return entries + acted, {}

    def _after(self, row: Row, action: Tree) -> Tree:
        """The memory behind a client's own action: as if the policy had chosen it."""
        if row.state is None:
            return None
        (after,) = self._actors.act(row.policy, row.tree(), [row.state]).states
        own = self._actors.policies[row.policy].from_env
        return {**after, "action": own(action)} if isinstance(after, dict) and "action" in after else after

    def _decided(self, sight: Sight, message: Any, values: Sequence[Values]) -> tuple[list[Entry], Any]:
        """A step of a report."""
        episode = sight.find(message.episode_id)
        entries = self._earned(episode, message, "reward") if message.reward is not None else []
        self._meet(values[0].obs, message.episode_id, episode)
        for row, sample in zip(*values[0], strict=True):
            logp, version = message.logp, message.weights_version
            if self._facts.multi_agent:
                logp, version = _of(row, logp, "logp"), _of(row, version, "weights_version")
            self._check_version(row.policy, version)
            logp = number(logp, "logp", "out_of_space")
            at = (row.episode, row.agent, row.policy, row.t)
            entries.append(Acted(*at, row.tree(), sample.tree(), logp, version, row.state))
        return entries, {}

    def _check_version(self, policy: str, version: Any) -> None:
        newest, lag = self.versions.newest[policy], self._facts.max_weight_lag
        if not self._facts.policies[policy].local:
            raise Refused("not_local", f"policy {policy!r} cannot be computed by clients: ask for actions")
        if type(version) is not int or version < 0:
            raise Refused("malformed", f"weights_version: expected a whole number, got {shown(version)}")
        old = lag is not None and newest - version > lag and version != self.versions.acting(policy)
        if old or version > newest:
            self.counts["stale"] += 1
            why = f"is more than {lag} older than" if old else "was made by another run, it is above"
            text = f"weights_version {version} {why} the newest, {newest}"
            raise Refused("weights_too_old", f"{text}: fetch the weights again, and discard the rows")

    def _log_returns(self, sight: Sight, message: Any, values: Sequence[Values]) -> tuple[list[Entry], Any]:
        episode = sight.find(message.episode_id)
        entries = self._earned(episode, message, "reward", message.step, message.info)
        return entries + self._left(episode, message), {}

    def _left(self, episode: Episode, message: Any) -> list[Entry]:
        """Who is done."""
        dones = dict(message.dones or {})
        if dones and not self._facts.multi_agent:
            raise Refused("malformed", "dones: this env has one agent: say with `end` that it is done")
        if dones.pop("__all__", False):
            dones = dict.fromkeys(map(str, episode.seats), True)
        left: list[Entry] = []
        for name, done in dones.items():
            agent = self._reader.agent(name, "dones")
            seat = episode.seats.get(agent)
            if seat is None and done:
                raise Refused("unknown_agent", f"dones: agent {name!r} has observed nothing in this episode")
            if seat is not None and done and not seat.done:
                left.append(Left(message.episode_id, agent))
        return left

    def _end(self, sight: Sight, message: Any, values: Sequence[Values]) -> tuple[list[Entry], Any]:
        episode = sight.find(message.episode_id)
        entries = self._earned(episode, message, "reward") if message.reward is not None else []
        here = {agent for agent, seat in episode.seats.items() if not seat.done}
        last = {row.agent: row.tree() for row in values[0].obs if row.agent in here}
        return [*entries, Ended(message.episode_id, message.truncated, last)], {}

    def _delete(self, sight: Sight, message: Any, values: Sequence[Values]) -> tuple[list[Entry], Any]:
        number = sight.find(message.episode_id).number
        self._mapped.pop(number, None)
        return [Dropped(message.episode_id)], {}

    def _report(self, sight: Sight, message: Any, values: Sequence[Values]) -> tuple[list[Entry], Any]:
        """All or none: what one item changes, the next one sees in a draft."""
        if not self._facts.training:
            raise Refused("not_training", "this server only acts: ask it for actions, and report nothing")
        draft, entries = Draft(self.books), list[Entry]()
        for i, (item, one) in enumerate(zip(message.items, values, strict=True)):
            verb = item.__struct_config__.tag
            if verb == "start" and item.episode_id is None:
                raise Refused("malformed", f"items[{i}]: give the episode_id, which no answer will tell you")
            do = self._decided if verb == "act" else self._do[verb]
            try:
                some, _ = do(draft, item, [one])
            except Refused as refused:
                raise Refused(refused.code, f"items[{i}]: {refused.message}", refused.retry_after) from None
            for entry in some:
                draft.take(entry)
            entries += some
        self.counts["rows"] += sum(isinstance(entry, Acted) for entry in entries)
        return entries, {"weights_version": max(self.versions.newest.values(), default=0)}

    def _rollback(self, sight: Sight, message: Any, values: Sequence[Values]) -> tuple[list[Entry], Any]:
        self.versions.use(message.version)
        return [], self.versions.told()

    def _release(self, sight: Sight, message: Any, values: Sequence[Values]) -> tuple[list[Entry], Any]:
        self.versions.release()
        return [], self.versions.told()

    # --- rewards, and time that passes ----------------------------------------------------------------------

    def _earned(
        self, episode: Episode, message: Any, path: str, step: int | None = None, info: Any = None
    ) -> list[Entry]:
        """What a message says that was earned."""
        id = message.episode_id
        if not self._facts.multi_agent:
            if step is not None:
                self._check_step(episode, SINGLE_AGENT, step)
            return [Earned(id, SINGLE_AGENT, number(message.reward, path), step, info)]
        if type(message.reward) is not dict:
            raise Refused("reward", f"{path}: expected an object by agent, got {shown(message.reward)}")
        entries: list[Entry] = []
        for name, reward in message.reward.items():
            agent = self._reader.agent(name, path)
            seat = episode.seats.get(agent)
            if seat is not None and seat.done:
                raise Refused("agent_done", f"{path}: agent {name!r} is done in this episode")
            if step is not None:
                self._check_step(episode, agent, step)
            about = None if info is None else info.get(name)
            if about is not None and type(about) is not dict:
                raise Refused("malformed", f"info: expected an object for agent {name!r}")
            entries.append(Earned(id, agent, number(reward, f'{path}["{name}"]'), step, about))
        return entries

    def _check_step(self, episode: Episode, agent: AgentID, step: int) -> None:
        seat = episode.seats.get(agent)
        if seat is None or not seat.first <= step <= seat.last:
            raise Refused(
                "step_unknown", f"step: agent {agent!r} decided nothing at step {step} of this episode"
            )
        if step <= episode.t - 1 - self._settings.held_rows:
            text = f"step {step} is not among the newest {self._settings.held_rows} of its episode"
            raise Refused(
                "step_learned", f"{text}: it was handed to the learner, and cannot be credited any more"
            )

    def expire(self) -> None:
        """End the episodes that nobody touched for too long."""
        for id in self.books.silent(self._settings.episode_ttl):
            self._note(Write("", 0, 0, b"", b"", [Ended(id, True, {})]))
            self.counts["expired"] += 1

    def _ended(self, episode: Episode) -> None:
        self._mapped.pop(episode.number, None)
        if episode.version >= 0:
            self.versions.ended(episode.version, episode.reward)


def _remind(rows: Sequence[Row], episode: Episode, earned: Sequence[Entry]) -> None:
    """Write what each has earned since its row before into its memory, if that wants to know."""
    for row in rows:
        if isinstance(row.state, dict) and "reward" in row.state and (seat := episode.seats.get(row.agent)):
            said = (one for one in earned if isinstance(one, Earned) and one.episode == row.episode)
            sum_ = seat.earned + sum(one.reward for one in said if one.agent == row.agent)
            row.state = {**row.state, "reward": np.full_like(row.state["reward"], sum_)}


def _length(column: Tree) -> int:
    while not isinstance(column, np.ndarray):
        column = next(iter(column.values())) if isinstance(column, dict) else column[0]
    return len(column)


def _of(row: Row, value: Any, path: str) -> Any:
    if type(value) is not dict or row.name not in value:
        raise Refused("malformed", f"{path}: expected an object by agent with {row.name!r}")
    return value[row.name]
