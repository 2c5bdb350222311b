"""Take the screenshot of the dashboard for the README: python docs/make_screenshot.py RUNS [KEY...]

RUNS is a folder of runs, the newest of them live. The keys are pressed before the screenshot is taken.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import resvg_py

from colddiff_cli.console import terminal_images
from colddiff_cli.monitor.app import Monitor
from colddiff_cli.monitor.data.machine import MachineReadings

SIZE = (150, 44)
WIDTH = 1500  # pixels
FONT = "DejaVu Sans Mono"


async def shoot(root: Path, keys: list[str]) -> str:
    """Return an SVG of the dashboard after the keys."""
    app = Monitor(root, image_backend=terminal_images.half_blocks(), machine=MachineReadings())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause(2)
        for key in keys:
            await pilot.press(key)
        await pilot.pause(2)
        return app.export_screenshot(title="colddiff monitor")


def main() -> None:
    svg = asyncio.run(shoot(Path(sys.argv[1]), sys.argv[2:])).replace("Fira Code", FONT)
    path = Path(__file__).parent / "images" / "monitor.png"
    path.write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=WIDTH)))
    print(path)


if __name__ == "__main__":
    main()
