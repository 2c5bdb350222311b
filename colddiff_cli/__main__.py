"""`colddiff` and `python -m colddiff_cli`: runs a command and tells its failures in one or two lines."""

from __future__ import annotations

import contextlib
import os
import sys
import time

INTERRUPTED = 130
PATIENCE = 5  # seconds: what ends one process before it has met the others mostly ends the first, which tells it
LONGEST = 1500  # characters of a line: what a library says of a file may hold all of that file


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 used wrongly, 130 interrupted."""
    code = run(sys.argv[1:])
    joined = sys.modules.get("colddiff_core.distributed.group")
    if joined is None or joined.current().is_alone:
        sys.exit(code)
    if code == 0:
        joined.leave()  # not after a failure: whoever failed may be waited for in vain
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)  # what torch tears down at the end of a job's process was seen to abort it now and then


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    is_debugging = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"]  # wherever it stands
    try:
        from colddiff_cli.app import create  # here: Ctrl-C may come while anything is imported
        from colddiff_cli.console.screen import telling_warnings

        with telling_warnings():
            code: int = create(words)(words, prog_name="colddiff", standalone_mode=False, obj=arguments) or 0
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        tell = getattr(error, "format_message", None)  # the parser's, whose classes Typer keeps to itself
        is_told = getattr(error, "what", None) == ""  # by processes that were launched
        if is_debugging and tell is None and not is_told:
            raise
        return _explain(error) if tell is None else _explain_parsers(error, tell())
    return _complain(code, "Interrupted.", "") if code == INTERRUPTED else code  # Typer makes a code of Ctrl-C too


def _explain_parsers(error: Exception, message: str) -> int:
    if not message:  # no arguments: the help was shown
        return 2
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "colddiff"
    return _complain(getattr(error, "exit_code", 2), message, f"See: {command} --help")


def _explain(error: Exception) -> int:
    from colddiff_core.errors import ColddiffError, LostError, is_out_of_memory

    if isinstance(error, ColddiffError):
        return _complain(error.exit_code, error.what, error.remedy, is_lost=isinstance(error, LostError))
    if is_out_of_memory(error):
        return _complain(1, "There is not enough memory for this.", "Use a smaller --size, or fewer images at a time.")
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return _complain(1, f"{place}{error.strerror or error}.", "Check the path, the permissions and the disk.")
    what = f"Unexpected {type(error).__name__}: {error}"
    return _complain(1, what, "Run again with --debug for the traceback, and please report it.")


def _complain(code: int, what: str, remedy: str, *, is_lost: bool = False) -> int:
    who = "colddiff"
    if "RANK" in os.environ:  # imported only then: Ctrl-C may come while it is
        from colddiff_core.distributed import environment

        here = environment.process_info()
        if not here.is_first and code == INTERRUPTED:
            return code
        if is_lost and here.local:  # a machine tells it once
            return code
        # A process that has lost the others does not ask what they have told: it might wait for the answer.
        if not is_lost and not environment.is_news(what):
            if environment.has_met():
                return code
            time.sleep(PATIENCE)  # torchrun ends this process meanwhile, once the first has told the same
        who = who if here.is_first else f"{who} (process {here.rank} of {here.count})"
    for line in filter(None, (what, remedy)):
        told = " ".join(line.split())[:LONGEST]  # a name may hold a newline; the answer is one line
        if not told.isprintable():  # imported only then: Ctrl-C may come while it is
            from colddiff_core.text import harmless

            told = harmless(told)
        with contextlib.suppress(OSError):  # the terminal may be gone: the exit code is left
            print(f"{who}: {told}" if line is what else f"  {told}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    main()
