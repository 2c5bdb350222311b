"""Pictures that are not squares, 12 high and 20 wide, through every command and by every operator."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, make_trainer
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_core import datasets, degradations, experiment, seeds
from colddiff_core.config import presets, sizes
from colddiff_core.datasets import DatasetRequest, from_config
from colddiff_core.errors import UsageError
from colddiff_core.inference import open_run, restore
from colddiff_core.models.depthwise import depthwise
from colddiff_core.training import sample_sheet
from colddiff_core.training.loader import BatchLoader

HEIGHT, WIDTH = 12, 20
CPU = torch.device("cpu")
REPLACED = ("data.size", "degradation.steps")
OBLONG = [*(word for word in TINY if not word.startswith(REPLACED)), "data.size=12,20", "model.multipliers=1,2"]
OPERATORS = [*degradations.names(), "blur+snow"]
STEPS = {"pixelate": 2}  # 12 and 20 can be halved twice
PARTS = {"blur+snow": ["blur.", "snow."]}


def asymmetric(number: int = 0) -> Image.Image:
    """Return a picture of 24 x 40: red at the left, green at the top, blue of its own in the lower right corner."""
    pixels = np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2, 0], pixels[: HEIGHT // 2, :, 1] = 255, 255
    pixels[-HEIGHT // 2 :, -WIDTH // 2 :, 2] = 16 * number % 256
    return Image.fromarray(pixels)


def expected() -> torch.Tensor:
    """Return the first picture at 12 x 20, (3, 12, 20) float32 in [-1, 1], but for blurred edges."""
    x = -torch.ones(3, HEIGHT, WIDTH)
    x[0, :, : WIDTH // 4], x[1, : HEIGHT // 4] = 1, 1
    return x


def assert_upright(x: torch.Tensor) -> None:
    """Check that a picture (3, 12, 20) is the asymmetric one, and neither mirrored nor upside down."""
    assert x.shape == (3, HEIGHT, WIDTH)
    right, mirrored, upset = (
        float((x - other)[:2].abs().mean()) for other in (expected(), expected().flip(-1), expected().flip(-2))
    )
    assert right < 0.4
    assert right < min(mirrored, upset) - 0.2


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of two classes of asymmetric pictures."""
    root = tmp_path_factory.mktemp("oblong")
    for number in range(16):
        path = root / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        asymmetric(number).save(path)
    return root


def changes(pictures: Path, operator: str) -> list[str]:
    steps = [f"degradation.{part}steps={STEPS.get(operator, 5)}" for part in PARTS.get(operator, [""])]
    second = ["data.second=folder"] if operator == "animorph" else []
    own = [f"degradation.name={operator}", "model.inputs=plain", "model.consistent=false"]
    return [*OBLONG, *own, *steps, *second, "data.dataset=folder", f"data.directory={json.dumps(str(pictures))}"]


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_command_works_for_every_operator_at_another_height_than_width(
    operator, pictures, in_folder, monkeypatch
):
    monkeypatch.setattr(sample_sheet, "IMAGES", 2)
    overrides = [word for value in changes(pictures, operator) for word in ("--set", value)]
    train = ["train", "--preset", "folder-desaturate", *overrides, "--set", "train.steps=2", "--device", "cpu"]
    assert run([*train, "--out", "run"]) == 0
    assert run(["train", "--resume", "run", "--set", "train.steps=3", "--device", "cpu"]) == 0
    assert run(["sample", "run", "--n", "3", "--out-dir", "sampled"]) == 0
    assert run(["generate", "run", "--n", "2", "--prior", "degraded", "--out-dir", "generated"]) == 0
    assert run(["generate", "run", "--n", "2", "--out-dir", "drawn"]) == 0
    assert run(["eval", "run", "--n", "3", "--features", "none"]) == 0
    assert run(["compare", "run", "--n", "2", "--samplers", "direct,naive", "--features", "none"]) == 0
    for folder in ("sampled", "generated", "drawn"):
        written = list(Path(folder).glob("*.png"))
        assert written
        assert {Image.open(path).size for path in written} == {(WIDTH, HEIGHT)}, folder


@pytest.mark.parametrize("operator", sorted({*OPERATORS} - {"animorph", "noise"}))
def test_an_operator_and_its_inverse_keep_a_picture_upright(operator):
    built = degradations.build(operator, **({} if "+" in operator else {"steps": STEPS.get(operator, 5)}))
    x0 = expected().expand(2, -1, -1, -1)
    frozen = built.freeze(x0, generator=seeds.image_generators(0, range(2)))
    x_t = built(x0, 1, frozen)
    assert_upright(x_t[0])
    if built.has_inverse and "+" not in operator:  # the blur's inverse magnifies the snow
        assert_upright(built.invert(x_t, 1, frozen, 1e-3)[0])


@pytest.mark.parametrize("operator", ["blur", "pixelate", "desaturate"])
def test_height_and_width_are_treated_alike(operator):
    built = degradations.build(operator, steps=2)
    x0 = expected().unsqueeze(0)
    for t in (1, 2):
        there, turned = (built(x, t, built.freeze(x, generator=seeds.generator(0))) for x in (x0, x0.mT.contiguous()))
        torch.testing.assert_close(turned, there.mT, rtol=0, atol=1e-5)
        back = [built.invert(x, t, built.freeze(x, generator=seeds.generator(0)), 1e-3) for x in (there, turned)]
        torch.testing.assert_close(back[1], back[0].mT, rtol=0, atol=1e-3)


def test_the_pictures_of_a_folder_are_read_upright_cropped_and_mirrored(pictures):
    config = presets.load("folder-desaturate", [*changes(pictures, "blur"), "data.margin=4"])
    train, test = from_config.load_images(config, "train", has_margin=True), from_config.load_images(config, "test")
    assert train.shape == (3, HEIGHT + 4, WIDTH + 4)
    assert test.shape == (3, HEIGHT, WIDTH)
    whole = from_config.load_images(presets.load("folder-desaturate", changes(pictures, "blur")), "train")
    assert_upright(whole.images(slice(0, 1))[0])
    loader = BatchLoader(train, CPU, size=(HEIGHT, WIDTH), flip=False)
    views = loader.draw(4, seeds.generator(1))
    taken = loader.take(torch.arange(4), views)
    assert taken.shape == (4, 3, HEIGHT, WIDTH)
    for image, (row, column) in zip(taken, views.corners.tolist(), strict=True):
        pixels = train.images(slice(0, 4))[len(taken) - 4 :]
        assert any(torch.equal(image, one[:, row : row + HEIGHT, column : column + WIDTH]) for one in pixels)
    with pytest.raises(ValueError, match="no window"):
        BatchLoader(train, CPU, size=(WIDTH, HEIGHT), flip=False)


def test_tiles_of_photographs_are_as_high_and_wide_as_asked(pictures):
    crop = [*changes(pictures, "blur"), "data.crop=3", "data.margin=2"]
    tiles = from_config.load_images(presets.load("folder-desaturate", crop), "train", has_margin=True)
    assert tiles.shape == (3, HEIGHT + 2, WIDTH + 2)
    source = torch.from_numpy(np.array(asymmetric(0))).permute(2, 0, 1)
    places = source[:2].unfold(1, HEIGHT + 2, 1).unfold(2, WIDTH + 2, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    assert all((places == tile[:2]).flatten(1).all(1).any() for tile in tiles.pixels)
    large = presets.load("folder-desaturate", [*changes(pictures, "blur"), "data.crop=3", "data.size=30,20"])
    with pytest.raises(UsageError, match="at least 30 high x 20 wide pixels"):
        from_config.load_images(large, "train")


def test_small_images_of_one_size_are_scaled_to_height_and_width():
    images = datasets.load("digits", DatasetRequest("test", (6, 16)))
    assert images.shape == (1, 6, 16)
    square = datasets.load("digits", DatasetRequest("test", 16))
    assert float(images.pixels.double().mean()) == pytest.approx(float(square.pixels.double().mean()), rel=0.02)


def test_shards_are_read_at_height_and_width(pictures, in_folder):
    assert run(["data", "pack", str(pictures), "--out-dir", "packed"]) == 0
    request = DatasetRequest("train", (HEIGHT, WIDTH), directory=Path("packed"))
    streamed = datasets.open_shards(request, 2)
    assert streamed.shape == (3, HEIGHT, WIDTH)
    rows = streamed.rows(torch.arange(2))
    streamed.close()
    assert_upright(rows[0].float() / 127.5 - 1)
    assert datasets.load("shards", request).shape == (3, HEIGHT, WIDTH)


def test_pictures_are_packed_and_degraded_at_height_and_width(pictures, in_folder, capsys):
    assert run(["data", "pack", str(pictures), "--size", "12,20", "--out-dir", "packed"]) == 0
    with tarfile.open(next(Path("packed").glob("train*.tar"))) as archive:
        (member, *_) = [name for name in archive.getnames() if name.endswith(".png")]
        assert Image.open(archive.extractfile(member)).size == (WIDTH, HEIGHT)
    asymmetric().save("photo.png")
    degrade = ["degrade", "photo.png", "--op", "desaturate", "--t", "0", "--out", "small.png"]
    assert run([*degrade, "--size", "12,20"]) == 0
    assert_upright(torch.from_numpy(np.array(Image.open("small.png"))).permute(2, 0, 1) / 127.5 - 1)
    capsys.readouterr()
    for text in ("12x20", "12,20,3", "-4", "1e9", "0,4"):
        assert run([*degrade, "--size", text, "--force"]) == 2
        assert "--size: size = " in capsys.readouterr().err


def test_a_picture_is_restored_at_the_runs_size(pictures, tmp_path):
    trainer = make_trainer(tmp_path / "run", *changes(pictures, "blur"), preset="folder-desaturate")
    for _ in trainer.steps():
        pass
    trainer.run.close()
    trained = open_run.open_run(trainer.run, device=CPU)
    x_t = expected().expand(2, -1, -1, -1)
    assert restore.restore(trained, x_t).shape == x_t.shape
    with pytest.raises(UsageError, match=r"takes \(B, 3, 12, 20\)"):
        restore.restore(trained, x_t.mT.contiguous())


def test_photographs_of_any_size_are_restored_by_such_a_run(pictures, in_folder):
    overrides = [word for value in changes(pictures, "blur") for word in ("--set", value)]
    overrides += ["--set", "model.block=local", "--set", "model.inputs=inverse"]
    assert run(["train", "--preset", "folder-desaturate", *overrides, "--out", "run", "--device", "cpu"]) == 0
    asymmetric().resize((70, 50)).save("photo.png")
    assert run(["restore", "photo.png", "--run", "run", "--t", "3", "--out", "restored.png"]) == 0
    assert Image.open("restored.png").size == (70, 50)
    assert run(["sample", "run", "photo.png", "--out-dir", "sampled"]) == 0
    assert {Image.open(path).size for path in Path("sampled").glob("*.png")} == {(WIDTH, HEIGHT)}


def test_a_table_of_the_paper_is_reproduced_at_another_height_than_width(in_folder, monkeypatch, capsys):
    monkeypatch.setattr(sample_sheet, "IMAGES", 1)
    for number in range(16):
        path = Path("data/cifar10") / ("train", "test")[number // 8] / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        asymmetric(number).save(path)
    own = [*OBLONG, "train.steps=2", "model.inputs=plain", "model.consistent=false"]
    words = ["--set", "degradation.steps=5", *(word for value in own for word in ("--set", value))]
    reproduce = ["reproduce", "table1", "--datasets", "cifar10", "--data-dir", "data", "--n", "4", *words]
    for _ in range(2):  # the second call measures nothing and reads the images of the first
        assert run([*reproduce, "--json"]) == 0
        table = json.loads(capsys.readouterr().out)["tables"][0]
        assert {row["title"] for row in table["rows"]} == {"CIFAR-10, 12,20 px"}


def test_the_sheet_of_a_training_says_where_its_images_are(pictures, tmp_path):
    trainer = make_trainer(tmp_path / "run", *changes(pictures, "desaturate"), preset="folder-desaturate")
    for _ in trainer.steps():
        pass
    trainer.run.close()
    (sheet,) = trainer.run.samples.glob("*.png")
    note = json.loads(sheet.with_suffix(".json").read_text())
    (left, top), (width, height) = note["corners"]["original"][0], note["tile"]
    assert (width, height) == (WIDTH * note["scale"], HEIGHT * note["scale"])
    tile = np.array(Image.open(sheet).crop((left, top, left + width, top + height)).resize((WIDTH, HEIGHT), 0))
    assert_upright(torch.from_numpy(tile).permute(2, 0, 1) / 127.5 - 1)


@pytest.mark.parametrize("text", ["12,20", "[12, 20]", " 12 , 20 "])
def test_a_size_is_typed_as_height_and_width(text):
    config = presets.load("digits-blur", [f"data.size={text}"])
    assert config.data.size == (12, 20)
    table = config.to_table()
    assert table["data"]["size"] == [12, 20]
    assert presets.from_table(json.loads(json.dumps(table)), "again") == config


def test_a_square_stays_one_number():
    config = presets.load("digits-blur", ["data.size=12,12"])
    assert config.data.size == 12
    assert config == presets.load("digits-blur", ["data.size=12"])
    assert DatasetRequest("train", sizes.grown(12, 4)).size == 16
    assert sizes.grown((12, 20), 4) == (16, 24)


@pytest.mark.parametrize(
    "text",
    ["12x20", "12,20,3", "[12]", "12,", "12,a", "0,20", "12,99999", "true", "12.5", "[[1],2]", "12," + "9" * 5000],
)
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=r"size = "):
        presets.load("digits-blur", [f"data.size={text}"])


def test_sizes_that_the_network_or_the_operator_cannot_halve_are_refused_in_two_lines():
    with pytest.raises(UsageError, match=r"data\.size = 12,21: .*\nUse multiples of 4, such as 12,20\."):
        experiment.build(presets.load("digits-blur", ["data.size=12,21", "model.multipliers=1,1,1"]), 1, CPU)
    config = presets.load("digits-pixelate", ["data.size=12,20", "model.multipliers=[1]", "degradation.steps=4"])
    built = experiment.build(config, 1, CPU)
    with pytest.raises(UsageError, match="cannot be halved"):
        built.degrade(torch.zeros(1, 1, 12, 20), 4, seeds.image_generators(0, [0]))


@pytest.mark.parametrize("shape", [(2, 8, 3, 20), (2, 8, 20, 3), (2, 8, 12, 20)])
def test_the_depthwise_convolution_is_torchs_at_any_height_and_width(shape):
    numbers = seeds.generator(3)
    x = torch.randn(shape, generator=numbers, requires_grad=True)
    weight, bias = torch.randn(8, 1, 7, 7, generator=numbers, requires_grad=True), torch.randn(8, generator=numbers)
    found = [depthwise(x, weight, bias), torch.nn.functional.conv2d(x, weight, bias, padding=3, groups=8)]
    gradients = [torch.autograd.grad(y.square().sum(), (x, weight)) for y in found]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)
