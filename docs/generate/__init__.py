"""Generates pages of docs/ from the code, and the sources of the site; not installed."""
