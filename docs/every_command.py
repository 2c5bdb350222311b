"""The app with every command imported, for `python -m typer docs/every_command.py utils docs`."""

from __future__ import annotations

from colddiff_cli.app import LOADERS, with_commands

app = with_commands(LOADERS, [])
