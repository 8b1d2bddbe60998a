"""The generation options of transformers and vLLM: which are computed, which are rejected, and which change no text.

The tables cover transformers' ``GenerationConfig`` (5.24) with the further arguments of its ``generate``, and vLLM's
``SamplingParams``. A task's ``generation_kwargs`` and a checkpoint's ``generation_config.json`` are read by the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from birdie_zmq.types import GenerationParams, LogitsParams, SamplingParams

SAMPLING_OPTIONS = frozenset(field.name for field in msgspec.structs.fields(SamplingParams))
"""Options of sampled requests; greedy requests ignore them."""

LENGTH_OPTIONS = frozenset({"max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"})
"""The names of the maximum number of generated tokens; the first one is lm_eval's."""

_SAME_AS: Mapping[str, str] = MappingProxyType({"min_tokens": "min_new_tokens"})
"""Options of vLLM that transformers has under another name."""

LOGITS_OPTIONS = frozenset(field.name for field in msgspec.structs.fields(LogitsParams)) | _SAME_AS.keys()
"""Options that are computed by changing logits or EOS tokens."""

COMPUTED = LENGTH_OPTIONS | SAMPLING_OPTIONS | LOGITS_OPTIONS | {"until", "do_sample"}
"""All options that are computed."""

UNSUPPORTED: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        # The length and the search, in transformers
        "max_length": (),
        "max_time": (),
        "stop_strings": ("", []),
        "num_beams": (1,),
        "num_return_sequences": (1,),
        "num_beam_groups": (1,),
        "diversity_penalty": (0,),
        "constraints": ([],),
        "force_words_ids": ([],),
        "penalty_alpha": (0,),
        "dola_layers": (),
        "guidance_scale": (1,),
        "token_healing": (False,),
        "assistant_ensemble_weight": (0,),
        # Logits, in transformers
        "top_h": (),
        "typical_p": (1,),
        "epsilon_cutoff": (0,),
        "eta_cutoff": (0,),
        "encoder_repetition_penalty": (1,),
        "no_repeat_ngram_size": (0,),
        "encoder_no_repeat_ngram_size": (0,),
        "forced_bos_token_id": (),
        "forced_eos_token_id": (),
        "remove_invalid_values": (False,),
        "exponential_decay_length_penalty": (),
        "watermarking_config": (),
        # Arguments of transformers' generate
        "generation_config": (),
        "logits_processor": ([],),
        "stopping_criteria": ([],),
        "prefix_allowed_tokens_fn": (),
        "assistant_model": (),
        "negative_prompt_ids": (),
        "negative_prompt_attention_mask": (),
        "custom_generate": (),
        "use_model_defaults": (True,),
        # vLLM
        "n": (1,),
        "best_of": (1,),
        "use_beam_search": (False,),
        "seed": (),
        "stop": ("", []),
        "include_stop_str_in_output": (False,),
        "skip_special_tokens": (True,),
        "bad_words": ([],),
        "allowed_token_ids": (),
        "logits_processors": ([],),
        "truncate_prompt_tokens": (-1,),
        "structured_outputs": (),
        "guided_decoding": (),
        "guided_json": (),
        "guided_regex": (),
        "guided_choice": ([],),
        "guided_grammar": (),
        "response_format": (),
        "thinking_token_budget": (),
        "repetition_detection": (),
        "extra_args": ({},),
    }
)
"""Options that change the text and are rejected, each with the values, beside None, that change nothing."""

INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "max_length": "set the number of generated tokens with max_gen_toks=N",
        "stop_strings": "set stop strings with until",
        "stop": "set stop strings with until",
        "allowed_token_ids": "forbid the other tokens with suppress_tokens",
        "bad_words": "forbid single tokens with bad_words_ids",
        "seed": "set seed=N in model_args",
    }
)
"""What to use instead of an unsupported option."""

_SAMPLING_ONLY = frozenset({"top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "seed"})
"""Unsupported options that do not change greedy texts."""

NO_EFFECT = frozenset(
    {
        # Caches, compilation and speculative decoding in transformers, which change the time and not the text
        "use_cache",
        "cache_implementation",
        "cache_config",
        "max_cache_len",
        "use_mtp",
        "is_assistant",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_lookbehind",
        "target_lookbehind",
        "prompt_lookup_num_tokens",
        "max_matching_ngram_size",
        "speculation_type",
        "compile_config",
        "disable_compile",
        "continuous_batching_config",
        "low_memory",
        "prefill_chunk_size",
        "synced_gpus",
        # What transformers returns, and tokens that a decoder-only model with a prompt does not use
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "streamer",
        "pad_token_id",
        "bos_token_id",
        "decoder_start_token_id",
        "transformers_version",
        "_from_model_config",
        "tokenizer",
        # For beam search only, which num_beams rejects; and a normalisation that changes no order
        "early_stopping",
        "length_penalty",
        "renormalize_logits",
        # vLLM
        "logprobs",
        "prompt_logprobs",
        "flat_logprobs",
        "detokenize",
        "spaces_between_special_tokens",
        "output_kind",
        "skip_clone",
        "skip_reading_prefix_cache",
    }
)
"""Options that do not change the text of an answer; they are accepted and ignored."""


class UnsupportedOption(ValueError):
    """An option has a value that is not computed, such as the bias of a sequence of several tokens."""


def is_neutral(name: str, value: object, *, sampled: bool) -> bool:
    """Return whether a value of an unsupported option changes no text.

    Args:
        name: A name in `UNSUPPORTED`.
        value: The value.
        sampled: Whether the request samples tokens.
    """
    if value is None or (name in _SAMPLING_ONLY and not sampled):
        return True
    return any(value == neutral for neutral in UNSUPPORTED[name])


def read_logits_option(name: str, value: Any) -> tuple[str, Any]:
    """Return the field of `LogitsParams` that an option sets, and its value for that field.

    Args:
        name: A name in `LOGITS_OPTIONS`.
        value: A value in the form of transformers or vLLM, not None.

    Raises:
        UnsupportedOption: A bias or a bad word has several tokens.
        ValueError: The value is invalid; the message names the option and the value.
    """
    field = _SAME_AS.get(name, name)
    try:
        prepared = _PREPARE.get(field, _unchanged)(value)
        record = msgspec.convert({field: prepared}, LogitsParams, strict=False)
    except UnsupportedOption as error:
        raise UnsupportedOption(f"{name}={value!r} {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{name}={value!r} is invalid: {error}") from None
    return field, getattr(record, field)


def largest_token_ids(params: LogitsParams) -> dict[str, int]:
    """Return the largest token id that each option names, for the options that name one."""
    found: dict[str, int] = {}
    for name in ("eos_token_id", "stop_token_ids", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"):
        if ids := getattr(params, name):
            found[name] = max(ids)
    for name in ("sequence_bias", "logit_bias"):
        if biases := getattr(params, name):
            found[name] = max(id for id, _ in biases)
    return found


def tokens_outside(settings: GenerationParams, vocab_size: int) -> str:
    """Describe the tokens that generation parameters name and the vocabulary does not have; empty if there are none.

    Args:
        settings: The generation parameters.
        vocab_size: The number of tokens; 0 if it is unknown.
    """
    outside = {
        name: id
        for name, id in largest_token_ids(settings.logits or LogitsParams()).items()
        if vocab_size and id >= vocab_size
    }
    return ", ".join(f"the token {id} in {name}" for name, id in outside.items())


# --- The forms of values ---------------------------------------------------------------------------------------------


def _unchanged(value: Any) -> Any:
    return value


def _ids(value: Any) -> list[Any]:
    """Return a list of ids; a single id is a list of one."""
    return [value] if isinstance(value, int | str) else list(value)


def _single(sequence: Any) -> Any:
    """Return the only token of a sequence."""
    tokens = _ids(sequence)
    if len(tokens) > 1:
        raise UnsupportedOption("has a sequence of several tokens; only single tokens are supported")
    return tokens[0] if tokens else _no_token()


def _no_token() -> Any:
    raise ValueError("a sequence has no token")


def _bad_words(value: Any) -> list[Any]:
    return [_single(sequence) for sequence in value]


def _biases(value: Any) -> list[tuple[Any, Any]]:
    """Return pairs of a token and its bias, from a mapping or from a list of ``[tokens, bias]``."""
    pairs = value.items() if isinstance(value, Mapping) else [(tokens, bias) for tokens, bias in value]
    # A mapping keeps the last bias of a token, as transformers does with a list.
    return sorted({int(_single(tokens)): bias for tokens, bias in pairs}.items())


_PREPARE: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "eos_token_id": _ids,
        "stop_token_ids": _ids,
        "suppress_tokens": _ids,
        "begin_suppress_tokens": _ids,
        "bad_words_ids": _bad_words,
        "sequence_bias": _biases,
        "logit_bias": _biases,
    }
)
