"""`colddiff` and `python -m colddiff_cli`: runs a command and tells its failures in one or two lines."""

from __future__ import annotations

import os
import sys

from colddiff_core.errors import ColddiffError


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 used wrongly, 130 interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    from colddiff_cli.app import create

    is_debugging = "--debug" in arguments
    try:
        return create(arguments)(arguments, prog_name="colddiff", standalone_mode=False) or 0
    except ColddiffError as error:
        if is_debugging:
            raise
        return _complain(error.exit_code, error.what, error.remedy)
    except KeyboardInterrupt:
        return _complain(130, "Interrupted.", "")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if is_debugging:
            raise
        if hasattr(error, "format_message"):  # the parser's own errors, whose classes Typer keeps to itself
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "colddiff"
            return _complain(getattr(error, "exit_code", 2), error.format_message(), f"See: {command} --help")
        what = f"Unexpected {type(error).__name__}: {error}".splitlines()[0]
        return _complain(1, what, "Run again with --debug for the traceback, and please report it.")


def _complain(code: int, what: str, remedy: str) -> int:
    print(f"colddiff: {what}", file=sys.stderr)  # noqa: T201
    if remedy:
        print(f"  {remedy}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    main()
