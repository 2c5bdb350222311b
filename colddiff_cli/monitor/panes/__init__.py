"""The dashboard's panes and dialogs."""
