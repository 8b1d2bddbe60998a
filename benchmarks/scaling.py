"""How much faster two workers are than one, with the same answers: ``python -m benchmarks.scaling --model DIR``.

Each worker runs on a core of its own, so that one worker has one thread to compute with whether or not there is another. For each
number of workers there is a broker, which stays; so none waits for a model or a program when it is timed. They are asked for
the same requests in turn, other ones for each pair, and the ratio of the seconds of each pair is what is reported. Broker
and client are pinned to nothing: with one worker they find a core free, and with two they take their time from them. Therefore it
says as well what these cores could give at most: the seconds of one worker, over all CPU seconds that it took, times the cores.
``--apart`` shows what they do give where nothing is shared: two workers with a broker each, at the same work at once.

``--kill-and-join`` kills one of two workers in the midst of a pass (SIGKILL), lets a third join, and holds the answers against
those of an undisturbed pass.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import statistics
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.simulated_workers import Pass, Worker, WorkerPool
from birdie_zmq.client.batching import loglikelihood_jobs, rolling_jobs
from birdie_zmq.client.client import Answer
from birdie_zmq.client.core import Job
from birdie_zmq.settings import ClientSettings
from birdie_zmq.tools.bench.workloads import USUAL, Kind, Sizes, draw, jobs_of

_MOST_WARM_UPS = 10
_WARM_UP_ITEMS = (256, 48, 72, 100, 140)
_QUIET_PASSES = 2
_KILLED_AT, _JOINED_AT = 0.25, 0.3
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Difference:
    """Between the answers of two passes: of log-likelihoods in nats, and how many flags and texts are not the same."""

    nats: float = 0.0
    flags: int = 0
    texts: int = 0

    def __str__(self) -> str:
        return f"largest difference {self.nats:.1e} nats, greedy flags that differ {self.flags}, texts that differ {self.texts}"

    def most(self, other: Difference) -> Difference:
        """The worse of two in everything."""
        return Difference(max(self.nats, other.nats), max(self.flags, other.flags), max(self.texts, other.texts))


def difference(one: Sequence[Answer], other: Sequence[Answer]) -> Difference:
    """How two lists of answers to the same requests differ.

    Raises:
        SystemExit: One of them lacks answers.
    """
    if len(one) != len(other):
        raise SystemExit(f"{len(one)} answers were held against {len(other)}")
    nats, flags, texts = [0.0], 0, 0
    for a, b in zip(one, other, strict=True):
        match a, b:
            case (float(x), bool(greedy)), (float(y), bool(greedy_too)):
                nats.append(abs(x - y))
                flags += greedy != greedy_too
            case float(x), float(y):
                nats.append(abs(x - y))
            case str(), str():
                texts += a != b
            case _:
                raise SystemExit("answers of two kinds were held against each other")
    return Difference(math.nan if any(map(math.isnan, nats)) else max(nats), flags, texts)


class Requests:
    """What is asked: as many other requests as are wanted of a form of the bench, or those of tasks again and again."""

    def __init__(self, form: Kind, documents: int, tasks: Sequence[str], include_path: Path, limit: int | None) -> None:
        self._form: Kind = form
        self._documents = documents
        self._recorded = _recorded(tasks, include_path, limit) if tasks else None

    def jobs(self, seed: int, batch_items: int = ClientSettings().batch_items) -> list[Job]:
        """Those of a seed, of which tasks have but one, in batches of so many."""
        settings = ClientSettings(batch_items=batch_items)
        if self._recorded is not None:
            pairs, texts = self._recorded
            return list(loglikelihood_jobs(pairs, settings) if pairs else rolling_jobs(texts, settings))
        sizes = Sizes()
        return list(jobs_of(self._form, draw(self._form, self._documents, seed, sizes), sizes, settings))


def _recorded(
    tasks: Sequence[str], include_path: Path, limit: int | None
) -> tuple[Sequence[tuple[str, str]], Sequence[str]]:
    """The pairs or the texts of all requests of tasks, as lm_eval would ask for them in one call."""
    from benchmarks.scoring import record  # imports jax

    found = list(record(tasks, include_path, limit).values())
    pairs = [(args[0], args[1]) for requests in found for args in requests.get("loglikelihood", ())]
    texts = [args[0] for requests in found for args in requests.get("loglikelihood_rolling", ())]
    if pairs and texts:
        raise SystemExit("take tasks of one kind: lm_eval would ask for the two in two calls")
    return pairs, texts


def warm_up(crew: WorkerPool, requests: Requests) -> int:
    """Pass after pass until all workers have every program; the number of passes.

    How work is divided is never quite the same, and what is left over at the end of a batch decides the shapes of its last
    steps; so batches are of many sizes here.
    """
    quiet = 0
    for number in range(1, _MOST_WARM_UPS + 1):
        warm = crew.passed(requests.jobs(-number, _WARM_UP_ITEMS[number % len(_WARM_UP_ITEMS)]))
        quiet = 0 if warm.compiled or not all(share.answers for share in warm.shares) else quiet + 1
        if quiet == _QUIET_PASSES:
            break
    return number


def timed(crew: WorkerPool, jobs: Sequence[Job]) -> Pass:
    """A pass in which nothing is compiled: if something is, there is another."""
    while (found := crew.passed(jobs)).compiled:
        print("  (a program was compiled: that pass does not count)", flush=True)
    return found


def apart(crews: Sequence[WorkerPool], jobs: Sequence[Job]) -> list[Pass]:
    """The same work by several crews at once, which share nothing but the machine."""
    found: dict[int, Pass] = {}

    def take(number: int) -> None:
        found[number] = crews[number].passed(jobs)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(len(crews))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(crews))]


def described(name: str, found: Pass) -> str:
    """A line on a pass."""
    shares = "; ".join(
        f"{share.answers} answers, {share.tokens:,} tokens, CPU {share.cpu_s:.1f} s"
        if share.tokens
        else "nothing, or it is gone"
        for share in found.shares
    )
    return f"  {name}: {found.wall_s:.2f} s ({shares}; broker {found.broker_s:.2f} s, client {found.client_s:.2f} s)"


def spread(values: Sequence[float]) -> str:
    """The median, and from the least to the most."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def compare(
    words: Mapping[str, Any], requests: Requests, counts: Sequence[int], pairs: int, *, also_apart: bool
) -> None:
    """Time every number of workers in turn, and print."""
    cores = sorted(os.sched_getaffinity(0))
    few, many = counts
    if many > len(cores):
        raise SystemExit(f"{many} workers want a core each, and there are {len(cores)}")
    with contextlib.ExitStack() as stack:

        def crew(own: Sequence[int]) -> WorkerPool:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="birdie-")))
            return stack.enter_context(WorkerPool(folder, words, own))

        crews = {count: crew(cores[:count]) for count in counts}
        others = [crew([core]) for core in cores[1:many]] if also_apart else []
        for one in (*crews.values(), *others):
            passes = warm_up(one, requests)
            threads = ", ".join(str(worker.threads()) for worker in one.workers)
            print(
                f"{len(one.workers)} workers: {passes} passes to warm up; threads in which XLA computes: {threads}",
                flush=True,
            )
        load = os.getloadavg()[0]
        ratios, most, alone, tokens = [], [], [], []
        worst = Difference()
        for number in range(1, pairs + 1):
            jobs = requests.jobs(number)
            took = {}
            for count in counts if number % 2 else (many, few):
                took[count] = timed(crews[count], jobs)
                print(described(f"{count} workers", took[count]), flush=True)
            ratios.append(took[few].wall_s / took[many].wall_s)
            most.append(took[few].wall_s * many / took[few].cpu_s)
            tokens.append(took[many].tokens / took[few].tokens)
            worst = worst.most(difference(took[few].answers, took[many].answers))
            if others:
                both = apart([crews[few], *others], jobs)
                alone.append(many * took[few].wall_s / max(each.wall_s for each in both))
                print(f"  apart, at once: {', '.join(f'{each.wall_s:.2f} s' for each in both)}", flush=True)
        count = sum(len(job.items) for job in requests.jobs(1))
        print(
            f"\n{count:,} requests in {len(requests.jobs(1))} batches, {pairs} pairs, load {load:.1f} before, {os.getloadavg()[0]:.1f} after"
        )
        print(f"{many} workers are as fast as {few} times {spread(ratios)}")
        print(f"what {many} cores could give, by the CPU seconds of {few}: {spread(most)}")
        if alone:
            print(f"what they gave to {many} workers that share nothing: {spread(alone)}")
        print(f"tokens computed by {many}, over those by {few}: {spread(tokens)}")
        print(f"answers: {worst}")
        if not worst.nats <= _ROUNDING or worst.texts:
            raise SystemExit("the answers differ")


def kill_and_join(words: Mapping[str, Any], requests: Requests) -> None:
    """Disturb a pass, and hold it against one that was not disturbed."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory(prefix="birdie-") as name, WorkerPool(Path(name), words, cores) as crew:
        print(f"{warm_up(crew, requests)} passes to warm up", flush=True)
        jobs = requests.jobs(1)
        count = sum(len(job.items) for job in jobs)
        undisturbed = crew.passed(jobs)
        print(described("undisturbed", undisturbed), flush=True)
        victim, before = crew.workers[0], crew.status()["totals"]["tokens_computed"]
        joiner: list[Worker] = []
        held: list[int] = []
        at: list[int] = []

        def join() -> None:
            joiner.append(crew.join(victim.core))

        joining = threading.Thread(target=join)

        def disturb(answers: int) -> None:
            if not at and answers >= _KILLED_AT * count:
                rows = crew.status()["workers"]
                held.append(next(row["requests_held"] for row in rows if row["process_id"] == victim.process.pid))
                crew.kill(victim)
                at.append(answers)
            if joining.ident is None and answers >= _JOINED_AT * count:
                joining.start()

        disturbed = crew.passed(jobs, disturb)
        joining.join()
        print(described("disturbed", disturbed), flush=True)
        tokens = crew.status()["totals"]["tokens_computed"] - before
        new = disturbed.shares[-1]
        gone = count - sum(share.answers for share in disturbed.shares)
        found = difference(undisturbed.answers, disturbed.answers)
        print(
            f"\n{count:,} requests in {len(jobs)} batches; one of two workers killed after {at[0]:,} answers, {gone:,} of them its own"
        )
        print(f"answers missing: {count - len(disturbed.answers)}; {found}")
        print(
            f"what it had not answered was handed out again: {held[0]:,} requests in what it held, losses {disturbed.losses}"
        )
        print(
            f"tokens computed: {undisturbed.tokens:,} undisturbed, {tokens:,} with the kill ({tokens / undisturbed.tokens - 1:+.2%})"
        )
        print(f"the third worker gave {new.answers:,} answers ({new.answers / count:.0%})")
        print(
            f"seconds: {undisturbed.wall_s:.1f} undisturbed, {disturbed.wall_s:.1f} with the kill, loading of the third included"
        )
        if not found.nats <= _ROUNDING or found.texts:
            raise SystemExit("the answers differ")
        if not new.answers:
            raise SystemExit("the run was over before the third worker had its model: take more --documents")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="the model_tag; default: %(default)s")
    parser.add_argument("--model-args", default="", help="further model_args, as a=b,c=d")
    parser.add_argument("--workers", default="1,2", help="two numbers of workers; default: %(default)s")
    parser.add_argument("--pairs", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--form", choices=USUAL, default="choice", help="of what the bench asks; default: %(default)s")
    parser.add_argument("--documents", type=int, default=100, help="of that form, in a pass; default: %(default)s")
    parser.add_argument("--tasks", help="instead, tasks as NAME or NAME:SHOTS, separated by commas")
    parser.add_argument("--include_path", type=Path, default=Path("examples/tasks"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--apart", action="store_true", help="also time workers that share nothing")
    parser.add_argument("--kill-and-join", action="store_true")
    given = parser.parse_args()
    words = {"model_tag": given.model, **dict(word.split("=", 1) for word in given.model_args.split(",") if word)}
    tasks = given.tasks.split(",") if given.tasks else []
    requests = Requests(given.form, given.documents, tasks, given.include_path, given.limit)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and all that was started is ended
    if given.kill_and_join:
        kill_and_join(words, requests)
        return
    counts = [int(count) for count in given.workers.split(",")]
    if len(counts) != 2 or not 0 < counts[0] < counts[1]:
        parser.error("--workers takes two numbers, the smaller one first")
    compare(words, requests, counts, given.pairs, also_apart=given.apart)


if __name__ == "__main__":
    main()
