"""Your models: edit this file to evaluate a model of your own.

``python -m workers.jax_worker``, started in this directory, calls the two functions below when an evaluation requests a
model. For example,

    lm_eval --model birdie_zmq --model_args model_tag=mine,size=small,port=5555 --tasks arc_easy

calls ``load_model("mine", size="small")`` and ``load_tokenizer("mine", size="small")``. Both receive every argument of
``--model_args`` except those that say where and how to run (``endpoint``, ``port``, ``api``, ``engine``,
``batch_rows``). ``mesh=data:2/model:4`` reaches only ``load_model``, as a ``jax.sharding.Mesh``
(docs/how_to/many_devices.md).

When an evaluation requests another tag or other arguments, the process that holds the model ends, which frees all of
its memory, and a new process calls these functions again. Arguments that concern requests only, such as ``seed``, are an
exception as long as ``REQUEST_ARGUMENTS`` below names them: they do not reach the functions, and another value of them
does not load the model again (docs/how_to/your_model.md).

``load_model`` returns one of:

- A function ``logits(tokens)``: int32[batch, length] in, float[batch, length, vocabulary] out. The logits at a position
  predict the next token. Rows are padded on the right, so a causal model needs no mask. It is called as it is: jit it
  yourself.
- A pair ``(logits, params)`` with ``logits(params, tokens)``. It is jitted for you.
- A ``birdie_zmq.Model``, which names these and more: ``max_length``, ``vocab_size``, and optional functions that let
  the engine compute less (``hidden``, ``unembed``, ``init_state``, ``extend``, ``branch``), or ``score`` for a model
  that is not a plain causal decoder. docs/how_to/your_model.md has examples.

``load_tokenizer`` returns a transformers tokenizer, a ``tokenizers.Tokenizer``, a tiktoken ``Encoding``, a
``SentencePieceProcessor``, or any object with ``encode(str) -> list[int]``, ``decode(list[int]) -> str``, and
``bos_token_id`` or ``eos_token_id``. A ``chat_template`` attribute, if present, is used for ``--apply_chat_template``.

A PyTorch model is returned in the same ways, or as a module, and is served by ``python -m workers.torch_worker``.

To try a change without starting a worker: ``--model_args model_tag=mine,api=api.py`` starts one for that run only.
"""

from typing import Any

from birdie_zmq import models

# Remove the name of an argument that your functions use: they then receive it.
REQUEST_ARGUMENTS = (
    "chat_template_args",
    "enable_thinking",
    "max_gen_toks",
    "prefix_token_id",
    "seed",
    "think_end_token",
)


def load_model(model_tag: str, **kwargs: Any) -> Any:
    """Return the model for a tag."""
    # Example: if model_tag == "mine": return my_package.apply, my_package.restore("/path/to/checkpoint")
    return models.load_model(model_tag, **kwargs)  # the demo model, checkpoint directories, GGUF files, the hub


def load_tokenizer(model_tag: str, **kwargs: Any) -> Any:
    """Return the tokenizer for a tag."""
    # Example: if model_tag == "mine": return tokenizers.Tokenizer.from_file("/path/to/tokenizer.json")
    return models.load_tokenizer(model_tag, **kwargs)
