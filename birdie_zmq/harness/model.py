"""The model class of lm_eval's ``--model birdie_zmq``: it sends requests over ZeroMQ and returns answers in order.

It imports neither jax nor torch. With ``port=`` or ``endpoint=`` in model_args it connects to a running broker. Without
them it starts an embedded broker and worker and stops them at the end of the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from birdie_zmq.client import Client
from birdie_zmq.client.actions import Deliver
from birdie_zmq.client.batching import Prompt
from birdie_zmq.client.collector import AnswerCollector
from birdie_zmq.client.embedded import EmbeddedProcesses
from birdie_zmq.client.journal import Journal
from birdie_zmq.client.progress import Progress
from birdie_zmq.client.request_types import (
    GENERATE_UNTIL,
    LOGLIKELIHOOD,
    LOGLIKELIHOOD_ROLLING,
    AnswerT,
    RequestT,
    RequestType,
)
from birdie_zmq.client.resume import ResumableClient
from birdie_zmq.errors import BirdieError, ProtocolError, UsageError
from birdie_zmq.harness.chat_renderer import ChatRenderer
from birdie_zmq.harness.connection import connect, open_in_process
from birdie_zmq.harness.generation_kwargs import parse_prompts
from birdie_zmq.harness.launch import LaunchedModel
from birdie_zmq.harness.model_args import RunArguments, canonical_json, in_process_model_args, parse_model_args
from birdie_zmq.harness.preflight import reject_thinking, requests_of_run
from birdie_zmq.harness.progress_bar import ProgressBar
from birdie_zmq.harness.request_content import context_of, request_name, rolling_answer, rolling_text
from birdie_zmq.harness.response_cache import bind_cache, is_never_cached, reject_sampled_repeats
from birdie_zmq.harness.run_report import format_statistics, model_record, statistics_record
from birdie_zmq.inprocess.client import InProcessClient
from birdie_zmq.settings import ClientSettings
from birdie_zmq.worker.devices import process_gpus

logger = logging.getLogger("lm_eval.birdie_zmq")


class BirdieZMQ(LaunchedModel):
    """An lm_eval model whose forward passes run in a birdie-zmq worker process, or in the calling process.

    lm_eval creates it for ``--model birdie_zmq``. In programs, notebooks and training loops it is used as an object, as
    the ``model`` of ``lm_eval.simple_evaluate``. Three cases differ in where the model runs:

    - ``BirdieZMQ(model_tag="demo")`` starts an embedded broker and an embedded worker, and stops them in `close`.
    - ``BirdieZMQ(model_tag="demo", port=5555)``, or ``endpoint="tcp://host:port"``, connects to a running broker.
    - ``BirdieZMQ(model=…, tokenizer=…)`` evaluates a model of this process and starts no other process.

    Requests travel to the worker as text, and answers come back in the order of the requests. Use it as a context
    manager, or call `close`. Example::

        with BirdieZMQ(model_tag="demo", device="cpu") as lm:
            results = lm_eval.simple_evaluate(lm, tasks=["demo_choice"], …)

    Args:
        batch_size: The ``--batch_size`` of lm_eval. A number above 1 is the maximum number of rows per step; 1 (lm_eval's
            default), ``auto`` and None leave it to the engine.
        max_batch_size: Maximum number of rows per step.
        device: ``cpu`` or ``cuda:N``, the device of the embedded worker.
        model: A model of this process: any value that ``load_model`` of an ``api.py`` may return. It needs `tokenizer`
            and excludes `device` and the arguments ``endpoint``, ``port``, ``key_file``, ``allow_group_readable_keys``,
            ``api`` and ``status_port``.
        tokenizer: With `model`, any value that ``load_tokenizer`` of an ``api.py`` may return. Without `model`, the
            argument ``tokenizer`` of model_args.
        client_settings: Timeouts and batch sizes of the client.
        **model_args: The same keys as ``--model_args``. ``model_tag`` (or ``pretrained``), ``endpoint`` or ``port``,
            ``key_file``, ``allow_group_readable_keys``, ``api``, ``engine``, ``batch_rows``, ``resume`` and ``status_port``
            configure the run. All other keys are forwarded to ``load_model`` and ``load_tokenizer``, except ``mesh``, which
            only ``load_model`` receives, as a ``jax.sharding.Mesh``. With `model`, ``model_tag`` is the name of the model
            in results.

    Raises:
        UsageError: model_args are invalid.
        UnavailableError: No broker or no worker answers.
        NotAllowed: The broker requires a key, or rejects this one.
        ModelError: The model cannot be loaded; the worker's traceback is attached.
    """

    def __init__(
        self,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        *,
        model: Any = None,
        tokenizer: Any = None,
        client_settings: ClientSettings | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__()
        if model is not None:
            model_args = in_process_model_args(model, tokenizer, device, model_args)
        elif tokenizer is not None:
            model_args["tokenizer"] = tokenizer
        arguments = parse_model_args(model_args, batch_size=batch_size, max_batch_size=max_batch_size, device=device)
        settings = client_settings or ClientSettings()
        self._arguments: RunArguments = arguments
        self._client: Client | InProcessClient
        self._embedded: EmbeddedProcesses | None = None
        with contextlib.ExitStack() as resources:
            self._journal = None if arguments.resume is None else Journal(arguments.resume)
            if self._journal is not None:
                resources.callback(self._journal.close)
            if model is None:
                self._client, self._embedded = self._connect(arguments, client_settings, resources)
            else:
                self._client = open_in_process(arguments, model, tokenizer, settings.max_failed_items)
                resources.callback(self._client.close)
            self._description = self._client.describe()
            self._resources = resources.pop_all()
        self._resumable_client = ResumableClient(self._client, self._journal, settings)
        self._chat = ChatRenderer(
            self._client, self._description.chat, arguments.model, arguments.template_args, self._journal
        )
        logger.info(
            "%s is loaded in process %d on %s",
            arguments.model,
            self._description.process_id,
            ", ".join(self._description.devices),
        )

    def _connect(
        self, arguments: RunArguments, settings: ClientSettings | None, resources: contextlib.ExitStack
    ) -> tuple[Client, EmbeddedProcesses | None]:
        """Return the client, and the embedded processes that this model owns."""
        return connect(arguments, settings, resources)

    def update(self, params: Any = None, fingerprint: str | None = None) -> None:
        """Replace the weights of a model of this process, as in a training loop; nothing is recompiled.

        The prefix cache is cleared, since its states depend on the weights.

        Args:
            params: The new params, with the tree structure, shapes and dtypes of those passed to the constructor. None if
                the model's function reads its weights itself and they have changed.
            fingerprint: A string that identifies these weights, such as the training step. None: the weights equal no
                earlier weights.

        Raises:
            UsageError: The model runs in another process, the params have another structure, or the fingerprint that
                ``resume`` needs is missing.
        """
        if not isinstance(self._client, InProcessClient):
            raise UsageError("update() is for a model of this process, created with BirdieZMQ(model=…, tokenizer=…)")
        if self._journal is not None and fingerprint is None:
            raise UsageError(
                "update() needs a fingerprint with resume=, to store the answers of these weights separately"
            )
        self._client.update(params, fingerprint)
        self._description = self._client.describe()

    def _leave_gpus_to_worker(self) -> None:
        """Hide the GPUs from this process: a metric may import torch or jax and take memory that the worker needs.

        The embedded worker has already started, with the unchanged environment. `close` shows them again.
        """
        if self._embedded is not None:
            process_gpus.hide()
            # lm_eval does not close its models, so the end of this object counts too.
            self._resources.callback(weakref.finalize(self, process_gpus.restore))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the session with the broker, and stop the embedded broker and worker if there are any."""
        self._resources.close()

    # --- Requests ----------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation given its context, and whether greedy decoding produces it.

        Args:
            requests: Requests with the arguments ``(context, continuation)``. The context is a text or a list of messages.
            disable_tqdm: Whether to hide the progress bar.

        Returns:
            For each request, in order: the log-likelihood in nats, and whether each token of the continuation is the most
            likely one.

        Raises:
            UsageError: ``enable_thinking=True`` is set, but a log-likelihood leaves the model no tokens to think.
            BirdieError: As `birdie_zmq.client.Client.run`.
        """
        reject_thinking(requests, self._arguments)
        self._check_run(requests)
        pairs = [(context_of(request, self.apply_chat_template), str(request.args[1])) for request in requests]
        return self._run(LOGLIKELIHOOD, requests, pairs, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """Return the log-likelihood of each whole text, computed with lm_eval's rolling windows.

        Args:
            requests: Requests with the arguments ``(text,)``, or ``("", text)`` from lm_eval 0.5 on.
            disable_tqdm: Whether to hide the progress bar.

        Returns:
            The log-likelihood in nats of each text, in order; for ``("", text)``, as the pair of it and False.

        Raises:
            UsageError: Another request of the run is invalid, as in `generate_until`.
            BirdieError: As `birdie_zmq.client.Client.run`.
        """
        self._check_run(requests)
        texts = [rolling_text(request) for request in requests]
        answers = self._run(LOGLIKELIHOOD_ROLLING, requests, texts, disable_tqdm, rolling_answer)
        return [rolling_answer(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate a continuation of each prompt, cut before the first stop string.

        Decoding is greedy unless the request sets a temperature or ``do_sample=True``. Repeats of a sampled request get different answers,
        which are the same in every run with the same ``seed`` in model_args.

        Args:
            requests: Requests with the arguments ``(prompt, generation_kwargs)``. The prompt is a text or a list of messages.
            disable_tqdm: Whether to hide the progress bar.

        Returns:
            The generated text of each request, in order, without the prompt and without the model's reasoning.

        Raises:
            UnsupportedRequest: A request needs an unsupported option, such as beam search.
            UsageError: Generation kwargs are invalid, or ``--use_cache`` would return one answer for all repeats.
            BirdieError: As `birdie_zmq.client.Client.run`.
        """
        prompts = self._prompts(requests)
        self._check_run(requests)
        return self._run(GENERATE_UNTIL, requests, prompts, disable_tqdm)

    def _check_run(self, requests: Sequence[Instance]) -> None:
        """Reject all requests of the run that these belong to, before the first of them is computed.

        Raises:
            UnsupportedRequest, UsageError: As in `generate_until` and `loglikelihood`.
        """
        others = requests_of_run(requests)
        reject_thinking(others.get(LOGLIKELIHOOD.name, ()), self._arguments)
        repeated = [request for request in others.get(GENERATE_UNTIL.name, ()) for _ in range(request.repeats or 1)]
        self._prompts(repeated)

    def _prompts(self, requests: Sequence[Instance]) -> list[Prompt]:
        """Return the prompts of generation requests.

        Raises:
            UnsupportedRequest, UsageError: As in `generate_until`.
        """
        contexts = [context_of(request, self.apply_chat_template) for request in requests]
        prompts = parse_prompts(requests, contexts, self._arguments, self._description.vocab_size or 0)
        if self._cache is not None:
            reject_sampled_repeats(prompts, [request.args[1] for request in requests])
        return prompts

    def _run(
        self,
        request_type: RequestType[RequestT, AnswerT],
        requests: Sequence[Instance],
        contents: Sequence[RequestT],
        disable_tqdm: bool,
        cached_form: Callable[[Instance, Any], Any] = lambda _, answer: answer,
    ) -> list[AnswerT]:
        """Return the answers in order, and add each to lm_eval's cache in the form that lm_eval reads."""
        kind = request_type.name
        collector = AnswerCollector(len(requests), lambda item: request_name(requests[item], item))
        stream = self._resumable_client.stream(
            self._description.identity, request_type, contents, with_progress=not disable_tqdm
        )
        title = f"Running {kind} requests"
        with ProgressBar(title, len(requests), disable=disable_tqdm) as bar, contextlib.closing(stream) as events:
            for event in events:
                collector.add(event)
                match event:
                    case Deliver(items, answers):
                        for item, answer in zip(items, answers, strict=True):
                            # lm_eval's cache key is made of the unmodified arguments of the request.
                            if not is_never_cached(kind, requests[item].args):
                                answer = cached_form(requests[item], answer)
                                self.cache_hook.add_partial(kind, requests[item].args, answer)
                        bar.answered(len(items))
                    case Progress():
                        bar.progress(event)
        answers = collector.result()
        typed: list[AnswerT] = [answer for answer in answers if isinstance(answer, request_type.answer_type)]
        if len(typed) != len(answers):
            raise ProtocolError(f"the worker answered {kind} requests with answers of another type")
        return typed

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Set the hook that fills lm_eval's ``--use_cache``, and bind that cache to this model.

        Raises:
            UsageError: The cache has answers of another model, or does not record the model of its answers.
        """
        super().set_cache_hook(cache_hook)
        if self._cache is not None:
            bind_cache(self._cache, self._description.identity)

    @property
    def _cache(self) -> Any:
        """The response cache that lm_eval has opened, None without ``--use_cache``."""
        return getattr(self.cache_hook, "dbdict", None)

    # --- Chat --------------------------------------------------------------------------------------------------------

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation as a prompt.

        A template that rejects the system message gets the conversation without it, after a warning.

        Args:
            chat_history: Messages with ``role`` and ``content``.
            add_generation_prompt: Whether to end with the start of the model's turn. If not, the last message is left
                open, so that the model continues it.

        Raises:
            UsageError: The tokenizer has no chat template, or its template rejects the conversation.
            TokenizerError: The tokenizer's own ``apply_chat_template`` method failed.
        """
        return self._chat.render(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Select the chat template and return its text, which lm_eval records; a string selects a template by name."""
        if chat_template is False or chat_template is None:
            return None
        self._chat.select(None if chat_template is True else chat_template)
        if self._chat.writes_date and self._cache is not None:
            logger.warning(
                "the chat template writes the date, so --use_cache has no answers to the prompts of another day; resume=FILE "
                "in model_args keeps the date of the first run"
            )
        return self._chat.template or ""

    @property
    def tokenizer_name(self) -> str:
        """A name for the tokenizer and its chat template; lm_eval caches rendered requests under it."""
        tag, arguments = self._arguments.model.tag, canonical_json(self._arguments.model_args)
        parts = [tag, arguments, self._description.api_sha256, self._chat.template]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return f"birdie_zmq-{Path(tag).name or tag}-{digest[:16]}"

    # --- Results and metadata ----------------------------------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """Maximum number of tokens in one forward pass of the model."""
        return self._description.max_length

    @property
    def eot_token_id(self) -> int | None:
        """The token id at which generation stops, None if there is none."""
        return self._description.eos_token_id

    @property
    def batch_sizes(self) -> dict[int, int]:
        """Rows per step, for each step length in tokens that was used."""
        return {length: rows for rows, length in self._description.report.shapes}

    def get_model_info(self) -> dict[str, Any]:
        """Return the metadata that a results file needs to reproduce the run, and its statistics.

        The keys cover model, arguments, weights, devices, versions and computation. lm_eval calls it after the last
        answer, so an error of the worker is logged and not raised: the answers must not be lost.
        """
        try:
            self._description = self._client.describe()
        except BirdieError as error:
            logger.warning("the worker's final statistics are not available, results contain earlier ones: %s", error)
        description = self._description
        logger.info("%s: %s", description.model, format_statistics(description.report))
        if self._client.retries:
            logger.info("retried work %d times after a worker died", self._client.retries)
        return {
            **model_record(description, self._arguments.model_args),
            "model_steps": statistics_record(description.report),
            "model_losses": self._client.retries,
            "model_switches": self._client.model_switches,
            "model_resumed_answers": self._resumable_client.resumed,
        }
