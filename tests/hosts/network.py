"""Hosts as network namespaces, each with its own interfaces, home and loopback, and links that can be cut and degraded."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def unavailable_reason() -> str | None:
    """Return why network namespaces cannot be created here; None if they can."""
    if os.geteuid() != 0:
        return "needs root to create network namespaces"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "needs the commands ip and tc (Debian: iproute2)"
    name = f"birdie-probe-{os.getpid()}"
    created = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if created.returncode:
        return f"network namespaces are not permitted here: {created.stderr.strip()}"
    link = ["ip", "-n", name, "link", "add", "one", "type", "veth", "peer", "name", "other"]
    linked = subprocess.run(link, capture_output=True, text=True, check=False)
    _run("ip", "netns", "del", name)
    return f"veth pairs are not permitted here: {linked.stderr.strip()}" if linked.returncode else None


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Host:
    """A host: the name of its namespace, and the home directory of its user."""

    name: str
    home: Path

    @property
    def prefix(self) -> list[str]:
        """The prefix of a command that runs on the host."""
        return ["ip", "netns", "exec", self.name]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that keep the user's settings and caches apart from those of other hosts."""
        return {
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
        }

    @contextlib.contextmanager
    def names(self, addresses: Mapping[str, Sequence[str]]) -> Iterator[None]:
        """Give names addresses on the host: its programs see this file as /etc/hosts."""
        folder = Path("/etc/netns") / self.name
        folder.mkdir(parents=True)
        lines = [f"{address} {name}\n" for name, each in addresses.items() for address in each]
        (folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *lines]))
        try:
            yield
        finally:
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()

    def ip(self, *arguments: str) -> str:
        """Run ``ip`` on its interfaces."""
        return _run("ip", "-n", self.name, *arguments)

    def tc(self, *arguments: str) -> str:
        """Run ``tc`` on its interfaces."""
        return _run("tc", "-n", self.name, *arguments)


@dataclass(frozen=True)
class Link:
    """A cable between the broker's host and another, by the names and addresses of its two ends."""

    near: Host
    far: Host
    interface: str
    far_interface: str
    address: str
    far_address: str

    def cut(self) -> None:
        """Take the link down."""
        self.near.ip("link", "set", self.interface, "down")

    def restore(self) -> None:
        """Take the link up again."""
        self.near.ip("link", "set", self.interface, "up")

    def degrade(self) -> str:
        """Make the link delay and drop packets in both directions, and return the settings used.

        netem does that directly. Kernels without it have tbf, a rate limit: packets queue, and are dropped when the queue is
        full.
        """
        ends = ((self.near, self.interface), (self.far, self.far_interface))
        netem = ["netem", "delay", "40ms", "20ms", "loss", "3%"]
        slow = ["tbf", "rate", "512kbit", "burst", "2000", "limit", "4000"]
        for settings in (netem, slow):
            with contextlib.suppress(AssertionError):
                for host, interface in ends:
                    host.tc("qdisc", "add", "dev", interface, "root", *settings)
                return " ".join(settings)
        raise AssertionError("this kernel has neither netem nor tbf")

    def dropped(self) -> int:
        """Return the number of packets that a degraded link has dropped."""
        rows: list[dict[str, Any]] = []
        for host, interface in ((self.near, self.interface), (self.far, self.far_interface)):
            rows += json.loads(host.tc("-s", "-j", "qdisc", "show", "dev", interface))
        return sum(row["drops"] for row in rows)


@dataclass(frozen=True)
class Network:
    """The broker's host, and two others, each linked to it only."""

    broker: Host
    worker: Host
    client: Host
    to_worker: Link
    to_client: Link


@contextlib.contextmanager
def network(folder: Path) -> Iterator[Network]:
    """Create three hosts, and remove them afterwards. The network of this machine is not changed."""
    hosts = []
    for role in ("broker", "worker", "client"):
        home = folder / f"home-{role}"
        home.mkdir()
        hosts.append(Host(f"birdie-{role}-{os.getpid()}", home))
    broker, worker, client = hosts
    try:
        for host in hosts:
            _run("ip", "netns", "add", host.name)
            host.ip("link", "set", "lo", "up")
        links = []
        for number, host in ((1, worker), (2, client)):
            link = Link(broker, host, f"veth{number}", "veth0", f"10.77.{number}.1", f"10.77.{number}.2")
            broker.ip("link", "add", link.interface, "type", "veth", "peer", "name", "veth0", "netns", host.name)
            broker.ip("address", "add", f"{link.address}/24", "dev", link.interface)
            host.ip("address", "add", f"{link.far_address}/24", "dev", "veth0")
            broker.ip("link", "set", link.interface, "up")
            host.ip("link", "set", "veth0", "up")
            host.ip("route", "add", "default", "via", link.address)
            links.append(link)
        yield Network(broker, worker, client, *links)
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True, check=False)
