"""The version of colddiff."""

__version__ = "0.2.0"
