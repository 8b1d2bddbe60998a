"""Commands beside an evaluation: doctor, compare and bench."""
