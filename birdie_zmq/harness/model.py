"""The model class of lm_eval's ``--model birdie_zmq``: it sends requests over ZeroMQ and returns answers in order.

It imports neither jax nor torch. With ``port=`` or ``endpoint=`` in model_args it connects to a running broker. Without
them it starts an embedded broker and worker and stops them at the end of the run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jinja2
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook

from birdie_zmq.client import Client
from birdie_zmq.client.batching import Prompt, assign_random_keys, generate_jobs, loglikelihood_jobs, rolling_jobs
from birdie_zmq.client.core import Job
from birdie_zmq.client.embedded import CONNECT_S, EmbeddedProcesses
from birdie_zmq.client.journal import Journal
from birdie_zmq.client.resume import ResumableClient
from birdie_zmq.errors import BirdieError, ProtocolError, UsageError
from birdie_zmq.generation_options import tokens_outside
from birdie_zmq.harness.chat_template import render, select_template
from birdie_zmq.harness.generation_kwargs import parse_generation_params
from birdie_zmq.harness.model_args import RunArguments, parse_model_args
from birdie_zmq.harness.preflight import requests_of_run
from birdie_zmq.harness.progress_bar import ProgressBar
from birdie_zmq.harness.response_cache import bind_cache, is_never_cached, reject_sampled_repeats
from birdie_zmq.harness.run_report import format_statistics, statistics_record
from birdie_zmq.inprocess.client import InProcessClient
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import Answer, ChatWork, GenerationParams
from birdie_zmq.worker.devices import VISIBLE_DEVICES, device_of_lm_eval

logger = logging.getLogger("lm_eval.birdie_zmq")

AnswerT = TypeVar("AnswerT", tuple[float, bool], float, str)
ItemT = TypeVar("ItemT")


class BirdieZMQ(LM):
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
            and excludes `device` and the arguments ``endpoint``, ``port``, ``key_file``, ``api`` and ``status_port``.
        tokenizer: With `model`, any value that ``load_tokenizer`` of an ``api.py`` may return. Without `model`, the
            argument ``tokenizer`` of model_args.
        client_settings: Timeouts and batch sizes of the client.
        **model_args: The same keys as ``--model_args``. ``model_tag`` (or ``pretrained``), ``endpoint`` or ``port``,
            ``key_file``, ``api``, ``engine``, ``batch_rows``, ``resume`` and ``status_port`` configure the run. All other
            keys are forwarded to ``load_model`` and ``load_tokenizer``, except ``mesh``, which only ``load_model``
            receives, as a ``jax.sharding.Mesh``. With `model`, ``model_tag`` is the name of the model in results.

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
            model_args = _in_process_model_args(model, tokenizer, device, model_args)
        elif tokenizer is not None:
            model_args["tokenizer"] = tokenizer
        self._arguments: RunArguments = parse_model_args(
            model_args, batch_size=batch_size, max_batch_size=max_batch_size, device=device
        )
        self._settings = client_settings or ClientSettings()
        resume = self._arguments.resume
        self._journal = None if resume is None else Journal(resume, log=logger)
        self._embedded: EmbeddedProcesses | None = None
        try:
            self._client = (
                self._connect(device, client_settings) if model is None else self._in_process_client(model, tokenizer)
            )
            try:
                self._description = self._client.describe()
            except BaseException:
                self._client.close()
                raise
        except BaseException:
            self._release()
            raise
        self._resumable_client = ResumableClient(self._client, self._journal, self._settings, logger)
        logger.info(
            "%s is loaded in process %d on %s",
            self._arguments.model,
            self._description.process_id,
            ", ".join(self._description.devices),
        )

    def _connect(self, device: str | None, client_settings: ClientSettings | None) -> Client:
        """Return a client of the broker in model_args, or of an embedded broker."""
        arguments = self._arguments
        endpoint = arguments.endpoint
        if endpoint is None:
            verbose = logger.isEnabledFor(logging.DEBUG)
            # lm_eval fills in one GPU if --device is not given, but a mesh needs to see all GPUs.
            worker_device = None if arguments.mesh is not None and device != "cpu" else device_of_lm_eval(device)
            self._embedded = EmbeddedProcesses(
                arguments.api, worker_device, verbose, arguments.engine, arguments.status_port
            )
            endpoint = self._embedded.endpoint
            if client_settings is None:
                self._settings = ClientSettings(connect_s=CONNECT_S)
        return Client(
            endpoint,
            arguments.model,
            arguments.limits,
            self._settings,
            supervisor=self._embedded,
            log=logger,
            key_file=arguments.key_file,
        )

    def _in_process_client(self, model: Any, tokenizer: Any) -> InProcessClient:
        """Return a client of a model of this process."""
        arguments, max_failed_items = self._arguments, self._settings.max_failed_items
        client = InProcessClient(
            arguments.model, model, tokenizer, arguments.limits, max_failed_items, arguments.engine, logger
        )
        if self._journal is not None and not client.has_fingerprint:
            raise UsageError(
                "resume= stores answers for later runs, which must know that the weights are the same: pass "
                "birdie_zmq.Model(…, fingerprint=…)"
            )
        return client

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

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """Create the model for lm_eval, and leave the GPUs to the embedded worker."""
        return super().create_from_arg_obj(arg_dict, additional_config)._hide_gpus()

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """Create the model for lm_eval from ``a=b,c=d``, as `create_from_arg_obj` does."""
        return super().create_from_arg_string(arg_string, additional_config)._hide_gpus()

    def _hide_gpus(self) -> Self:
        """Hide the GPUs from this process: a metric may import torch or jax and take memory that the worker needs.

        The embedded worker has already started, with the unchanged environment.
        """
        if self._embedded is not None:
            for variable in VISIBLE_DEVICES:
                os.environ[variable] = ""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the session with the broker, and stop the embedded broker and worker if there are any."""
        self._client.close()
        self._release()

    def _release(self) -> None:
        if self._journal is not None:
            self._journal.close()
        if self._embedded is not None:
            self._embedded.close()

    # --- Requests ----------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation given its context, and whether greedy decoding produces it.

        Args:
            requests: Requests with the arguments ``(context, continuation)``.
            disable_tqdm: Whether to hide the progress bar.

        Returns:
            For each request, in order: the log-likelihood in nats, and whether each token of the continuation is the most
            likely one.

        Raises:
            UsageError: ``enable_thinking=True`` is set, but a log-likelihood leaves the model no tokens to think.
            BirdieError: As `birdie_zmq.client.Client.run`.
        """
        self._reject_thinking(requests)
        self._check_run(requests)
        pairs = [(str(request.args[0]), str(request.args[1])) for request in requests]
        return self._run("loglikelihood", requests, pairs, loglikelihood_jobs, tuple, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, computed with lm_eval's rolling windows.

        Args:
            requests: Requests with the arguments ``(text,)``.
            disable_tqdm: Whether to hide the progress bar.

        Returns:
            The log-likelihood in nats of each text, in order.

        Raises:
            UsageError: Another request of the run is invalid, as in `generate_until`.
            BirdieError: As `birdie_zmq.client.Client.run`.
        """
        self._check_run(requests)
        texts = [str(request.args[0]) for request in requests]
        return self._run("loglikelihood_rolling", requests, texts, rolling_jobs, float, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate a continuation of each prompt, cut before the first stop string.

        Decoding is greedy unless the request sets a temperature or ``do_sample=True``. Repeats of a sampled request get different answers,
        which are the same in every run with the same ``seed`` in model_args.

        Args:
            requests: Requests with the arguments ``(prompt, generation_kwargs)``.
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
        return self._run("generate_until", requests, prompts, generate_jobs, str, disable_tqdm)

    def _check_run(self, requests: Sequence[Instance]) -> None:
        """Reject all requests of the run that these belong to, before the first of them is computed.

        Raises:
            UnsupportedRequest, UsageError: As in `generate_until` and `loglikelihood`.
        """
        others = requests_of_run(requests)
        self._reject_thinking(others.get("loglikelihood", ()))
        repeated = [request for request in others.get("generate_until", ()) for _ in range(request.repeats or 1)]
        self._prompts(repeated)

    def _reject_thinking(self, requests: Sequence[Instance]) -> None:
        """Reject log-likelihoods if the model is to think.

        Raises:
            UsageError: ``enable_thinking=True`` is set, and there are requests.
        """
        if self._arguments.enable_thinking and requests:
            tasks = ", ".join(sorted({request.task_name for request in requests if request.task_name}))
            raise UsageError(
                f"enable_thinking=True is for tasks that generate text; these score log-likelihoods: {tasks}"
            )

    def _prompts(self, requests: Sequence[Instance]) -> list[Prompt]:
        """Return the prompts of generation requests.

        Raises:
            UnsupportedRequest, UsageError: As in `generate_until`.
        """
        arguments = self._arguments
        vocab_size = self._description.vocab_size or 0
        parsed: dict[str, GenerationParams] = {}  # the requests of a task have equal generation_kwargs
        items = []
        for request in requests:
            content = repr(request.args[1])
            if content not in parsed:
                params = parse_generation_params(request.args[1], arguments.max_gen_toks, arguments.think_end_token)
                if outside := tokens_outside(params, vocab_size):
                    raise UsageError(
                        f"generation_kwargs name {outside}, but the model has logits for {vocab_size} tokens only"
                    )
                parsed[content] = params
            items.append((str(request.args[0]), parsed[content]))
        prompts = assign_random_keys(items, arguments.seed)
        if self._cache is not None:
            reject_sampled_repeats(prompts, [request.args[1] for request in requests])
        return prompts

    def _run(
        self,
        kind: str,
        requests: Sequence[Instance],
        items: Sequence[ItemT],
        make_jobs: Callable[[Sequence[ItemT], ClientSettings], Iterable[Job]],
        answer_type: type[AnswerT],
        disable_tqdm: bool,
    ) -> list[AnswerT]:
        with ProgressBar(f"Running {kind} requests", len(requests), disable=disable_tqdm) as bar:

            def on_answer(item: int, answer: Answer) -> None:
                # lm_eval's cache key is made of the unmodified arguments of the request.
                if not is_never_cached(kind, requests[item].args):
                    self.cache_hook.add_partial(kind, requests[item].args, answer)
                bar.answered()

            def name_of(item: int) -> str:
                request = requests[item]
                return f"document {request.doc_id} of {request.task_name}" if request.task_name else f"request {item}"

            identity = self._description.identity
            answers = self._resumable_client.run(
                identity, kind, items, make_jobs, answer_type, on_answer, name_of, bar.progress
            )
        typed: list[AnswerT] = [answer for answer in answers if isinstance(answer, answer_type)]
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
        try:
            return self._render(chat_history, add_generation_prompt)
        except jinja2.TemplateError as error:
            without_system = [message for message in chat_history if message["role"] != "system"]
            if len(without_system) == len(chat_history):
                raise UsageError(f"the chat template rejects a conversation: {error}") from error
            logger.warning("the chat template rejects the system message, which is left out: %s", error)
            return self._render(without_system, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Select the chat template and return its text, which lm_eval records; a string selects a template by name."""
        if chat_template is False or chat_template is None:
            return None
        self._template = self._select_template(None if chat_template is True else chat_template)
        return self._template or ""

    @property
    def tokenizer_name(self) -> str:
        """A name for the tokenizer and its chat template; lm_eval caches rendered requests under it."""
        spec = self._arguments.model
        chat = json.dumps([spec.tag, spec.arguments, self._description.api_sha256, self._template], sort_keys=True)
        readable = Path(spec.tag).name or spec.tag
        return f"birdie_zmq-{readable}-{hashlib.sha256(chat.encode()).hexdigest()[:16]}"

    @functools.cached_property
    def _template(self) -> str | None:
        return self._select_template(None)

    def _select_template(self, name: str | None) -> str | None:
        """Return one of the tokenizer's templates; None if the tokenizer has a method instead."""
        return select_template(self._description.chat, name, self._arguments.model)

    def _render(self, conversation: list[dict[str, str]], add_generation_prompt: bool) -> str:
        template = self._template
        if template is not None:
            special = self._description.chat.special_tokens
            return render(
                template,
                conversation,
                special,
                add_generation_prompt=add_generation_prompt,
                template_args=self._arguments.template_args,
            )
        work = ChatWork(
            conversations=[conversation],
            add_generation_prompt=add_generation_prompt,
            template_args=json.dumps(self._arguments.template_args, sort_keys=True),
        )
        (text,) = self._client.run([Job(work, [0])], 1)
        return str(text)

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
        report = description.report
        logger.info("%s: %s", description.model, format_statistics(report))
        if self._client.retries:
            logger.info("retried work %d times after a worker died", self._client.retries)
        return {
            "model_tag": description.model.tag,
            "model_keywords": json.loads(description.model.arguments),
            "model_identity": description.identity,
            "model_api": description.api,
            "model_api_sha256": description.api_sha256,
            "model_num_parameters": description.num_parameters,
            "model_dtype": description.dtype,
            "model_vocab_size": description.vocab_size,
            "model_max_length": description.max_length,
            "model_devices": description.devices,
            "model_engine": description.engine,
            "model_versions": description.versions,
            "model_steps": statistics_record(report),
            "model_losses": self._client.retries,
            "model_switches": self._client.model_switches,
            "model_resumed_answers": self._resumable_client.resumed,
        }


def _in_process_model_args(
    model: Any, tokenizer: Any, device: str | None, model_args: dict[str, Any]
) -> dict[str, Any]:
    """Return the model_args for a model of this process.

    Raises:
        UsageError: The tokenizer is missing, or an argument concerns other processes.
    """
    if isinstance(model, str):
        raise UsageError(f"model= takes a model of this process; to load one with an api.py, pass model_tag={model}")
    if tokenizer is None:
        raise UsageError("model= needs tokenizer=: any value that load_tokenizer of an api.py may return")
    process_args = ("endpoint", "port", "key_file", "api", "status_port")
    excluded: list[str] = [name for name in process_args if name in model_args]
    excluded += [] if device is None else ["device"]
    if excluded:
        raise UsageError(f"{', '.join(excluded)} cannot be used with model=: the model runs in this process")
    return model_args if {"model_tag", "pretrained"} & model_args.keys() else {"model_tag": "in-process", **model_args}
