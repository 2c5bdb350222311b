"""Published weights and what is measured with them: no network and no real weights, networks of random ones."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from inceptions import random_inception
from torch import nn

from colddiff_core.errors import MachineError, UsageError
from colddiff_core.evaluation import inception, published_weights
from colddiff_core.evaluation.inception import Inception
from colddiff_core.evaluation.lpips import LEAST_SIDE, Lpips
from colddiff_core.evaluation.published_weights import ALEXNET, INCEPTION, PublishedWeights
from colddiff_core.images import read, to_pillow

CPU = torch.device("cpu")
needs_fidelity = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed"
)


class EvilWeights:
    """What would write a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """Without a network, and without what the user's own torch hub holds."""

    def refuse(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def published(tmp_path):
    """Small weights "published" as a file on this disk."""
    path = tmp_path / "web" / "small.pth"
    path.parent.mkdir()
    torch.save({"a": torch.arange(3000.0)}, path)
    return PublishedWeights("a small network", path.name, path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest())


def _two_lines(error: BaseException) -> str:
    assert len(str(error).splitlines()) == 2
    return str(error)


@pytest.mark.parametrize("wanted", [INCEPTION, ALEXNET])
def test_a_digest_begins_as_the_file_name_says(wanted):
    assert wanted.file.endswith(f"-{wanted.sha256[:8]}.pth")
    assert wanted.url.endswith(f"/{wanted.file}")
    assert len(wanted.sha256) == 64


def test_the_folder_comes_before_torch_hub(tmp_path):
    folder = tmp_path / "weights"
    places = [folder / ALEXNET.file, tmp_path / "torch" / "hub" / "checkpoints" / ALEXNET.file]
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for expected in places:
        assert published_weights.find(ALEXNET, folder) == expected
        expected.unlink()
    assert published_weights.find(ALEXNET, folder) is None


def test_a_download_is_kept_under_its_name_and_read(tmp_path, published):
    told = []
    path = published_weights.fetch(published, tmp_path / "weights", lambda *bytes_: told.append(bytes_))
    assert told[-1] == (path.stat().st_size, path.stat().st_size)
    assert list(path.parent.iterdir()) == [path]
    found = published_weights.read(published, path)
    assert torch.equal(found.tensors["a"], torch.arange(3000.0))
    assert found.metadata() == {"weights": "small.pth", "sha256": published.sha256}
    told.clear()
    assert published_weights.fetch(published, path.parent, lambda *bytes_: told.append(bytes_)) == path
    assert not told


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: b"<html>" + content])
def test_a_wrong_download_is_refused_and_nothing_stays(tmp_path, published, damage):
    source = tmp_path / "web" / "small.pth"
    source.write_bytes(damage(source.read_bytes()))
    with pytest.raises(MachineError) as error:
        published_weights.fetch(published, tmp_path / "weights")
    assert published.url in _two_lines(error.value)
    assert not list((tmp_path / "weights").iterdir())


def test_without_a_network_the_message_says_how_to_do_without(tmp_path):
    with pytest.raises(MachineError) as error:
        published_weights.fetch(INCEPTION, tmp_path / "weights")
    told = _two_lines(error.value)
    assert all(part in told for part in (INCEPTION.url, str(tmp_path / "weights"), "--weights FILE"))
    assert not list((tmp_path / "weights").iterdir())


def test_a_folder_that_cannot_be_written_is_not_taken_for_the_network(tmp_path, published):
    (tmp_path / "weights").touch()
    with pytest.raises(MachineError, match="Cannot write"):
        published_weights.fetch(published, tmp_path / "weights")


@pytest.mark.parametrize("name", ["small.pth", "other.pt", "other.safetensors", "noname"])
def test_what_is_not_the_published_file_is_never_unpickled(tmp_path, published, name):
    path, written = tmp_path / name, tmp_path / "written"
    path.write_bytes(pickle.dumps(EvilWeights(written)))
    with pytest.raises(UsageError) as error:
        published_weights.read(published, path)
    assert str(path) in _two_lines(error.value)
    assert not written.exists()


def test_not_even_the_published_file_may_run_code(tmp_path):
    path, written = tmp_path / "evil.pth", tmp_path / "written"
    path.write_bytes(pickle.dumps(EvilWeights(written), protocol=2))  # the one torch.load knows
    wanted = PublishedWeights("evil", path.name, path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(pickle.UnpicklingError):
        published_weights.read(wanted, path)
    assert not written.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path, published, suffix):
    path = tmp_path / f"short{suffix}"
    whole = (tmp_path / "web" / "small.pth").read_bytes()
    if suffix == ".safetensors":
        whole = safetensors.torch.save({"a": torch.zeros(100)})
    path.write_bytes(whole[:-10])
    with pytest.raises(UsageError) as error:
        published_weights.read(published, path)
    assert str(path) in _two_lines(error.value)


def test_the_modules_import_nothing_slow():
    code = (
        "import sys; from colddiff_core.evaluation import inception, lpips, published_weights;"
        "print([name for name in ('torchvision', 'torchmetrics', 'torch_fidelity') if name in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def inception_state():
    return random_inception()


@pytest.fixture(scope="module")
def features(tmp_path_factory, inception_state):
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    safetensors.torch.save_file(inception_state, path)
    before = torch.random.get_rng_state()
    made = Inception(published_weights.read(INCEPTION, path), CPU)
    assert torch.equal(torch.random.get_rng_state(), before), "building it draws from the global generator"
    return made


@pytest.fixture(scope="module")
def pictures():
    """Three pictures of 16 pixels, some of it out of range."""
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2.4 - 1.2


@needs_fidelity
def test_inception_gives_the_features_of_torchmetrics_whatever_the_batch(
    tmp_path, inception_state, features, pictures, monkeypatch
):
    from torchmetrics.image.fid import FrechetInceptionDistance

    torch.save(inception_state, tmp_path / "inception.pth")
    metric = FrechetInceptionDistance(feature_extractor_weights_path=str(tmp_path / "inception.pth"))
    for number, picture in enumerate(pictures):
        to_pillow(picture).save(tmp_path / f"{number}.png")
    saved = torch.stack([read(tmp_path / f"{number}.png") for number in range(3)])
    wanted = metric.inception(((saved + 1) * 127.5).round().to(torch.uint8))
    monkeypatch.setattr(inception, "PART", 2)
    found = features(pictures)
    assert found.shape == (3, features.size)
    assert found.dtype == torch.float32
    assert wanted.std() > 0.1, "the random network tells pictures apart"
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@needs_fidelity
def test_inception_takes_gray_as_repeated_color_and_any_shape(features, pictures):
    gray = pictures[:1, :1, :5]
    assert torch.equal(features(gray), features(gray.repeat(1, 3, 1, 1)))


@needs_fidelity
def test_inception_resizes_as_the_paper_did(features, pictures, monkeypatch):
    seen = []
    monkeypatch.setattr(
        features._network.Conv2d_1a_3x3, "forward", lambda x: seen.append(x) or torch.zeros(len(x), 32, 149, 149)
    )
    features(pictures[:1])
    bytes_ = ((pictures[:1].clamp(-1, 1) + 1) * 127.5).round()
    plain = nn.functional.interpolate(bytes_, size=(299, 299), mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen[0], (plain - 128) / 128, rtol=0, atol=1e-4)


@needs_fidelity
def test_inception_says_which_weights_it_has(features):
    metadata = features.metadata()
    assert metadata["weights"] == "inception.safetensors"
    assert len(metadata["sha256"]) == 64


@needs_fidelity
@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_inception_refuses_the_weights_of_another_network(tmp_path, inception_state, change):
    state = dict(inception_state)
    if change == "missing":
        del state["fc.bias"]
    elif change == "unknown":
        state["fc.other"] = torch.zeros(1)
    else:
        state["fc.bias"] = torch.zeros(1000)
    with pytest.raises(UsageError) as error:
        Inception(published_weights.LoadedWeights(tmp_path / "other.safetensors", "", state), CPU)
    assert "other.safetensors" in _two_lines(error.value)


def test_without_torch_fidelity_the_message_names_the_extra_and_the_way_around(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UsageError) as error:
        Inception(published_weights.LoadedWeights(tmp_path / "any.safetensors", "", {}), CPU)
    told = _two_lines(error.value)
    assert "pip install 'colddiff[fid]'" in told
    assert "--features classifier" in told


@pytest.fixture(scope="module")
def alexnet_state():
    """A state of torchvision's AlexNet; the layers that LPIPS leaves out are zeros that take no room."""
    import torchvision

    with torch.device("meta"):
        shapes = {key: t.shape for key, t in torchvision.models.alexnet(weights=None).state_dict().items()}
    numbers = torch.Generator().manual_seed(2)
    return {
        key: torch.randn(shape, generator=numbers) * (2 / shape[1:].numel()) ** 0.5
        if key.startswith("features.")
        else torch.zeros(()).expand(shape)
        for key, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def lpips(tmp_path_factory, alexnet_state):
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.safetensors"
    safetensors.torch.save_file({key: t for key, t in alexnet_state.items() if key.startswith("features.")}, path)
    before = torch.random.get_rng_state()
    made = Lpips(published_weights.read(ALEXNET, path), CPU)
    assert torch.equal(torch.random.get_rng_state(), before), "building it draws from the global generator"
    return made


@pytest.fixture(scope="module")
def pairs():
    """Four images of 32 pixels and their originals, some of it out of range."""
    numbers = torch.Generator().manual_seed(3)
    return [torch.rand(4, 3, 32, 32, generator=numbers) * 2.4 - 1.2 for _ in range(2)]


def test_lpips_is_that_of_torchmetrics(tmp_path, alexnet_state, lpips, pairs):
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(alexnet_state, hub / ALEXNET.file)  # where torchvision looks before it downloads
    metric = LearnedPerceptualImagePatchSimilarity(net_type="alex")
    inside = [x.clamp(-1, 1).split(1) for x in pairs]
    wanted = torch.stack([metric(image, original) for image, original in zip(*inside, strict=True)])
    found = lpips(*pairs)
    assert found.shape == (4,)
    assert (found > 0).all()
    torch.testing.assert_close(found, wanted)


def test_lpips_reads_the_whole_of_torchvisions_file(tmp_path, alexnet_state, lpips, pairs):
    made = Lpips(published_weights.LoadedWeights(tmp_path / ALEXNET.file, ALEXNET.sha256, alexnet_state), CPU)
    assert torch.equal(made(*pairs), lpips(*pairs))
    assert made.metadata() == {"weights": ALEXNET.file, "sha256": ALEXNET.sha256}


def test_lpips_of_each_image_is_its_own(lpips, pairs):
    alone = torch.cat([lpips(image[None], original[None]) for image, original in zip(*pairs, strict=True)])
    torch.testing.assert_close(lpips(*pairs), alone)
    assert torch.equal(lpips(pairs[0], pairs[0]), torch.zeros(4))


def test_lpips_takes_gray_as_repeated_color(lpips, pairs):
    gray = [x[:, :1] for x in pairs]
    assert torch.equal(lpips(*gray), lpips(*(x.repeat(1, 3, 1, 1) for x in gray)))


def test_lpips_says_how_small_is_too_small(lpips):
    least = torch.zeros(1, 1, LEAST_SIDE, LEAST_SIDE)
    assert lpips(least, least).shape == (1,)
    with pytest.raises(UsageError, match=f"{LEAST_SIDE} pixels"):
        lpips(least[..., 1:], least[..., 1:])


def test_lpips_refuses_the_weights_of_another_network(tmp_path, alexnet_state):
    state = {key: t for key, t in alexnet_state.items() if key != "features.3.bias"}
    with pytest.raises(UsageError) as error:
        Lpips(published_weights.LoadedWeights(tmp_path / "other.safetensors", "", state), CPU)
    assert "other.safetensors" in _two_lines(error.value)
