"""`tools.photographs` makes the photographs of its list from their sources."""

import io
import subprocess

import pytest
from PIL import Image

from tools import photographs


def git(*words: str) -> str:
    names = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *names, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def sources(tmp_path):
    """Return a folder with one repository, of one photograph that lies on its side, and its list."""
    repository = tmp_path / "sources" / "owner+name"
    git("init", "-q", str(repository))
    shot = Image.linear_gradient("L").convert("RGB").resize((60, 40))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    content = io.BytesIO()
    shot.save(content, "JPEG", exif=turned)
    (repository / "shot.jpg").write_bytes(content.getvalue())
    git("-C", str(repository), "add", ".")
    git("-C", str(repository), "commit", "-qm", "a photograph")
    version = git("-C", str(repository), "rev-parse", "--short", "HEAD")
    row = f"| a/shot.png | 20x30 | 40x60 /2 | owner/name | {version} | A | CC0 | README | shot.jpg |"
    gone = f"| a/gone.png | 20x30 | 40x60 /2 | owner/name | {version} | A | CC0 | README | gone.jpg |"
    (tmp_path / "list.md").write_text("\n".join(["| file |", "|---|", row, gone]))
    return tmp_path / "sources"


def test_a_photograph_is_upright_and_reduced_and_a_missing_one_is_named(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "LIST", tmp_path / "list.md")
    monkeypatch.setattr("sys.argv", ["photographs", "--sources", str(sources), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"1 of 2 photographs are missing: a/gone\.png"):
        photographs.main()
    assert [path.name for path in (tmp_path / "out" / "a").iterdir()] == ["shot.png"]
    assert Image.open(tmp_path / "out" / "a" / "shot.png").size == (20, 30)


def test_the_list_is_readable():
    listed = photographs.listed()
    assert len({photograph.name for photograph in listed}) == len(listed) == 147
    assert all(photograph.factor >= 1 for photograph in listed)
