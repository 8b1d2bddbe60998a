"""A worker rank on another host: it runs the model process that follows rank 0."""
