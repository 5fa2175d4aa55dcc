"""Who may reach a server: tokens, TLS, and what must not be exposed."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import ssl
from pathlib import Path
from typing import final

from steppe.errors import ConfigError
from steppe.serving.limits import Bucket, Limits

SCOPES = frozenset({"act", "submit", "weights", "admin"})
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")


@final
class Token:
    """A secret, of which only the digest is kept."""

    def __init__(self, digest: bytes, name: str, scopes: frozenset[str], rate: float) -> None:
        self.digest, self.name, self.scopes, self.bucket = digest, name, scopes, Bucket(rate)


@final
class Tokens:
    """The tokens of a file, a line each: ``TOKEN SCOPE[,SCOPE...] [NAME]``; ``#`` begins a comment.

    Args:
        path: the file; None: everybody may do everything.
        rate: requests a second of each token.

    Raises:
        ConfigError: the file cannot be read, can be read by others, or has a line of another form.
    """

    def __init__(self, path: Path | None, rate: float = Limits.rate) -> None:
        self.path, self._rate, self._seen = path, rate, (0, 0, 0)
        self._tokens: list[Token] = []
        if path is not None:
            self.reload()

    def changed(self) -> bool:
        """Whether the file is another one than what was read."""
        return self.path is not None and _state(self.path) != self._seen

    def reload(self) -> None:
        """Read the file anew. After an error, the tokens are what they were."""
        if self.path is None:
            return
        self._seen = _state(self.path)
        try:
            text, mode = self.path.read_text(encoding="utf-8"), self.path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the tokens in {self.path}: {error}") from None
        if mode & 0o077:
            raise ConfigError(
                f"{self.path} can be read by others (mode {mode & 0o777:o}): chmod 600 {self.path},"
                " and write new tokens into it"
            )
        lines = [(number, line.split("#")[0]) for number, line in enumerate(text.splitlines(), start=1)]
        tokens = [self._parsed(line, number) for number, line in lines if line.strip()]
        if not tokens:
            raise ConfigError(f"{self.path} has no token: write lines like 'TOKEN act,weights NAME'")
        old = {token.digest: token.bucket for token in self._tokens}
        for token in tokens:
            token.bucket = old.get(token.digest, token.bucket)
        self._tokens = tokens

    def _parsed(self, line: str, number: int) -> Token:
        secret, scopes, name = [*line.split(maxsplit=2), "", ""][:3]
        named = frozenset(scopes.split(","))
        if not _TOKEN.fullmatch(secret) or named - SCOPES:
            raise ConfigError(
                f"line {number} of {self.path} must be 'TOKEN SCOPE[,SCOPE...] [NAME]': a token of 16 to 256"
                f" letters, digits and '._~-', scopes of {', '.join(sorted(SCOPES))}"
            )
        digest = hashlib.sha256(secret.encode()).digest()
        return Token(digest, name.strip() or digest.hex()[:8], named, self._rate)

    def find(self, secret: bytes) -> Token | None:
        """The token that this is. It takes as long whether one fits, and which one."""
        digest, found = hashlib.sha256(secret).digest(), None
        for token in self._tokens:
            if hmac.compare_digest(digest, token.digest):
                found = token
        return found

    def __contains__(self, token: Token) -> bool:
        return any(one.digest == token.digest and one.scopes == token.scopes for one in self._tokens)


def _state(path: Path) -> tuple[int, int, int]:
    """Another one when the content or the mode has changed."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_ctime_ns, status.st_size, status.st_ino


def new_file(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read.

    Raises:
        ConfigError: it exists.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists: use it as it is, or delete it to have a new one") from None
    with open(file, "wb") as writing:
        writing.write(content)


def make_token_file(path: Path) -> None:
    """Write a file of two tokens that only its owner can read: one for clients, one for those who rule.

    Raises:
        ConfigError: there is such a file.
    """
    lines = ["act,submit,weights clients", "admin operator"]
    new_file(path, "".join(f"{secrets.token_urlsafe(32)} {line}\n" for line in lines).encode())


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, *, tokens: bool, tls: bool, insecure: bool) -> str | None:
    """Refuse to be reached from elsewhere without a token and TLS.

    Returns:
        A warning to be repeated while the server runs, or None.

    Raises:
        ConfigError: one of them is missing, and ``insecure`` is false.
    """
    missing = [
        name
        for name, there in (("a token (token_file)", tokens), ("TLS (tls_cert, tls_key)", tls))
        if not there
    ]
    if is_loopback(host) or not missing:
        return None
    if not insecure:
        raise ConfigError(
            f"other machines can reach {host}, so the server needs {' and '.join(missing)};"
            " listen on 127.0.0.1, or say insecure=True to go without"
        )
    return f"insecure: {host} can be reached from elsewhere without {' and '.join(missing)}"


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer with the server's certificate.

    Raises:
        ConfigError: the files cannot be read or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use the certificate {cert} with the key {key}: {error}") from None
    return context
