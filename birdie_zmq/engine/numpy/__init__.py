"""A backend base for models that only score whole rows, and sampling in NumPy."""
