"""Fixtures that the fuzz tests share with the integration tests."""

from tests.integration.conftest import programs

__all__ = ["programs"]
