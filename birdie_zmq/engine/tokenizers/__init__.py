"""The kinds of tokenizer that ``load_tokenizer`` may return, each behind the interface `TokenizerKind`."""
