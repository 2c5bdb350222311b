"""`colddiff` and `python -m colddiff_cli`: run a command and report failures in one or two lines."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType

INTERRUPTED = 130
PATIENCE_SECONDS = 5  # what ends one process before it has met the others usually ends the first, which reports it
MOST_LINE_CHARACTERS = 1500  # a library's message may contain a whole file


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 used wrongly, 130 interrupted."""
    from colddiff_core.distributed import threads

    threads.follow_load()
    sys.excepthook = _show_traceback  # with --debug
    code = run(sys.argv[1:])
    if "RANK" not in os.environ:
        sys.exit(code)
    from colddiff_core.distributed import environment

    group = environment.joined()
    if group is None:
        sys.exit(code)
    if code == 0:
        group.leave()  # not after a failure, when the others may never answer
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)  # torch's teardown sometimes aborts a process of a job


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback; the error's text may come from anyone's file."""
    import traceback

    from colddiff_core.text import harmless

    with contextlib.suppress(OSError):
        sys.stderr.write(harmless("".join(traceback.format_exception(kind, error, trace))))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    is_debugging = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"]  # it may come before or after the command
    try:
        words = _checked(words)
        from colddiff_cli.app import app  # imported here so that Ctrl-C is handled meanwhile
        from colddiff_cli.console.screen import one_line_warnings
        from colddiff_cli.console.streams import guarded

        with guarded() as output, one_line_warnings():
            code: int = app(words, prog_name="colddiff", standalone_mode=False, obj=arguments) or 0
        if code == 0 and output.failure:
            return _complain(1, f"The output could not be written: {output.failure}.", "")
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        format_message = getattr(error, "format_message", None)  # a parser error, whose class Typer hides
        is_reported = getattr(error, "what", None) == ""  # by the processes that were launched
        if is_debugging and format_message is None and not is_reported:
            raise
        if format_message is None:
            return _explain(error, words)
        return _explain_parser_error(error, format_message(), words)
    return _complain(code, "Interrupted.", "") if code == INTERRUPTED else code  # Typer turns Ctrl-C into a code too


def _checked(words: list[str]) -> list[str]:
    """Return the words of a command line, with ~/ at the start of a value as the home folder.

    Shells expand ~/ at the start of a word only, not after --out=.

    Raises:
        UsageError: A word is empty: as a path it would mean the working folder, as a name the default.
    """
    for before, word in zip(["colddiff", *words], words, strict=False):
        is_cut = word.startswith("--") and word.find("=") == len(word) - 1  # --out=
        if not word or is_cut:
            from colddiff_core.errors import UsageError

            raise UsageError(f"What follows {word[:-1] or before} is empty.", "Is a shell variable unset?")
    return [_at_home(word) for word in words]


def _at_home(word: str) -> str:
    name, equals, value = word.rpartition("=")
    if value == "~" or value.startswith("~/"):
        return f"{name}{equals}{os.path.expanduser(value)}"
    return word


def _explain_parser_error(error: Exception, message: str, words: Sequence[str]) -> int:
    if not message:  # no arguments: the help was printed
        return 2
    for word in words:
        if word.startswith("-") and os.path.exists(word):
            return _complain(2, message, f"For the file, write ./{word}")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "colddiff"
    return _complain(getattr(error, "exit_code", 2), message, f"See: {command} --help")


def _explain(error: Exception, words: Sequence[str] = ()) -> int:
    from colddiff_core.errors import ColddiffError, LostError, is_out_of_memory

    if isinstance(error, ColddiffError):
        return _complain(error.exit_code, error.what, error.remedy, is_lost=isinstance(error, LostError))
    if is_out_of_memory(error):
        from colddiff_cli.console import memory_remedies

        return _complain(1, "There is not enough memory for this.", memory_remedies.remedy(words))
    if isinstance(error, OSError):
        prefix = f"{error.filename}: " if error.filename else ""
        return _complain(1, f"{prefix}{error.strerror or error}.", "Check the path, the permissions and the disk.")
    what = f"Unexpected {type(error).__name__}: {error}"
    return _complain(1, what, "Run again with --debug for the traceback, and please report it.")


def _complain(code: int, what: str, remedy: str, *, is_lost: bool = False) -> int:
    who = "colddiff"
    if "RANK" in os.environ:  # only then: Ctrl-C during this import is not handled
        from colddiff_core.distributed import environment

        process = environment.process_info()
        if not process.is_first and code == INTERRUPTED:
            return code
        if is_lost and process.local:  # one report per machine
            return code
        # A process that has lost the others does not ask what they reported: it might never get an answer.
        if not is_lost and not environment.is_news(what):
            if environment.has_met():
                return code
            time.sleep(PATIENCE_SECONDS)  # torchrun ends this process meanwhile, if the first reported the same
        who = who if process.is_first else f"{who} (process {process.rank} of {process.count})"
    for line in filter(None, (what, remedy)):
        text = " ".join(line.split())[:MOST_LINE_CHARACTERS]  # a name may contain a newline
        if not text.isascii() or not text.isprintable():  # only then: Ctrl-C during this import is not handled
            from colddiff_core.text import harmless

            text = harmless(text)
        with contextlib.suppress(OSError):  # the terminal may be gone; the exit code remains
            print(f"{who}: {text}" if line is what else f"  {text}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    main()
