"""The dashboard: run directories watched from the terminal. It reads files and needs no torch."""
