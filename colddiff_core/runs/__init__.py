"""The run directory: read, write, hold, ask."""
