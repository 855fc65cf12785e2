"""Run code that no one has read: confinement, limits, verdicts."""
