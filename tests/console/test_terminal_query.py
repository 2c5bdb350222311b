"""Terminals that answer well, badly, late or not at all: pictures are drawn without asking them twice."""

from __future__ import annotations

import functools
import sys

import processes
import pytest
import terminals
from PIL import Image
from terminals import Answer

assert processes  # conftest.py starts its server for this module

XTERM = b"\x1b[?64;1;2;6;22c"
SIXEL = b"\x1b[?62;4;22c"
KITTY = b"\x1b_Gi=31;OK\x1b\\"
ANSWERS = {
    "nothing": Answer(),
    "xterm": Answer(XTERM),
    "garbage": Answer(b"\xff\xfe\x00hello;;;t\x1b[6;x;yt\x1b[?c\x1b\\"),
    "no numbers": Answer(b"\x1b[6;;t\x1b[?;;;c"),
    "zero sizes": Answer(b"\x1b[6;0;0t" + SIXEL),
    "huge sizes": Answer(b"\x1b[6;9999;9999t" + SIXEL),
    "refused": Answer(b"\x1b_Gi=31;ENOENT:no\x1b\\" + XTERM),
    "half": Answer(b"\x1b[6;20;10t\x1b[?62;4"),
    "late": Answer(b"\x1b[6;20;10t" + SIXEL, seconds=0.7),
    "thousands of bytes": Answer(b"x" * 4000 + b"\x1b[?1;2" * 500),
    "thousands of digits": Answer(b"\x1b[?" + b"4;" * 1500 + b"c"),
    "sixel": Answer(b"\x1b[6;20;10t" + SIXEL),
    "sixel and Kitty's": Answer(KITTY + b"\x1b[6;20;10t" + SIXEL),
    "Kitty": Answer(KITTY + b"\x1b[6;20;10t\x1b[?62;c"),
    "pixels known": Answer(SIXEL, pixels=(800, 480)),
}
DRAWN = {"sixel": "sixel", "sixel and Kitty's": "sixel", "Kitty": "tgp", "pixels known": "sixel"}
DRAWN |= {"zero sizes": "sixel", "huge sizes": "sixel", "thousands of digits": "sixel"}
# Where nothing can be asked, or nobody would see what the answer is for.
NEVER = {
    "dumb": {"variables": {"TERM": "dumb"}},
    "unnamed": {"variables": {"TERM": ""}},
    "unknown": {"variables": {"TERM": "unknown"}},
    "console": {"variables": {"TERM": "linux"}},
    "GNU screen": {"variables": {"STY": "1.pts"}},
    "GNU screen over ssh": {"variables": {"TERM": "screen-256color"}},
    "tmux": {"variables": {"TMUX": "/tmp/tmux"}},
    "no color": {"variables": {"NO_COLOR": "1"}},
    "no stdin": {"streams": (1, 2)},
    "no stdout": {"streams": (0, 2)},
    "no streams": {"streams": (2,)},
    "in the background": {"is_background": True},
}


HELP = b"draw a sample sheet now"


def choose() -> int:
    """Print which classes are chosen, twice, then draw with them."""
    from rich.console import Console

    from colddiff_cli.console import terminal_images

    for _ in range(2):
        backend, renderable = terminal_images.detect(), terminal_images.renderable()
        words = ["CHOSEN", renderable.__module__, backend.widget.__module__, backend.widget.__name__]
        sys.stdout.write(" ".join(words) + "\n")
    picture = Image.radial_gradient("L").convert("RGB")
    Console().print(renderable(picture, width=20, height="auto"))
    return 0


def degrade(*more: str) -> functools.partial[int]:
    return functools.partial(terminals.command, ["degrade", "photo.png", "--op", "blur", *more])


def check_quiet(session: terminals.Session) -> None:
    assert session.code == 0, session.output[-2000:]
    assert session.left == b""
    assert session.has_modes
    for word in (b"Traceback", b"Error", b"Failed", b"textual_image._"):
        assert word not in session.output


@pytest.mark.parametrize("name", ANSWERS)
def test_whatever_a_terminal_answers_it_is_asked_once_and_quickly(name, in_folder):
    session = terminals.run(choose, in_folder, ANSWERS[name])
    check_quiet(session)
    assert session.questions == 3  # one of each
    assert session.seconds < 2
    drawn = DRAWN.get(name, "halfcell")
    chosen = [line for line in session.output.decode(errors="replace").split("\r\n") if "CHOSEN" in line]
    assert len(chosen) == 2
    assert all(line.lower().count(drawn) == 2 for line in chosen), chosen  # in a renderable and in a widget
    assert (b"\x1bP" in session.output) == (drawn == "sixel")


@pytest.mark.parametrize("name", NEVER)
def test_a_terminal_that_need_not_be_asked_is_not(name, in_folder):
    session = terminals.run(choose, in_folder, Answer(SIXEL), **NEVER[name])
    check_quiet(session)
    assert session.questions == 0


@pytest.mark.parametrize("name", ["nothing", "xterm", "garbage", "zero sizes", "half", "late", "thousands of bytes"])
def test_a_command_draws_its_picture_whatever_the_terminal_answers(name, photo):
    session = terminals.run(degrade(), photo.parent, ANSWERS[name])
    check_quiet(session)
    assert session.questions == 3
    assert session.seconds < 3
    assert "▀".encode() in session.output or b"\x1bP" in session.output
    assert b"photo-blur" in session.output  # the path comes last, below the picture


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"}])
def test_no_picture_is_drawn_where_it_would_be_noise(variables, photo):
    session = terminals.run(degrade(), photo.parent, Answer(SIXEL), variables=variables)
    if "PYTHONIOENCODING" not in variables:
        check_quiet(session)
        assert session.questions == 0
        assert "▀".encode() not in session.output


def test_json_asks_nothing(photo):
    session = terminals.run(degrade("--json"), photo.parent, Answer(SIXEL))
    check_quiet(session)
    assert session.questions == 0
    assert b"\x1b" not in session.output


def test_keys_typed_before_the_question_are_left_to_the_shell(photo):
    session = terminals.run(degrade(), photo.parent, Answer(XTERM), typed=[(0.0, b"ls")])
    assert session.code == 0
    assert session.left == b"ls"
    assert session.questions == 0


@pytest.mark.parametrize("answer", [Answer(XTERM, 0.7), Answer(KITTY + b"\x1b[6;20;10t" + XTERM, 1.8)])
def test_the_dashboard_does_not_take_a_late_answer_for_keys(answer, own_run):
    """Its "?" would open the help, its "c" ask the trainer for a checkpoint."""
    watch = functools.partial(terminals.command, ["monitor", str(own_run)])
    session = terminals.run(
        watch, own_run.parent, answer, typed=terminals.QUIT, shown=terminals.DASHBOARD, size=(120, 40)
    )
    check_quiet(session)
    assert b"No trainer to ask" not in session.output
    assert HELP not in session.output


@pytest.mark.parametrize("size", [(0, 0), (0, 24), (80, 0)])
def test_a_terminal_that_does_not_know_its_size_is_no_fault(size, own_run):
    """A container's terminal may have none."""
    act = functools.partial(terminals.command, ["monitor", str(own_run)])
    keys = {"typed": terminals.QUIT, "shown": terminals.DASHBOARD}
    session = terminals.run(act, own_run.parent, Answer(XTERM), size=size, **keys)
    assert session.code == 0, session.output[-2000:]
    assert b"Traceback" not in session.output
    assert b"Unexpected" not in session.output


def test_the_parser_keeps_keys_around_answers():
    from colddiff_cli.monitor.late_answers import LateAnswerParser

    for text in ("a\x1b[?64;1;2cb", "a\x1b_Gi=31;OK\x1b\\b", "ab\x1b[6;20;10t"):
        for cut in range(1, len(text)):
            parser = LateAnswerParser()
            events = [event for part in (text[:cut], text[cut:]) for event in parser.feed(part)]
            assert [event.key for event in events] == ["a", "b"], cut


def test_the_parser_takes_escape_for_a_key_if_nothing_follows(monkeypatch):
    from textual import constants

    from colddiff_cli.monitor.late_answers import LateAnswerParser

    monkeypatch.setattr(constants, "ESCAPE_DELAY", 0.0)
    parser = LateAnswerParser()
    assert not list(parser.feed("\x1b"))
    assert [event.key for _ in range(2) for event in parser.tick()] == ["escape"]
