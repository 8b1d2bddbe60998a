"""Model families: each reads its Hugging Face configuration into an `Architecture`."""
