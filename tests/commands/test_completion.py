"""TAB: what is offered, and what real shells make of it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest

from colddiff_cli.__main__ import run
from colddiff_cli.arguments import registered, shell_scripts
from colddiff_core.config import presets, schema
from colddiff_core.runs import pretrained
from colddiff_core.sampling import SAMPLERS

HOME = Path(__file__).parents[2]
PATIENCE_SECONDS = 60
BUNDLED = [f"{pretrained.PREFIX}{name}" for name in pretrained.names()]
# Words with TABs, and what the shell should pass to the command.
TYPED = {
    "eval --pre\tfl\t": ["eval", "--precision", "float32"],
    "train --preset=digits-blur-g\t": ["train", "--preset=digits-blur-generate"],
    "train --preset ./mi\t": ["train", "--preset", "./mine.toml"],
    "train --set train.sch\tcos\t": ["train", "--set", "train.schedule=cosine"],
    "train --set=train.sch\tcos\t": ["train", "--set=train.schedule=cosine"],
    "degrade --op blur+sn\t": ["degrade", "--op", "blur+snow"],
    "sample exp/my\tph\t": ["sample", "exp/my run", "photo.png"],
}
# The line up to the cursor, the end of its last word that bash hands over and replaces, and what it should offer.
SPLIT = {
    "train --set train.loss=": ("", ["l1", "l2"]),
    "train --set train.loss=l": ("l", ["l1", "l2"]),
    "train --set=train.loss=": ("", ["l1", "l2"]),
    "sample exp/m": ("exp/m", [r"exp/my\ run"]),
}


def answer(asked: str, answered: str) -> int:
    """Read the environment of a `colddiff` from one pipe, write what it would print to the other, and so on."""
    shell_scripts.register()  # importing app does this when a shell asks
    while True:
        with open(asked, "rb") as pipe:  # waits until a shell asks
            variables = dict(line.split("=", 1) for line in os.fsdecode(pipe.read()).split("\0") if line)
        os.environ.clear()
        os.environ.update(variables)
        os.chdir(variables["PWD"])
        with open(answered, "w") as pipe, contextlib.redirect_stdout(pipe), contextlib.suppress(SystemExit):
            run([])


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    """A folder with pipes to and from a process that answers as `colddiff` does, with no Python to start."""
    folder = tmp_path_factory.mktemp("pipes")
    for name in ("asked", "answered"):
        os.mkfifo(folder / name)
    process = processes.fork(functools.partial(answer, str(folder / "asked"), str(folder / "answered")))
    yield folder
    process.kill()


@pytest.fixture
def workplace(in_folder, monkeypatch, pipes):
    """A folder with runs, a preset and a picture, and a `colddiff` that completes, and writes its words to a file."""
    for name in ("runs/snowy", "runs/digits-blur", "exp/my run"):
        Path(name).mkdir(parents=True)
        Path(name, "run.toml").write_text('[degradation]\nname = "snow"\n')
    Path("mine.toml").touch()
    Path("photo.png").touch()
    program = Path("bin/colddiff")
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        f'[ "$_COLDDIFF_COMPLETE" ] && env -0 >"{pipes}/asked" && exec cat "{pipes}/answered"\n'
        r'printf "%s\n" "$@" >words.new && mv words.new words'
        "\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent.resolve()}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(in_folder))
    return in_folder


@pytest.fixture
def offered(monkeypatch, capsys):
    """Return a function from a line to the values that are offered for its last word."""
    monkeypatch.setenv(shell_scripts.ASKING, "complete_line")
    shell_scripts.register()

    def complete(line):
        monkeypatch.setenv(shell_scripts.LINE, f"colddiff {line}")
        with pytest.raises(SystemExit) as ended:
            run([])
        assert ended.value.code == 0
        return [answer.partition("\t")[0] for answer in capsys.readouterr().out.splitlines() if answer]

    return complete


def test_scripts_and_names_are_current():
    """If this fails: python docs/make_completions.py."""
    folder = HOME / "completions"
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == {
        shell_scripts.FILES[shell]: script for shell, script in shell_scripts.SCRIPTS.items()
    }
    assert json.loads(registered.FILE.read_text(encoding="utf-8")) == json.loads(json.dumps(registered.collect()))


@pytest.mark.parametrize("shell", shell_scripts.SCRIPTS)
def test_a_script_is_printed(shell, capsys):
    assert run(["--show-completion", shell]) == 0
    assert capsys.readouterr().out == shell_scripts.SCRIPTS[shell]
    assert run(["--show-completion", "powershell"]) == 2
    assert "bash, fish, zsh" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mon", ["monitor"]),
        ("data ", ["pack"]),
        ("data pack --dataset cel", ["celeba"]),
        ("data pack --channels ", ["0", "1", "3"]),
        ("train --allow", ["--allow-change"]),
        ("train --preset digits-blur-", ["digits-blur-generate"]),
        ("train --preset ./m", []),
        ("train --resume s", ["snowy"]),
        ("presets digits-ho", ["digits-holes"]),
        ("degrade --preset digits-ho", ["digits-holes"]),
        ("degrade --op sn", ["snow"]),
        ("degrade --op blur+snow+pix", ["blur+snow+pixelate"]),
        ("degrade --op snow --le", ["--level"]),
        ("degrade --op snow --level ", ["1", "2", "3", "4"]),
        ("degrade --op blur+snow --snow-l", ["--snow-level"]),
        ("degrade --preset digits-holes --cou", ["--count"]),
        ("sample --sampler ", list(SAMPLERS)),
        ("compare --samplers tacos,d", ["tacos,direct", "tacos,ddim", "tacos,ddpm"]),
        ("compare --samplers direct,d", ["direct,ddim", "direct,ddpm"]),
        ("generate --prior g", ["gaussian", "gmm"]),
        ("compare --prior nor", ["normal"]),
        ("eval --features inc", ["inception"]),
        ("eval --device c", ["cpu", "cuda"]),
        ("eval --compile max", ["max-autotune"]),
        ("sample --degraded --color l", ["luma"]),
        ("reproduce table1 table", ["table2", "table3", "table4", "table5", "table6"]),
        ("reproduce table1 --scale sm", ["small"]),
        ("reproduce table1 --datasets mnist,ci", ["mnist,cifar10"]),
        ("eval ", ["digits-blur", "snowy", *BUNDLED]),
        ("eval runs/s", ["runs/snowy"]),
        ("eval exp/", ["exp/my run"]),
        ("eval snowy ", []),
        ("sample snowy ", []),
        ("compare snowy ", ["digits-blur", *BUNDLED]),
        ("runs ", BUNDLED),
        ("train --from sn", ["snowy"]),
        ("monitor ", ["digits-blur", "snowy"]),
        ("train --set train.sch", ["train.schedule="]),
        ("train --set train.schedule=", ["train.schedule=constant", "train.schedule=cosine"]),
        ("train --set data.flip=", ["data.flip=true", "data.flip=false"]),
        ("train --set train.lr=", []),
        ("train --set nothing.like=", []),
        ("train --set sample.sampler=t", ["sample.sampler=tacos"]),
        ("train --set data.dataset=cel", ["data.dataset=celeba"]),
        ("train --set degradation.name=blur+sn", ["degradation.name=blur+snow"]),
        ("train --set degradation.l", []),
        ("train --preset cifar10-snow --set degradation.l", ["degradation.level="]),
        ("train --preset digits-blur --set degradation.name=snow --set degradation.l", ["degradation.level="]),
        ("train --set degradation.name=blur+snow --set degradation.snow.l", ["degradation.snow.level="]),
        ("train --resume snowy --set degradation.bri", ["degradation.brighten="]),
        ("train --preset no-such --set degradation.bri", []),
        (
            "train --preset cifar10-snow --set degradation.level=",
            ["degradation.level=1", "degradation.level=2", "degradation.level=3", "degradation.level=4"],
        ),
        ("train 'unfinished", []),
    ],
)
def test_tab_offers(workplace, offered, line, expected):
    assert sorted(offered(line)) == sorted(expected)


def test_tab_offers_every_setting_once(offered):
    keys = {f"{section}.{field}=" for section, owner in schema.SECTIONS.items() for field in owner.__annotations__}
    keys -= {"degradation.parameters=", "train.lr=", "train.loss="}
    assert sorted(offered("train --set train.lr=1 --set=train.loss=l1 --set ")) == sorted(keys)
    assert sorted(offered("train --preset ")) == presets.names()


def test_tab_imports_nothing_slow():
    code = (
        "import os, sys\n"
        "from colddiff_cli.arguments import shell_scripts\n"
        "from colddiff_cli.__main__ import run\n"
        "for line in sys.argv[1:]:\n"
        "    os.environ[shell_scripts.LINE] = 'colddiff ' + line\n"
        "    try:\n"
        "        run([])\n"
        "    except SystemExit as ended:\n"
        "        assert not ended.code\n"
        "slow = {'torch', 'torchvision', 'numpy', 'PIL', 'sklearn', 'textual', 'rich', 'pydantic'} & set(sys.modules)\n"
        "print('SLOW', sorted(slow))\n"
    )
    words = [line.partition("\t")[0] for line in TYPED] + ["", "compare --samplers direct,ta", "eval sn", "reproduce t"]
    words += ["train --set ", "train --preset digits-holes --set degradation.co", "data pack --dataset ce"]
    words += [
        f"{name} --" for name in ("degrade --op blur+snow", "degrade --preset digits-holes", "sample", "generate")
    ]
    words += [f"{name} --" for name in ("eval", "compare", "reproduce", "monitor", "presets", "data pack", "train")]
    environment = os.environ | {shell_scripts.ASKING: "complete_line"}
    finished = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, env=environment
    )
    assert finished.stdout.splitlines()[-1] == "SLOW []", finished.stderr
    assert "--blur-growth\t" in finished.stdout
    assert "blur+snow\n" in finished.stdout


def test_an_operator_of_another_package_is_offered_without_loading_it(offered, monkeypatch):
    import importlib.metadata

    plugin = importlib.metadata.EntryPoint("smudge", "no_such_module:Smudge", "colddiff.degradations")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [plugin] if group == plugin.group else [])
    assert offered("degrade --op smu") == ["smudge"]


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


@needs("bash")
def test_bash_offers_what_follows_its_word_breaks(workplace):
    """Bash gives the function a word that ends at the last = and replaces only that."""
    code = (
        'source "$1"; shift\n'
        "while (($#)); do\n"
        "    COMP_LINE=$1 COMP_POINT=${#1}\n"
        '    _colddiff colddiff "$2" ""\n'
        "    printf '%s\\n' \"${COMPREPLY[@]}\" .\n"
        "    shift 2\n"
        "done\n"
    )
    asked = [text for line, (word, _) in SPLIT.items() for text in (f"colddiff {line}", word)]
    script = HOME / "completions" / "colddiff.bash"
    command = ["bash", "-c", code, "bash", str(script), *asked]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS)
    assert finished.stdout == "".join("".join(f"{text}\n" for text in [*texts, "."]) for _, texts in SPLIT.values())


@needs("fish")
def test_fish_offers_values_with_help(workplace):
    asked = ["train --preset digits-blur-", "train --set=train.sch", "train --preset ./m", "sample exp/m"]
    lines = [f"complete -C 'colddiff {line}'" for line in asked]
    code = f"source '{HOME / 'completions' / 'colddiff.fish'}'; {'; '.join(lines)}"
    command = ["fish", "--no-config", "-c", code]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS)
    (schedule,) = [setting for setting in registered.declared(schema.TrainConfig) if setting.name == "schedule"]
    assert finished.stdout.splitlines() == [
        *("digits-blur-generate", f"--set=train.schedule=\t{schedule.help}", "./mine.toml", "exp/my run")
    ]


@pytest.mark.parametrize("shell", [pytest.param("bash", marks=needs("bash")), pytest.param("zsh", marks=needs("zsh"))])
def test_tabs_typed_at_a_prompt_complete_words(workplace, shell):
    """A real shell at a terminal runs `colddiff` with the words that its TABs have completed."""
    start = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}[shell]
    process, terminal = pty.fork()
    if process == 0:
        os.execvpe(start[0], start, os.environ | {"TERM": "xterm", "INPUTRC": os.devnull, "PS1": "ready> "})
    try:
        script = HOME / "completions" / shell_scripts.FILES[shell]
        wait_for(terminal, lambda seen: "ready> " in seen)
        # The prompt is split so that its echo is not taken for it.
        os.write(terminal, f"source '{script}'; PS1='com''plete> '\n".encode())
        wait_for(terminal, lambda seen: "complete> " in seen)
        for line, words in TYPED.items():
            os.write(terminal, f"colddiff {line}\n".encode())
            wait_for(terminal, lambda _: Path("words").exists())
            assert Path("words").read_text().splitlines() == words
            Path("words").unlink()
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)


def wait_for(terminal: int, is_there) -> None:
    """Read what a terminal shows until something is there."""
    seen, deadline = "", time.monotonic() + PATIENCE_SECONDS
    while not is_there(seen):
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 0.05)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")


def test_wheel_and_sdist_hold_the_scripts():
    import tomllib

    build = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    installed = build["wheel"]["shared-data"]
    assert sorted(installed) == sorted(f"completions/{name}" for name in shell_scripts.FILES.values())
    assert "/completions" in build["sdist"]["include"]


def test_a_broken_question_is_no_traceback():
    command = [sys.executable, "-m", "colddiff_cli"]
    asking = os.environ | {shell_scripts.ASKING: "complete_line", shell_scripts.LINE: ""}
    finished = subprocess.run(command, env=asking, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "degrade\t" in finished.stdout
