"""The client's session with the broker: how it is opened, and how long broker and workers may be silent.

::

    Closed ──a call begins──▶ Opening ──SessionOpened──▶ Open ──a Refusal: unknown peer──▶ Opening
"""

from __future__ import annotations

from dataclasses import dataclass

from birdie_zmq._version import __version__
from birdie_zmq.client.actions import Action, FailCall, Log, Send
from birdie_zmq.errors import BrokerUnavailable, WorkerUnavailable
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import ClientSettings

_WARN_SILENCE_S = 10.0
"""Seconds of silence after which the client warns that the broker does not answer."""


@dataclass(frozen=True)
class Closed:
    """The broker knows no session of this client."""


@dataclass
class Opening:
    """The client waits for SessionOpened ``since`` a time; it sent the last OpenSession at ``sent_at``."""

    since: float
    sent_at: float


@dataclass
class Open:
    """The broker has opened the session; the client sent the last Ping at ``pinged_at``."""

    pinged_at: float


@dataclass
class _Silence:
    """When the broker and a worker last sent something during a call, or when the call began."""

    broker_seen_at: float
    worker_seen_at: float
    warned_of_broker: bool = False
    warned_of_workers: bool = False


class Session:
    """A session with the broker. All times are seconds on a monotonic clock.

    Args:
        settings: Timeouts.
        endpoint: The broker's endpoint, for messages to the user.

    Attributes:
        phase: The phase of the session.
        model_switches: Number of model switches of the broker's workers while this client waited.
        retries: Number of retries after the death of a worker or model process while this client waited.
    """

    def __init__(self, settings: ClientSettings, endpoint: str) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self.phase: Closed | Opening | Open = Closed()
        self._was_open = False
        self._silence = _Silence(0.0, 0.0)
        self._last_pong = m.Pong(workers=0)
        self.model_switches = 0
        self.retries = 0

    @property
    def is_open(self) -> bool:
        """Whether the broker has opened the session."""
        return isinstance(self.phase, Open)

    @property
    def workers(self) -> int:
        """Number of the broker's workers, 0 until it is known."""
        return self._last_pong.workers

    def broker_silent_s(self, now: float) -> float:
        """Return the seconds since the broker's last message."""
        return now - self._silence.broker_seen_at

    def worker_missing_s(self) -> float:
        """Return how long the broker has reported no worker, in seconds."""
        return max(0.0, self._silence.broker_seen_at - self._silence.worker_seen_at)

    def begin_call(self, now: float) -> list[Action]:
        """Wait for the broker and for workers anew; open the session if it is closed."""
        self._silence = _Silence(now, now)
        match self.phase:
            case Closed():
                return self.open(now)
            case Opening() as opening:
                opening.since = now  # An earlier call was interrupted while it waited; this call waits the full time.
                return []
            case Open() as opened:
                # The Pong comes before any other answer, so that the number of workers is up to date.
                opened.pinged_at = now
                return [Send(m.Ping())]

    def open(self, now: float) -> list[Action]:
        """Open the session, for the first time or anew."""
        self.phase = Opening(now, now)
        return [Send(m.OpenSession(package_version=__version__))]

    def opened(self, now: float) -> list[Action]:
        """Handle SessionOpened; a second one changes nothing."""
        if not isinstance(self.phase, Opening):
            return []
        self.phase = Open(now)
        self._was_open = True
        self._last_pong = m.Pong(workers=0)
        # As at the start of a call: the next call is split by the number of workers counted now.
        return [Send(m.Ping())]

    def close(self) -> list[Action]:
        """Close the session, so that the broker drops all work of this client."""
        was_open = self.is_open
        self.phase = Closed()
        return [Send(m.CloseSession())] if was_open else []

    def broker_seen(self, now: float) -> None:
        """Record that the broker has sent a message."""
        self._silence.broker_seen_at = now
        self._silence.warned_of_broker = False

    def worker_seen(self, now: float) -> None:
        """Record that the broker has a worker."""
        self._silence.worker_seen_at = now

    def pong(self, pong: m.Pong, now: float) -> list[Action]:
        """Handle a Pong: warn once if the broker has no worker, and fail the call if it has had none for too long."""
        self.model_switches += max(0, pong.model_switches - self._last_pong.model_switches)
        self.retries += max(0, pong.retries - self._last_pong.retries)
        self._last_pong = pong
        if pong.workers:
            self.worker_seen(now)
            return []
        start = f"start one with: python -m workers.jax_worker --connect {self._endpoint}"
        wait_s = self._settings.worker_wait_s
        if now - self._silence.worker_seen_at > wait_s:
            text = f"the broker at {self._endpoint} has had no worker for {wait_s:.0f} s; {start}"
            return [FailCall(WorkerUnavailable(text))]
        if self._silence.warned_of_workers:
            return []
        self._silence.warned_of_workers = True
        return [Log("warning", f"the broker has no worker yet; {start}")]

    def tick(self, now: float, stall_s: float) -> list[Action]:
        """Handle the passage of time while the call waits for answers.

        Args:
            now: The time.
            stall_s: How long this process itself was stopped since the last tick. This time counts for no timeout.
        """
        self._silence.broker_seen_at += stall_s
        self._silence.worker_seen_at += stall_s
        match self.phase:
            case Closed():
                return []
            case Opening() as opening:
                opening.since += stall_s
                return self._wait_for_session(opening, now)
            case Open() as opened:
                return self._wait_for_answers(opened, now)

    def _wait_for_session(self, opening: Opening, now: float) -> list[Action]:
        timeout_s = self._settings.broker_timeout_s if self._was_open else self._settings.connect_s
        if now - opening.since > timeout_s:
            self.phase = Closed()
            return [FailCall(self._no_broker_error(timeout_s))]
        if now - opening.sent_at < self._settings.open_retry_s:
            return []
        # The broker that received the last OpenSession may have died before reading it, or may be stopping.
        opening.sent_at = now
        return [*self._warn_of_silence(now), Send(m.OpenSession(package_version=__version__))]

    def _wait_for_answers(self, opened: Open, now: float) -> list[Action]:
        if self.broker_silent_s(now) > self._settings.broker_timeout_s:
            return [FailCall(self._no_broker_error(self._settings.broker_timeout_s))]
        actions = self._warn_of_silence(now)
        if now - opened.pinged_at >= self._settings.ping_s:
            opened.pinged_at = now
            actions.append(Send(m.Ping()))
        return actions

    def _warn_of_silence(self, now: float) -> list[Action]:
        silent_s = self.broker_silent_s(now)
        if not self._was_open or self._silence.warned_of_broker or silent_s < _WARN_SILENCE_S:
            return []
        self._silence.warned_of_broker = True
        left_s = self._settings.broker_timeout_s - silent_s
        text = f"the broker at {self._endpoint} has been silent for {silent_s:.0f} s; waiting {left_s:.0f} s more"
        return [Log("warning", text)]

    def _no_broker_error(self, seconds: float) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"no broker answered at {self._endpoint} within {seconds:.0f} s; start one with: python broker.py --bind "
            f"{self._endpoint} (or leave port= and endpoint= out of model_args to start an embedded broker and worker)"
        )
