"""What the slow proofs share with the tests of real processes."""

from tests.integration.conftest import programs

__all__ = ["programs"]
