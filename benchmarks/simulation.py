"""Where one broker ends: its real state machine, and real clients', among workers of which only the time is made up.

``python -m benchmarks.simulation --plot docs/broker_limit.png`` lets 1 to 4,096 workers answer batches in virtual time. Clock,
sockets and models are simulated; broker and clients are the very state machines that run behind sockets, and what is measured is the
processor time that the broker's takes for a second of virtual time, its share of a core. The price of a message's way
through codec and socket comes from ``benchmarks.broker_limit``, which measures it with real ones, and is added.

A worker computes a step of ``--rows`` requests in a time drawn from those of a recorded run (``--steps FILE``, one number of
seconds a line), or around ``--step-seconds``; each has a pace of its own, up to a third slower or faster. It holds two leases,
beats once a second, and is lost as often as ``--failures`` says, to be there again half a minute later.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from birdie_zmq.broker.events import Received, Send, Tick, Unreachable
from birdie_zmq.broker.state import Broker
from birdie_zmq.client import state as client
from birdie_zmq.config import BrokerSettings, ClientSettings
from birdie_zmq.wire import messages as m

MODEL = m.ModelSpec(tag="simulated")
ITEMS = 256
TEXT = "x" * 200
HEARTBEAT_S = 1.0
AWAY_S = 30.0


@dataclass
class World:
    """Virtual time, and what happens when."""

    now: float = 0.0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), what))

    def run(self, until: Callable[[], bool], most_s: float) -> None:
        """Let everything happen in its order."""
        while self._events and self.now < most_s and not until():
            self.now, _, what = heapq.heappop(self._events)
            what()


@dataclass
class Lease:
    """What a worker holds: the indices that have no answer yet."""

    lease: m.Lease
    left: list[int]


class Worker:
    """A worker whose steps take time and nothing else."""

    def __init__(self, hall: Hall, number: int, pace: float) -> None:
        self.peer = f"worker-{number}".encode()
        self.hall = hall
        self.number = number
        self.pace = pace
        self.leases: dict[int, Lease] = {}
        self.life = 0
        self.busy_s = 0.0

    def join(self) -> None:
        """Register, beat, and be lost some time."""
        self.life += 1
        self.leases.clear()
        registration = m.RegisterWorker(
            package_version="0", engine="simulated", host="here", process_id=self.number, capacity=2, model=MODEL
        )
        self.hall.says(self.peer, registration)
        self.beat(self.life)
        if self.hall.failures_per_hour:
            seconds = float(self.hall.chance.exponential(3600 / self.hall.failures_per_hour))
            self.hall.world.after(seconds, self.is_lost)

    def beat(self, life: int) -> None:
        """Say each second that it is there."""
        if life == self.life:
            self.hall.says(self.peer, m.Heartbeat(phase="running", model=MODEL))
            self.hall.world.after(HEARTBEAT_S, lambda: self.beat(life))

    def is_lost(self) -> None:
        """Go without a word, and come back."""
        self.life += 1
        self.leases.clear()
        self.hall.happens(Unreachable(self.peer))
        self.hall.world.after(AWAY_S, self.join)

    def hears(self, message: object) -> None:
        """Take a lease, or let one go."""
        match message:
            case m.Lease():
                self.leases[message.lease] = Lease(message, list(range(len(message.work))))
                if len(self.leases) == 1:
                    self.step(self.life)
            case m.CancelLease(lease=lease):
                self.leases.pop(lease, None)

    def step(self, life: int) -> None:
        """Compute the next rows of the first lease, if there is one."""
        if life != self.life or not self.leases:
            return
        seconds = float(self.hall.chance.choice(self.hall.step_seconds)) * self.pace
        first = next(iter(self.leases.values()))

        def done() -> None:
            if life != self.life:
                return
            self.busy_s += seconds
            if first.lease.lease in self.leases:
                answered, first.left = first.left[: self.hall.rows], first.left[self.hall.rows :]
                answers = m.RollingScores(loglikelihoods=np.zeros(len(answered)))
                indices = np.array(answered, np.int32)
                self.hall.says(self.peer, m.LeaseAnswered(lease=first.lease.lease, indices=indices, answers=answers))
                if not first.left and first.lease.lease in self.leases:
                    del self.leases[first.lease.lease]
                    self.hall.says(self.peer, m.LeaseDone(lease=first.lease.lease))
            self.step(life)

        self.hall.world.after(seconds, done)


class Run:
    """An lm_eval process: its real state machine."""

    def __init__(self, hall: Hall, number: int, requests: int) -> None:
        self.peer = f"client-{number}".encode()
        self.hall = hall
        self.answered = 0
        self.session = client.Session(MODEL, m.StepLimits(), ClientSettings(), "simulated")
        work = m.RollingWork(texts=[TEXT] * ITEMS)
        self._jobs = [client.Job(work, list(range(i, i + ITEMS))) for i in range(0, requests, ITEMS)]

    def begin(self) -> None:
        """Ask for everything."""
        self.act(self.session.begin(self._jobs, self.hall.world.now))
        self.tick()

    def tick(self) -> None:
        """Time passes."""
        if not self.session.is_idle:
            self.act(self.session.tick(self.hall.world.now))
            self.hall.world.after(0.25, self.tick)

    def hears(self, message: object) -> None:
        """Whatever the broker says."""
        self.act(self.session.received(message, self.hall.world.now))  # type: ignore[arg-type]

    def act(self, actions: Sequence[client.Action]) -> None:
        """Do what the state machine wants done."""
        for action in actions:
            match action:
                case client.Send(message):
                    self.hall.says(self.peer, message)
                case client.Deliver(items=items):
                    self.answered += len(items)
                case client.Fail(error):
                    raise error
                case client.FailItem(error=error):
                    raise error


class Hall:
    """A broker and who is at it."""

    def __init__(self, step_seconds: Sequence[float], rows: int, failures_per_hour: float, seed: int) -> None:
        self.world = World()
        self.chance = np.random.default_rng(seed)
        self._settings = BrokerSettings()
        self.step_seconds = step_seconds
        self.rows = rows
        self.failures_per_hour = failures_per_hour
        self.broker = Broker(self._settings)
        self.peers: dict[bytes, Worker | Run] = {}
        self.cpu_s = 0.0
        self.messages = 0
        self._queue: list[Received | Unreachable | Tick] = []
        self._handles = False
        self.tick()

    def says(self, peer: bytes, message: m.ClientMessage | m.WorkerMessage) -> None:
        """A peer's message reaches the broker."""
        self.messages += 1
        self.happens(Received(peer, message, 1_000))

    def happens(self, event: Received | Unreachable | Tick) -> None:
        """The broker takes events in one after the other, and its answers reach the peers at once."""
        self._queue.append(event)
        if self._handles:
            return
        self._handles = True
        while self._queue:
            event = self._queue.pop(0)
            began = time.perf_counter()
            actions = self.broker.handle(event, self.world.now)
            self.cpu_s += time.perf_counter() - began
            for action in actions:
                if isinstance(action, Send):
                    self.messages += 1
                    peer = self.peers.get(action.peer)
                    if peer is not None:
                        peer.hears(action.message)
        self._handles = False

    def tick(self) -> None:
        """The broker's own clock."""
        self.happens(Tick())
        self.world.after(self._settings.tick_s, self.tick)


@dataclass(frozen=True)
class Outcome:
    """Of one simulation: seconds of virtual time, of the broker's processor, and what came of it."""

    workers: int
    seconds: float
    cpu_s: float
    messages: int
    requests: int
    utilisation: float
    losses: int

    def share(self, message_s: float) -> float:
        """Of a core, with the price of a message's way through codec and socket."""
        return (self.cpu_s + self.messages * message_s) / self.seconds


def simulate(
    workers: int, runs: int, batches: int, step_seconds: Sequence[float], rows: int, failures_per_hour: float, seed: int
) -> Outcome:
    """Let workers answer ``batches`` batches each, asked for by some runs."""
    hall = Hall(step_seconds, rows, failures_per_hour, seed)
    crew = [Worker(hall, number, float(hall.chance.uniform(2 / 3, 4 / 3))) for number in range(workers)]
    hall.peers.update({worker.peer: worker for worker in crew})
    for worker in crew:
        worker.join()
    hall.cpu_s, hall.messages = 0.0, 0
    began = hall.world.now
    requests = -(-workers * batches // runs) * ITEMS
    asking = [Run(hall, number, requests) for number in range(runs)]
    for run in asking:
        hall.peers[run.peer] = run
        run.begin()
    hall.world.run(lambda: all(run.session.is_idle for run in asking), most_s=10_000.0)
    seconds = hall.world.now - began
    assert all(run.answered == requests for run in asking), "not all was answered"
    busy = sum(worker.busy_s for worker in crew) / (seconds * workers)
    return Outcome(workers, seconds, hall.cpu_s, hall.messages, requests * runs, busy, hall.broker.losses)


def main() -> None:
    """Simulate, print, and plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16, 64, 256, 1024, 4096])
    parser.add_argument("--runs", type=int, default=4, help="lm_eval processes; default: %(default)s")
    parser.add_argument("--batches", type=int, default=4, help="for each worker; default: %(default)s")
    parser.add_argument("--step-seconds", type=float, default=0.25)
    parser.add_argument("--steps", type=Path, help="a file of recorded seconds, one a line")
    parser.add_argument("--rows", type=int, default=16, help="requests answered by a step; default: %(default)s")
    parser.add_argument("--failures", type=float, default=1.0, help="of a worker in an hour; default: %(default)s")
    parser.add_argument(
        "--message-microseconds", type=float, default=0.0, help="as benchmarks.broker_limit measures it"
    )
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    recorded = [float(line) for line in options.steps.read_text().split()] if options.steps else []
    steps = recorded or [options.step_seconds * factor for factor in (0.8, 0.9, 1.0, 1.1, 1.2)]
    outcomes = []
    for workers in options.workers:
        outcome = simulate(workers, options.runs, options.batches, steps, options.rows, options.failures, options.seed)
        outcomes.append(outcome)
        print(
            f"{workers:5} workers: {outcome.requests / outcome.seconds:9,.0f} requests/s, "
            f"{outcome.messages / outcome.seconds:8,.0f} messages/s, workers busy {outcome.utilisation:.1%}, "
            f"losses {outcome.losses}, broker {outcome.share(options.message_microseconds / 1e6):.1%} of a core "
            f"({outcome.cpu_s / outcome.messages * 1e6:.0f} µs a message in its state machine)",
            flush=True,
        )
    if options.plot:
        plot(outcomes, options.message_microseconds / 1e6, options.plot)


def plot(outcomes: Sequence[Outcome], message_s: float, path: Path) -> None:
    """The broker's share of a core, and how busy workers are, over their number."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    workers = [outcome.workers for outcome in outcomes]
    axes.plot(workers, [outcome.share(message_s) for outcome in outcomes], "o-", label="broker's share of a core")
    axes.plot(workers, [outcome.utilisation for outcome in outcomes], "s--", label="workers at work")
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="workers at one broker", ylabel="share")
    axes.set_xticks(workers, [str(count) for count in workers])
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
