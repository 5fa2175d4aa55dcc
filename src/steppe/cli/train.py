"""``steppe train``: the training loop, when it stops, and how a run goes on."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, final

import click

from steppe.algorithms import config_class
from steppe.cli import INTERRUPTED
from steppe.cli.files import NOTHING, read_settings
from steppe.cli.flags import (
    DEFAULTS,
    ConfigCommand,
    algo_of,
    env_config_option,
    merged,
    setting,
    settings_of,
)
from steppe.cli.saved import callbacks_of_run, env_of_run, find, meta_of, restore
from steppe.cli.text import count, duration
from steppe.config.reading import Reading
from steppe.errors import ConfigError
from steppe.tracking.record import read_record

if TYPE_CHECKING:
    from steppe.algorithm import Algorithm
    from steppe.config import AlgorithmConfig
    from steppe.tracking.progress import Display


@click.command(cls=ConfigCommand)
@click.argument("env_argument", metavar="[ENV]", required=False)
@click.option("--env", help="The env: a Gymnasium id, file.py:Class or module:Class.")
@click.option(
    "--algo", default=None, metavar="NAME", help="The algorithm; its own flags follow.  [default: PPO]"
)
@click.option(
    "--total-steps", type=count, metavar="COUNT", help="Stop after so many env steps: 1e6, 200_000, 2M."
)
@click.option("--stop-reward", type=float, help="Stop once the mean episode reward is at least this.")
@click.option("--stop-time", type=duration, metavar="TIME", help="Stop after this time: 45s, 10m, 1h30m.")
@click.option("--stop-iters", type=count, metavar="COUNT", help="Stop after so many iterations.")
@click.option("--name", help="Name of the run's folder under runs/<Env>/.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with this run.")
@click.option("--callbacks", metavar="FILE:CLASS", help="Callbacks: file.py:Class or module:Class.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings in a .toml, .yaml or .json file, such as the config.toml of a run.",
)
@click.option(
    "--set",
    type=setting,
    metavar="KEY=VALUE",
    multiple=True,
    help="A setting by its name or an old one, dotted inside of a group: env_config.size=5. Wins over the "
    "file; a flag of its own wins over it. May be repeated.",
)
@env_config_option
def command(
    env_argument: str | None,
    env: str | None,
    algo: str | None,
    name: str | None,
    resume: Path | None,
    quiet: bool,
    config: Path | None,
    callbacks: str | None,
    **flags: Any,
) -> int:
    """Train in an env and write a run folder.

    Without --total-steps, --stop-reward, --stop-time or --stop-iters it trains until Ctrl-C: the first one
    ends the iteration, saves, and says how to go on; the second one stops at once.
    """
    given = {key: value for key, value in flags.items() if value not in (None, ())}
    stop = {key: given.pop(key) for key in StopWhen._fields if key in given}
    env = one_env(env_argument, env)
    if resume is not None:
        refuse_changes(given, algo=algo, name=name, config=config)
        algorithm, stop = reopened(resume, env, callbacks, stop)
    else:
        if callbacks is not None:
            given["callbacks_class"] = callbacks
        settings, planned = configured(env, algo, name, config, given)
        algorithm, stop = settings.build(), planned | stop
    return trained(algorithm, StopWhen(**stop), quiet)


class StopWhen(NamedTuple):
    """What ends a training, whichever comes first."""

    total_steps: int | None = None
    stop_reward: float | None = None
    stop_time: float | None = None
    stop_iters: int | None = None

    def reached(self, result: Mapping[str, Any], seconds: float) -> str:
        """The reason to stop after an iteration, or "".

        Args:
            result: of the iteration; its mean reward is NaN before an episode has ended.
            seconds: since the training was started or resumed.
        """
        steps, reward = result["timesteps_total"], result["episode_reward_mean"]
        if self.total_steps is not None and steps >= self.total_steps:
            return f"reached {steps:,} steps"
        if self.stop_reward is not None and reward >= self.stop_reward:
            return f"reached a mean reward of {reward:.2f}"
        if self.stop_time is not None and seconds >= self.stop_time:
            return f"trained for {seconds:.0f} s"
        if self.stop_iters is not None and result["training_iteration"] >= self.stop_iters:
            return f"reached {result['training_iteration']:,} iterations"
        return ""


@final
class Interrupts:
    """Ctrl-C while training: the first one is noted, the second one is a KeyboardInterrupt.

    Args:
        display: says so.
        then: is called with the first one; a SIGTERM is one, too, where it is given.
    """

    def __init__(self, display: Display, then: Callable[[], None] | None = None) -> None:
        self._display, self._then = display, then or (lambda: None)
        self._signals = (signal.SIGINT,) if then is None else (signal.SIGINT, signal.SIGTERM)
        self.came = False

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._note) for number in self._signals]
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in zip(self._signals, self._before, strict=True):
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
        self._then()
        self._display.message("stopping after this iteration; Ctrl-C again stops at once")


def loop(algo: Algorithm, stop: StopWhen, display: Display, interrupts: Interrupts) -> str:
    """Train until ``stop`` says so, and return its reason; "" when Ctrl-C came first."""
    began = time.monotonic()
    while True:
        result = algo.train()
        display.update(result)
        reason = stop.reached(result, time.monotonic() - began)
        if reason or interrupts.came:
            return reason


def trained(
    algo: Algorithm, stop: StopWhen, quiet: bool, verb: str = "train", then: Callable[[], None] | None = None
) -> int:
    """Train and save, and say how it ended; the exit status.

    Args:
        algo: which is closed.
        stop: when to end.
        quiet: show no progress.
        verb: of the command that would go on.
        then: see :class:`Interrupts`.
    """
    from steppe.tracking.progress import Display

    run, where, reason, saved = None, "", "", True
    try:
        with algo:  # its end writes how the run ended, unless that was said before
            run = algo.run
            where = str(run.path) if run is not None else ""
            if run is not None:
                run.note(stop=stop._asdict())  # for --resume; the file that said so may have changed by then
            title = " ".join(filter(None, [algo.config.algo_name, str(algo.config.env), where]))
            with (
                Display(title, stop.total_steps, quiet=quiet) as display,
                Interrupts(display, then) as interrupts,
            ):
                display.begin(algo.config.train_batch_size)
                reason = loop(algo, stop, display, interrupts)
                if run is not None:
                    algo.save_to_run()
                    run.finish("finished" if reason else "interrupted")
    except KeyboardInterrupt:
        reason, saved = "", run is not None and run.latest() is not None
    if reason:
        click.echo(f"{reason}; run folder: {where}" if where else reason)
        return 0
    how = f"go on with: steppe {verb} --resume {shlex.quote(where)}" if saved else "nothing was saved"
    click.echo(f"stopped; {how}" if where else "stopped")
    return INTERRUPTED


def one_env(argument: str | None, option: str | None) -> str | None:
    """The env of a command, which takes it as an argument and as ``--env``."""
    if argument is not None and option is not None and argument != option:
        raise ConfigError(f"two envs: {argument} and --env {option}")
    return argument or option


def configured(
    env: str | None, algo: str | None, name: str | None, config: Path | None, given: dict[str, Any]
) -> tuple[AlgorithmConfig, dict[str, Any]]:
    """A file's settings, then ``--set``, then flags; and when the file says to stop."""
    file = NOTHING if config is None else read_settings(config)
    cls = config_class(algo_of(algo, file))
    try:
        below = cls.reading(file.settings)
    except ConfigError as error:
        raise ConfigError(f"{config}: {error}") from None
    above = cls.reading(settings_of(cls, given.pop("set", ())))
    flags = {**given, "env_config": dict(given.get("env_config", ()))}
    if env is not None:
        flags["env"] = env
    elif file.run is not None and "env" not in above.values:
        flags["env"] = env_of_run(file.run)
    settings = merged(merged({**DEFAULTS, **below.values}, above.values), flags)
    written = below.written | above.written | {key: key for key in flags}
    if name is not None:
        from steppe.envs.registry import env_name

        if "run_dir" in given:
            raise ConfigError("--name and --run-dir both name the run's folder; keep one")
        settings["run_dir"] = str(Path("runs") / env_name(settings.get("env")) / name)
    return cls.from_reading(Reading(settings, [], written)), file.stop


def refuse_changes(given: Mapping[str, Any], **others: str | Path | None) -> None:
    """Say which flags a run that goes on does not take."""
    changed = [*given, *(key for key, value in others.items() if value is not None)]
    if changed:
        flags = ", ".join(f"--{key.strip('_').replace('_', '-')}" for key in changed)
        raise ConfigError(f"a resumed run keeps its settings; leave out {flags}")


def reopened(
    path: Path, env: str | None, callbacks: str | None, stop: dict[str, Any], **changes: Any
) -> tuple[Algorithm, dict[str, Any]]:
    """The algorithm of a run, to go on in its folder with ``changes``, and when it was to stop."""
    from steppe.tracking.run import Run

    saved = find(path)
    if saved.run is None:
        raise ConfigError(
            f"{path} is not in a run's folder (it has no run.json); --resume takes such a folder"
        )
    first = read_record(saved.run).get("stop") or {}
    kept = ("total_steps", "stop_reward", "stop_iters")  # a time begins anew
    stop = {**{key: first[key] for key in kept if first.get(key) is not None}, **stop}
    steps, meta = int(saved.checkpoint.name), meta_of(saved.checkpoint)
    if "input" in meta.get("code", ()) and "input" not in changes:
        raise ConfigError(f"{path} was served, and goes on with: steppe serve --resume {path}")
    iterations = meta.get("training_iteration", 0)
    _refuse_the_end(path, "total_steps", steps, stop, "steps")
    _refuse_the_end(path, "stop_iters", iterations, stop, "iterations")
    callbacks = callbacks or callbacks_of_run(saved.run)
    changes |= {} if callbacks is None else {"callbacks_class": callbacks}
    algorithm = restore(saved, env, **changes)
    algorithm.run = Run.open(saved.run, keep=algorithm.config.keep_checkpoints_num)
    algorithm.run.truncate_to(steps)
    return algorithm, stop


def _refuse_the_end(path: Path, key: str, reached: int, stop: Mapping[str, Any], what: str) -> None:
    if key in stop and reached >= stop[key]:
        flag = f"--{key.replace('_', '-')} {2 * reached}"
        raise ConfigError(f"{path} is at {reached:,} of {stop[key]:,} {what}; more go on, such as {flag}")
