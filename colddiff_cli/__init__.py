"""The command line of colddiff. Nothing here imports torch before a command runs."""
