"""A worker: the agent, which talks to the broker and never imports jax, and the model process that it looks after."""
