"""Training: start, loop, one step, what is logged."""
