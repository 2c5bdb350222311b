"""Text from a stranger's files and names reaches the terminal as text: no command shows what a terminal would obey."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import unicodedata
from pathlib import Path

import processes
import pytest
import terminals
from conftest import TINY
from PIL import Image, PngImagePlugin

from colddiff_cli.arguments import shell_scripts
from colddiff_core.text import HARMFUL, harmless, one_line

# A color, a title, a link, a bell, C1 controls, a false line, marks that reverse or hide text, and markup.
VIS = "[bold][@click=app.quit][link=http://evil]x[/]"
BIDI = "\u202eR\u2066\u200f\u061c\u2028\u2029\u200b\ufeff\U000e0041\u3164"
ESCAPES = "\x1b[35;45m\x1b]0;T\x07\x1b]8;;http:evil\x1b\\\x9b7m\x08\r"
LINE = "\nFORGED"
NAME = f"{ESCAPES}{BIDI}{LINE}{VIS}".replace("/", "|")
TEXT = f"{ESCAPES}{BIDI}{LINE}{VIS}"
SETTINGS = [word for value in TINY for word in ("--set", value)]
FOLDER = ["--set", "data.dataset=folder"]
BLANK = "\u115f\u1160\u3164\uffa0"
JOINERS = "\u200c\u200d\u0600"

COMMANDS = [
    ["runs"],
    ["runs", "--json"],
    ["runs", NAME],
    ["presets", "nasty.toml"],
    ["presets", "bad.toml"],
    ["presets", NAME],
    ["presets", "--set", f"data.dataset={NAME}"],
    ["monitor", "--once"],
    ["monitor", "--json"],
    ["monitor", NAME, "--once"],
    ["monitor", "--filter", f"{NAME}*", "--once"],
    ["monitor", "--filter", f"x{NAME}", "--once"],
    ["train", "--preset", "nasty.toml", "--dry-run"],
    ["train", "--preset", "nasty.toml", *SETTINGS, "--out", f"new{NAME}"],
    ["train", "--preset", NAME],
    ["train", "--preset", "digits-blur", "--set", NAME],
    ["train", "--preset", "nasty.toml", *SETTINGS, *FOLDER, "--data-dir", f"data{NAME}", "--out", "never"],
    ["train", "--preset", "nasty.toml", *SETTINGS, *FOLDER, "--data-dir", f"data{BIDI}", "--out", "made"],
    ["train", "--resume", NAME],
    ["train", "--resume", "runs/ended", "--set", f"train.loss={NAME}"],
    ["degrade", f"{NAME}.png", "--op", "blur", "--out", f"d{NAME}.png"],
    ["degrade", f"data{NAME}", "--op", "blur", "--out-dir", f"d{NAME}"],
    ["degrade", f"cut{NAME}.png", "--op", "blur"],
    ["degrade", f"absent{NAME}.png", "--op", "blur"],
    ["degrade", f"{NAME}.png", "--op", NAME],
    ["degrade", f"{NAME}.png", "--op", "blur", f"--{NAME}", "1"],
    ["degrade", f"{NAME}.png", "--op", "blur", "--help"],
    ["sample", f"runs/{NAME}", "--n", "2", "--out", f"s{NAME}.png"],
    ["sample", f"runs/{NAME}", f"{NAME}.png", f"data{NAME}"],
    ["sample", f"runs/{NAME}", f"{NAME}.png", "--out-dir", f"s{NAME}", "--animate"],
    ["generate", f"runs/{NAME}", "--n", "2", "--out-dir", f"g{NAME}"],
    ["restore", f"{NAME}.png", f"cut{NAME}.png", "--run", f"runs/{NAME}", "--t", "2"],
    ["restore", f"{NAME}.png", "--run", f"runs/{NAME}"],
    ["eval", f"runs/{NAME}", "--n", "2", "--features", "none"],
    ["eval", f"runs/{NAME}", "--n", "2", "--features", "none", "--by-severity"],
    ["eval", "runs/broken"],
    ["compare", f"runs/{NAME}", "runs/ended", "--n", "2", "--features", "none"],
    ["reproduce", "--runs", f"runs{NAME}", NAME],
    ["data", "pack", f"data{NAME}", "--out-dir", f"packed{NAME}"],
    [NAME],
    [f"--{NAME}"],
    ["--show-completion", NAME],
]


@pytest.fixture
def place(tiny_run, tmp_path):
    """A folder of a stranger: a run, one that failed and a broken one, presets, pictures and a data set."""
    folder = tmp_path / "stranger"
    toml = (tiny_run / "run.toml").read_text()
    shown = quoted(f"{BIDI}{LINE}{VIS}")
    for name in (NAME, "ended", "broken"):
        shutil.copytree(tiny_run, folder / "runs" / name)
    nasty = re.sub(r"^description = .*$", lambda _: f"description = {shown}", toml, flags=re.M)
    (folder / "runs" / NAME / "run.toml").write_text(nasty)
    (folder / "runs" / "ended" / "run.toml").write_text(nasty)
    (folder / "runs" / "broken" / "run.toml").write_text(f"{quoted(TEXT)} = 1\n[data]\n{quoted(TEXT)} = 2\n")
    for name in (NAME, "ended"):
        write_history(folder / "runs" / name)
    (folder / "nasty.toml").write_text(f'extends = "digits-blur"\ndescription = {shown}\n')
    (folder / "bad.toml").write_text(f'extends = "digits-blur"\n[train]\n{quoted(TEXT)} = {quoted(TEXT)}\n')
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", TEXT)
    exif = Image.Exif()
    exif[270] = exif[315] = TEXT
    picture = Image.radial_gradient("L").convert("RGB").resize((24, 24))
    picture.save(folder / f"{NAME}.png", pnginfo=note, exif=exif)
    (folder / f"cut{NAME}.png").write_bytes((folder / f"{NAME}.png").read_bytes()[:90])
    for kind in (f"a{NAME}", f"b{NAME}"):
        (folder / f"data{NAME}" / kind).mkdir(parents=True)
        for number in range(5):
            picture.rotate(number * 20).save(folder / f"data{NAME}" / kind / f"{number}{NAME}.png", pnginfo=note)
        (folder / f"data{NAME}" / kind / f"cut{NAME}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    shutil.copytree(folder / f"data{NAME}", folder / f"data{BIDI}")  # controls are refused in the name of a data set
    return folder


def quoted(text: str) -> str:
    """Return a text as TOML has it, with what it may hold as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "")


def write_history(run: Path) -> None:
    with (run / "events.jsonl").open("a") as file:
        for event in (
            {"event": TEXT, "time": 1.0, TEXT: TEXT},
            {"event": "warning", "time": 2.0, "message": TEXT},
            {"event": "sample", "time": 3.0, "file": TEXT, "step": 6},
            {"event": "failed", "time": 4.0, "step": 6, "why": TEXT, "answers": [TEXT]},
        ):
            file.write(json.dumps(event) + "\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 7, "loss": 0.5, TEXT: 0.25, f"{TEXT}/1": 0.5}) + "\n")
    (run / "samples").mkdir(exist_ok=True)
    Image.new("RGB", (8, 4)).save(run / "samples" / "step-000007.png")
    corners = {TEXT: [[0, 0]], "b": [[4, 0]]}
    sheet = {"tile": [4, 4], "scale": 1, "corners": corners, "n": TEXT, "metrics": {TEXT: {"rmse": 0.5}}}
    (run / "samples" / "step-000007.json").write_text(json.dumps(sheet))


def check_harmless(text: str) -> None:
    found = HARMFUL.search(text)
    assert not found, text[max(0, found.start() - 200) : found.end() + 100]
    assert not [line for line in text.split("\n") if line.lstrip(" │").startswith("FORGED")], text


def name_of(arguments: list[str]) -> str:
    words = [word.replace(NAME, "NAME").replace(BIDI, "BIDI") for word in arguments if word not in SETTINGS]
    return " ".join(words)


@pytest.mark.parametrize("arguments", COMMANDS, ids=name_of)
def test_no_command_shows_what_a_terminal_would_obey(arguments, place):
    process = processes.start(arguments, place)
    assert process.wait(120) in (0, 1, 2)
    output, errors = process.communicate()
    assert output + errors
    check_harmless(output)
    check_harmless(errors)
    assert "Traceback" not in errors
    assert "Unexpected" not in errors


ON_TERMINAL = [words for words in COMMANDS if words[0] in ("runs", "degrade", "eval", "compare", "train", "restore")]


@pytest.mark.parametrize("arguments", ON_TERMINAL, ids=name_of)
def test_nor_on_a_terminal_with_its_bars_and_colors(arguments, place):
    variables = {"NO_COLOR": "1"}  # no pictures; Rich still moves the cursor
    session = terminals.run(functools.partial(terminals.command, arguments), place, variables=variables, size=(150, 50))
    check_session(session)


def check_session(session: terminals.Session) -> None:
    text = session.output.decode(errors="replace")
    for part in ("\x1b[35;45m", "\x1b]0", "\x1b]8", "T\x07", "\x9b", *BIDI.replace("R", "")):
        assert part not in text, ascii(text[max(0, text.index(part) - 200) : text.index(part) + 50])
    assert "Traceback" not in text


def test_nor_in_the_dashboard(place):
    """Each pane in full, the curves of a stranger's quantities, the dialogs and their notes."""
    keys = ["1", "f", "\x1b[B", " ", "f", "2", "f", *"mmmmm", "f", "3", "f", "f", "4", "f", "\x1b[6~", "f", *"pxn?"]
    typed = [(2.5 + 0.25 * number, key.encode()) for number, key in enumerate(keys)]
    typed += [(typed[-1][0] + seconds, b"q") for seconds in (0.5, 1.0, 5.0, 15.0, 40.0)]
    watch = functools.partial(terminals.command, ["monitor"])
    answer = terminals.Answer(b"\x1b[?64;1c")
    session = terminals.run(watch, place, answer, typed=typed, shown=terminals.DASHBOARD, size=(150, 50))
    assert session.code == 0
    check_session(session)
    plain = re.sub("\x1b[^a-zA-Z]*[a-zA-Z]", "", session.output.decode(errors="replace"))
    assert VIS[:20] in plain  # brackets are shown, not obeyed


@pytest.mark.parametrize("line", ["sample ", "train --resume ", "monitor ", "train --preset ", "runs "])
def test_tab_offers_no_such_name(line, place):
    variables = {shell_scripts.ASKING: "complete_line", shell_scripts.LINE: f"colddiff {line}"}
    process = processes.start([], place, os.environ | variables, prepare=shell_scripts.register)
    process.wait(60)
    output, _ = process.communicate()
    assert output.split("\n")[:-1]
    check_harmless(output.replace("\t", ""))
    assert "runs" in line or "ended" in output or "--preset" in line


def test_a_data_set_and_a_run_may_have_any_name_without_controls(place):
    """It is TOML on its way: a character of more than 16 bits is no pair of JSON's escapes there."""
    name = f"{BIDI}{VIS.replace('/', '|')}\N{FILE FOLDER}\"'\\"
    (place / f"data{BIDI}").rename(place / name)
    train = ["train", "--preset", "nasty.toml", *SETTINGS, *FOLDER, "--data-dir", name]
    processes.finish([*train, "--out", name + "1"], place)
    processes.finish([*train, "--out", "another", "--from", name + "1"], place)


def test_what_is_harmful():
    """Every control and every invisible character of format but the two joiners and the visible marks of numbers.

    Also what Unicode says may be ignored (Default_Ignorable_Code_Point), but the variation selectors of emoji.
    """
    for number in range(0x110000):
        character = chr(number)
        kind = unicodedata.category(character)
        is_mark = kind == "Cf" and character not in JOINERS and not unicodedata.name(character, "").endswith(
            ("NUMBER SIGN", "SIGN SANAH", "FOOTNOTE MARKER", "SIGN SAFHA", "SAMVAT", "END OF AYAH", "ABBREVIATION MARK",
             "POUND MARK ABOVE", "PIASTRE MARK ABOVE", "NUMBER SIGN ABOVE", "NUMBER MARK ABOVE"))  # fmt: skip
        is_harmful = (kind in ("Cc", "Cs", "Zl", "Zp") and character not in "\n\t") or is_mark
        assert not is_harmful or HARMFUL.match(character), hex(number)
        if HARMFUL.match(character):
            assert kind in ("Cc", "Cs", "Zl", "Zp", "Cf", "Cn", "Mn") or character in BLANK, hex(number)
    ignorable = [*range(0x180B, 0x1810), *range(0xFFF0, 0xFFF9), *range(0xE0000, 0xE1000), 0x34F, 0x17B4, 0x17B5]
    assert all(HARMFUL.match(chr(number)) for number in [*ignorable, *map(ord, BLANK)])
    assert harmless("\u2764\ufe0f") == "\u2764\ufe0f"
    assert harmless(f"a\n\tb{JOINERS}é漢") == f"a\n\tb{JOINERS}é漢"
    assert one_line("a\n\tb\x1b\u202e") == "a  b\ufffd\ufffd"
