"""Write what TAB needs: python docs/make_completions.py

completions/ holds the scripts for bash, zsh and fish; colddiff_cli/arguments/registered.json holds the names and
parameters that are known without torch.
"""

from __future__ import annotations

import json
from pathlib import Path

from colddiff_cli.arguments import registered, shell_scripts

FOLDER = Path(__file__).parents[1] / "completions"

FOLDER.mkdir(exist_ok=True)
for shell, script in shell_scripts.SCRIPTS.items():
    (FOLDER / shell_scripts.FILES[shell]).write_text(script, encoding="utf-8")
registered.FILE.write_text(json.dumps(registered.collect(), indent=1) + "\n", encoding="utf-8")
