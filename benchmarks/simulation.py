"""Simulate many workers at one broker to find its limit: the real cores of broker and clients, with simulated workers.

``python -m benchmarks.simulation --plot docs/images/broker_limit.png`` lets 1 to 4,096 workers answer batches in
virtual time. Clock, sockets and models are simulated; broker and clients are the same cores (pure state machines) that
run behind sockets. The answers and seconds of each step are sampled from a recording of a real worker (``--steps``,
made by ``benchmarks.record_steps``), with seconds divided by ``--faster``. Each worker has a constant speed, up to a
third slower or faster. It has two leases, sends a heartbeat once a second, crashes ``--failures`` times per hour on
average, and rejoins half a minute later.

The broker processes one message at a time, and each takes a fixed time. This time is measured in the same run: the
messages of the simulation are decoded and handled by a second broker, and its replies are encoded, in blocks of some
thousands between two readings of the CPU time. Then the simulation runs again with that cost per message. The cost of
the socket is measured beforehand with a real socket. So an overloaded broker makes workers wait, as a real one would.
libzmq's I/O thread, which transfers the bytes, is assumed to have another core.
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
from birdie_zmq.client import actions
from birdie_zmq.client.core import ClientCore
from birdie_zmq.client.job import Job
from birdie_zmq.errors import BirdieError
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.dealer import Dealer
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.packing import pack_answers
from birdie_zmq.protocol.router import Router
from birdie_zmq.protocol.transport import wait
from birdie_zmq.settings import BrokerSettings, ClientSettings
from birdie_zmq.types import ModelSpec, RollingWork, StepLimits

RECORDED = Path(__file__).with_name("recorded_steps.json")
MODEL = ModelSpec(tag="simulated")
ITEMS = 256
HEARTBEAT_S = 1.0
RESTART_DELAY_S = 30.0
_METER_EVENTS = 2_000
_SOCKET_MESSAGES = 500
_SOCKET_REPEATS = 9
_FRAME_BYTES = 400
_decode = decoder(m.ClientMessage | m.WorkerMessage)

Step = tuple[int, float]
"""The number of answers of a step, and its seconds."""


class VirtualClock:
    """A virtual clock with scheduled callbacks."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Schedule a callback."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), callback))

    def run(self, until: Callable[[], bool], most_s: float) -> None:
        """Run callbacks in order of time, until ``until()`` is true or the clock reaches ``most_s``."""
        while self._events and self.now < most_s and not until():
            self.now, _, callback = heapq.heappop(self._events)
            callback()


class Meter:
    """A meter of the CPU time per message: a second broker handles the events of the simulated one again."""

    def __init__(self) -> None:
        self._broker = BrokerCore(BrokerSettings())
        self._events: list[tuple[float, bytes, bytes | Event]] = []
        self.cpu_s = 0.0
        self.messages = 0

    def add(self, event: Event, now: float) -> None:
        """Record an event, as an encoded frame if it is a message."""
        peer, recorded = (event.peer, encode(event.message)) if isinstance(event, Received) else (b"", event)
        self._events.append((now, peer, recorded))
        if len(self._events) >= _METER_EVENTS:
            self.replay()

    def replay(self) -> None:
        """Handle the recorded events and add their CPU time."""
        handle, messages = self._broker.handle, 0
        gc.disable()  # it would traverse all objects of the simulation
        began = time.process_time()  # slow on some machines, so not called per message
        for now, peer, recorded in self._events:
            event = recorded
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

    def reset(self) -> None:
        """Reset the counters; the broker keeps its state."""
        self.replay()
        self.cpu_s, self.messages = 0.0, 0


def socket_seconds() -> float:
    """Return the CPU seconds of the broker's thread to receive or send one message; the median of several repeats."""
    router = Router(parse_endpoint("tcp://127.0.0.1:*"))
    dealer = Dealer(parse_endpoint(router.endpoint))
    frame, taken = bytes(_FRAME_BYTES), []
    try:
        for _ in range(_SOCKET_REPEATS):
            for _ in range(_SOCKET_MESSAGES):
                dealer.send(frame)
            time.sleep(0.1)  # time for libzmq's I/O threads to transfer them
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
class ActiveLease:
    """A lease of a worker, and the indices without an answer, in the order of computation."""

    lease: m.Lease
    unanswered: list[int]


class SimulatedWorker:
    """A simulated worker, whose steps take virtual time and compute nothing.

    Args:
        simulation: The simulation that it belongs to.
        number: Number of the worker.
        time_factor: Factor on the recorded seconds of steps.
    """

    def __init__(self, simulation: Simulation, number: int, time_factor: float) -> None:
        self.peer = f"worker-{number}".encode()
        self.simulation = simulation
        self.number = number
        self.time_factor = time_factor
        self.leases: dict[int, ActiveLease] = {}
        self.incarnation = 0
        self.is_registered = False
        self.busy_s = 0.0
        self.answers = 0

    def join(self) -> None:
        """Register, start heartbeats, and schedule a crash."""
        self.incarnation += 1
        self.is_registered = False
        self.leases.clear()
        registration = m.RegisterWorker(
            package_version="0", engine="simulated", host="here", process_id=self.number, capacity=2, model=MODEL
        )
        self.simulation.send_to_broker(self.peer, registration)
        self.send_heartbeat(self.incarnation)
        if self.simulation.failures_per_hour:
            seconds = float(self.simulation.rng.exponential(3600 / self.simulation.failures_per_hour))
            incarnation = self.incarnation
            self.simulation.clock.call_later(seconds, lambda: self.crash(incarnation))

    def send_heartbeat(self, incarnation: int) -> None:
        """Send a heartbeat each second, until this incarnation ends."""
        if incarnation == self.incarnation:
            self.simulation.send_to_broker(self.peer, m.Heartbeat(phase="running", model=MODEL))
            self.simulation.clock.call_later(HEARTBEAT_S, lambda: self.send_heartbeat(incarnation))

    def crash(self, incarnation: int) -> None:
        """Crash without a message, and rejoin later."""
        if incarnation != self.incarnation:
            return
        self.incarnation += 1
        self.leases.clear()
        self.simulation.enqueue(Unreachable(self.peer))
        self.simulation.clock.call_later(RESTART_DELAY_S, self.join)

    def receive_message(self, message: object) -> None:
        """Start or cancel a lease; register again if the broker no longer knows this worker."""
        match message:
            case m.Lease():
                # Planners group texts into steps by length and shared prefix, not in the order of the message.
                order = self.simulation.rng.permutation(len(message.work))
                self.leases[message.lease] = ActiveLease(message, order.tolist())
                if len(self.leases) == 1:
                    self.step(self.incarnation)
            case m.CancelLease(lease=lease):
                self.leases.pop(lease, None)
            case m.WorkerRegistered():
                self.is_registered = True
            case m.Refusal() if self.is_registered:
                self.join()

    def step(self, incarnation: int) -> None:
        """Compute the next rows of the first lease, if any."""
        if incarnation != self.incarnation or not self.leases:
            return
        rows, recorded_s = self.simulation.sample_step()
        first = next(iter(self.leases.values()))
        # The last step of a lease may have fewer rows.
        seconds = recorded_s * self.time_factor * min(1.0, len(first.unanswered) / rows)

        def done() -> None:
            if incarnation != self.incarnation:
                return
            self.busy_s += seconds
            if first.lease.lease in self.leases:
                self.answer(first, rows)
            self.step(incarnation)

        self.simulation.clock.call_later(seconds, done)

    def answer(self, lease: ActiveLease, rows: int) -> None:
        """Send the answers of a step."""
        answered, lease.unanswered = lease.unanswered[:rows], lease.unanswered[rows:]
        self.answers += len(answered)
        answers = pack_answers("rolling", [-1.5] * len(answered))
        number, indices = lease.lease.lease, list(answered)
        self.simulation.send_to_broker(self.peer, m.LeaseAnswered(lease=number, indices=indices, answers=answers))
        if not lease.unanswered:
            self.leases.pop(number, None)
            self.simulation.send_to_broker(self.peer, m.LeaseDone(lease=number))


class SimulatedClient:
    """An lm_eval process with the real client core."""

    def __init__(self, simulation: Simulation, number: int, requests: int) -> None:
        self.peer = f"client-{number}".encode()
        self.simulation = simulation
        self.answered = [0] * requests
        self.core = ClientCore(MODEL, StepLimits(), ClientSettings(), "simulated")
        work = RollingWork(texts=["x" * simulation.characters] * ITEMS)
        self._jobs = [Job(work, list(range(i, i + ITEMS))) for i in range(0, requests, ITEMS)]

    def begin(self) -> None:
        """Submit all requests."""
        self.perform(self.core.begin(self._jobs, self.simulation.clock.now))
        self.tick()

    def tick(self) -> None:
        """Advance the core's timers."""
        if not self.core.is_idle:
            self.perform(self.core.tick(self.simulation.clock.now))
            self.simulation.clock.call_later(0.25, self.tick)

    def receive_message(self, message: object) -> None:
        """Handle a message from the broker."""
        self.perform(self.core.received(message, self.simulation.clock.now))  # type: ignore[arg-type]

    def perform(self, performed: Sequence[actions.Action]) -> None:
        """Perform the actions of the core."""
        for action in performed:
            match action:
                case actions.Send(message):
                    self.simulation.send_to_broker(self.peer, message)
                case actions.Deliver(items=items):
                    for item in items:
                        self.answered[item] += 1
                case actions.FailCall(error):
                    raise error
                case actions.FailItem(error=error):
                    raise error


class Simulation:
    """A broker with its simulated workers and clients.

    Args:
        steps: Recorded steps, from which one is sampled for each simulated step.
        characters: Text length of each request.
        message_cost_s: Seconds that the broker needs per message, received or sent.
        failures_per_hour: Crashes per worker and hour.
        seed: Seed of all random numbers.
        meter: Measures the cost of messages during the simulation.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        characters: int,
        message_cost_s: float,
        failures_per_hour: float,
        seed: int,
        meter: Meter | None,
    ) -> None:
        self.clock = VirtualClock()
        self.rng = np.random.default_rng(seed)
        self.characters = characters
        self.failures_per_hour = failures_per_hour
        self.broker = BrokerCore(BrokerSettings())
        self.peers: dict[bytes, SimulatedWorker | SimulatedClient] = {}
        self.messages = 0
        self.busy_s = 0.0
        self._tick_s = BrokerSettings().tick_s
        self._steps = steps
        self._message_cost_s = message_cost_s
        self._meter = meter
        self._queues: dict[bytes, deque[Event]] = {}
        self._is_busy = False
        self.tick()

    def sample_step(self) -> Step:
        """Sample one of the recorded steps."""
        return self._steps[int(self.rng.integers(len(self._steps)))]

    def send_to_broker(self, peer: bytes, message: m.ClientMessage | m.WorkerMessage) -> None:
        """Deliver a peer's message to the broker's queue."""
        self.enqueue(Received(peer, message, 1_000))

    def enqueue(self, event: Event) -> None:
        """Queue an event for the broker, which handles one at a time and peers in turn, as a ROUTER does."""
        peer = event.peer if isinstance(event, Received | Unreachable) else b""
        self._queues.setdefault(peer, deque()).append(event)
        if not self._is_busy:
            self._is_busy = True
            self._next()

    def _next(self) -> None:
        """Handle the next event; its messages are delivered when the broker has finished it."""
        if not self._queues:
            self._is_busy = False
            return
        peer, queue = next(iter(self._queues.items()))
        event = queue.popleft()
        del self._queues[peer]
        if queue:
            self._queues[peer] = queue  # after all other peers
        actions = self.broker.handle(event, self.clock.now)
        if self._meter is not None:
            self._meter.add(event, self.clock.now)
        sends = [action for action in actions if isinstance(action, Send)]
        count = len(sends) + isinstance(event, Received)
        self.messages += count
        self.busy_s += count * self._message_cost_s

        def done() -> None:
            for send in sends:
                if (peer := self.peers.get(send.peer)) is not None:
                    peer.receive_message(send.message)
            self._next()

        self.clock.call_later(count * self._message_cost_s, done)

    def tick(self) -> None:
        """Send the broker's periodic tick."""
        self.enqueue(Tick())
        self.clock.call_later(self._tick_s, self.tick)


@dataclass(frozen=True)
class Outcome:
    """The result of one simulation; ``seconds`` is virtual time.

    ``utilisation`` is the busy share of the workers, and ``broker_utilisation`` that of the broker. ``message_cost_s``
    is the measured cost of a message, 0 without a meter. ``recomputed`` is the number of answers that were computed but
    not needed.
    """

    workers: int
    seconds: float
    messages: int
    requests: int
    utilisation: float
    broker_utilisation: float
    retries: int
    recomputed: int
    message_cost_s: float
    counts: Sequence[int] = field(repr=False)


def simulate(
    workers: int,
    runs: int,
    batches: int,
    steps: Sequence[Step],
    *,
    characters: int = 200,
    spread: float = 1 / 3,
    message_cost_s: float = 0.0,
    failures_per_hour: float = 0.0,
    seed: int = 1,
    meter: Meter | None = None,
) -> Outcome:
    """Simulate ``runs`` clients that request ``batches`` batches per worker; worker speeds differ by up to ``spread``.

    Without a meter, the seed determines the result.
    """
    simulation = Simulation(steps, characters, message_cost_s, failures_per_hour, seed, meter)
    time_factors = simulation.rng.uniform(1 - spread, 1 + spread, workers)
    pool = [SimulatedWorker(simulation, number, float(time_factor)) for number, time_factor in enumerate(time_factors)]
    simulation.peers.update({worker.peer: worker for worker in pool})
    for worker in pool:
        worker.join()
    simulation.clock.run(lambda: len(simulation.broker.workers) == workers, most_s=100.0)
    simulation.messages, simulation.busy_s = 0, 0.0
    if meter is not None:
        meter.reset()
    began = simulation.clock.now
    requests = -(-workers * batches // runs) * ITEMS
    clients = [SimulatedClient(simulation, number, requests) for number in range(runs)]
    for one in clients:
        simulation.peers[one.peer] = one
        one.begin()
    simulation.clock.run(lambda: all(one.core.is_idle for one in clients), most_s=1e6)
    seconds = simulation.clock.now - began
    if meter is not None:
        meter.replay()
    counts = [count for one in clients for count in one.answered]
    return Outcome(
        workers=workers,
        seconds=seconds,
        messages=simulation.messages,
        requests=len(counts),
        utilisation=sum(worker.busy_s for worker in pool) / (seconds * workers),
        broker_utilisation=simulation.busy_s / seconds,
        retries=simulation.broker.history.retries,
        recomputed=sum(worker.answers for worker in pool) - sum(counts),
        message_cost_s=0.0 if meter is None else meter.cpu_s / meter.messages,
        counts=counts,
    )


def load_steps(path: Path, faster: float = 1.0) -> list[Step]:
    """Load the steps of a recording, their seconds divided by ``faster``."""
    return [(answers, seconds / faster) for answers, seconds in json.loads(path.read_text())["steps"]]


def main() -> None:
    """Simulate, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[1, 4, 16, 64, 256, 1024, 4096], help="numbers of workers"
    )
    parser.add_argument("--runs", type=int, default=4, help="number of lm_eval processes; default: %(default)s")
    parser.add_argument("--batches", type=int, default=4, help="batches per worker; default: %(default)s")
    parser.add_argument("--characters", type=int, default=200, help="text length of a request; default: %(default)s")
    parser.add_argument(
        "--steps",
        type=Path,
        default=RECORDED,
        help="file made by benchmarks.record_steps; default: benchmarks/recorded_steps.json",
    )
    parser.add_argument(
        "--faster", type=float, nargs="*", default=[1.0], help="speed of workers, as a multiple of the recorded speed"
    )
    parser.add_argument("--failures", type=float, default=1.0, help="crashes per worker and hour; default: %(default)s")
    parser.add_argument("--plot", type=Path, help="plot how busy broker and workers are to this PNG file")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    socket_s = socket_seconds()
    print(f"socket: {socket_s * 1e6:.0f} µs per message")
    results: dict[float, list[Outcome]] = {}
    for faster in options.faster:
        steps = load_steps(options.steps, faster)
        mean_s = float(np.mean([seconds for _, seconds in steps]))
        print(f"\nworkers {faster:g} times as fast as recorded: {mean_s:.4f} s per step on average")
        message_cost_s = 0.0
        for workers in options.workers:

            def run(
                message_cost_s: float, meter: Meter | None, workers: int = workers, steps: list[Step] = steps
            ) -> Outcome:
                return simulate(
                    workers,
                    options.runs,
                    options.batches,
                    steps,
                    characters=options.characters,
                    message_cost_s=message_cost_s,
                    failures_per_hour=options.failures,
                    seed=options.seed,
                    meter=meter,
                )

            # The cost of messages depends on their mix, so it is measured with the same number of workers.
            try:
                message_cost_s = run(0.0, Meter()).message_cost_s + socket_s
                outcome = run(message_cost_s, None)
            except BirdieError as error:
                print(
                    f"{workers:5} workers at {message_cost_s * 1e6:.0f} µs per message: a run fails with {error.code}: {error.message[:200]}"
                )
                continue
            assert set(outcome.counts) == {1}, "a request was not answered exactly once"
            print(
                f"{workers:5} workers: {outcome.requests / outcome.seconds:9,.0f} requests/s, "
                f"{outcome.messages / outcome.seconds:8,.0f} messages/s, workers busy {outcome.utilisation:.1%}, "
                f"retries {outcome.retries}, computed again {outcome.recomputed / outcome.requests:.1%}, broker busy "
                f"{outcome.broker_utilisation:.1%} at {message_cost_s * 1e6:.0f} µs per message",
                flush=True,
            )
            results.setdefault(faster, []).append(outcome)
    if options.plot:
        plot(results, options.plot)


def plot(results: dict[float, list[Outcome]], path: Path) -> None:
    """Plot how busy broker and workers are, over the number of workers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for color, (faster, outcomes) in zip(("C0", "C1", "C2", "C3"), results.items(), strict=False):
        workers = [outcome.workers for outcome in outcomes]
        axes.plot(
            workers,
            [each.broker_utilisation for each in outcomes],
            "o-",
            color=color,
            label=f"broker, workers x {faster:g}",
        )
        axes.plot(workers, [each.utilisation for each in outcomes], "s--", color=color, label=f"workers x {faster:g}")
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="workers at one broker", ylabel="busy share of the time")
    axes.set_xticks(workers, [str(count) for count in workers])
    axes.set_ylim(0, 1.05)
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
