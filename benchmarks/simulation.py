"""Where one broker ends: its real state machine, and real clients', among workers of which only the time is made up.

``python -m benchmarks.simulation --plot docs/images/broker_limit.png`` lets 1 to 4,096 workers answer batches in virtual time. Clock,
sockets and models are simulated; broker and clients are the very state machines that run behind sockets. Workers need for their
steps what a real worker needed: seconds and answers are drawn from a recording (``--steps``, made by
``benchmarks.record_steps``), divided by ``--faster``. Each has a pace of its own, up to a third slower or faster; it holds
two leases, beats once a second, and is lost as often as ``--failures`` says, to be there again half a minute later.

The broker takes messages one after the other, and each takes it a while. How long is measured in the same run: the messages of
the simulation are decoded, handled by a second broker, and what that says is encoded, some thousands at a time between two looks
at the CPU time; then it all happens again at that price. What the socket takes is measured before, with a real one. So a broker that has too much to do makes
workers wait, as a real one would. libzmq's own thread, which moves bytes, is taken to have another core.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from birdie_zmq.broker.core import BrokerCore
from birdie_zmq.broker.events import Event, Received, Send, Tick, Unreachable
from birdie_zmq.client import core as client
from birdie_zmq.errors import BirdieError
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.sockets import Dealer, Router, wait
from birdie_zmq.settings import BrokerSettings, ClientSettings
from birdie_zmq.types import ModelSpec, RollingScores, RollingWork, StepLimits

RECORDED = Path(__file__).with_name("recorded_steps.json")
MODEL = ModelSpec(tag="simulated")
ITEMS = 256
HEARTBEAT_S = 1.0
AWAY_S = 30.0
_METERED = 2_000
_SOCKET_MESSAGES = 500
_SOCKET_ROUNDS = 9
_FRAME_BYTES = 400
_decode = decoder(m.ClientMessage | m.WorkerMessage)

Step = tuple[int, float]
"""How many answers a step gave, and the seconds that it took."""


class World:
    """Virtual time, and what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), what))

    def run(self, until: Callable[[], bool], most_s: float) -> None:
        """Let everything happen in its order."""
        while self._events and self.now < most_s and not until():
            self.now, _, what = heapq.heappop(self._events)
            what()


class Meter:
    """What a broker's messages cost: what one has handled in virtual time is handled again by another, on the CPU's clock."""

    def __init__(self) -> None:
        self._broker = BrokerCore(BrokerSettings())
        self._events: list[tuple[float, bytes, bytes | Event]] = []
        self.cpu_s = 0.0
        self.messages = 0

    def add(self, event: Event, now: float) -> None:
        """Remember an event, as a frame if it is a message."""
        peer, what = (event.peer, encode(event.message)) if isinstance(event, Received) else (b"", event)
        self._events.append((now, peer, what))
        if len(self._events) >= _METERED:
            self.read()

    def read(self) -> None:
        """Handle what is remembered."""
        handle, messages = self._broker.handle, 0
        gc.disable()  # it would look through all that the simulation holds
        began = time.process_time()  # slow to ask for on some machines
        for now, peer, what in self._events:
            event = what
            if isinstance(event, bytes):
                messages += 1
                event = Received(peer, _decode(event), len(event))
            for action in handle(event, now):
                if isinstance(action, Send):
                    messages += 1
                    encode(action.message)
        self.cpu_s += time.process_time() - began
        gc.enable()
        self.messages += messages
        self._events.clear()

    def restart(self) -> None:
        """Forget what was counted, and not what the broker knows."""
        self.read()
        self.cpu_s, self.messages = 0.0, 0


def socket_seconds() -> float:
    """What the broker's thread needs to take a message from its socket, or to put one there: the median of some rounds."""
    router = Router(parse_endpoint("tcp://127.0.0.1:*"))
    dealer = Dealer(parse_endpoint(router.endpoint))
    frame, taken = bytes(_FRAME_BYTES), []
    try:
        for _ in range(_SOCKET_ROUNDS):
            for _ in range(_SOCKET_MESSAGES):
                dealer.send(frame)
            time.sleep(0.1)  # libzmq's threads bring them over
            began = time.thread_time()
            for _ in range(_SOCKET_MESSAGES):
                wait(router, 1.0)
                arrival = router.receive()
                assert arrival is not None
                router.send(arrival[0], frame)
            taken.append((time.thread_time() - began) / (2 * _SOCKET_MESSAGES))
            while dealer.receive() is not None:
                pass
    finally:
        dealer.close()
        router.close()
    return float(np.median(taken))


@dataclass
class Lease:
    """What a worker holds: the indices that have no answer yet, in the order in which they are computed."""

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
        self.is_known = False
        self.busy_s = 0.0
        self.answers = 0

    def join(self) -> None:
        """Register, beat, and be lost some time."""
        self.life += 1
        self.is_known = False
        self.leases.clear()
        registration = m.RegisterWorker(
            package_version="0", engine="simulated", host="here", process_id=self.number, capacity=2, model=MODEL
        )
        self.hall.says(self.peer, registration)
        self.beat(self.life)
        if self.hall.failures_per_hour:
            seconds = float(self.hall.chance.exponential(3600 / self.hall.failures_per_hour))
            life = self.life
            self.hall.world.after(seconds, lambda: self.is_lost(life))

    def beat(self, life: int) -> None:
        """Say each second that it is there."""
        if life == self.life:
            self.hall.says(self.peer, m.Heartbeat(phase="running", model=MODEL))
            self.hall.world.after(HEARTBEAT_S, lambda: self.beat(life))

    def is_lost(self, life: int) -> None:
        """Go without a word, and come back."""
        if life != self.life:
            return
        self.life += 1
        self.leases.clear()
        self.hall.happens(Unreachable(self.peer))
        self.hall.world.after(AWAY_S, self.join)

    def hears(self, message: object) -> None:
        """Take a lease, or let one go; one that the broker does not know any more registers again."""
        match message:
            case m.Lease():
                # Planners put texts into steps by their lengths and what they share, not in the order of a message.
                order = self.hall.chance.permutation(len(message.work))
                self.leases[message.lease] = Lease(message, order.tolist())
                if len(self.leases) == 1:
                    self.step(self.life)
            case m.CancelLease(lease=lease):
                self.leases.pop(lease, None)
            case m.WorkerRegistered():
                self.is_known = True
            case m.Refusal() if self.is_known:
                self.join()

    def step(self, life: int) -> None:
        """Compute the next rows of the first lease, if there is one."""
        if life != self.life or not self.leases:
            return
        rows, recorded_s = self.hall.draw()
        first = next(iter(self.leases.values()))
        # The last step of a lease has fewer rows, where the rest of it does not fill one.
        seconds = recorded_s * self.pace * min(1.0, len(first.left) / rows)

        def done() -> None:
            if life != self.life:
                return
            self.busy_s += seconds
            if first.lease.lease in self.leases:
                self.answer(first, rows)
            self.step(life)

        self.hall.world.after(seconds, done)

    def answer(self, lease: Lease, rows: int) -> None:
        """Say what a step has given."""
        answered, lease.left = lease.left[:rows], lease.left[rows:]
        self.answers += len(answered)
        scores = RollingScores(loglikelihoods=np.zeros(len(answered)))
        number, indices = lease.lease.lease, np.array(answered, np.int32)
        self.hall.says(self.peer, m.LeaseAnswered(lease=number, indices=indices, answers=scores))
        if not lease.left:
            self.leases.pop(number, None)
            self.hall.says(self.peer, m.LeaseDone(lease=number))


class Run:
    """An lm_eval process: its real state machine."""

    def __init__(self, hall: Hall, number: int, requests: int) -> None:
        self.peer = f"client-{number}".encode()
        self.hall = hall
        self.answered = [0] * requests
        self.session = client.ClientCore(MODEL, StepLimits(), ClientSettings(), "simulated")
        work = RollingWork(texts=["x" * hall.characters] * ITEMS)
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
                    for item in items:
                        self.answered[item] += 1
                case client.Fail(error):
                    raise error
                case client.FailItem(error=error):
                    raise error


class Hall:
    """A broker and who is at it.

    Args:
        steps: What steps take; one is drawn for each.
        characters: Of each request.
        price_s: The broker's seconds for a message, in or out.
        failures_per_hour: How often a worker is lost.
        seed: Of all chance.
        meter: Measures meanwhile what messages cost.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        characters: int,
        price_s: float,
        failures_per_hour: float,
        seed: int,
        meter: Meter | None,
    ) -> None:
        self.world = World()
        self.chance = np.random.default_rng(seed)
        self.characters = characters
        self.failures_per_hour = failures_per_hour
        self.broker = BrokerCore(BrokerSettings())
        self.peers: dict[bytes, Worker | Run] = {}
        self.messages = 0
        self.busy_s = 0.0
        self._tick_s = BrokerSettings().tick_s
        self._steps = steps
        self._price_s = price_s
        self._meter = meter
        self._queues: dict[bytes, deque[Event]] = {}
        self._works = False
        self.tick()

    def draw(self) -> Step:
        """A step as one of those recorded."""
        return self._steps[int(self.chance.integers(len(self._steps)))]

    def says(self, peer: bytes, message: m.ClientMessage | m.WorkerMessage) -> None:
        """A peer's message reaches the broker."""
        self.happens(Received(peer, message, 1_000))

    def happens(self, event: Event) -> None:
        """Something waits for the broker, which takes one message after the other, and of each peer one in turn, as a ROUTER."""
        peer = event.peer if isinstance(event, Received | Unreachable) else b""
        self._queues.setdefault(peer, deque()).append(event)
        if not self._works:
            self._works = True
            self._next()

    def _next(self) -> None:
        """Handle the first of what waits; its answers are there when the broker is done with it."""
        if not self._queues:
            self._works = False
            return
        peer, queue = next(iter(self._queues.items()))
        event = queue.popleft()
        del self._queues[peer]
        if queue:
            self._queues[peer] = queue  # behind all others
        actions = self.broker.handle(event, self.world.now)
        if self._meter is not None:
            self._meter.add(event, self.world.now)
        sends = [action for action in actions if isinstance(action, Send)]
        count = len(sends) + isinstance(event, Received)
        self.messages += count
        self.busy_s += count * self._price_s

        def done() -> None:
            for send in sends:
                if (peer := self.peers.get(send.peer)) is not None:
                    peer.hears(send.message)
            self._next()

        self.world.after(count * self._price_s, done)

    def tick(self) -> None:
        """The broker's own clock."""
        self.happens(Tick())
        self.world.after(self._tick_s, self.tick)


@dataclass(frozen=True)
class Outcome:
    """Of one simulation: seconds of virtual time, and what came of it.

    ``utilisation`` is of the workers, ``share`` the time that the broker was busy, of all, ``price_s`` what a message cost
    as it was measured meanwhile, 0 if it was not; ``again`` are the answers that were computed and not needed.
    """

    workers: int
    seconds: float
    messages: int
    requests: int
    utilisation: float
    share: float
    losses: int
    again: int
    price_s: float
    counts: Sequence[int] = field(repr=False)


def simulate(
    workers: int,
    runs: int,
    batches: int,
    steps: Sequence[Step],
    *,
    characters: int = 200,
    spread: float = 1 / 3,
    price_s: float = 0.0,
    failures_per_hour: float = 0.0,
    seed: int = 1,
    meter: Meter | None = None,
) -> Outcome:
    """Let workers answer ``batches`` batches each, asked for by some runs; their paces differ by ``spread``. Without a meter the seed decides everything."""
    hall = Hall(steps, characters, price_s, failures_per_hour, seed, meter)
    paces = hall.chance.uniform(1 - spread, 1 + spread, workers)
    crew = [Worker(hall, number, float(pace)) for number, pace in enumerate(paces)]
    hall.peers.update({worker.peer: worker for worker in crew})
    for worker in crew:
        worker.join()
    hall.world.run(lambda: len(hall.broker.workers) == workers, most_s=100.0)
    hall.messages, hall.busy_s = 0, 0.0
    if meter is not None:
        meter.restart()
    began = hall.world.now
    requests = -(-workers * batches // runs) * ITEMS
    asking = [Run(hall, number, requests) for number in range(runs)]
    for run in asking:
        hall.peers[run.peer] = run
        run.begin()
    hall.world.run(lambda: all(run.session.is_idle for run in asking), most_s=1e6)
    seconds = hall.world.now - began
    if meter is not None:
        meter.read()
    counts = [count for run in asking for count in run.answered]
    return Outcome(
        workers=workers,
        seconds=seconds,
        messages=hall.messages,
        requests=len(counts),
        utilisation=sum(worker.busy_s for worker in crew) / (seconds * workers),
        share=hall.busy_s / seconds,
        losses=hall.broker.losses,
        again=sum(worker.answers for worker in crew) - sum(counts),
        price_s=0.0 if meter is None else meter.cpu_s / meter.messages,
        counts=counts,
    )


def recorded(path: Path, faster: float = 1.0) -> list[Step]:
    """The steps of a recording, as a device would take them that is so many times as fast."""
    return [(answers, seconds / faster) for answers, seconds in json.loads(path.read_text())["steps"]]


def main() -> None:
    """Simulate, print, and plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16, 64, 256, 1024, 4096])
    parser.add_argument("--runs", type=int, default=4, help="lm_eval processes; default: %(default)s")
    parser.add_argument("--batches", type=int, default=4, help="for each worker; default: %(default)s")
    parser.add_argument("--characters", type=int, default=200, help="of a request; default: %(default)s")
    parser.add_argument("--steps", type=Path, default=RECORDED, help="a recording; default: that of the benchmarks")
    parser.add_argument(
        "--faster", type=float, nargs="*", default=[1.0], help="how many times as fast as recorded workers are"
    )
    parser.add_argument("--failures", type=float, default=1.0, help="of a worker in an hour; default: %(default)s")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    socket_s = socket_seconds()
    print(f"the socket takes {socket_s * 1e6:.0f} µs a message")
    found: dict[float, list[Outcome]] = {}
    for faster in options.faster:
        steps = recorded(options.steps, faster)
        mean_s = float(np.mean([seconds for _, seconds in steps]))
        print(f"\nworkers {faster:g} times as fast as recorded: a step of {mean_s:.4f} s on average")
        price_s = 0.0
        for workers in options.workers:

            def run(price_s: float, meter: Meter | None, workers: int = workers, steps: list[Step] = steps) -> Outcome:
                return simulate(
                    workers,
                    options.runs,
                    options.batches,
                    steps,
                    characters=options.characters,
                    price_s=price_s,
                    failures_per_hour=options.failures,
                    seed=options.seed,
                    meter=meter,
                )

            # What messages cost depends on which there are, so it is measured with as many workers.
            try:
                price_s = run(0.0, Meter()).price_s + socket_s
                outcome = run(price_s, None)
            except BirdieError as error:
                print(
                    f"{workers:5} workers at {price_s * 1e6:.0f} µs a message: a run ends by {error.code}: {error.message[:200]}"
                )
                continue
            assert set(outcome.counts) == {1}, "not all was answered once"
            print(
                f"{workers:5} workers: {outcome.requests / outcome.seconds:9,.0f} requests/s, "
                f"{outcome.messages / outcome.seconds:8,.0f} messages/s, workers busy {outcome.utilisation:.1%}, "
                f"losses {outcome.losses}, computed again {outcome.again / outcome.requests:.1%}, broker busy "
                f"{outcome.share:.1%} at {price_s * 1e6:.0f} µs a message",
                flush=True,
            )
            found.setdefault(faster, []).append(outcome)
    if options.plot:
        plot(found, options.plot)


def plot(found: dict[float, list[Outcome]], path: Path) -> None:
    """How busy broker and workers are, over the number of workers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for color, (faster, outcomes) in zip(("C0", "C1", "C2", "C3"), found.items(), strict=False):
        workers = [outcome.workers for outcome in outcomes]
        axes.plot(workers, [each.share for each in outcomes], "o-", color=color, label=f"broker, workers x {faster:g}")
        axes.plot(workers, [each.utilisation for each in outcomes], "s--", color=color, label=f"workers x {faster:g}")
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="workers at one broker", ylabel="share of the time at work")
    axes.set_xticks(workers, [str(count) for count in workers])
    axes.set_ylim(0, 1.05)
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
