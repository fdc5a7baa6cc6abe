"""Runs: planned, answered, scored, and taken up again where they stopped."""
