"""``birdie-zmq status``: what a broker's status page shows, in a terminal."""

from __future__ import annotations

import argparse
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from birdie_zmq.broker.status.snapshot import Status
from birdie_zmq.cli.common import run_guarded
from birdie_zmq.errors import BrokerUnavailable, UsageError
from birdie_zmq.settings import DEFAULT_STATUS_PORT

_TIMEOUT_S = 5.0
_PAUSE_S = 1.0
_MOST_BYTES = 4 * 2**20
_STALE_S = 3.0
_BARS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 60


def parser(prog: str) -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    whole = argparse.ArgumentParser(prog=prog, description="Show what a broker with --status-port does.")
    whole.add_argument(
        "--port",
        default=str(DEFAULT_STATUS_PORT),
        metavar="PORT|URL",
        help="where the status page is; default: %(default)s",
    )
    whole.add_argument("--once", action="store_true", help="print it once and end; else it goes on until Ctrl-C")
    return whole


def run(options: argparse.Namespace) -> int:
    """Print the status, once or for ever.

    Raises:
        UsageError: The port is neither a port nor a URL.
        BrokerUnavailable: There is no status page, or it says what is none.
    """
    url = url_of(options.port)
    console = Console()
    status = fetch(url)
    if options.once:
        console.print(render(status))
        return 0
    try:
        with Live(render(status), console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                time.sleep(_PAUSE_S)
                live.update(render(fetch(url)), refresh=True)
    except KeyboardInterrupt:
        return 0


def url_of(port: str) -> str:
    """The address of the JSON of a page, by its port or URL.

    Raises:
        UsageError: It is neither.
    """
    if port.isdecimal() and int(port) <= 65535:
        return f"http://127.0.0.1:{int(port)}/status.json"
    if port.startswith(("http://", "https://")):
        return f"{port.rstrip('/').removesuffix('/status.json')}/status.json"
    raise UsageError(f"--port {port!r} is neither a port nor a URL such as http://127.0.0.1:{DEFAULT_STATUS_PORT}")


def fetch(url: str) -> Status:
    """Read a status.

    Raises:
        BrokerUnavailable: Nothing answers there, or not with a status.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            body = answer.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise BrokerUnavailable(
            f"no status page answers at {url} ({reason}); start a broker with one (birdie-zmq broker --status-port), or "
            "give its address, which the broker prints, with --port"
        ) from error
    try:
        return msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError as error:
        raise BrokerUnavailable(
            f"what answers at {url} is no status of birdie-zmq's, or of another version than this; install the same on "
            "both sides"
        ) from error


def render(status: Status) -> RenderableType:
    """The status as tables; every text of a peer's is put in as plain text, never as rich's markup."""
    totals = status.totals
    head = Text.assemble(
        ("birdie-zmq broker ", "bold"), f"{status.endpoint}, up {duration(status.uptime_s)}, version {status.version}"
    )
    parts: list[RenderableType] = [head]
    if status.age_s > _STALE_S:
        parts.append(Text(f"the broker has stood still for {duration(status.age_s)}", "bold red"))
    if status.drains:
        parts.append(Text("the broker is stopping", "bold yellow"))
    parts += [
        Text(
            f"batches: {status.batches_waiting} waiting, {status.batches_leased} leased, "
            f"{totals.batches_answered:,} answered   requests: {totals.requests_answered:,} answered, "
            f"{totals.requests_failed:,} failed   losses: {totals.losses}   model changes: {totals.switches}"
        ),
        Text(
            f"tokens: {totals.tokens_computed:,} computed, {padding_share(totals.tokens_padding, totals.tokens_computed)} "
            f"padding   programs: {totals.programs:,}, {totals.compile_seconds:,.1f} s of compiling"
        ),
        Text(f"requests a second, ten minutes: {sparkline(status)}"),
    ]
    workers = _table("worker", "engine", "model", "phase", "for", "leases", "served", "padding")
    for worker in status.workers:
        workers.add_row(
            *_cells(f"{worker.host} {worker.process_id}", worker.engine, worker.model or "-"),
            *_cells(worker.phase, duration(worker.phase_s), f"{worker.leases}/{worker.capacity}"),
            *_cells(f"{worker.requests_answered:,}", padding_share(worker.tokens_padding, worker.tokens_computed)),
        )
    models = _table("model", "workers", "waiting", "leased", "oldest")
    for model in status.models:
        waiting = f"{model.requests_waiting:,} in {model.batches_waiting}"
        leased = f"{model.requests_leased:,} in {model.batches_leased}"
        oldest = "-" if model.oldest_s is None else duration(model.oldest_s)
        models.add_row(*_cells(model.model, str(model.workers), waiting, leased, oldest))
    clients = _table("client", "waiting", "leased", "requests left", "answered", "connected")
    for client in status.clients:
        name = f"#{client.number}" if client.key is None else f"#{client.number} {client.key}"
        clients.add_row(
            *_cells(name, str(client.batches_waiting), str(client.batches_leased)),
            *_cells(f"{client.requests_left:,}", f"{client.requests_answered:,}", duration(client.connected_s)),
        )
    happened = _table("what went wrong", "", "times", "last")
    for each in status.happenings:
        happened.add_row(*_cells(each.kind, each.text, str(each.count), f"{duration(each.ago_s)} ago"))
    parts += [table for table in (workers, models, clients, happened) if table.row_count]
    if not status.workers:
        parts.append(Text("no worker is connected; one is started with: birdie-zmq worker", "yellow"))
    return Group(*parts)


def duration(seconds: float) -> str:
    """A time for people: two units at most."""
    whole = int(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def padding_share(padding: int, computed: int) -> str:
    """How much of what was computed was padding."""
    return f"{padding / computed:.0%}" if computed else "-"


def sparkline(status: Status) -> str:
    """The requests a second as a line of bars, and their highest value."""
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
    return [Text(text) for text in texts]


def main(arguments: Sequence[str] | None = None, prog: str = "birdie-zmq status") -> int:
    """Show what a broker with --status-port does."""
    options = parser(prog).parse_args(arguments)
    return run_guarded(prog, False, lambda: run(options))
