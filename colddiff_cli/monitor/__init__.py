"""The dashboard: watch run directories from the terminal. It only reads files and does not load torch."""
