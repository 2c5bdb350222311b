"""Hostile or meaningless tables, images and archives, built from scratch rather than by changing bytes."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import zlib
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

NAMES = ("../../x", "/etc/passwd", "..", "", "\x1b]0;x\x07", "a\nb", "a\x00b", "x" * 5000, "ünïcødé", "-rf", "con.png")
NUMBERS = (0, -1, 1, 3, 2**31, 10**9, 10**18, 10**40, -(10**18), 1e308, 5e-324, 0.5, float("nan"), float("inf"))


def value(rng: random.Random, depth: int = 0) -> Any:
    """Return any JSON value: every type, odd numbers and names, nested tables."""
    kinds = ("null", "bool", "number", "name", "list", "table") if depth < 3 else ("null", "bool", "number", "name")
    match rng.choice(kinds):
        case "null":
            return None
        case "bool":
            return rng.random() < 0.5
        case "number":
            return rng.choice(NUMBERS)
        case "name":
            return rng.choice(NAMES)
        case "list":
            return [value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 5, 300)[: 5 - depth]))]
        case _:
            return {
                rng.choice((*NAMES, "event", "step", "loss")): value(rng, depth + 1) for _ in range(rng.randrange(4))
            }


def corrupted(table: Any, rng: random.Random, rate: float) -> Any:
    """Return tables with some values replaced and some keys renamed, dropped or added."""
    if isinstance(table, dict):
        items = {}
        for key, entry in table.items():
            if rng.random() < rate / 4:
                continue
            name = rng.choice(NAMES) if rng.random() < rate / 4 else key
            items[name] = value(rng) if rng.random() < rate else corrupted(entry, rng, rate)
        if rng.random() < rate / 2:
            items[rng.choice(("unknown", "stpes", *NAMES))] = value(rng)
        return items
    if isinstance(table, list) and table:
        return [value(rng) if rng.random() < rate else corrupted(entry, rng, rate) for entry in table]
    return table


def to_toml(table: dict[str, Any]) -> str:
    """Return tables as TOML with one level of headings; leave out what TOML cannot express."""
    plain = [(key, entry) for key, entry in table.items() if not isinstance(entry, dict)]
    heads = [(key, entry) for key, entry in table.items() if isinstance(entry, dict)]
    lines = [f"{_quoted(key)} = {_inline(entry)}" for key, entry in plain if entry is not None]
    for key, entry in heads:
        lines.append(f"[{_quoted(key)}]")
        lines += [f"{_quoted(name)} = {_inline(each)}" for name, each in entry.items() if each is not None]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "")


def _inline(entry: Any) -> str:
    if isinstance(entry, dict):
        return "{" + ", ".join(f"{_quoted(k)} = {_inline(v)}" for k, v in entry.items() if v is not None) + "}"
    if isinstance(entry, list):
        return "[" + ", ".join(_inline(v) for v in entry if v is not None) + "]"
    if isinstance(entry, float):
        return {"nan": "nan", "inf": "inf", "-inf": "-inf"}.get(repr(entry), repr(entry))
    return _quoted(entry) if isinstance(entry, str) else json.dumps(entry)


def texts() -> list[bytes]:
    """Return texts that TOML and JSON parsers trip over."""
    deep = 100_000
    items = [
        "[" * deep, "a = " + "[" * deep, "a = " + "{a=" * 2000, "." .join("a" * 2000) + " = 1", "a." * 2000 + "a = 1",
        "[" + ".".join("a" * 2000) + "]", '{"a":' * deep, '{"a":' * 900 + "1" + "}" * 900, "a = 0x" + "f" * 4000,
        "[train]\nsteps = 0x" + "f" * 4000, "[train]\nlr = 0x" + "f" * 4000, "[train]\nsteps = " + "9" * 4090,
        "[train]\nsteps = " + "9" * 5000, "[train]\nsteps = 1e99999", "a = 9999-99-99", "[train]\nsteps = 2020-01-01",
        "[data]\nsize = 07:32:00", "\ufeff[train]", "", "\x00" * 1000, "a = '" + "x" * 300_000 + "'", "[[train]]",
        "a = 1\n" * 5, "[train]\n" * 3, "=", "name = '../../x'", "name = 'a/b'", "extends = '../digits-blur'",
        "extends = 'preset'", "extends = '/etc/passwd'", "extends = 'digits-blur'\n[model]\nwidth = 1000000000",
        "extends = \"\\u0000.toml\"", "extends = 'digits-blur'\n[degradation]\nsteps = 1000000000",
        "extends = 'digits-blur'\n[degradation]\nkernel_size = 999999999",
        "extends = 'digits-blur'\n[degradation]\nname = '" + "blur+" * 500 + "blur'",
        "extends = 'digits-blur'\n[model]\nmultipliers = [" + "1," * 1500 + "1]",
        "extends = 'digits-blur'\n[degradation.a.b.c]\nd = 1", "null", "[]", "1", '"x"', "{}", "[" * 5 + "]" * 5,
        '{"event": 1}\n' * 100, '{"event": "started", "time": 1e999}\n', '{"step": ' + "9" * 5000 + "}\n",
    ]  # fmt: skip
    return [text.encode() for text in items] + [b"\xff\xfe\x00", b"\x80" * 50, bytes(range(256))]


def _png(width: int, height: int, depth: int, color: int, *chunks: bytes) -> bytes:
    parts = [b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0), *chunks]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def bombs() -> list[bytes]:
    """Return small images that claim to be large, and files that are not images."""
    data = b"IDAT" + zlib.compress(bytes(100))
    text = b"zTXt" + b"Comment\x00\x00" + zlib.compress(bytes(50_000_000), 1)
    profile = b"iCCPx\x00\x00" + zlib.compress(bytes(20_000_000), 1)
    whole = b"IDAT" + zlib.compress(bytes(17 * 16), 9)
    sides = (100_000, 100_000), (2**31 - 1, 1), (1, 2**31 - 1), (0, 0), (20_000, 20_000)
    canvas = struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
    tile = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
    endless = struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, -(2**30), 1, 24, 0, 0, 0, 0, 0, 0)
    return [
        *(_png(w, h, 8, 2, data) for w, h in sides),
        _png(9000, 9000, 8, 0, b"IDAT" + zlib.compress(bytes(10_000_000), 1)),
        _png(16, 16, 8, 0, text, whole), _png(16, 16, 8, 0, whole, text), _png(16, 16, 8, 0, profile, whole),
        b"GIF89a" + canvas + tile + b"\x08\x00;",
        b"BM" + endless,
        b"II*\x00\x08\x00\x00\x00\xff\xff" + bytes(range(256)) * 8, b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
        b"P6 99999999 99999999 255\n", b"P5 16 16 0\n" + bytes(256), b"P6 16 16 70000\n" + bytes(2000),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touched) (w) file closefile\nshowpage\n",
        b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIIIH", 30, 60, 0, 0, 0, 0, 0xFFFF) + b"%!PS-Adobe-3.0 EPSF-3.0\n" * 3,
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
        b"\xd7\xcd\xc6\x9a" + bytes(100), b"SIMPLE  =  T" + b" " * 3000, b"\x89HDF\r\n\x1a\n" + bytes(100),
        b"", b"\x00", b"\x89PNG\r\n\x1a\n",
    ]  # fmt: skip


def pictures() -> dict[str, bytes]:
    """Return small valid images of every supported format and mode, by file name."""
    gradient = Image.radial_gradient("L").resize((24, 18))
    color = Image.merge("RGB", (gradient, gradient.transpose(Image.Transpose.FLIP_LEFT_RIGHT), gradient))
    deep = Image.fromarray((np.arange(24 * 18, dtype=np.uint16) * 150).reshape(18, 24))
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", "hello", zip=True)
    note.add_itxt("Title", "x" * 100, "en", "t", zip=True)
    variants: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "gray.png": (gradient, {}),
        "rgb.png": (color, {"pnginfo": note}),
        "rgba.png": (color.convert("RGBA"), {}),
        "la.png": (gradient.convert("LA"), {}),
        "palette.png": (color.quantize(16), {"transparency": 3}),
        "bit.png": (gradient.convert("1"), {}),
        "deep.png": (deep, {}),
        "moving.png": (color, {"save_all": True, "append_images": [color.rotate(90), color.rotate(180)]}),
        "gray.jpg": (gradient, {}),
        "rgb.jpg": (color, {"progressive": True}),
        "cmyk.jpeg": (color.convert("CMYK"), {}),
        "turned.jpg": (color, {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}),
        "moving.gif": (color.quantize(8), {"save_all": True, "append_images": [color.rotate(90).quantize(8)]}),
        "rgb.webp": (color, {"quality": 50}),
        "moving.webp": (color, {"save_all": True, "append_images": [color.rotate(90)], "lossless": True}),
        "rgb.bmp": (color, {}),
        "palette.bmp": (color.quantize(16), {}),
        "rgb.tiff": (color, {}),
        "lzw.tif": (color, {"compression": "tiff_lzw"}),
        "deep.tif": (deep, {"compression": "tiff_adobe_deflate"}),
        "float.tif": (Image.fromarray(np.linspace(-1, 300, 400, dtype=np.float32).reshape(20, 20)), {}),
        "pages.tif": (color, {"save_all": True, "append_images": [gradient]}),
        "jpeg.tif": (color, {"compression": "jpeg"}),
        "fax.tif": (gradient.convert("1"), {"compression": "group4"}),
    }
    others = {
        "ppm.png": "PPM",
        "jp2.jpg": "JPEG2000",
        "avif.png": "AVIF",
        "pcx.png": "PCX",
        "tga.bmp": "TGA",
        "ico.gif": "ICO",
    }
    items = {name: _saved(picture, name.rpartition(".")[2], how) for name, (picture, how) in variants.items()}
    return items | {name: _saved(color, kind, {}) for name, kind in others.items()}


def _saved(picture: Image.Image, kind: str, how: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    # A copy: Pillow keeps settings of the last format on the image.
    picture.copy().save(out, {"JPG": "JPEG", "TIF": "TIFF"}.get(kind.upper(), kind.upper()), **how)
    return out.getvalue()


def archive(rng: random.Random, files: dict[str, bytes]) -> bytes:
    """Return a tar archive of images; members may point outside, be links or devices, or have false sizes."""
    out = io.BytesIO()
    mode, suffix_free = rng.choice(("w", "w", "w:gz", "w:bz2", "w:xz")), rng.sample(sorted(files.items()), 4)
    with tarfile.open(fileobj=out, mode=mode, format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as tar:
        for number in range(rng.randrange(1, 7)):
            name, content = rng.choice(suffix_free)
            label = rng.choice(
                (
                    f"{number}-{name}",
                    f"../../{name}",
                    f"/tmp/{name}",
                    f"a/../{name}",
                    f"{'d/' * 200}{name}",
                    f"cat/{name}",
                )
            )
            member = tarfile.TarInfo(label)
            member.size = len(content)
            match rng.randrange(7):
                case 0:
                    member.type, member.linkname, member.size = (
                        rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)),
                        "../../x.png",
                        0,
                    )
                case 1:
                    member.type, member.size = rng.choice((tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)), 0
                case 2:
                    member.pax_headers = {
                        "GNU.sparse.major": "1",
                        "GNU.sparse.minor": "0",
                        "GNU.sparse.realsize": str(10**12),
                    }
                case 3:
                    member.pax_headers = {
                        "size": str(rng.choice((10**12, -5))),
                        "path": rng.choice(("../../y.png", "x\x00.png")),
                    }
                case _:
                    pass
            tar.addfile(member, io.BytesIO(content) if member.size else None)
    return out.getvalue()
