"""Measuring restorations and generated images."""
