"""Published weights, Inception and LPIPS, without a connection and with random weights."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pickle
import socket
import sys
from pathlib import Path

import processes
import pytest
import safetensors.torch
import torch
from inceptions import random_inception
from torch import nn

from colddiff_core.errors import MachineError, UsageError
from colddiff_core.evaluation import inception, published_weights
from colddiff_core.evaluation.inception import Inception
from colddiff_core.evaluation.lpips import MIN_SIDE_PIXELS, Lpips
from colddiff_core.evaluation.published_weights import ALEXNET, INCEPTION, LeftUnfilled, PublishedWeights
from colddiff_core.images import read, to_pillow

CPU = torch.device("cpu")
needs_fidelity = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed"
)


class EvilWeights:
    """Writes a file if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """Block the network and hide the user's torch hub."""

    def refuse(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def published(tmp_path):
    """Return small weights "published" as a local file."""
    path = tmp_path / "web" / "small.pth"
    path.parent.mkdir()
    torch.save({"a": torch.arange(3000.0)}, path)
    return PublishedWeights("a small network", path.name, path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest())


def _two_lines(error: BaseException) -> str:
    assert len(str(error).splitlines()) == 2
    return str(error)


@pytest.mark.parametrize("wanted", [INCEPTION, ALEXNET])
def test_digests_match_the_file_names(wanted):
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


def test_a_download_is_stored_and_read(tmp_path, published):
    reported = []
    path = published_weights.fetch(published, tmp_path / "weights", lambda *bytes_: reported.append(bytes_))
    assert reported[-1] == (path.stat().st_size, path.stat().st_size)
    assert list(path.parent.iterdir()) == [path]
    found = published_weights.read(published, path)
    assert torch.equal(found.tensors["a"], torch.arange(3000.0))
    assert found.metadata() == {"weights": "small.pth", "sha256": published.sha256}
    reported.clear()
    assert published_weights.fetch(published, path.parent, lambda *bytes_: reported.append(bytes_)) == path
    assert not reported


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: b"<html>" + content])
def test_a_wrong_download_is_refused_and_discarded(tmp_path, published, damage):
    source = tmp_path / "web" / "small.pth"
    source.write_bytes(damage(source.read_bytes()))
    with pytest.raises(MachineError) as error:
        published_weights.fetch(published, tmp_path / "weights")
    assert published.url in _two_lines(error.value)
    assert not list((tmp_path / "weights").iterdir())


def test_without_a_connection_the_error_offers_an_alternative(tmp_path):
    with pytest.raises(MachineError) as error:
        published_weights.fetch(INCEPTION, tmp_path / "weights")
    reported = _two_lines(error.value)
    assert all(part in reported for part in (INCEPTION.url, str(tmp_path / "weights"), "--weights FILE"))
    assert not list((tmp_path / "weights").iterdir())


def test_an_unwritable_folder_is_not_reported_as_a_network_error(tmp_path, published):
    (tmp_path / "weights").touch()
    with pytest.raises(MachineError, match="Cannot write"):
        published_weights.fetch(published, tmp_path / "weights")


@pytest.mark.parametrize("name", ["small.pth", "other.pt", "other.safetensors", "noname"])
def test_other_files_are_never_unpickled(tmp_path, published, name):
    path, written = tmp_path / name, tmp_path / "written"
    path.write_bytes(pickle.dumps(EvilWeights(written)))
    with pytest.raises(UsageError) as error:
        published_weights.read(published, path)
    assert str(path) in _two_lines(error.value)
    assert not written.exists()


def test_even_the_published_file_cannot_run_code(tmp_path):
    path, written = tmp_path / "evil.pth", tmp_path / "written"
    path.write_bytes(pickle.dumps(EvilWeights(written), protocol=2))  # the protocol that torch.load supports
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


SLOW = ("torchvision", "torchmetrics", "torch_fidelity")


def import_anew() -> int:
    """Import our modules again, in a process that already has torch, and print which slow packages they import."""
    for name in list(sys.modules):
        if name.partition(".")[0] in (*SLOW, "colddiff_core"):
            del sys.modules[name]
    for name in ("inception", "lpips", "published_weights"):
        importlib.import_module(f"colddiff_core.evaluation.{name}")
    print([name for name in SLOW if name in sys.modules])  # noqa: T201
    return 0


def test_the_modules_import_nothing_slow():
    process = processes.fork(import_anew)
    assert process.communicate() == ("[]\n", "")


@pytest.fixture(scope="module")
def inception_state():
    return random_inception()


@pytest.fixture(scope="module")
def features(tmp_path_factory, inception_state):
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    safetensors.torch.save_file(inception_state, path)
    before = torch.random.get_rng_state()
    network = Inception(published_weights.read(INCEPTION, path), CPU)
    assert torch.equal(torch.random.get_rng_state(), before), "building it draws from the global generator"
    return network


@pytest.fixture(scope="module")
def pictures():
    """Return three images of 16 pixels, some values out of range."""
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2.4 - 1.2


def enlarge_less(monkeypatch, side: int = 139) -> None:
    """Make Inception enlarge pictures to `side` pixels, not 299: a quarter of the work, with last layers of 3 x 3."""
    monkeypatch.setattr(
        "torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE", side
    )


@needs_fidelity
@pytest.mark.parametrize("side", [139, pytest.param(299, marks=pytest.mark.slow)])
def test_inception_matches_torchmetrics_for_any_batch(tmp_path, inception_state, features, pictures, monkeypatch, side):
    from torchmetrics.image.fid import FrechetInceptionDistance

    enlarge_less(monkeypatch, side)
    torch.save(inception_state, tmp_path / "inception.pth")
    with LeftUnfilled():  # it loads the file's weights
        metric = FrechetInceptionDistance(feature_extractor_weights_path=str(tmp_path / "inception.pth"))
    for number, picture in enumerate(pictures):
        to_pillow(picture).save(tmp_path / f"{number}.png")
    saved = torch.stack([read(tmp_path / f"{number}.png") for number in range(3)])
    wanted = metric.inception(((saved + 1) * 127.5).round().to(torch.uint8))
    monkeypatch.setattr(inception, "BATCH_IMAGES", 2)
    found = features(pictures)
    assert found.shape == (3, features.size)
    assert found.dtype == torch.float32
    assert wanted.std() > 0.1, "the random network must distinguish images"
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@needs_fidelity
def test_inception_repeats_gray_and_takes_any_shape(features, pictures, monkeypatch):
    enlarge_less(monkeypatch)
    gray = pictures[:1, :1, :5]
    assert torch.equal(features(gray), features(gray.repeat(1, 3, 1, 1)))


@needs_fidelity
def test_inception_resizes_as_the_paper_did(features, pictures, monkeypatch):
    resized = []
    monkeypatch.setattr(
        features._network.Conv2d_1a_3x3, "forward", lambda x: resized.append(x) or torch.zeros(len(x), 32, 149, 149)
    )
    features(pictures[:1])
    bytes_ = ((pictures[:1].clamp(-1, 1) + 1) * 127.5).round()
    plain = nn.functional.interpolate(bytes_, size=(299, 299), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resized[0], (plain - 128) / 128, rtol=0, atol=1e-4)


@needs_fidelity
def test_inception_reports_its_weights(features):
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


def test_without_torch_fidelity_the_error_names_the_extra_and_the_alternative(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UsageError) as error:
        Inception(published_weights.LoadedWeights(tmp_path / "any.safetensors", "", {}), CPU)
    reported = _two_lines(error.value)
    assert "pip install 'colddiff[fid]'" in reported
    assert "--features classifier" in reported


@pytest.fixture(scope="module")
def alexnet_state():
    """Return a state of torchvision's AlexNet; layers that LPIPS does not use are zeros without memory."""
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
    network = Lpips(published_weights.read(ALEXNET, path), CPU)
    assert torch.equal(torch.random.get_rng_state(), before), "building it draws from the global generator"
    return network


@pytest.fixture(scope="module")
def pairs():
    """Return four images of 32 pixels and their originals, some values out of range."""
    numbers = torch.Generator().manual_seed(3)
    return [torch.rand(4, 3, 32, 32, generator=numbers) * 2.4 - 1.2 for _ in range(2)]


def test_lpips_matches_torchmetrics(tmp_path, alexnet_state, lpips, pairs):
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(alexnet_state, hub / ALEXNET.file)  # where torchvision looks before it downloads
    with LeftUnfilled():
        metric = LearnedPerceptualImagePatchSimilarity(net_type="alex")
    inside = [x.clamp(-1, 1).split(1) for x in pairs]
    wanted = torch.stack([metric(image, original) for image, original in zip(*inside, strict=True)])
    found = lpips(*pairs)
    assert found.shape == (4,)
    assert (found > 0).all()
    torch.testing.assert_close(found, wanted)


def test_lpips_reads_torchvisions_whole_file(tmp_path, alexnet_state, lpips, pairs):
    network = Lpips(published_weights.LoadedWeights(tmp_path / ALEXNET.file, ALEXNET.sha256, alexnet_state), CPU)
    assert torch.equal(network(*pairs), lpips(*pairs))
    assert network.metadata() == {"weights": ALEXNET.file, "sha256": ALEXNET.sha256}


def test_lpips_is_independent_of_the_batch(lpips, pairs):
    alone = torch.cat([lpips(image[None], original[None]) for image, original in zip(*pairs, strict=True)])
    torch.testing.assert_close(lpips(*pairs), alone)
    assert torch.equal(lpips(pairs[0], pairs[0]), torch.zeros(4))


def test_lpips_repeats_gray(lpips, pairs):
    gray = [x[:, :1] for x in pairs]
    assert torch.equal(lpips(*gray), lpips(*(x.repeat(1, 3, 1, 1) for x in gray)))


def test_lpips_refuses_images_that_are_too_small(lpips):
    least = torch.zeros(1, 1, MIN_SIDE_PIXELS, MIN_SIDE_PIXELS)
    assert lpips(least, least).shape == (1,)
    with pytest.raises(UsageError, match=f"{MIN_SIDE_PIXELS} pixels"):
        lpips(least[..., 1:], least[..., 1:])


def test_lpips_refuses_the_weights_of_another_network(tmp_path, alexnet_state):
    state = {key: t for key, t in alexnet_state.items() if key != "features.3.bias"}
    with pytest.raises(UsageError) as error:
        Lpips(published_weights.LoadedWeights(tmp_path / "other.safetensors", "", state), CPU)
    assert "other.safetensors" in _two_lines(error.value)
