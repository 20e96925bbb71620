"""Time the phases of a training as it runs."""
