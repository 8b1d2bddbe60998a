"""The command ``birdie-zmq status``: shows a broker's status page in the terminal."""

from __future__ import annotations

import argparse
import http.client
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from types import FrameType

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from birdie_zmq.broker.status.snapshot import Status
from birdie_zmq.cli.common import run_guarded
from birdie_zmq.errors import BrokerUnavailable, UsageError
from birdie_zmq.sanitize import sanitize
from birdie_zmq.settings import DEFAULT_STATUS_PORT

_TIMEOUT_S = 5.0
_REFRESH_S = 1.0
_MAX_BYTES = 4 * 2**20
_STALE_S = 3.0
_BARS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 60


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    arg_parser = argparse.ArgumentParser(prog=prog, description="Show the status of a broker with --status-port.")
    arg_parser.add_argument(
        "--port",
        default=str(DEFAULT_STATUS_PORT),
        metavar="PORT|URL",
        help="port or URL of the status page; default: %(default)s",
    )
    arg_parser.add_argument(
        "--once", action="store_true", help="print the status once and exit; default: refresh it until Ctrl-C"
    )
    return arg_parser


def run(options: argparse.Namespace) -> int:
    """Print the status once, or refresh it until Ctrl-C.

    Raises:
        UsageError: The port is neither a port nor a URL.
        BrokerUnavailable: There is no status page, or its response is not a status.
    """
    url = status_url(options.port)
    console = Console()
    status = fetch(url)
    if options.once:
        console.print(render(status))
        return 0
    is_interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal is_interrupted
        del number, frame
        is_interrupted = True  # Python drops an exception that is raised while an object is destroyed
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with Live(render(status), console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while not is_interrupted:
                time.sleep(_REFRESH_S)
                live.update(render(fetch(url)), refresh=True)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def status_url(port: str) -> str:
    """Return the address of the status JSON, given the port or URL of the status page.

    Raises:
        UsageError: The text is neither a port nor a URL.
    """
    if port.isdecimal() and int(port) <= 65535:
        return f"http://127.0.0.1:{int(port)}/status.json"
    if port.startswith(("http://", "https://")):
        return f"{port.rstrip('/').removesuffix('/status.json')}/status.json"
    raise UsageError(f"--port {port!r} is neither a port nor a URL such as http://127.0.0.1:{DEFAULT_STATUS_PORT}")


def fetch(url: str) -> Status:
    """Fetch the status of a broker.

    Raises:
        BrokerUnavailable: There is no response, or it is not a status.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            body = answer.read(_MAX_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise BrokerUnavailable(
            f"no status page answers at {url} ({reason}); start a broker with birdie-zmq broker --status-port, or set "
            "--port to the address that the broker prints"
        ) from error
    try:
        return msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError as error:
        raise BrokerUnavailable(
            f"the response of {url} is not a status of birdie-zmq, or of another version; install the same version on both "
            "sides"
        ) from error


def render(status: Status) -> RenderableType:
    """Return the status as tables; texts of peers are sanitised and inserted as plain text, not as rich markup."""
    totals = status.totals
    head = f"{status.endpoint}, up {format_duration(status.uptime_s)}, version {status.version}"
    parts: list[RenderableType] = [Text.assemble(("birdie-zmq broker ", "bold"), sanitize(head))]
    if status.age_s > _STALE_S:
        parts.append(Text(f"the broker has not responded for {format_duration(status.age_s)}", "bold red"))
    if status.draining:
        parts.append(Text("the broker is stopping", "bold yellow"))
    parts += [
        Text(
            f"batches: {status.batches_waiting} waiting, {status.batches_leased} leased, "
            f"{totals.batches_answered:,} answered   requests: {totals.requests_answered:,} answered, "
            f"{totals.requests_failed:,} failed   retries: {totals.retries}   model switches: {totals.model_switches}"
        ),
        Text(
            f"tokens: {totals.tokens_computed:,} computed, {padding_share(totals.tokens_padding, totals.tokens_computed)} "
            f"padding   executables: {totals.executables:,}, {totals.compile_seconds:,.1f} s of compilation"
        ),
        Text(f"requests/s, last ten minutes: {sparkline(status)}"),
    ]
    workers = _table("worker", "engine", "model", "phase", "for", "leases", "served", "padding")
    for worker in status.workers:
        workers.add_row(
            *_cells(f"{worker.host} {worker.process_id}", worker.engine, worker.model or "-"),
            *_cells(worker.phase, format_duration(worker.phase_s), f"{worker.leases}/{worker.capacity}"),
            *_cells(f"{worker.requests_answered:,}", padding_share(worker.tokens_padding, worker.tokens_computed)),
        )
    models = _table("model", "workers", "waiting", "leased", "oldest")
    for model in status.models:
        waiting = f"{model.requests_waiting:,} in {model.batches_waiting}"
        leased = f"{model.requests_leased:,} in {model.batches_leased}"
        oldest = "-" if model.oldest_s is None else format_duration(model.oldest_s)
        models.add_row(*_cells(model.model, str(model.workers), waiting, leased, oldest))
    clients = _table("client", "waiting", "leased", "requests left", "answered", "connected")
    for client in status.clients:
        name = f"#{client.number}" if client.key is None else f"#{client.number} {client.key}"
        clients.add_row(
            *_cells(name, str(client.batches_waiting), str(client.batches_leased)),
            *_cells(f"{client.requests_left:,}", f"{client.requests_answered:,}", format_duration(client.connected_s)),
        )
    history = _table("recent problems", "", "times", "last")
    for each in status.history:
        history.add_row(*_cells(each.kind, each.text, str(each.count), f"{format_duration(each.ago_s)} ago"))
    parts += [table for table in (workers, models, clients, history) if table.row_count]
    if not status.workers:
        parts.append(Text("no worker is connected; start one with: birdie-zmq worker", "yellow"))
    return Group(*parts)


def format_duration(seconds: float) -> str:
    """Return a duration as text, in at most two units."""
    whole = int(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def padding_share(padding: int, computed: int) -> str:
    """Return the share of padding among the computed tokens, as a percentage."""
    return f"{padding / computed:.0%}" if computed else "-"


def sparkline(status: Status) -> str:
    """Return requests/s over time as a line of bars, followed by the highest value."""
    rates = status.throughput.requests
    size = max(1, len(rates) // _COLUMNS)
    means = [sum(rates[start : start + size]) / size for start in range(0, len(rates) - size + 1, size)]
    highest = max(means, default=0.0)
    if not highest:
        return "none"
    return "".join(_BARS[-(-int(mean / highest * 800) // 100)] for mean in means) + f" up to {highest:,.1f}"


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _cells(*texts: str) -> list[Text]:
    return [Text(sanitize(text)) for text in texts]


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq status") -> int:
    """Run ``birdie-zmq status``."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(prog, False, lambda: run(options))
