"""Errors are instructions: each names the thing, what was expected, what came, and the fix."""

from __future__ import annotations

from typing import Any

CODES: dict[str, str] = {
    "E101": "observation outside its space",
    "E102": "observation of a wrong kind or type",
    "E103": "observation of a wrong shape",
    "E104": "observation with NaN or infinity",
    "E105": "observation with missing or unknown keys",
    "E106": "observation converted to its space's dtype",
    "E107": "mask that allows no action",
    "E201": "reward is not one finite number",
    "E301": "step result of a wrong length or type",
    "E302": "terminated or truncated is not a flag",
    "E303": "info is not a dict",
    "E304": "reset result of a wrong form",
    "E305": "action outside its space",
    "E401": "old gym interface adapted",
    "E402": "env could not be replayed exactly",
    "E403": "reward for an agent after its final row",
    "E404": "agent that the env does not know",
    "E405": "observation for an agent that has ended",
    "E406": "flags without __all__",
    "E407": "agent id is neither a text nor a whole number",
    "E408": "members of a group do not act together",
    "E501": "process of an env ended",
    "E502": "env did not answer in time",
    "E503": "env failed and was made anew",
}
"""Stable codes of everything that can be wrong with an env; the same in checker, training and server."""


class SteppeError(Exception):
    """The root of all errors that steppe raises on purpose."""


class ConfigError(SteppeError, ValueError):
    """A setting is unknown, of a wrong type, out of range, or contradicts another."""


class SpaceError(SteppeError, ValueError):
    """A space that cannot be handled, with the reason and what to use instead."""


class LearningError(SteppeError):
    """Learning came to nothing: update after update of a policy gave numbers that are not finite."""


class RunnerError(SteppeError):
    """The process of a runner ended, or raised what cannot be sent from there."""


class IdleError(SteppeError):
    """Nobody came who could be sampled: an env's way to let a fragment end early."""


class CheckpointError(SteppeError):
    """A checkpoint that is damaged, incomplete, or belongs to another configuration."""


class EnvError(SteppeError):
    """An env broke its contract. The message names env, episode, step and leaf, and says the fix.

    Attributes:
        code: a key of :data:`CODES`.
        text: what is wrong and what to do, without the place.
        env_class: class of the innermost env.
        runner: worker index.
        env: vector index; -1 if it is about all of them.
        episode: counts the episodes of this env.
        step: env step within the episode.
        seed: the seed that this env got.
        action: the action that led here, or None at reset.
        leaf: path of the value, such as ``obs["cars"][3]``.
        agent: id of the agent, in an env of many.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        env_class: str = "?",
        runner: int = 0,
        env: int = 0,
        episode: int = 0,
        step: int = 0,
        seed: int | None = None,
        action: Any = None,
        leaf: str = "",
        agent: str | int | None = None,
    ) -> None:
        self.code, self.env_class, self.runner, self.env = code, env_class, runner, env
        self.episode, self.step, self.seed, self.action, self.leaf = episode, step, seed, action, leaf
        self.agent, self.text = agent, message
        where = f"{env_class}, runner {runner}"
        if env >= 0:
            where += f", env {env}, episode {episode}, step {step}"
        if agent is not None:
            where += f", agent {agent!r}"
        if seed is not None:
            where += f", seed {seed}"
        if action is not None:
            where += f", after action {action!r}"
        super().__init__(f"{code} {CODES[code]}: {message}\n  in {where}")
