"""Readers for the files of a run. No torch, no Textual."""
