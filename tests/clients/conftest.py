"""Fixtures that the tests of clients share with the integration tests."""

from tests.integration.conftest import programs

__all__ = ["programs"]
