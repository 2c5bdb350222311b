"""The trained runs that are bundled with the package: run folders with just what sampling needs. No torch.

pretrained/<name>/ contains run.toml, card.md, checkpoints/ (averaged weights in float16) and priors/ if any were
fitted. Nothing is ever written there. `python -m tools.pretrain` makes them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from colddiff_core.errors import UsageError
from colddiff_core.files import read_ordinary
from colddiff_core.text import nearest

PREFIX = "pretrained:"
MANIFEST = "SHA256SUMS"  # as `sha256sum` writes it
CARD = "card.md"


def directory() -> Path:
    """Return the folder of the pretrained runs: in the installed package, or in the source tree."""
    installed = Path(__file__).parents[1] / "_pretrained"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "pretrained"


def names() -> list[str]:
    """Return the name of every pretrained run, sorted, without the prefix."""
    return sorted(path.parent.name for path in directory().glob("*/run.toml"))


def find(name: str) -> Path:
    """Return the folder of a pretrained run, by its name with or without the prefix.

    Raises:
        UsageError: There is no such run, this installation has none at all, or a file of it is damaged.
    """
    known = names()
    plain = name.removeprefix(PREFIX)
    if plain in known:
        verify(directory() / plain)
        return directory() / plain
    if not known:
        remedy = "Reinstall colddiff; in a checkout: git checkout -- pretrained"
        raise UsageError(f"{PREFIX}{plain}: this installation came without the pretrained runs.", remedy)
    raise UsageError(f"No such pretrained run: {plain or 'the name is empty'}.", nearest(plain, known))


def holds(path: Path) -> bool:
    """Return whether a run's folder is that of a pretrained run."""
    return path.parent.resolve() == directory().resolve()


def verify(path: Path) -> None:
    """Check every file of a pretrained run against the manifest.

    Raises:
        UsageError: A file is missing or has changed, or the manifest does not list the run.
    """
    listed = _manifest(path.parent)
    mine = {name: digest for name, digest in listed.items() if name.startswith(f"{path.name}/")}
    if f"{path.name}/run.toml" not in mine:
        raise damaged(path.parent / MANIFEST, f"it does not list {path.name}")
    for name, digest in mine.items():
        _verify(path.parent / name, digest)


def verify_file(path: Path) -> None:
    """Check one file beside the pretrained runs against the manifest; raises UsageError as `verify` does."""
    folder = directory()
    name = path.relative_to(folder).as_posix()
    _verify(path, _manifest(folder).get(name, "missing"))


def _verify(path: Path, digest: str) -> None:
    try:
        content = read_ordinary(path)
    except OSError as error:
        raise damaged(path, error.strerror or "unreadable") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise damaged(path, f"its SHA-256 is not the one in {MANIFEST}")


def digest(path: Path) -> str:
    """Return a SHA-256 for all files of a pretrained run, by the manifest."""
    lines = [f"{digest}  {name}" for name, digest in _manifest(path.parent).items() if name.startswith(f"{path.name}/")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def damaged(path: Path, why: str) -> UsageError:
    """Return the error for a file of a pretrained run that is not what was published."""
    remedy = "Reinstall colddiff; in a checkout: git checkout -- pretrained"
    return UsageError(f"{path} is damaged ({why}).", remedy)


def _manifest(folder: Path) -> dict[str, str]:
    """Return {file: SHA-256}; lines that are not "digest  file" are ignored."""
    try:
        lines = read_ordinary(folder / MANIFEST).decode(errors="replace").splitlines()
    except OSError as error:
        raise damaged(folder / MANIFEST, error.strerror or "unreadable") from None
    pairs = [line.split("  ", 1) for line in lines]
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}
