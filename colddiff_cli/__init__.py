"""The command line of colddiff. Nothing here imports torch before a command runs."""

import os  # loaded before the current folder is looked into
import sys

# `python -m colddiff_cli` looks for every module in the current folder first, where a stranger's json.py may lie.
# Python calls the program "-m" until it has found the module. A checkout that is not installed runs in its own folder.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(__file__)):
    del sys.path[0]
