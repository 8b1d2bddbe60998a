"""Your models. This is the page to edit.

A worker that is started here (``python -m workers.jax_worker``) calls the two functions below when an evaluation asks
for a model::

    lm_eval --model birdie_zmq --model_args model_tag=mine,size=small,port=5555 --tasks arc_easy

calls ``load_model("mine", size="small")`` and ``load_tokenizer("mine", size="small")``. Every word of model_args
reaches both, but for those that say where and how to run (``endpoint``, ``port``, ``api``, ``engine``, ``batch_rows``).
``mesh=data:2/model:4`` reaches load_model alone, as a ``jax.sharding.Mesh`` (docs/many_devices.md). When another
evaluation asks for another tag or other words, the process that holds the model ends, with all its memory, and a new
one calls these functions again.

``load_model`` returns one of

- a function ``logits(tokens)``: int32[batch, length] in, float[batch, length, vocabulary] out. The logits at a
  position are for the token after it. Rows are padded on the right, so a causal model needs no mask. It is called as it
  is, so jit it yourself;
- a pair ``(logits, params)`` with ``logits(params, tokens)``, which is jitted for you;
- a ``birdie_zmq.Model`` that names these and more: ``max_length``, ``vocab_size``, and functions with which the engine
  computes less (``hidden``, ``unembed``, ``init_state``, ``extend``, ``branch``), or ``score``, for a model that is no
  plain causal decoder; docs/how_to/your_model.md shows them.

``load_tokenizer`` returns a tokenizer of transformers, a ``tokenizers.Tokenizer``, or any object with
``encode(str) -> list[int]`` and ``decode(list[int]) -> str`` and the attributes ``bos_token_id`` or ``eos_token_id``;
``chat_template``, if it has one, serves ``--apply_chat_template``.

A model in PyTorch is returned in the same ways, or as a module, and served by ``python -m workers.torch_worker``.

To try a change, point a run at this page: ``--model_args model_tag=mine,api=api.py`` starts a worker for that run alone.
"""

from typing import Any

from birdie_zmq import models


def load_model(model_tag: str, **kwargs: Any) -> Any:
    """The model that a tag stands for."""
    # For example: if model_tag == "mine", return (my_package.apply, my_package.restore("/path/to/checkpoint")).
    return models.load_model(model_tag, **kwargs)


def load_tokenizer(model_tag: str, **kwargs: Any) -> Any:
    """The tokenizer of the model that a tag stands for."""
    # For example: if model_tag == "mine", return tokenizers.Tokenizer.from_file("/path/to/tokenizer.json").
    return models.load_tokenizer(model_tag, **kwargs)
