"""The engine, which turns text requests into scores and generated text for a model in any framework.

A request passes through these modules, in this order:

- `tokenizer`, with a class for each kind of tokenizer in `tokenizers`, and `request_encoding` turn texts into token
  sequences;
- `planning` cuts the sequences of a batch into few padded steps that compute shared prefixes once. It is pure NumPy;
- `scoring` runs the steps of log-likelihood requests, and `generation` decodes prompts;
- `backend` is the interface between these and a framework. A backend does all the arithmetic;
- `evaluator` ties them together and reports each answer as soon as it is known.

`model_api` defines what ``load_model`` may return.

To plug in another framework, write a module with ``make_backend(model: LoadedModel, max_length: int) -> Backend``, and
pass its path as ``--engine PATH`` to a worker, or as ``engine=PATH`` in model_args. `backend` describes what the
returned object must do, and how little of it has to be written. No module of this package needs to change.
"""
