"""Processes that a command starts, and runs that it opens."""
