"""Hosts as network namespaces, each with interfaces, a home and a loopback of its own, and links that can be cut and made bad."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def why_not() -> str | None:
    """Why no hosts can be made here; None where they can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "needs the commands ip and tc (Debian: iproute2)"
    name = f"birdie-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
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
    """A host: the name of its namespace, and the home of its user."""

    name: str
    home: Path

    @property
    def prefix(self) -> list[str]:
        """What a command begins with that is run there."""
        return ["ip", "netns", "exec", self.name]

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the user's settings or caches is shared with another host."""
        return {
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
        }

    def ip(self, *words: str) -> str:
        """Run ``ip`` on its interfaces."""
        return _run("ip", "-n", self.name, *words)

    def tc(self, *words: str) -> str:
        """Run ``tc`` on its interfaces."""
        return _run("tc", "-n", self.name, *words)


@dataclass(frozen=True)
class Link:
    """A cable between the broker's host and another, by the names and addresses of its two ends."""

    here: Host
    there: Host
    interface: str
    far_interface: str
    address: str
    far_address: str

    def cut(self) -> None:
        """Pull it out."""
        self.here.ip("link", "set", self.interface, "down")

    def mend(self) -> None:
        """Put it in again."""
        self.here.ip("link", "set", self.interface, "up")

    def make_bad(self) -> str:
        """Let it delay and lose packets, both ways; how it does.

        netem says how much. Kernels without it have tbf: a link so slow that packets wait, and those for which there is no
        room to wait are lost.
        """
        ends = ((self.here, self.interface), (self.there, self.far_interface))
        netem = ["netem", "delay", "40ms", "20ms", "loss", "3%"]
        slow = ["tbf", "rate", "512kbit", "burst", "2000", "limit", "4000"]
        for words in (netem, slow):
            with contextlib.suppress(AssertionError):
                for host, interface in ends:
                    host.tc("qdisc", "add", "dev", interface, "root", *words)
                return " ".join(words)
        raise AssertionError("this kernel has neither netem nor tbf")

    def dropped(self) -> int:
        """How many packets a bad link has lost."""
        rows: list[dict[str, Any]] = []
        for host, interface in ((self.here, self.interface), (self.there, self.far_interface)):
            rows += json.loads(host.tc("-s", "-j", "qdisc", "show", "dev", interface))
        return sum(row["drops"] for row in rows)


@dataclass(frozen=True)
class Network:
    """The broker's host, and two others that each have a link to it and to nobody else."""

    broker: Host
    worker: Host
    client: Host
    to_worker: Link
    to_client: Link


@contextlib.contextmanager
def network(folder: Path) -> Iterator[Network]:
    """Three hosts, which are gone afterwards. This machine's own network is not touched."""
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
