"""The base class of backends for models that compute whole rows, and sampling in NumPy."""
