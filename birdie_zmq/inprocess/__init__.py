"""The client interface over an engine in the caller's own process."""
