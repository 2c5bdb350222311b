"""Published weights: found on the disk or fetched, and read only where reading cannot run code.

A `.pth` file is a pickle. One is read where its SHA-256 is the published one; any other file is safetensors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import io
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from colddiff_core.errors import MachineError, UsageError
from colddiff_core.files import whole

CHUNK = 1 << 20  # bytes between two reports of progress
PATIENCE = 30  # seconds to wait for an answer

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """Weights that their authors published: whose they are, the file, its address and its SHA-256.

    option: of the command line, where a file of one's own is taken instead.
    """

    name: str
    file: str
    url: str
    sha256: str
    option: str = ""


# The authors state the first eight digits of each digest, in the file's name. The digests in full are those that
# others record of their copies: docs/image-fid.md of HyperGAN/HyperGAN for the first, and
# evaluation/lpips-experiment/manifest.v1.json of moonbit-community/svgdiff for the second.
INCEPTION = PublishedWeights(
    "FID's Inception-v3",
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "--weights",
)
ALEXNET = PublishedWeights(
    "AlexNet",
    "alexnet-owt-7be5be79.pth",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
)


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
    """The tensors of a file, where it lies, and the SHA-256 of all its bytes."""

    path: Path
    sha256: str
    tensors: dict[str, Tensor]

    def metadata(self) -> dict[str, str]:
        """Return what a record of a result needs: the file's name and digest."""
        return {"weights": self.path.name, "sha256": self.sha256}


def fetch(wanted: PublishedWeights, folder: Path, progress: Progress = lambda done, total: None) -> Path:
    """Return the published file, downloaded into `folder` where it is neither there nor in torch hub's cache.

    `progress` is told (bytes so far, bytes in all), the latter 0 where the server does not say. Raises MachineError
    where the download fails or is not the published file; nothing of it stays behind.
    """
    path = find(wanted, folder)
    if path is not None:
        return path
    path = folder / wanted.file
    digest = hashlib.sha256()
    with whole(path) as draft:
        with draft.open("wb") as out:
            for chunk, total in _chunks(wanted, folder):
                out.write(chunk)
                digest.update(chunk)
                progress(out.tell(), total)
        if digest.hexdigest() != wanted.sha256:
            what = f"{wanted.url} did not send the whole of {wanted.file}, or sent another file; it is not kept."
            raise MachineError(what, _remedy(wanted, folder))
    return path


def read(wanted: PublishedWeights, path: Path) -> LoadedWeights:
    """Return the tensors of a `.pth` file that is the published one, or of any `.safetensors` file.

    Raises UsageError for any other file, before anything in it is unpickled, and for a damaged one.
    """
    try:
        content = path.read_bytes()  # once: the bytes that are unpickled are the bytes that were hashed
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest == wanted.sha256:
        return LoadedWeights(path, digest, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    if path.suffix.lower() != ".safetensors":
        what = f"{path} is not {wanted.file} as published: its SHA-256 begins with {digest[:8]}."
        raise UsageError(what, f"Put {wanted.url} in its place, or give the same tensors as .safetensors.")
    try:
        return LoadedWeights(path, digest, safetensors.torch.load(content))
    except safetensors.SafetensorError as error:
        raise UsageError(f"Cannot read {path} ({error}).", "The file may be cut short; make it again.") from None


def misfit(wanted: PublishedWeights, weights: LoadedWeights) -> UsageError:
    """Return the error of a file that holds other tensors than the network's."""
    what = f"{weights.path} does not hold the weights of {wanted.name}."
    return UsageError(what, f"Put {wanted.file} in its place, or the same tensors as .safetensors.")


def find(wanted: PublishedWeights, folder: Path) -> Path | None:
    """Return the published file in `folder` or in torch hub's cache, None where it is in neither."""
    # torchvision and torch-fidelity keep their own downloads in torch hub's folder.
    places = (folder, Path(torch.hub.get_dir()) / "checkpoints")
    return next((place / wanted.file for place in places if (place / wanted.file).is_file()), None)


def _remedy(wanted: PublishedWeights, folder: Path) -> str:
    own = f", or give it with {wanted.option} FILE" if wanted.option else ""
    return f"Put that file into {folder}{own}."


def _chunks(wanted: PublishedWeights, folder: Path) -> Iterator[tuple[bytes, int]]:
    """Yield what the address sends, piece by piece, with its length in all."""
    try:
        with urllib.request.urlopen(wanted.url, timeout=PATIENCE) as answer:
            total = int(answer.headers.get("Content-Length", 0))
            while chunk := answer.read(CHUNK):
                yield chunk, total
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise MachineError(f"Could not download {wanted.url} ({reason}).", _remedy(wanted, folder)) from None
