"""What the fuzz runs share with the tests of real processes."""

from tests.integration.conftest import programs

__all__ = ["programs"]
