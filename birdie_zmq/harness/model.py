"""The model class of lm_eval's ``--model birdie_zmq``: requests out over ZeroMQ, answers back in order.

It imports neither jax nor torch. With ``port=`` or ``endpoint=`` in model_args it talks to a broker that runs already;
with neither it starts a broker and a worker of its own and ends them with the run.
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
from birdie_zmq.client.batching import generate_jobs, keyed, loglikelihood_jobs, rolling_jobs
from birdie_zmq.client.client import Answer
from birdie_zmq.client.core import Job
from birdie_zmq.client.embedded import CONNECT_S, EmbeddedProcesses
from birdie_zmq.client.journal import Journal
from birdie_zmq.client.resume import ResumableClient
from birdie_zmq.errors import BirdieError, ProtocolError, UsageError
from birdie_zmq.harness.chat_template import choose, render
from birdie_zmq.harness.generation_kwargs import read_settings
from birdie_zmq.harness.model_args import RunArguments, read_arguments
from birdie_zmq.harness.progress_bar import ProgressBar
from birdie_zmq.harness.response_cache import claim, is_passed_over, refuse_repeats
from birdie_zmq.harness.run_report import as_record, as_text
from birdie_zmq.inprocess.client import InProcessClient
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import ChatWork
from birdie_zmq.worker.devices import VISIBLE_DEVICES, device_of_lm_eval

logger = logging.getLogger("lm_eval.birdie_zmq")

A = TypeVar("A", tuple[float, bool], float, str)
C = TypeVar("C")


class BirdieZMQ(LM):
    """A language model in another process, or one of this process that is given as it is.

    Args:
        batch_size: As lm_eval passes it: a number above 1 is the most rows of a step.
        max_batch_size: The most rows of a step.
        device: ``cpu`` or ``cuda:N``, for the worker that the run starts.
        model: A model of this process, for use inside a program that has one: whatever a page's ``load_model`` may
            return. Then no other process is started.
        tokenizer: Beside `model`, whatever a page's ``load_tokenizer`` may return; else one of the model_args.
        client_settings: Timeouts and the size of batches.
        **model_args: ``model_tag`` (or ``pretrained``), ``endpoint`` or ``port``, ``key_file``, ``api``,
            ``engine``, ``batch_rows``, ``resume``, ``status_port``; everything else reaches ``load_model`` and
            ``load_tokenizer``, ``mesh`` as a `jax.sharding.Mesh` that only ``load_model`` is given. Beside
            `model`, ``model_tag`` is what results call it.

    Raises:
        UsageError: model_args cannot be used as given.
        UnavailableError: No broker or no worker answers.
        NotAllowed: The broker wants a key, or another one.
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
            model_args = _beside_a_model(model, tokenizer, device, model_args)
        elif tokenizer is not None:
            model_args["tokenizer"] = tokenizer
        self._arguments: RunArguments = read_arguments(
            model_args, batch_size=batch_size, max_batch_size=max_batch_size, device=device
        )
        self._settings = client_settings or ClientSettings()
        resume = self._arguments.resume
        self._journal = None if resume is None else Journal(resume, log=logger)
        self._embedded: EmbeddedProcesses | None = None
        try:
            self._client = self._served(device, client_settings) if model is None else self._here(model, tokenizer)
            try:
                self._description = self._client.describe()
            except BaseException:
                self._client.close()
                raise
        except BaseException:
            self._let_go()
            raise
        self._asking = ResumableClient(self._client, self._journal, self._settings, logger)
        logger.info(
            "%s is loaded in process %d on %s",
            self._arguments.model,
            self._description.process_id,
            ", ".join(self._description.devices),
        )

    def _served(self, device: str | None, given: ClientSettings | None) -> Client:
        """A client of the broker that model_args name, or of one of the run's own."""
        arguments = self._arguments
        endpoint = arguments.endpoint
        if endpoint is None:
            verbose = logger.isEnabledFor(logging.DEBUG)
            # lm_eval names one GPU where nobody named any, and a mesh wants to see all of them.
            one = None if arguments.mesh is not None and device != "cpu" else device_of_lm_eval(device)
            self._embedded = EmbeddedProcesses(arguments.api, one, verbose, arguments.engine, arguments.status_port)
            endpoint = self._embedded.endpoint
            if given is None:
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

    def _here(self, model: Any, tokenizer: Any) -> InProcessClient:
        """A model of this process."""
        arguments, most_failures = self._arguments, self._settings.max_failed_items
        client = InProcessClient(
            arguments.model, model, tokenizer, arguments.limits, most_failures, arguments.engine, logger
        )
        if self._journal is not None and not client.has_fingerprint:
            raise UsageError(
                "resume= keeps answers for a later run, which must be told that the weights are the same: give "
                "birdie_zmq.Model(…, fingerprint=…)"
            )
        return client

    def update(self, params: Any = None, fingerprint: str | None = None) -> None:
        """Go on with other weights of the same form, as in a training loop: nothing is compiled anew.

        Args:
            params: The new params of a model that was given to the constructor with params; None where its function sees
                its own weights, which have changed.
            fingerprint: What tells them from others; None says that they are like none before.

        Raises:
            UsageError: The model is in another process, or the params have another form.
        """
        if not isinstance(self._client, InProcessClient):
            raise UsageError("update() is for a model of this process, as BirdieZMQ(model=…, tokenizer=…) takes one")
        if self._journal is not None and fingerprint is None:
            raise UsageError(
                "update() needs a fingerprint here, by which resume= keeps the answers of these weights apart"
            )
        self._client.update(params, fingerprint)
        self._description = self._client.describe()

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """As lm_eval builds a model by name: the GPUs then belong to the worker, not to this process."""
        return super().create_from_arg_obj(arg_dict, additional_config)._without_gpus()

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """As `create_from_arg_obj`, from ``a=b,c=d``."""
        return super().create_from_arg_string(arg_string, additional_config)._without_gpus()

    def _without_gpus(self) -> Self:
        """Hide the GPUs from this process, where metrics may import torch or jax and take what the worker needs.

        The worker has the environment as it was before.
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
        """End the session, and the broker and worker if they are the run's own."""
        self._client.close()
        self._let_go()

    def _let_go(self) -> None:
        if self._journal is not None:
            self._journal.close()
        if self._embedded is not None:
            self._embedded.close()

    # --- Requests ----------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation after its context, and whether greedy decoding gives it.

        Raises:
            UsageError: The model was told to think, which a log-likelihood does not let it do.
            BirdieError: As `birdie_zmq.client.Client.run`.
        """
        if self._arguments.thinks:
            tasks = ", ".join(sorted({request.task_name for request in requests if request.task_name}))
            raise UsageError(
                f"enable_thinking=True is for tasks that generate; a log-likelihood leaves no room to think ({tasks})"
            )
        pairs = [(str(request.args[0]), str(request.args[1])) for request in requests]
        return self._run("loglikelihood", requests, pairs, loglikelihood_jobs, tuple, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of each whole text, by lm_eval's rolling windows.

        Raises:
            BirdieError: As `birdie_zmq.client.Client.run`.
        """
        texts = [str(request.args[0]) for request in requests]
        return self._run("loglikelihood_rolling", requests, texts, rolling_jobs, float, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each prompt, cut at the first stop string.

        It is greedy unless a temperature is asked for. A request that is repeated and sampled has different answers,
        the same in every run with the same ``seed`` in model_args.

        Raises:
            UnsupportedRequest: A request asks for what this model cannot do, such as beam search.
            UsageError: Its settings contradict themselves, or ``--use_cache`` would give repeats one answer.
            BirdieError: As `birdie_zmq.client.Client.run`.
        """
        most, end = self._arguments.max_gen_toks, self._arguments.think_end_token
        asked = [(str(request.args[0]), read_settings(request.args[1], most, end)) for request in requests]
        prompts = keyed(asked, self._arguments.seed)
        if self._cache is not None:
            refuse_repeats(prompts, [request.args[1] for request in requests])
        return self._run("generate_until", requests, prompts, generate_jobs, str, disable_tqdm)

    def _run(
        self,
        kind: str,
        requests: Sequence[Instance],
        asked: Sequence[C],
        jobs_of: Callable[[Sequence[C], ClientSettings], Iterable[Job]],
        expected: type[A],
        disable_tqdm: bool,
    ) -> list[A]:
        with ProgressBar(f"Running {kind} requests", len(requests), disable=disable_tqdm) as bar:

            def on_answer(item: int, answer: Answer) -> None:
                # The key of lm_eval's cache is the request's own arguments, untouched.
                if not is_passed_over(kind, requests[item].args):
                    self.cache_hook.add_partial(kind, requests[item].args, answer)
                bar.answered()

            def name_of(item: int) -> str:
                request = requests[item]
                return f"document {request.doc_id} of {request.task_name}" if request.task_name else f"request {item}"

            identity = self._description.identity
            answers = self._asking.run(identity, kind, asked, jobs_of, expected, on_answer, name_of, bar.progress)
        fitting: list[A] = [answer for answer in answers if isinstance(answer, expected)]
        if len(fitting) != len(answers):
            raise ProtocolError(f"the worker answered {kind} requests with another kind of answer")
        return fitting

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """As lm_eval hands over its ``--use_cache``, which from then on is this model's.

        Raises:
            UsageError: The cache has answers of another model, or does not say of which.
        """
        super().set_cache_hook(cache_hook)
        if self._cache is not None:
            claim(self._cache, self._description.identity)

    @property
    def _cache(self) -> Any:
        """The cache that lm_eval has opened, None if there is none."""
        return getattr(self.cache_hook, "dbdict", None)

    # --- Chat --------------------------------------------------------------------------------------------------------

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt for a conversation; without a generation prompt the last message is left open.

        Raises:
            UsageError: The tokenizer has no template.
            TokenizerError: Its own method failed.
        """
        try:
            return self._render(chat_history, add_generation_prompt)
        except jinja2.TemplateError as error:
            without = [message for message in chat_history if message["role"] != "system"]
            if len(without) == len(chat_history):
                raise UsageError(f"the chat template refuses a conversation: {error}") from error
            logger.warning("the chat template refuses the system message, which is left out: %s", error)
            return self._render(without, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that is used, which lm_eval records; a string picks one by its name."""
        if chat_template is False or chat_template is None:
            return None
        self._template = self._choose(None if chat_template is True else chat_template)
        return self._template or ""

    @property
    def tokenizer_name(self) -> str:
        """A name for the tokenizer and its template, under which lm_eval caches rendered requests."""
        spec = self._arguments.model
        chat = json.dumps([spec.tag, spec.arguments, self._description.api_sha256, self._template], sort_keys=True)
        readable = Path(spec.tag).name or spec.tag
        return f"birdie_zmq-{readable}-{hashlib.sha256(chat.encode()).hexdigest()[:16]}"

    @functools.cached_property
    def _template(self) -> str | None:
        return self._choose(None)

    def _choose(self, name: str | None) -> str | None:
        """One of the tokenizer's templates; None where a method of its own is to be called."""
        return choose(self._description.chat, name, self._arguments.model)

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

    # --- What results record -----------------------------------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """The most tokens that the model reads at once."""
        return self._description.max_length

    @property
    def eot_token_id(self) -> int | None:
        """The token at which generation stops."""
        return self._description.eos_token_id

    @property
    def batch_sizes(self) -> dict[int, int]:
        """The rows of a step for each length in tokens that was used."""
        return {length: rows for rows, length in self._description.report.shapes}

    def get_model_info(self) -> dict[str, Any]:
        """What is needed to do this again: model, arguments, weights, devices, versions, and what was computed.

        lm_eval asks for it when all has been answered: nothing that goes wrong here may cost the answers.
        """
        try:
            self._description = self._client.describe()
        except BirdieError as error:
            logger.warning(
                "what the worker has computed is not known, and results say what was known before: %s", error
            )
        description = self._description
        report = description.report
        logger.info("%s: %s", description.model, as_text(report))
        if self._client.retries:
            logger.info("what was being computed was lost and done again %d times", self._client.retries)
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
            "model_steps": as_record(report),
            "model_losses": self._client.retries,
            "model_switches": self._client.model_switches,
            "model_resumed_answers": self._asking.resumed,
        }


def _beside_a_model(model: Any, tokenizer: Any, device: str | None, model_args: dict[str, Any]) -> dict[str, Any]:
    """model_args for a model of this process.

    Raises:
        UsageError: Something is missing, or is said that only means something for another process.
    """
    if isinstance(model, str):
        raise UsageError(f"model= takes a model of this process; to name one that a page loads, say model_tag={model}")
    if tokenizer is None:
        raise UsageError("model= needs tokenizer= beside it: whatever load_tokenizer of a page may return")
    processes = ("endpoint", "port", "key_file", "api", "status_port")
    elsewhere: list[str] = [name for name in processes if name in model_args]
    elsewhere += [] if device is None else ["device"]
    if elsewhere:
        raise UsageError(f"{', '.join(elsewhere)} beside model= mean nothing: the model is in this process")
    return model_args if {"model_tag", "pretrained"} & model_args.keys() else {"model_tag": "in-process", **model_args}
