"""Measure the speedup of two workers over one, and compare answers: ``python -m benchmarks.scaling --model DIR``.

Each worker runs on a core of its own, so it computes in one thread whether or not there is another worker. Each number
of workers has a broker that persists, so no timed pass includes model loading or compilation. The configurations run
the same requests in turn, with new requests for each pair, and the result is the ratio of the seconds of each pair.
Broker and client are not pinned: with one worker they have a free core, and with two workers they compete with them.
Therefore the maximum speedup on these cores is printed as well: the seconds of one worker, divided by all CPU seconds
of that pass, times the number of cores. ``--apart`` shows the speedup without anything shared: two workers with a
broker each, on the same work at once.

``--kill-and-join`` kills one of two workers during a pass (SIGKILL), lets a third one join, and compares the answers
with those of an undisturbed pass.
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
from birdie_zmq.client.job import Job
from birdie_zmq.settings import ClientSettings
from birdie_zmq.tools.bench.workloads import DEFAULT_WORKLOADS, Sizes, Workload, make_jobs, make_requests
from birdie_zmq.types import Answer

_MOST_WARM_UPS = 10
_WARM_UP_ITEMS = (256, 48, 72, 100, 140)
_PASSES_WITHOUT_COMPILING = 2
_KILLED_AT, _JOINED_AT = 0.25, 0.3
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Difference:
    """The largest difference of log-likelihoods in nats, and the number of differing flags and texts, of two passes."""

    nats: float = 0.0
    flags: int = 0
    texts: int = 0

    def __str__(self) -> str:
        return f"largest difference {self.nats:.1e} nats, {self.flags} differing greedy flags, {self.texts} differing texts"

    def maximum(self, other: Difference) -> Difference:
        """Return the maximum of each figure of the two."""
        return Difference(max(self.nats, other.nats), max(self.flags, other.flags), max(self.texts, other.texts))


def difference(one: Sequence[Answer], other: Sequence[Answer]) -> Difference:
    """Return the difference between two lists of answers to the same requests.

    Raises:
        SystemExit: Their numbers of answers or their types differ.
    """
    if len(one) != len(other):
        raise SystemExit(f"cannot compare {len(one)} answers with {len(other)}")
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
                raise SystemExit("cannot compare answers of different types")
    return Difference(math.nan if any(map(math.isnan, nats)) else max(nats), flags, texts)


class Requests:
    """A source of requests: new ones of a bench workload for each seed, or always those of lm_eval tasks."""

    def __init__(
        self, form: Workload, documents: int, tasks: Sequence[str], include_path: Path, limit: int | None
    ) -> None:
        self._form: Workload = form
        self._documents = documents
        self._recorded = _record_tasks(tasks, include_path, limit) if tasks else None

    def jobs(self, seed: int, batch_items: int = ClientSettings().batch_items) -> list[Job]:
        """Return the jobs of a seed in batches of ``batch_items``; for tasks the seed has no effect."""
        settings = ClientSettings(batch_items=batch_items)
        if self._recorded is not None:
            pairs, texts = self._recorded
            return list(loglikelihood_jobs(pairs, settings) if pairs else rolling_jobs(texts, settings))
        sizes = Sizes()
        return list(make_jobs(self._form, make_requests(self._form, self._documents, seed, sizes), sizes, settings))


def _record_tasks(
    tasks: Sequence[str], include_path: Path, limit: int | None
) -> tuple[Sequence[tuple[str, str]], Sequence[str]]:
    """Return the pairs or the texts of all requests of tasks, as lm_eval would send them in one call."""
    from benchmarks.scoring import record_requests  # imports jax

    recorded = list(record_requests(tasks, include_path, limit).values())
    pairs = [(args[0], args[1]) for requests in recorded for args in requests.get("loglikelihood", ())]
    texts = [args[0] for requests in recorded for args in requests.get("loglikelihood_rolling", ())]
    if pairs and texts:
        raise SystemExit(
            "--tasks mixes loglikelihood and loglikelihood_rolling, which lm_eval sends in separate calls; use one kind"
        )
    return pairs, texts


def warm_up(pool: WorkerPool, requests: Requests) -> int:
    """Run passes until all workers have compiled all executables; return the number of passes.

    Work is never divided in quite the same way, and the remainder at the end of a batch decides the shapes of its last
    steps. So these passes use several batch sizes.
    """
    passes_without_compiling = 0
    for number in range(1, _MOST_WARM_UPS + 1):
        warm = pool.run_pass(requests.jobs(-number, _WARM_UP_ITEMS[number % len(_WARM_UP_ITEMS)]))
        passes_without_compiling = (
            0 if warm.compiled or not all(share.answers for share in warm.shares) else passes_without_compiling + 1
        )
        if passes_without_compiling == _PASSES_WITHOUT_COMPILING:
            break
    return number


def timed_pass(pool: WorkerPool, jobs: Sequence[Job]) -> Pass:
    """Run passes until one of them compiles nothing, and return that one."""
    while (result := pool.run_pass(jobs)).compiled:
        print("  (an executable was compiled; this pass does not count)", flush=True)
    return result


def apart(pools: Sequence[WorkerPool], jobs: Sequence[Job]) -> list[Pass]:
    """Run the same work in several worker pools at once, which share nothing but the machine."""
    results: dict[int, Pass] = {}

    def run(number: int) -> None:
        results[number] = pools[number].run_pass(jobs)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(pools))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[number] for number in range(len(pools))]


def describe_pass(name: str, result: Pass) -> str:
    """Return a line about a pass."""
    shares = "; ".join(
        f"{share.answers} answers, {share.tokens:,} tokens, CPU {share.cpu_s:.1f} s"
        if share.tokens
        else "nothing, or it has ended"
        for share in result.shares
    )
    return f"  {name}: {result.wall_s:.2f} s ({shares}; broker {result.broker_s:.2f} s, client {result.client_s:.2f} s)"


def median_and_range(values: Sequence[float]) -> str:
    """Return the median, the minimum and the maximum as text."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def compare(
    model_args: Mapping[str, Any], requests: Requests, counts: Sequence[int], pairs: int, *, with_isolated: bool
) -> None:
    """Time both numbers of workers in turn, and print."""
    cores = sorted(os.sched_getaffinity(0))
    few, many = counts
    if many > len(cores):
        raise SystemExit(f"--workers: {many} workers need a core each, but this process may use only {len(cores)}")
    with contextlib.ExitStack() as stack:

        def start_pool(pool_cores: Sequence[int]) -> WorkerPool:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="birdie-")))
            return stack.enter_context(WorkerPool(folder, model_args, pool_cores))

        pools = {count: start_pool(cores[:count]) for count in counts}
        others = [start_pool([core]) for core in cores[1:many]] if with_isolated else []
        for one in (*pools.values(), *others):
            passes = warm_up(one, requests)
            threads = ", ".join(str(worker.threads()) for worker in one.workers)
            print(
                f"{len(one.workers)} workers: {passes} warm-up passes; XLA compute threads: {threads}",
                flush=True,
            )
        load = os.getloadavg()[0]
        ratios, limits, isolated, tokens = [], [], [], []
        worst = Difference()
        for number in range(1, pairs + 1):
            jobs = requests.jobs(number)
            took = {}
            for count in counts if number % 2 else (many, few):
                took[count] = timed_pass(pools[count], jobs)
                print(describe_pass(f"{count} workers", took[count]), flush=True)
            ratios.append(took[few].wall_s / took[many].wall_s)
            limits.append(took[few].wall_s * many / took[few].cpu_s)
            tokens.append(took[many].tokens / took[few].tokens)
            worst = worst.maximum(difference(took[few].answers, took[many].answers))
            if others:
                both = apart([pools[few], *others], jobs)
                isolated.append(many * took[few].wall_s / max(each.wall_s for each in both))
                print(f"  isolated, at once: {', '.join(f'{each.wall_s:.2f} s' for each in both)}", flush=True)
        count = sum(len(job.items) for job in requests.jobs(1))
        print(
            f"\n{count:,} requests in {len(requests.jobs(1))} batches, {pairs} pairs, load average {load:.1f} before, {os.getloadavg()[0]:.1f} after"
        )
        print(f"speedup of {many} workers over {few}: {median_and_range(ratios)}")
        print(f"maximum speedup on {many} cores, from the CPU seconds of {few}: {median_and_range(limits)}")
        if isolated:
            print(f"speedup of {many} workers that share nothing: {median_and_range(isolated)}")
        print(f"tokens computed, {many} workers / {few}: {median_and_range(tokens)}")
        print(f"answers: {worst}")
        if not worst.nats <= _ROUNDING or worst.texts:
            raise SystemExit(f"the answers differ by more than {_ROUNDING} nats, or texts differ")


def kill_and_join(model_args: Mapping[str, Any], requests: Requests) -> None:
    """Kill a worker and let another join during a pass, compare it with an undisturbed pass, and print."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory(prefix="birdie-") as name, WorkerPool(Path(name), model_args, cores) as pool:
        print(f"{warm_up(pool, requests)} warm-up passes", flush=True)
        jobs = requests.jobs(1)
        count = sum(len(job.items) for job in jobs)
        undisturbed = pool.run_pass(jobs)
        print(describe_pass("undisturbed", undisturbed), flush=True)
        victim, before = pool.workers[0], pool.status()["totals"]["tokens_computed"]
        joiner: list[Worker] = []
        leased: list[int] = []
        killed_at: list[int] = []

        def join() -> None:
            joiner.append(pool.join(victim.core))

        joining = threading.Thread(target=join)

        def disturb(answers: int) -> None:
            if not killed_at and answers >= _KILLED_AT * count:
                rows = pool.status()["workers"]
                leased.append(next(row["requests_leased"] for row in rows if row["process_id"] == victim.process.pid))
                pool.kill(victim)
                killed_at.append(answers)
            if joining.ident is None and answers >= _JOINED_AT * count:
                joining.start()

        disturbed = pool.run_pass(jobs, disturb)
        joining.join()
        print(describe_pass("disturbed", disturbed), flush=True)
        tokens = pool.status()["totals"]["tokens_computed"] - before
        new = disturbed.shares[-1]
        gone = count - sum(share.answers for share in disturbed.shares)
        result = difference(undisturbed.answers, disturbed.answers)
        print(
            f"\n{count:,} requests in {len(jobs)} batches; one of two workers killed after {killed_at[0]:,} answers, {gone:,} of them from it"
        )
        print(f"answers missing: {count - len(disturbed.answers)}; {result}")
        print(
            f"its unanswered requests were leased again: its leases had {leased[0]:,} requests; retries {disturbed.retries}"
        )
        print(
            f"tokens computed: {undisturbed.tokens:,} undisturbed, {tokens:,} with the kill ({tokens / undisturbed.tokens - 1:+.2%})"
        )
        print(f"answers of the third worker: {new.answers:,} ({new.answers / count:.0%})")
        print(
            f"seconds: {undisturbed.wall_s:.1f} undisturbed, {disturbed.wall_s:.1f} with the kill (loading of the third worker included)"
        )
        if not result.nats <= _ROUNDING or result.texts:
            raise SystemExit(f"the answers differ by more than {_ROUNDING} nats, or texts differ")
        if not new.answers:
            raise SystemExit("the pass ended before the third worker had loaded the model; use more --documents")


def main() -> None:
    """Run the chosen measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="model_tag; default: %(default)s")
    parser.add_argument("--model-args", default="", help="further model_args, as KEY=VALUE,KEY=VALUE")
    parser.add_argument(
        "--workers", default="1,2", help="two numbers of workers, the smaller one first; default: %(default)s"
    )
    parser.add_argument("--pairs", type=int, default=3, help="timed passes of each, in turn; default: %(default)s")
    parser.add_argument(
        "--form", choices=DEFAULT_WORKLOADS, default="choice", help="workload of birdie-zmq bench; default: %(default)s"
    )
    parser.add_argument(
        "--documents", type=int, default=100, help="documents of this workload per pass; default: %(default)s"
    )
    parser.add_argument("--tasks", help="use lm_eval tasks instead, as NAME or NAME:SHOTS, comma-separated")
    parser.add_argument("--include_path", type=Path, default=Path("examples/tasks"))
    parser.add_argument("--limit", type=int)
    parser.add_argument(
        "--apart", action="store_true", help="also time workers with a broker each, which share nothing"
    )
    parser.add_argument("--kill-and-join", action="store_true", help="kill one worker and let another join instead")
    options = parser.parse_args()
    model_args = {
        "model_tag": options.model,
        **dict(argument.split("=", 1) for argument in options.model_args.split(",") if argument),
    }
    tasks = options.tasks.split(",") if options.tasks else []
    requests = Requests(options.form, options.documents, tasks, options.include_path, options.limit)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that all child processes are stopped
    if options.kill_and_join:
        kill_and_join(model_args, requests)
        return
    counts = [int(count) for count in options.workers.split(",")]
    if len(counts) != 2 or not 0 < counts[0] < counts[1]:
        parser.error(f"--workers takes two numbers, the smaller one first, not '{options.workers}'")
    compare(model_args, requests, counts, options.pairs, with_isolated=options.apart)


if __name__ == "__main__":
    main()
