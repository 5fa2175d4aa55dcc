"""``PolicyServer``: what a run is given as its ``input``, and the rows that come of what clients do."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import msgspec
import numpy as np

from steppe.config import AlgorithmConfig
from steppe.envs.driven import DrivenRows, Entry
from steppe.errors import ConfigError, IdleError
from steppe.policies.numpy_policy import NumpyPolicy
from steppe.runners.policies import given_spaces, specs_of
from steppe.serving import control, stubs
from steppe.serving.limits import Limits
from steppe.serving.log import LogGoneError, Tail
from steppe.serving.process import ServerProcess, bound
from steppe.serving.records import decode_write
from steppe.serving.settings import check_numbers, settings_of, url_of
from steppe.spaces import describe
from steppe.types import IntArray, Policy, SlotInfo, State, TimeStep, Tree, Weights

logger = logging.getLogger("steppe")

_RECORDS = 64
"""Records of the log that are taken at once."""
_MOST_ROWS = 20_000
"""Env steps that wait for the learner in this process; further ones wait in the log."""
_KEPT_BYTES = 1 << 30
"""Of the log behind what was taken, for a run that goes back to a checkpoint."""
_WAIT_S = 0.2
_BEGIN_S = 30.0
_CORRECTING = ("IMPALA", "APPO")
"""Algorithms that weigh rows of older weights."""
_WITHOUT_ENVS = {
    "num_env_runners": 0,
    "remote_worker_envs": False,
    "on_env_error": "raise",
    "evaluation_envs": "separate",
    "observation_fn": None,
    "add_agent_id": False,
    "max_episode_steps": None,
}


@final
class PolicyServer:
    """Serves the policies of a run over a network, and brings what comes of it.

    It is the ``input`` of a run: ``PPOConfig(env=STUB, input=PolicyServer())``. Clients ask for actions and
    say what was earned, see ``docs/protocol.md``; the server answers in a process of its own, with the newest
    weights. The run's ``env`` is a stub: anything with an ``observation_space`` and an ``action_space``.

    Args:
        address: a host, or ``host:port``; other machines reach only what is not a loopback address, and then
            a token and TLS are needed.
        port: 0 for one that is free.
        token_file: who may do what: lines of ``TOKEN SCOPE[,SCOPE...] [NAME]``, readable for its owner alone.
        tls_cert: file of the certificate.
        tls_key: file of its key.
        insecure: do without a token or TLS where they are needed; it is said every minute.
        allow_hosts: further names that the server may be asked by.
        allow_origins: of web pages whose scripts may use the server.
        log_dir: what clients did is here before they are answered; None: a temporary folder. A run that is
            restored goes on exactly from the same folder.
        idle_timeout: seconds without anybody after which an iteration ends with what there is; None: never.
        episode_ttl: seconds after which an open episode that nobody touched is cut off.
        max_weight_lag: how many versions the weights may be old with which a client decided; None: 1 where
            the algorithm learns only from its newest policies, else any.
        guard: mean reward of 100 episodes: once it was reached, the best version that is kept acts when it
            is not any more.
        held_rows: newest decisions of an open episode that can still be credited.
        queue_bytes: experience that waits for the learner, above which clients have to wait.
        limits: what a client may do to the server.

    Attributes:
        address: such as ``http://127.0.0.1:9900``; with a port of 0 it is known once a run was built.

    Raises:
        ConfigError: the address makes no sense, or is not to be had without a token and TLS.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int | None = None,
        *,
        token_file: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        allow_hosts: Iterable[str] = (),
        allow_origins: Iterable[str] = (),
        log_dir: str | os.PathLike[str] | None = None,
        idle_timeout: float | None = None,
        episode_ttl: float = 300.0,
        max_weight_lag: int | None = None,
        guard: float | None = None,
        held_rows: int = 1000,
        queue_bytes: int = 64 << 20,
        limits: Limits | None = None,
    ) -> None:
        check_numbers(idle_timeout=idle_timeout, max_weight_lag=max_weight_lag, held_rows=held_rows)
        self.log_dir = None if log_dir is None else Path(log_dir)
        self.idle_timeout, self.max_weight_lag, self.held_rows = idle_timeout, max_weight_lag, held_rows
        self._settings = settings_of(
            address,
            port,
            token_file=token_file,
            tls_cert=tls_cert,
            tls_key=tls_key,
            insecure=insecure,
            allow_hosts=allow_hosts,
            allow_origins=allow_origins,
            episode_ttl=episode_ttl,
            guard=guard,
            queue_bytes=queue_bytes,
            limits=limits,
        )
        self.address = url_of(self._settings, self._settings.port)

    def __repr__(self) -> str:
        """With its address."""
        return f"PolicyServer({self.address!r})"

    def build(
        self,
        env: Any,
        env_config: Mapping[str, Any] | None = None,
        *,
        config: AlgorithmConfig,
        decides: Callable[[Any], None],
        observation_space: Any = None,
        action_space: Any = None,
        max_sequence_length: int | None = None,
        **_: Any,
    ) -> ServedRows:
        """Listen; called by the runner as :func:`steppe.envs.registry.build` is.

        Raises:
            ConfigError: nothing says the spaces, or the address is taken.
        """
        check_together(config)
        _check_evaluation(env, config)
        specs = specs_of(config)
        own = given_spaces(specs)
        who = stubs.served(
            env,
            env_config,
            (observation_space, action_space),
            maximum=max_sequence_length,
            of_policies=own.values() if len(own) == len(specs) else (),
        )
        listener = bound(self._settings.host, self._settings.port)
        self.address = url_of(self._settings, listener.getsockname()[1])
        rows = ServedRows(self, self._settings, who, listener, config)
        decides(rows)
        return rows


def check_together(config: AlgorithmConfig) -> None:
    """Check that no setting asks for envs, where there are none.

    Raises:
        ConfigError: one does.
    """
    for field, value in _WITHOUT_ENVS.items():
        if getattr(config, field) != value:
            fix = f"write {config.spelling(field)}={value!r}"
            raise ConfigError(
                f"{type(config).__name__}: {config.spelt(field)}: with a PolicyServer no env is stepped "
                f"here, and one server takes what clients bring; {fix}"
            )


def _check_evaluation(env: Any, config: AlgorithmConfig) -> None:
    """Say now, and not after the first iterations, that a stub cannot be played."""
    stub = env is None or str(env).endswith(".json") or (isinstance(env, type) and not hasattr(env, "step"))
    if config.evaluation_interval and stub and "env" not in config.evaluation_config:
        raise ConfigError(
            f"{config.spelt('evaluation_interval')}: nothing can be evaluated on a stub, which has no step: "
            "give evaluation_config={'env': ...}, an env that can be played, or leave it out"
        )


@final
class ServedRows:
    """An AsyncEnv of what clients do: a server process logs it, and here it is read and played back.

    The process begins with the first poll, so that it is known by then which log it goes on with.

    Args:
        server: whose settings these are.
        settings: for the process.
        who: is served.
        listener: where clients connect.
        config: of the run.
    """

    steps_together = False

    def __init__(
        self,
        server: PolicyServer,
        settings: control.Settings,
        who: stubs.Served,
        listener: socket.socket,
        config: AlgorithmConfig,
    ) -> None:
        self._server, self._settings, self._who, self._listener = server, settings, who, listener
        self._config, self._temporary = config, False
        self._rows = DrivenRows(
            who.pairs,
            who.agents,
            config.num_envs_per_env_runner,
            held_rows=server.held_rows,
            idle_timeout=server.idle_timeout,
            waiting=f"waiting for clients at {server.address}",
        )
        self._rows.opened = self._opened
        self._replays = "replay_buffer_capacity" in vars(config)
        self._process: ServerProcess | None = None
        self._thread: threading.Thread | None = None
        self._weights: dict[str, control.Packed] = {}
        self._served: dict[str, control.Served] = {}
        self._tail: Tail | None = None
        self._changed, self._taking = threading.Condition(), threading.Lock()
        self._log_opened: control.Opened | None = None
        self._synced = self._deletable = 0
        self._saved: int | None = None
        self._folder, self._closed = Path(), False
        self._counts: Counter[str] = Counter()
        self._newest: dict[str, int] = {}

    # --- a decider ------------------------------------------------------------------------------------------

    def begin(
        self,
        policies: Mapping[str, Policy],
        mapping: Any,
        rng: np.random.Generator,
        *,
        whole: bool,
        evaluation: bool,
    ) -> None:
        """See :class:`steppe.types.Decider`."""
        self._policies, self._mapping, self._rows.whole = policies, mapping, whole

    def set_weights(self, weights: Mapping[str, Weights], explore: bool) -> None:
        """See :class:`steppe.types.Decider`.

        Raises:
            ConfigError: a policy cannot act without the run's own code.
        """
        packed, self._explore = {}, explore
        for id in self._policies.keys() - weights.keys() - self._served.keys():
            raise ConfigError(f"policy {id!r} cannot be served: it acts by a rule of the run's own code")
        for id, new in weights.items():
            policy = self._policies[id]
            told = policy.export(new)
            if id not in self._served:
                self._served[id] = self._described(id, policy, told)
            packed[id] = control.Packed.of(new.version, told["arrays"], dict(new.scalars))
        self._weights |= packed
        self._publish(packed)

    def _publish(self, weights: dict[str, control.Packed]) -> None:
        """Act with these; the first ones let clients in, and are not those from before a restoration."""
        if self._process is not None:
            self._process.publish(weights)

    def _described(self, id: str, policy: Policy, told: State) -> control.Served:
        """A policy as the process has it; that can be made of it is tried here."""
        if self._process is not None:
            raise ConfigError(f"policy {id!r} cannot join a run that is being served: name it in `policies`")
        try:
            NumpyPolicy(told["network"], told["exploration"])
        except ConfigError as error:
            raise ConfigError(f"policy {id!r} cannot be served: {error}") from None
        spaces = describe(policy.observation), describe(policy.action)
        return control.Served(*spaces, told["network"], told["exploration"])

    def _configure(self) -> control.Configure:
        lag = self._server.max_weight_lag
        if lag is None and not self._replays and self._config.algo_name not in _CORRECTING:
            lag = 1
        fixed = self._config.policy_mapping_fn is None or len(self._policies) == 1
        agents = [
            (agent, index, self._mapping.ahead(SlotInfo(0, 0, agent, 0, 0)) if fixed else None)
            for agent, index in self._who.agents.items()
        ]
        return control.Configure(
            settings=self._settings,
            policies=self._served,
            pairs=[(describe(one.observation), describe(one.action)) for one in self._who.pairs],
            agents=agents,
            everyone=self._who.everyone,
            multi_agent=self._who.multi_agent,
            explore=self._explore,
            off_policy=self._replays,
            max_weight_lag=lag,
            held_rows=self._server.held_rows,
        )

    def _opened(self, info: SlotInfo, policy: str) -> None:
        """The sampler is about to ask who acts for somebody: who has acted."""
        if len(self._mapping.ids) > 1:  # else nobody asks
            self._mapping.ahead(info, policy)

    # --- the process ----------------------------------------------------------------------------------------

    def _start(self) -> int:
        """Begin to serve; where the log ends by now."""
        folder = self._server.log_dir
        if folder is None:
            folder, self._temporary = Path(tempfile.mkdtemp(prefix="steppe-experience-")), True
        self._folder = folder.absolute()
        self._settings = msgspec.structs.replace(self._settings, log_dir=str(self._folder))
        self._process = ServerProcess(self._configure(), self._listener, self._heard)
        return self._begun(self._process).end

    def _read_from(self, position: int) -> None:
        """Take what is in the log from there on."""
        assert self._process is not None
        self._tail = Tail(self._folder, position)
        # Else all that is before counts as experience that waits, and clients have to.
        self._process.consumed(position, self._deletable)
        if self._thread is None:
            self._thread = threading.Thread(target=self._take, name="steppe-served", daemon=True)
            self._thread.start()

    def _begun(self, process: ServerProcess) -> control.Opened:
        until = time.monotonic() + _BEGIN_S
        with self._changed:
            while self._log_opened is None:
                self._changed.wait(_WAIT_S)
                if process.failed is not None:
                    raise process.failed
                if time.monotonic() > until:
                    raise ConfigError(f"the server process has not opened its log within {_BEGIN_S:.0f} s")
            return self._log_opened

    def _heard(self, message: control.ToTrainer) -> None:
        """Of the process; in its thread."""
        match message:
            case control.Synced(position=position):
                with self._changed:
                    self._synced = max(position, self._synced)
                    self._changed.notify_all()
            case control.Opened():
                with self._changed:
                    self._counts += Counter(self._newest)
                    self._newest, self._log_opened = {}, self._log_opened or message
                    self._changed.notify_all()
            case control.Map(agent=agent, episode=number):
                self._answer(agent, number)
            case control.Said(level=level, text=text):
                logger.log(level, "policy server: %s", text)
            case control.Counts(counts=counts):
                self._newest = counts

    def _answer(self, agent: Any, number: int) -> None:
        """Ask the run's mapping who acts for somebody."""
        assert self._process is not None
        try:
            policy = self._mapping(SlotInfo(0, 0, agent, number, 0))
        except BaseException as error:  # the user's own function: its error ends the run
            self._rows.fail(error)
            policy = None
        self._process.send(control.Mapped(agent, number, policy))

    def _take(self) -> None:
        """Read the log as it grows, as far as the learner keeps up."""
        try:
            while not self._closed:
                with self._changed:
                    if self._tail is None or self._tail.position >= self._synced:
                        self._changed.wait(_WAIT_S)
                if self._process is not None and self._process.failed is not None:
                    raise self._process.failed
                if self._rows.backlog > _MOST_ROWS or not self._read():
                    time.sleep(_WAIT_S / 20)
        except BaseException as error:  # poll raises it
            self._rows.fail(error)

    def _read(self) -> bool:
        """Take some records; whether there were any."""
        with self._taking:
            if self._tail is None or not (records := self._tail.read(self._synced, _RECORDS)):
                return False
            for record in records:
                self._feed(decode_write(record).entries)
            position = self._tail.position
        if self._process is not None:
            saved = position if self._saved is None else max(self._deletable, position - _KEPT_BYTES)
            self._process.consumed(position, saved)
        return True

    def _feed(self, entries: Sequence[Entry]) -> None:
        """Episodes are spread over the envs that there would be."""
        n, parts = self._rows.num_envs, dict[int, list[Entry]]()
        for entry in entries:
            parts.setdefault(zlib.crc32(entry.episode.encode()) % n, []).append(entry)
        for env, own in parts.items():
            self._rows.feed(env, own)

    # --- an env ---------------------------------------------------------------------------------------------

    @property
    def spaces(self) -> Any:
        """See :class:`steppe.types.AsyncEnv`; likewise what follows."""
        return self._rows.spaces

    @property
    def agents(self) -> Any:
        """Those who are known before they come."""
        return self._rows.agents

    @property
    def num_envs(self) -> int:
        """Numbers that episodes are spread over."""
        return self._rows.num_envs

    @property
    def env_steps(self) -> int:
        """Env steps that were handed over."""
        return self._rows.env_steps

    @property
    def address(self) -> str:
        """Where clients find the server."""
        return self._server.address

    def interrupt(self) -> None:
        """Wait for nobody any more: the iteration ends with what there is."""
        self._rows.fail(IdleError("the wait for clients was interrupted"))

    def poll(self, timeout: float | None = None) -> Sequence[TimeStep]:
        """Rows that clients have brought; the server begins with the first call.

        Raises:
            IdleError: nobody came for ``idle_timeout`` seconds, or :meth:`interrupt` was called.
        """
        if self._process is None:
            self._read_from(self._start())
            self._publish(self._weights)
        return self._rows.poll(timeout)

    def send_actions(self, slots: IntArray, actions: Tree) -> None:
        """No row awaits an action."""
        self._rows.send_actions(slots, actions)

    def pending(self) -> Sequence[TimeStep]:
        """No rows."""
        return self._rows.pending()

    def health(self) -> Mapping[str, int]:
        """What was odd about requests, by name."""
        counts = self._counts + Counter(self._newest)
        counts.pop("rows", 0)  # nothing odd
        counts["restarts"] = 0 if self._process is None else self._process.restarts
        return {name: count for name, count in counts.items() if count}

    def get_sub_environments(self) -> list[Any]:
        """There are none here."""
        return []

    def get_state(self) -> State:
        """The books, and the position of the log that they have come to."""
        with self._taking:
            rows, tail = self._rows.get_state(), self._tail
            if tail is None:
                return {"rows": rows, "log": None, "position": 0}
            # The checkpoint before this one is good until this one is on disk.
            self._deletable = tail.position if self._saved is None else self._saved
            self._saved = tail.position
            return {"rows": rows, "log": tail.id, "position": tail.position}

    def set_state(self, state: State) -> list[str]:
        """Go on exactly where the log is the same, else without the episodes that were open."""
        notes = self._rows.set_state(state["rows"])
        if state["log"] is None:  # nobody had been served
            return notes
        end = self._start() if self._process is None else self._synced
        with self._taking:
            lost = self._go_back(state, end)
        return notes + lost

    def _go_back(self, state: State, end: int) -> list[str]:
        """Read the log from where a checkpoint was."""
        position = int(state["position"])
        try:
            tail = Tail(self._folder, position)
            if tail.id != state["log"]:
                raise LogGoneError("it is another one than the run's")
            for record in tail.read(max(end, self._synced), 1):
                self._feed(decode_write(record).entries)
        except LogGoneError as error:
            self._rows.forget()
            self._read_from(end)
            return [
                f"the log in {self._folder} cannot be gone on with ({error}): what clients did and nobody "
                "learned from yet is lost; PolicyServer(log_dir=...) names the folder that the run had"
            ]
        self._saved = self._deletable = position
        self._read_from(tail.position)
        return []

    def close(self) -> None:
        """End the server; may be called twice."""
        self._closed = True
        self._rows.close()
        if self._process is not None:
            self._process.close()
        else:
            self._listener.close()
        if self._thread is not None:
            self._thread.join()
        if self._temporary:
            shutil.rmtree(self._folder, ignore_errors=True)
