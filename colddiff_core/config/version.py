"""The version of colddiff."""

__version__ = "0.1.0"
