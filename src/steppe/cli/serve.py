"""``steppe serve``: a policy that answers over a network, and learns from what comes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, final

import click

from steppe.cli.text import duration
from steppe.errors import ConfigError

_FILE = {"type": click.Path(path_type=Path), "metavar": "FILE"}
_TIME = {"type": duration, "metavar": "TIME"}
_MANY = {"multiple": True, "metavar": "NAME"}
_OF_SERVER: dict[str, dict[str, Any]] = {
    "--host": {"default": "127.0.0.1", "help": "Address to listen at."},
    "--port": {"type": click.IntRange(0, 65535), "default": 9900, "help": "0 takes one that is free."},
    "--token-file": {**_FILE, "help": "Lines of TOKEN SCOPE[,SCOPE...] [NAME]: who may do what."},
    "--make-tokens": {"is_flag": True, "help": "Write two tokens into that file, if it is not there."},
    "--tls-cert": {**_FILE, "help": "Certificate of the server."},
    "--tls-key": {**_FILE, "help": "Key of the certificate."},
    "--make-cert": {
        "is_flag": True,
        "help": "Write both, if they are not there, for all names of the server.",
    },
    "--insecure": {"is_flag": True, "help": "Let other machines in without a token and TLS."},
    "--allow-host": {**_MANY, "help": "A further name of the server. May be repeated."},
    "--allow-origin": {**_MANY, "help": "Web pages of this origin may use it. May be repeated."},
    "--episode-ttl": {**_TIME, "default": "5m", "help": "Episodes that nobody touches end after this time."},
}
_OF_TRAINING: dict[str, dict[str, Any]] = {
    "--spaces": {**_FILE, "help": "The spaces, as GET /v1/spaces gives them, in place of an env."},
    "--idle-timeout": {**_TIME, "help": "Report an iteration after this time without clients."},
    "--guard": {"type": float, "metavar": "REWARD", "help": "Below this mean, the best version kept acts."},
    "--max-weight-lag": {
        "type": click.IntRange(0),
        "help": "How many versions old a client's weights may be.",
    },
}


def _options(table: dict[str, dict[str, Any]]) -> list[click.Parameter]:
    return [
        click.Option([flag], show_default=flag in ("--host", "--port"), **how) for flag, how in table.items()
    ]


@final
class Either(click.Command):
    """Two commands of one name: with ``--no-train`` nothing of what trains is loaded."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Of the one that is meant."""
        chosen = _finished if "--no-train" in args else _training()
        return chosen.make_context(info_name, args, parent, **extra)


command = Either("serve", help="Serve a policy over a network, and let it learn from what its clients do.")


@click.command(name="serve", params=_options(_OF_SERVER))
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="CHECKPOINT|RUN")
@click.option("--no-train", is_flag=True, required=True, help="Only act: nothing is learned.")
@click.option("--explore/--no-explore", default=False, help="Draw actions instead of taking the likeliest.")
def _finished(checkpoint: Path, no_train: bool, explore: bool, **flags: Any) -> int:
    """Serve a trained policy until Ctrl-C. The env, and its package, are not needed."""
    from steppe.serving.process import bound
    from steppe.serving.settings import settings_of, url_of

    settings = settings_of(**_files_made(flags))
    from steppe.serving.alone import finished, serve  # after what says that something is missing

    configure, weights = finished(checkpoint, settings, explore=explore)
    with bound(settings.host, settings.port) as listener:
        line = announced(url_of(settings, listener.getsockname()[1]))
        asyncio.run(serve(configure, weights, listener, lambda: click.echo(line)))
    return 0


def announced(address: str) -> str:
    """What is said when clients can come."""
    place = address.partition("://")[2].replace("127.0.0.1", "localhost")
    return f"-- Starting policy server at {place}"


def _files_made(flags: dict[str, Any]) -> dict[str, Any]:
    """The settings of a server; files that are to be made are, where they are not there."""
    tokens, certificate = flags.pop("make_tokens"), flags.pop("make_cert")
    names = {"host": "address", "allow_host": "allow_hosts", "allow_origin": "allow_origins"}
    flags = {names.get(key, key): value for key, value in flags.items()}
    if tokens:
        from steppe.serving.security import make_token_file

        flags["token_file"] = path = flags["token_file"] or Path("tokens.txt")
        if not path.exists():
            make_token_file(path)
            click.echo(f"wrote {path}: the first token is for clients, the second for those who rule")
    if certificate:
        flags |= _certificate(flags)
    return flags


def _certificate(flags: dict[str, Any]) -> dict[str, Any]:
    from steppe.serving.certificates import make_cert

    folder = Path("certificate")
    cert, key = flags["tls_cert"] or folder / "cert.pem", flags["tls_key"] or folder / "key.pem"
    if (cert.parent, cert.name, key.parent, key.name) != (cert.parent, "cert.pem", cert.parent, "key.pem"):
        raise ConfigError(
            "--make-cert writes cert.pem and key.pem into one folder: call them so, or leave them out"
        )
    if not cert.exists():
        make_cert(cert.parent, ["localhost", "127.0.0.1", flags["address"], *flags["allow_hosts"]])
        click.echo(f"wrote {cert}, which clients are given: PolicyClient(..., ca={str(cert)!r})")
    return {"tls_cert": cert, "tls_key": key}


def _training() -> click.Command:
    """The command that trains: its flags are those of ``steppe train``, and the server's."""
    from steppe.cli import train
    from steppe.cli.flags import ConfigCommand

    params = [*train.command.params, *_options(_OF_SERVER), *_options(_OF_TRAINING)]
    return click.command(cls=ConfigCommand, name="serve", params=params)(_serve)


def _serve(
    env_argument: str | None,
    env: str | None,
    algo: str | None,
    name: str | None,
    resume: Path | None,
    quiet: bool,
    config: Path | None,
    callbacks: str | None,
    spaces: Path | None,
    **flags: Any,
) -> int:
    """Serve a policy over a network, and let it learn from what its clients do.

    ENV is a stub: anything that has an observation_space and an action_space; it is never stepped. It serves
    until Ctrl-C or SIGTERM, and saves then. ``steppe serve CHECKPOINT --no-train`` serves a finished policy.
    """
    from steppe.cli import train
    from steppe.cli.saved import find
    from steppe.serving.env import PolicyServer

    own = {key: flags.pop(key) for key in ("port", "idle_timeout", "guard", "max_weight_lag", "insecure")}
    files = ("host", "token_file", "make_tokens", "tls_cert", "tls_key", "make_cert")
    own |= {key: flags.pop(key) for key in (*files, "allow_host", "allow_origin", "episode_ttl")}
    server = PolicyServer(**_files_made(own))
    given = {key: value for key, value in flags.items() if value not in (None, ())}
    stop = {key: given.pop(key) for key in train.StopWhen._fields if key in given}
    env = train.one_env(train.one_env(env_argument, env), None if spaces is None else str(spaces))
    if resume is not None:
        train.refuse_changes(given, algo=algo, name=name, config=config)
        server.log_dir = (find(resume).run or resume) / "experience"
        algorithm, stop = train.reopened(resume, env or _spaces_of(resume), callbacks, stop, input=server)
    else:
        if callbacks is not None:
            given["callbacks_class"] = callbacks
        settings, planned = train.configured(env, algo, name, config, given)
        settings.input = server
        algorithm, stop = settings.build(), planned | stop
        if algorithm.run is not None:
            server.log_dir = algorithm.run.path / "experience"
    click.echo(announced(server.address))
    interrupt = algorithm.runner.env.interrupt
    return train.trained(algorithm, train.StopWhen(**stop), quiet, "serve", interrupt)


def _spaces_of(run: Path) -> str | None:
    """The file of spaces that a run was served with."""
    from steppe.cli.saved import run_settings

    env = run_settings(run).get("env")
    return env if isinstance(env, str) and env.endswith(".json") else None
