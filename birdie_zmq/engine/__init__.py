"""The engine, which turns text requests into scores and generated text for a model in any framework.

A request passes through these modules, in this order:

- `evaluator` is the entry. It returns a stream of `events`: steps that begin, notices, and answers as soon as they are
  known;
- `tokenizer`, with a class for each kind of tokenizer in `tokenizers`, and `request_encoding` turn texts into token
  sequences;
- `scoring` runs the steps of log-likelihood requests, and `generation` decodes prompts. Both call the model through a
  `model_runner`, which counts what is computed;
- `planning` cuts the sequences of a batch into few padded steps that compute shared prefixes once. It is pure NumPy;
- `backend` is the interface between these and a framework. A backend does all the arithmetic.

`model_api` defines what ``load_model`` may return.

To plug in another framework, write a module with ``make_backend(model: LoadedModel, max_length: int) -> Backend``, and
pass its path as ``--engine PATH`` to a worker, or as ``engine=PATH`` in model_args. `backend` describes what the
returned object must do, and how little of it has to be written. No module of this package needs to change.
"""
