"""No module is imported from the current folder, which may be a stranger's: not by colddiff, nor by what it starts."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY
from PIL import Image

from colddiff_cli.arguments import shell_scripts
from colddiff_cli.jobs import launch

HOME = Path(__file__).parents[2]
OWNED = "OWNED"
SETTINGS = [word for value in TINY for word in ("--set", value)]
SCRIPT = "import sys\nfrom colddiff_cli.__main__ import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
COMMANDS = [
    ["--version"],
    ["presets"],
    ["degrade", "photo.png", "--op", "blur"],
    ["generate", "RUN", "--n", "1", "--noise", ".002"],
    ["monitor", "RUN", "--once"],
]


def python(*words: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment |= {"PYTHONPATH": str(HOME)} | more
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    """The modules that Python imports for `-m` before it comes to ours."""
    folder = tmp_path_factory.mktemp("early")
    (folder / "probe.py").write_text("import sys\nnames = list(sys.modules)\nimport json\nprint(json.dumps(names))\n")
    return set(json.loads(python("-m", "probe", cwd=folder).stdout))


@pytest.fixture
def trap(tmp_path, own_run, early):
    """A folder of modules with the names of Python's, others' and ours, which say so if they are imported."""
    folder = tmp_path / "trap"
    (folder / "colddiff_core").mkdir(parents=True)
    names = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions()) | {"sitecustomize"}
    for name in names - early - {"colddiff_cli", "colddiff_core"}:
        if name.isidentifier():
            (folder / f"{name}.py").write_text(f"import os\nos.write(2, b'{OWNED} {name}\\n')\n")
    (folder / "colddiff_core" / "__init__.py").write_text(f"import os\nos.write(2, b'{OWNED} colddiff_core\\n')\n")
    Image.radial_gradient("L").convert("RGB").resize((40, 30)).save(folder / "photo.png")
    return folder


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_a_command_imports_nothing_from_the_current_folder(arguments, trap):
    done = python("-m", "colddiff_cli", *[str(trap.parent / "run") if w == "RUN" else w for w in arguments], cwd=trap)
    assert OWNED not in done.stderr
    assert done.returncode == 0, done.stderr


def test_the_installed_command_imports_nothing_from_the_current_folder(trap, tmp_path):
    """Not even what Python imports first."""
    for name in ("importlib", "contextlib", "warnings", "os", "colddiff_cli"):
        (trap / f"{name}.py").write_text(f"print('{OWNED}')")
    script = tmp_path / "bin" / "colddiff"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    asking = {shell_scripts.ASKING: "complete_line", shell_scripts.LINE: "colddiff degrade --op bl"}
    for more, expected in (({}, "colddiff "), (asking, "blur")):
        done = python(str(script), "--version", cwd=trap, **more)
        assert OWNED not in done.stderr + done.stdout
        assert done.stdout.startswith(expected), done.stderr


def test_processes_that_colddiff_starts_import_nothing_from_the_current_folder(trap):
    for name in ("importlib", "contextlib", "warnings", "os", "colddiff_cli"):
        (trap / f"{name}.py").write_text(f"print('{OWNED}')")
    words = ["presets"]
    done = python(*launch.program(), *words, cwd=trap)
    assert OWNED not in done.stderr + done.stdout
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_job_of_several_processes_imports_nothing_from_the_current_folder(trap):
    words = ["train", "--preset", "digits-blur", *SETTINGS, "--nproc", "2", "--out", "run"]
    done = python("-m", "colddiff_cli", *words, cwd=trap)
    assert OWNED not in done.stderr
    assert done.returncode == 0, done.stderr


def test_a_checkout_runs_in_its_own_folder_without_being_installed(tmp_path):
    for name in ("colddiff_cli", "colddiff_core", "presets", "pretrained"):
        (tmp_path / name).symlink_to(HOME / name)
    done = python("-m", "colddiff_cli", "--version", cwd=tmp_path, PYTHONPATH="")
    assert done.returncode == 0, done.stderr


def test_a_library_user_keeps_the_current_folder(tmp_path):
    (tmp_path / "mine.py").write_text("")
    assert python("-c", "import colddiff_cli, mine", cwd=tmp_path).returncode == 0
    (tmp_path / "program.py").write_text("import colddiff_cli, mine")
    assert python("-m", "program", cwd=tmp_path).returncode == 0
