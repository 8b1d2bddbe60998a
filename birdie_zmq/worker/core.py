"""The agent's decisions, as a state machine without sockets, processes or a clock.

The agent holds leases in order of arrival (`held_leases`), and at most one model process (`process_state`). What follows
from an event is collected in its `outbox`.

When a model process exits unexpectedly, or is killed because it makes no progress, no lease is lost: the running lease
goes back to the broker as a suspect, and the leases behind it go back unchanged. While the process loads, only the model
itself can be the cause, so the agent keeps the leases and restarts the process after a pause.
"""

from __future__ import annotations

from birdie_zmq.errors import ModelProcessDied
from birdie_zmq.processes.restart_policy import RestartPolicy
from birdie_zmq.processes.signals import signal_name
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import ComputeCounters, ErrorReport, ModelSpec, RequestArgument
from birdie_zmq.worker.events import (
    Action,
    Drain,
    Event,
    ForwardToBroker,
    ForwardToModel,
    LeaseCancelled,
    LeaseReceived,
    LeasesRevoked,
    MemoryFreed,
    ModelMessageReceived,
    ModelProcessExited,
    SendToBroker,
    SendToModel,
    StartModelProcess,
    Stop,
    StopModelProcess,
    Tick,
)
from birdie_zmq.worker.held_leases import HeldLease, HeldLeases
from birdie_zmq.worker.outbox import Outbox
from birdie_zmq.worker.process_state import Phase, ProcessState


class AgentCore:
    """The agent's state machine.

    Args:
        settings: Timeouts and limits.
        watches_memory: Whether to wait for MemoryFreed after a model process has exited.
        num_processes: The number of ranks of the process group that holds the model; this agent's process is rank 0.
        request_arguments: The request arguments that every model process ignores: with the built-in models, all.
        swaps_weights: Whether a model process may replace its weights by those of another model with the same arguments.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        watches_memory: bool = False,
        num_processes: int = 1,
        request_arguments: frozenset[RequestArgument] = frozenset(),
        swaps_weights: bool = False,
    ) -> None:
        self._settings = settings
        self._watches_memory = watches_memory
        self._num_processes = num_processes
        self._swaps_weights = swaps_weights
        self._leases = HeldLeases()
        self._process = ProcessState(settings, request_arguments)
        self._replaced: ModelSpec | None = None
        self._load_crashes: dict[ModelSpec, RestartPolicy] = {}
        self._drain_until: float | None = None
        self._outbox = Outbox(self._leases)
        self._now = 0.0

    @property
    def phase(self) -> str:
        """The current activity of the model process, for the heartbeat."""
        return self._process.description

    @property
    def model(self) -> ModelSpec | None:
        """The model of the model process, also while it loads or ends; None without a process."""
        return self._process.model

    @property
    def request_arguments(self) -> tuple[RequestArgument, ...]:
        """The request arguments for which the worker does not load a model again, as far as that is known."""
        return tuple(sorted(self._process.request_arguments))

    @property
    def computed(self) -> ComputeCounters:
        """The sum of the counters of all model processes of this agent."""
        return self._process.computed

    @property
    def waits_for_memory(self) -> bool:
        """Whether the next model process waits for MemoryFreed."""
        return self._process.phase is Phase.FREEING

    def handle(self, event: Event, now: float) -> list[Action]:
        """Handle one event and return the actions to take, in order.

        Args:
            event: The event.
            now: The time in monotonic seconds.
        """
        self._now = now
        match event:
            case LeaseReceived(lease, frame):
                self._on_lease(lease, frame)
            case LeaseCancelled(number):
                if (held := self._leases.get(number)) is not None:
                    self._outbox.drop_lease(held)
            case LeasesRevoked():
                for held in self._leases:
                    self._outbox.drop_lease(held)
            case ModelMessageReceived(message, frame):
                self._process.receive(message, now)
                self._on_message(message, frame)
            case ModelProcessExited(returncode, trace):
                self._on_exit(returncode, trace)
            case MemoryFreed():
                self._process.memory_freed(now)
            case Drain():
                self._drain()
            case Tick(stall_s):
                self._check_timeouts(stall_s)
        self._serve_first_lease()
        if self._drain_until is not None:
            self._stop_when_drained(self._drain_until)
        return self._outbox.take()

    # --- Leases ------------------------------------------------------------------------------------------------------

    def _on_lease(self, lease: m.Lease, frame: bytes) -> None:
        if lease.lease in self._leases:
            self._outbox.log("warning", "ignored a lease of the broker: this worker holds a lease with the same number")
        elif self._drain_until is None:
            self._leases.add(lease, frame)
        else:  # The broker sent it before it received DrainWorker.
            self._outbox.add(SendToBroker(m.LeaseReturned(lease=lease.lease)))

    def _drain(self) -> None:
        """Accept no more leases, and return all but the running one."""
        self._drain_until = self._now + self._settings.drain_s
        self._outbox.add(SendToBroker(m.DrainWorker()))
        running = self._leases.running
        for held in self._leases:
            if held is not running:
                self._outbox.return_lease(held)
        if running is not None:
            self._outbox.log("info", f"stopping; waiting up to {self._settings.drain_s:.0f} s for the running lease")

    def _stop_when_drained(self, deadline: float) -> None:
        if self._now >= deadline:
            for held in self._leases:
                self._outbox.return_lease(held)
        if not self._leases:
            self._outbox.add(Stop())

    # --- The model process -------------------------------------------------------------------------------------------

    def _serve_first_lease(self) -> None:
        """Take the next action that the first lease needs: start, stop or kill a process, or send leases to it."""
        process, first = self._process, self._leases.first
        if process.phase is Phase.ENDING:
            if process.take_overdue_exit(self._now):
                self._outbox.log(
                    "warning",
                    f"the model process of {process.model} did not exit within {self._settings.terminate_s:g} s of "
                    "SIGTERM; killing it",
                )
                self._outbox.add(StopModelProcess(kill=True))
        elif first is None or process.phase is Phase.FREEING:
            return
        elif process.phase is Phase.ABSENT:
            crashes = self._load_crashes.get(first.lease.model)
            if crashes is None or crashes.may_start(self._now):
                self._start(first)
        elif not process.serves(first.lease.model):
            # The process finishes the leases it was sent; later ones for its model wait behind the other model's lease.
            if not self._leases.are_sent:
                self._replace_model(first)
        elif process.phase is Phase.READY:
            self._send_leases(first.lease.model)

    def _replace_model(self, first: HeldLease) -> None:
        """Let the process load other weights if only they can differ; otherwise end it, so that another one can start."""
        process, model = self._process, first.lease.model
        replaced = process.model
        same_arguments = replaced is not None and replaced.arguments == model.arguments
        if self._swaps_weights and process.phase is Phase.READY and same_arguments:
            process.swap(model, self._now)
            self._outbox.notify(first, "info", f"loading the weights of {model} in place of those of {replaced}")
            self._outbox.add(SendToModel(m.SwapWeights(model=model)))
        else:
            self._replaced = replaced
            self._stop_process()

    def _start(self, first: HeldLease) -> None:
        model = first.lease.model
        self._process.start(model, self._now)
        in_place = "" if self._replaced is None else f", in place of {self._replaced}"
        self._replaced = None
        self._outbox.notify(first, "info", f"loading {model}{in_place}")
        self._outbox.add(StartModelProcess(model, self._process.start_count))

    def _stop_process(self) -> None:
        self._process.stop(self._now)
        self._outbox.add(StopModelProcess(kill=False))

    def _send_leases(self, model: ModelSpec) -> None:
        for held in self._leases.of_model(model, self._process.request_arguments):
            if not held.is_sent:
                if self._leases.running is None:
                    self._process.progressed(self._now)
                held.is_sent = True
                self._outbox.add(ForwardToModel(held.frame))

    def _check_timeouts(self, stall_s: float) -> None:
        """Kill a process that exceeds a timeout, and stop waiting for memory that is not freed in time."""
        process, running = self._process, self._leases.running
        process.add_stall(stall_s)
        if running is not None and (shapes := process.take_long_compile(self._now)) is not None:
            self._outbox.notify(running, "info", f"compiling {shapes} for {process.model}")
        if process.is_memory_overdue(self._now):
            self._outbox.log(
                "warning",
                f"the device's memory is still in use {self._settings.memory_wait_s:.0f} s after the model process exited; no "
                "longer waiting for it",
            )
            process.memory_freed(self._now)
        if (reason := process.take_exceeded_timeout(self._now, is_running=running is not None)) is not None:
            self._outbox.log("warning", f"the model process of {process.model} {reason}; killing it")
            self._outbox.add(StopModelProcess(kill=True))

    def _on_exit(self, returncode: int, trace: str | None) -> None:
        process = self._process
        phase, model, ignored = process.phase, process.model, process.request_arguments
        process.exited(self._now, watches_memory=self._watches_memory)
        if phase is Phase.ENDING or model is None:
            return
        cause = _describe_exit(returncode, process.kill_reason, self._num_processes)
        self._outbox.log("warning", f"the model process of {model} exited unexpectedly: {cause}")
        if phase is Phase.LOADING:
            self._on_load_crash(model, cause, trace)
            return
        for held in self._leases.of_model(model, ignored):
            if held.is_answered:
                self._outbox.finish_lease(held)
        running = self._leases.running
        for held in self._leases.of_model(model, ignored):
            held.is_sent = False  # The process is gone, so there is nothing to cancel.
            if held is running:
                text = f"the model process of {model} exited unexpectedly, {cause}; its standard error goes to the worker's"
                error = ErrorReport(code=ModelProcessDied.code, message=text, traceback=trace)
                self._outbox.report_crash(held, error)
            else:
                self._outbox.return_lease(held)

    def _on_load_crash(self, model: ModelSpec, cause: str, trace: str | None) -> None:
        policy = RestartPolicy(self._settings.max_load_crashes, self._settings.restart_delay_s)
        crashes = self._load_crashes.setdefault(model, policy)
        pause_s = crashes.failed(self._now)
        affected = self._leases.of_model(model)
        if crashes.is_exhausted:
            del self._load_crashes[model]
            text = (
                f"the model process of {model} exited unexpectedly {crashes.failures} times while loading, the last time "
                f"{cause}; see the worker's standard error for its output"
            )
            error = ErrorReport(code=ModelProcessDied.code, message=text, traceback=trace)
            for held in affected:
                self._outbox.fail_lease(held, error)
            return
        for held in affected[:1]:
            text = f"the model process of {model} exited unexpectedly while loading, {cause}; restarting in {pause_s:.0f} s"
            self._outbox.notify(held, "warning", text)

    # --- Messages of the model process -------------------------------------------------------------------------------

    def _on_message(self, message: m.ModelProcessMessage, frame: bytes) -> None:
        match message:
            case (
                m.LeaseAnswered()
                | m.LeasePartlyAnswered()
                | m.LeaseNotice()
                | m.LeaseProgressed()
                | m.LeaseFailed()
                | m.LeaseDone()
            ):
                if (held := self._leases.sent(message.lease)) is not None:
                    self._on_lease_message(held, message, frame)
            case m.ModelLoaded() | m.ModelLoadFailed() | m.SwapRefused() | m.ModelNotice():
                model = self._process.model
                if self._process.phase is Phase.LOADING and model is not None:
                    self._on_loading(model, message)

    def _on_lease_message(self, held: HeldLease, message: m.LeaseMessage, frame: bytes) -> None:
        match message:
            case m.LeaseAnswered(indices=indices):
                if not all(0 <= item < len(held.lease.work) for item in indices):
                    self._outbox.log(
                        "warning", "ignored an answer of the model process: its lease has no item of that index"
                    )
                    return
                held.answered.update(indices)
                self._outbox.add(ForwardToBroker(frame))
            case m.LeaseNotice() | m.LeaseProgressed() | m.LeasePartlyAnswered():
                self._outbox.add(ForwardToBroker(frame))
            case m.LeaseFailed(error=error, index=index):
                is_known = index is not None and index < len(held.lease.work)
                self._outbox.fail_lease(held, error, index if is_known else None)
            case m.LeaseDone():
                self._outbox.finish_lease(held)

    def _on_loading(
        self, model: ModelSpec, message: m.ModelLoaded | m.ModelLoadFailed | m.SwapRefused | m.ModelNotice
    ) -> None:
        waiting = self._leases.of_model(
            model
        )  # A request argument of one run may be wrong, which no other run is told.
        match message:
            case m.ModelLoaded(seconds=seconds, request_arguments=request_arguments):
                self._load_crashes.pop(model, None)
                self._process.loaded(request_arguments, self._now)
                for held in waiting[:1]:
                    self._outbox.notify(held, "info", f"loaded {model} in {seconds:.1f} s")
            case m.ModelLoadFailed(error=error):
                self._load_crashes.pop(model, None)
                for held in waiting:
                    self._outbox.fail_lease(held, error)
                self._stop_process()
            case m.SwapRefused(reason=reason):
                for held in waiting[:1]:
                    self._outbox.notify(held, "info", f"a new process loads {model}: {reason}")
                self._stop_process()
            case m.ModelNotice(level=level, text=text):
                for held in waiting[:1]:
                    self._outbox.notify(held, level, text)


def _describe_exit(returncode: int, kill_reason: str | None, num_processes: int) -> str:
    """Describe why a model process exited, as the end of a sentence.

    Args:
        returncode: Its exit status, or a negative signal number.
        kill_reason: The timeout for which the agent killed it, or None.
        num_processes: The number of ranks of its process group.
    """
    if kill_reason is not None:
        cause = f"killed because it {kill_reason}"
    elif returncode >= 0:
        cause = f"with exit status {returncode}"
    else:
        name = signal_name(-returncode)
        hint = " (often sent by the system when the machine is out of memory)" if name == "SIGKILL" else ""
        cause = f"by {name}{hint}"
    if num_processes > 1:
        cause += (
            f" (it is rank 0 of a process group of {num_processes}: when one rank ends, all end and restart; the "
            "worker of the rank that ended first logs the reason)"
        )
    return cause
