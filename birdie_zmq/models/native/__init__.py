"""Checkpoints as JAX trainers write them, presented as the tensors of a Hugging Face checkpoint."""
