"""Estimates of how severely a picture is degraded: one module per kind of trace."""
