"""A worker: the agent, which talks to the broker and never imports jax, and its model process."""
