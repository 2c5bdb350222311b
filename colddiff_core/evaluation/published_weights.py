"""Published weights: find or download them, and read them only if that cannot run code.

A `.pth` file is a pickle. It is read only if its SHA-256 is the published one; any other file must be safetensors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import io
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

from colddiff_core.errors import MachineError, UsageError
from colddiff_core.files import read_ordinary, whole

CHUNK_BYTES = 1 << 20  # between two progress reports
TIMEOUT_SECONDS = 30
RANDOM = (nn.init.kaiming_uniform_, nn.init.uniform_)  # what convolutions and linear layers begin with

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """Weights as published: the network's name, the file, its URL and SHA-256.

    `option` is the command-line option that accepts another file, if there is one.
    """

    name: str
    file: str
    url: str
    sha256: str
    option: str = ""


# The authors give the first eight digits of each digest in the file's name. The full digests are recorded by others:
# docs/image-fid.md of HyperGAN/HyperGAN for the first, and
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
    """The tensors of a weights file, its path and its SHA-256."""

    path: Path
    sha256: str
    tensors: dict[str, Tensor]

    def metadata(self) -> dict[str, str]:
        """Return the file's name and SHA-256, to record beside a result."""
        return {"weights": self.path.name, "sha256": self.sha256}


def fetch(published: PublishedWeights, folder: Path, progress: Progress = lambda done, total: None) -> Path:
    """Return the path of the published file; download it to `folder` unless it or torch hub's cache has it.

    `progress` gets (bytes so far, total bytes), a total of 0 if the server does not say.

    Raises:
        MachineError: The download fails or is not the published file; nothing of it is kept.
    """
    path = find(published, folder)
    if path is not None:
        return path
    path = folder / published.file
    digest = hashlib.sha256()
    with whole(path) as draft:
        with draft.open("wb") as out:
            for chunk, total in _chunks(published, folder):
                out.write(chunk)
                digest.update(chunk)
                progress(out.tell(), total)
        if digest.hexdigest() != published.sha256:
            what = f"The download of {published.url} is incomplete or not {published.file}; it was discarded."
            raise MachineError(what, _remedy(published, folder))
    return path


def read(published: PublishedWeights, path: Path) -> LoadedWeights:
    """Return the tensors of the published `.pth` file, or of any `.safetensors` file.

    Raises:
        UsageError: The file is missing, damaged, or a `.pth` other than the published one, which is not unpickled.
    """
    try:
        content = read_ordinary(path)  # once: the bytes that are unpickled are the bytes that were hashed
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest == published.sha256:
        return LoadedWeights(path, digest, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    if path.suffix.lower() != ".safetensors":
        what = f"{path} is not {published.file} as published: its SHA-256 begins with {digest[:8]}."
        raise UsageError(what, f"Replace it with {published.url}, or give the same tensors as .safetensors.")
    try:
        return LoadedWeights(path, digest, safetensors.torch.load(content))
    except safetensors.SafetensorError as error:
        raise UsageError(f"Cannot read {path} ({error}).", "The file may be truncated; write it again.") from None


def mismatch_error(published: PublishedWeights, weights: LoadedWeights) -> UsageError:
    """Return the error for a file whose tensors do not fit the network."""
    what = f"{weights.path} does not hold the weights of {published.name}."
    return UsageError(what, f"Replace it with {published.file}, or with the same tensors as .safetensors.")


def find(published: PublishedWeights, folder: Path) -> Path | None:
    """Return the path of the published file in `folder` or torch hub's cache, None if it is in neither."""
    # torchvision and torch-fidelity download into torch hub's folder.
    folders = (folder, Path(torch.hub.get_dir()) / "checkpoints")
    return next((candidate / published.file for candidate in folders if (candidate / published.file).is_file()), None)


def _remedy(published: PublishedWeights, folder: Path) -> str:
    alternative = f", or give it with {published.option} FILE" if published.option else ""
    return f"Put that file into {folder}{alternative}."


def _chunks(published: PublishedWeights, folder: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the content of the URL in chunks, each with the total length."""
    try:
        with urllib.request.urlopen(published.url, timeout=TIMEOUT_SECONDS) as response:
            total = int(response.headers.get("Content-Length", 0))
            while chunk := response.read(CHUNK_BYTES):
                yield chunk, total
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise MachineError(f"Could not download {published.url} ({reason}).", _remedy(published, folder)) from None


class LeftUnfilled(BaseTorchFunctionMode):
    """Builds layers without random weights, which take up to a second to draw; the caller loads others."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Collection[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Skip random initialization."""
        if function in RANDOM:
            return (*args, (kwargs or {}).get("tensor"))[0]
        return super().__torch_function__(function, types, args, kwargs)
