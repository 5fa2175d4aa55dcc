"""Hosts that share one machine: each has processes, files below /tmp, a name and a network of its own.

A host is a process that waits for the end of its standard input, and what is started beside it, in the same
namespaces of Linux. When this process ends, however it ends, its hosts go with it, and all that runs on them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NETWORK = "10.77.0"
"""Of no host but these: the addresses are inside of namespaces."""

TOKEN = "0123456789abcdef" * 4
"""What programs show to enter the Ray of these hosts."""

ENVIRONMENT = {
    "HOME": "/tmp",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_enable_worker_prestart": "0",
    # A host that is gone is noticed within seconds.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "2",
}
"""Of programs with Ray."""

RAY = str(Path(sys.executable).with_name("ray"))

_BOOT = """
mount -t tmpfs tmpfs /tmp && echo {name} > /proc/sys/kernel/hostname && ip link set lo up || exit 1
echo up
read
"""
_OWN = ("--mount", "--net", "--uts", "--pid")


class NotPermittedError(Exception):
    """The system does not let this process make hosts; says why."""


class Host:
    """A host; a context manager, at whose end it is off.

    Args:
        name: what ``hostname`` says there.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        boot = ["unshare", *_OWN, "--fork", "--kill-child", "--mount-proc", "bash", "-c"]
        try:
            self._outer = subprocess.Popen(
                [*boot, _BOOT.format(name=name)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            )
        except FileNotFoundError as error:
            raise NotPermittedError(f"util-linux is not installed: {error}") from error
        assert self._outer.stdout is not None
        if self._outer.stdout.readline() != "up\n":
            said = self._outer.communicate()[1].strip()
            raise NotPermittedError(f"namespaces are not permitted here, or iproute2 is missing: {said}")
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self.pid = int(children.read_text().split()[0])

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.switch_off()

    @property
    def files(self) -> Path:
        """Its root folder, as it is seen from here."""
        return Path(f"/proc/{self.pid}/root")

    def switch_off(self) -> None:
        """End all of its processes at once: without the first one, the kernel kills the others."""
        if self._outer.poll() is None:  # else its number may be another process's by now
            os.kill(self.pid, signal.SIGKILL)
        self._outer.wait(10)
        for pipe in (self._outer.stdin, self._outer.stdout, self._outer.stderr):
            assert pipe is not None
            pipe.close()

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a program there, whose output is read here; ``options`` are those of Popen."""
        enter = ["nsenter", "--target", str(self.pid), *_OWN, "env", f"--chdir={options.pop('cwd', '/tmp')}"]
        options["env"] = os.environ | options.get("env", {})
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*enter, *command], **{**pipes, **options})

    def run(self, command: Sequence[str], timeout: float = 60, check: bool = True, **options: Any) -> str:
        """What a program says there, which has to end well if ``check``."""
        with self.start(command, **options) as program:
            try:
                said, complaint = program.communicate(timeout=timeout)
            except BaseException:
                program.kill()
                raise
        assert not (check and program.returncode), f"{self.name}: {' '.join(command)}\n{said}\n{complaint}"
        return said


class Switch:
    """A host with a bridge, that others are plugged into; a context manager."""

    def __init__(self) -> None:
        self._host = Host("switch")
        self._ports: dict[str, str] = {}
        try:
            self._ip("link add bridge0 type bridge")
            self._ip(f"addr add {NETWORK}.254/24 dev bridge0")
            self._ip("link set bridge0 up")
        except AssertionError as error:
            self._host.switch_off()
            raise NotPermittedError(f"no bridge can be made: {error}") from error

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *_: object) -> None:
        self._host.switch_off()

    def _ip(self, command: str) -> None:
        done = subprocess.run(
            ["nsenter", "--target", str(self._host.pid), "--net", "ip", *command.split()],
            capture_output=True,
            text=True,
        )
        assert not done.returncode, f"ip {command}: {done.stderr}"

    def plug_in(self, host: Host) -> str:
        """Join a host to the network; returns its address."""
        port, address = f"port{len(self._ports)}", f"{NETWORK}.{len(self._ports) + 1}"
        self._ports[host.name] = port
        self._ip(f"link add {port} type veth peer name eth0 netns {host.pid}")
        self._ip(f"link set {port} master bridge0 up")
        host.run(["ip", "addr", "add", f"{address}/24", "dev", "eth0"])
        host.run(["ip", "link", "set", "eth0", "up"])
        host.run(["ip", "route", "add", "default", "via", f"{NETWORK}.254"])
        return address

    def cut(self, host: Host) -> None:
        """Take the link down: what runs there goes on, and nobody hears of it."""
        self._ip(f"link set {self._ports[host.name]} down")


class Cluster:
    """A Ray over several hosts: a head with one CPU, and others with two; a context manager.

    Attributes:
        address: what ``ray_address`` is to be.
        head: where programs run.
        workers: the others, by name.
    """

    def __init__(self) -> None:
        self._all = contextlib.ExitStack()
        try:
            self._switch = self._all.enter_context(Switch())
            self.head, here = self.plugged_in("head")
            self.address = f"{here}:6379"
            self._start_ray(
                self.head, here, "--head", "--port=6379", "--num-cpus=1", "--include-dashboard=false"
            )
        except BaseException:
            self._all.close()
            raise
        self.workers: dict[str, Host] = {}

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._all.close()

    def plugged_in(self, name: str) -> tuple[Host, str]:
        """A host of the network, and its address there; it knows nothing of Ray."""
        host = self._all.enter_context(Host(name))
        return host, self._switch.plug_in(host)

    def join(self, name: str) -> Host:
        """A new host of the Ray."""
        host, address = self.plugged_in(name)
        self._start_ray(host, address, f"--address={self.address}", "--num-cpus=2")
        self.workers[name] = host
        return host

    def cut(self, host: Host) -> None:
        """Take its link down."""
        self._switch.cut(host)

    def _start_ray(self, host: Host, address: str, *how: str) -> None:
        small = ["--object-store-memory=100000000", "--disable-usage-stats"]
        host.run([RAY, "start", f"--node-ip-address={address}", *small, *how], env=ENVIRONMENT)
