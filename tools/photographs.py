"""Collect the photographs that the pretrained runs are trained on, as pretrained/photographs.md lists them.

    python -m tools.photographs --sources FOLDER --out FOLDER

Repositories are cloned into the folder of sources (bare) unless they are there. For what the list has from a Debian
package, put the package's file there (apt-get download); dpkg-deb unpacks it. EXR files need `pip install OpenEXR`.
A photograph whose source is missing is skipped and named at the end. The size of each is checked against the list.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import io
import subprocess
import sys
from pathlib import Path

import numpy
from PIL import Image, ImageCms, ImageOps

LIST = Path(__file__).parents[1] / "pretrained" / "photographs.md"
DEBIAN, EXR = "Debian package ", ".exr (clipped to sRGB)"


@dataclasses.dataclass(frozen=True)
class ListedPhotograph:
    """One line of the list.

    Attributes:
        name: Its file in the folder of photographs.
        size: "WIDTHxHEIGHT" there.
        factor: By how much the original is larger.
        source: A repository on GitHub, or a Debian package.
        version: A commit, or the package's version.
        path: The original's path there.
    """

    name: str
    size: str
    factor: int
    source: str
    version: str
    path: str


def main() -> None:
    """Write every photograph whose source can be had."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sources", type=Path, required=True, help="where the repositories and packages are")
    options.add_argument("--out", type=Path, required=True, help="where to write the photographs")
    chosen = options.parse_args()
    missing = [photograph.name for photograph in listed() if not written(photograph, chosen.sources, chosen.out)]
    if missing:
        sys.exit(f"{len(missing)} of {len(listed())} photographs are missing: {', '.join(missing)}.")


def listed() -> list[ListedPhotograph]:
    """Return the photographs of the list."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in LIST.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    return [
        ListedPhotograph(name, size, int(original.split("/")[1]), source.split(" (")[0], version, path)
        for name, size, original, source, version, *_, path in rows[2:]
    ]


def written(photograph: ListedPhotograph, sources: Path, folder: Path) -> bool:
    """Write one photograph, unless it is there; return False if its source cannot be had."""
    place = folder / photograph.name
    if place.exists():
        return True
    content = from_package(photograph, sources) if photograph.source.startswith(DEBIAN) else cloned(photograph, sources)
    if content is None:
        return False
    image = (
        from_exr(content)
        if photograph.path.endswith(EXR)
        else to_srgb(Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "TIFF", "WEBP")))
    )
    size = tuple(int(side) for side in photograph.size.split("x"))
    if (round(image.width / photograph.factor), round(image.height / photograph.factor)) != size:
        sys.exit(f"{photograph.name}: {image.width}x{image.height} pixels cannot give {photograph.size}.")
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".part")
    image.resize(size, Image.Resampling.LANCZOS).save(partial, "PNG")
    partial.replace(place)
    return True


def cloned(photograph: ListedPhotograph, sources: Path) -> bytes | None:
    """Return a file of a repository, which is cloned if it is not there."""
    repository = sources / photograph.source.replace("/", "+")
    if not repository.exists():
        address = f"https://github.com/{photograph.source}"
        subprocess.run(["git", "clone", "--quiet", "--bare", "--filter=blob:none", address, repository], check=False)
    path = photograph.path.replace(EXR, ".exr")
    words = ["git", "-C", str(repository), "show", f"{photograph.version}:{path}"]
    done = subprocess.run(words, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def from_package(photograph: ListedPhotograph, sources: Path) -> bytes | None:
    """Return a file of a Debian package that lies in the folder of sources."""
    packages = sorted(sources.glob(f"{photograph.source.removeprefix(DEBIAN)}_{photograph.version}_*.deb"))
    if not packages:
        return None
    unpacked = sources / packages[0].stem
    if not unpacked.exists():
        subprocess.run(["dpkg-deb", "--extract", packages[0], unpacked], check=True)
    return (unpacked / photograph.path).read_bytes()


def to_srgb(image: Image.Image) -> Image.Image:
    """Return an image upright, in sRGB."""
    image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    image = image.convert("RGB")
    if profile:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    return image


def from_exr(content: bytes) -> Image.Image:
    """Return an EXR file's light between 0 and 1 as sRGB."""
    exr = importlib.import_module("OpenEXR")  # no dependency of the project: six files of the list need it
    channels = exr.File(io.BytesIO(content), separate_channels=True).channels()
    light = numpy.stack([channels[name].pixels for name in "RGB"], axis=-1).astype("float32").clip(0, 1)
    encoded = numpy.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return Image.fromarray((255 * encoded).round().astype("uint8"))


if __name__ == "__main__":
    main()
