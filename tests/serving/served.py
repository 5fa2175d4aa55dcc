"""What tests of the server's mind serve: policies whose choices can be worked out by hand."""

from __future__ import annotations

import numpy as np

from steppe.policies.actors import Actors
from steppe.policies.numpy_policy import Exported
from steppe.serving import messages
from steppe.serving.facts import Facts, PolicyFacts, Settings
from steppe.serving.rows import Job
from steppe.serving.verbs import Verbs
from steppe.spaces import BadLeaf, BoxSpec, DictSpec, DiscreteSpec, MultiBinarySpec
from steppe.types import DEFAULT_POLICY, SINGLE_AGENT, Decision, SpacePair

FLAT = BoxSpec((2,), np.dtype(np.float32), -10.0, 10.0)
FOUR = DiscreteSpec(4)
PAIR = SpacePair(FLAT, FOUR)
MASKED = SpacePair(DictSpec((("action_mask", MultiBinarySpec((4,))), ("x", FLAT))), FOUR)
EVERY_SCOPE = frozenset({"act", "submit", "weights", "admin"})


class SumPolicy:
    """Chooses the whole part of the first number, plus what it remembers: how often it was asked."""

    noise_size, draws = 0, False

    def __init__(self, pair=PAIR, *, remembers=False):
        self.observation = self.acting = pair.observation
        self.action, self.remembers = pair.action, remembers
        self.batches = []

    def load(self, exported):
        return exported.version

    def act(self, weights, obs, state, noise):
        if isinstance(obs, dict):
            if (empty := ~obs["action_mask"].any(axis=1)).any():
                raise BadLeaf("E107", int(empty.argmax()), 'obs["action_mask"]', "a choice", "none")
            obs = obs["x"]
        self.batches.append(len(obs))
        after = None if state is None else state + 1
        action = obs[:, 0].astype(np.int32) + (0 if state is None else state[:, 0])
        return Decision(action, np.full(len(obs), -0.5, np.float32), after)

    def initial_state(self, n):
        return np.zeros((n, 1), np.int32) if self.remembers else None

    def to_env(self, action):
        return action.astype(np.int64)

    from_env = to_env


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def facts_of(policies, pairs=None, **more):
    told = {
        name: PolicyFacts(p.observation, p.action, {"encoder": {"kind": "flat"}}, {}, p.remembers)
        for name, p in policies.items()
    }
    return Facts(pairs or {SINGLE_AGENT: PAIR}, told, **{"policy_of": {}, **more})


def actors_of(policies):
    return Actors(policies, explore=True, rng=np.random.default_rng(0))


class World:
    """The verbs without a server: requests in, answers out."""

    def __init__(self, policies=None, *, pairs=None, settings=None, log=None, ask=None, version=0, **facts):
        self.policies = policies or {DEFAULT_POLICY: SumPolicy()}
        self.facts = facts_of(self.policies, pairs, **facts)
        self.actors, self.clock = actors_of(self.policies), Clock()
        self.verbs = Verbs(self.facts, self.actors, settings or Settings(), log, ask, self.clock)
        self.books = self.verbs.books
        self.seq = 0
        if version is not None:
            self.publish(version)

    def publish(self, version):
        for name, policy in self.policies.items():
            self.actors.publish(name, policy.load(Exported(version, {})), version)
            self.verbs.versions.published(name, version)

    def job(self, verb, *, client="c", epoch=0, seq=None, kind="json", **fields):
        if seq is None:
            self.seq += 1
            seq = self.seq
        body = {"client": client, "epoch": epoch, "seq": seq, **fields}
        return Job(messages.read_body(verb, messages.encoded("msgpack", body), "msgpack"), kind)

    def ask_all(self, *jobs):
        """The answers: bodies as values, and of refusals their codes."""
        self.verbs.handle(jobs)
        return [outcome_of(job) for job in jobs]

    def ask(self, verb, **fields):
        return self.ask_all(self.job(verb, **fields))[0]

    def refusal(self, verb, **fields):
        job = self.job(verb, **fields)
        self.verbs.handle([job])
        assert isinstance(job.outcome, messages.Refused), job.outcome
        return job.outcome.code, job.outcome.message


def outcome_of(job):
    if isinstance(job.outcome, messages.Refused):
        return job.outcome.code
    return None if job.outcome is None else messages._LOOSE[job.kind].decode(job.outcome)
