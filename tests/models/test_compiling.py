"""When the network is compiled, and what happens if it cannot be."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
import torch
from conftest import finish, make_trainer

from colddiff_cli import __main__ as main
from colddiff_core import devices, runs, seeds
from colddiff_core.errors import ColddiffWarning
from colddiff_core.inference import generate, open_run
from colddiff_core.models import UNet, compiling
from colddiff_core.training.loader import BatchLoader

PRETRAINED = "pretrained:digits-blur-generate"
NETWORKS = [
    (torch.bfloat16, "convnext", 1),  # one level: tracing a convnext block takes a third of a second
    (torch.float32, "resnet", 2),
    pytest.param(torch.bfloat16, "convnext", 2, marks=pytest.mark.slow),
    pytest.param(torch.bfloat16, "resnet", 2, marks=pytest.mark.slow),
    pytest.param(torch.float32, "convnext", 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("dtype", "block", "levels"), NETWORKS)
def test_the_network_compiles_in_one_piece(block, dtype, levels):
    """A graph break would cost what compiling saves. The backend here runs the graph as it is."""
    torch.manual_seed(0)
    side = 4 * levels
    network = UNet(1, 1, width=8, multipliers=(1, 2)[:levels], block=block, body_dtype=dtype).lay_out(side)
    x, t = torch.randn(2, 1, side, side), torch.tensor([1, 2])
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=False)
    found, expected = compiled(x, t), network(x, t)
    assert torch.equal(found, expected)
    g = torch.randn(found.shape, generator=seeds.generator(9))
    both = [torch.autograd.grad(output, tuple(network.parameters()), g) for output in (found, expected)]
    for a, b in zip(*both, strict=True):
        assert torch.equal(a, b)


def test_when_to_compile():
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    assert compiling.mode("auto", cpu, 700_000, 32) == ""
    assert compiling.mode("auto", gpu, 700_000, 32) == "reduce-overhead"
    assert compiling.mode("auto", gpu, 700_000, 128) == "default"
    assert compiling.mode("auto", gpu, 500, 32) == ""
    assert compiling.mode("off", gpu, 700_000, 32) == ""
    assert compiling.mode("max-autotune", cpu, 1, 32) == "max-autotune"


@pytest.mark.parametrize("has_cuda", [True, False])
def test_steps_are_marked_for_cuda_graphs_alone(monkeypatch, has_cuda):
    marked = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: has_cuda)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(True))
    compiling.begin_step()
    assert marked == [True] * has_cuda


ACCUMULATED = ("train.accumulate=2", "train.log_every=1", "train.steps=3")


@pytest.fixture(scope="module")
def as_it_is(tmp_path_factory):
    """A training with ACCUMULATED and without compilation."""
    return finish(make_trainer(tmp_path_factory.mktemp("eager") / "run", *ACCUMULATED))


@pytest.mark.parametrize("is_resident", [True, False])
@pytest.mark.parametrize("failing_call", [1, 2, 4])
def test_a_network_that_cannot_be_compiled_is_trained_without(
    tmp_path, monkeypatch, as_it_is, is_resident, failing_call
):
    """With two passes per step, the first, second or fourth call fails; losses are the same as without compiling."""
    calls = []

    def compile_network(network, mode):
        def call(*args):
            calls.append(args)
            if len(calls) == failing_call:
                raise RuntimeError("no compiler\nand much more")
            return network.forward(*args)

        network._compiled_call_impl = call

    gathered = []
    send = BatchLoader._send
    monkeypatch.setattr(BatchLoader, "_send", lambda feed, indices: gathered.append(indices) or send(feed, indices))
    monkeypatch.setattr(compiling, "compile_network", compile_network)
    monkeypatch.setattr(devices, "fits", lambda pixels, device: is_resident)
    with pytest.warns(ColddiffWarning, match="^the network is not compiled: RuntimeError: no compiler$"):
        trainer = finish(make_trainer(tmp_path / "run", *ACCUMULATED, "train.compile='default'"))
    assert trainer.stepper.compile_mode == ""
    warnings = [event for event in trainer.run.events() if event["event"] == "warning"]
    assert [event["message"] for event in warnings] == ["the network is not compiled: RuntimeError: no compiler"]
    assert len(calls) == failing_call
    assert [line["loss"] for line in trainer.run.metrics()] == [line["loss"] for line in as_it_is.run.metrics()]
    assert torch.equal(trainer.parts.network.head.weight, as_it_is.parts.network.head.weight)
    # Six batches, those of the failed step again, and at most the step after it, which was announced twice.
    assert len(gathered) <= (0 if is_resident else 6 + 2 + 2)
    assert runs.Run(tmp_path / "run").config(()).train.compile == "default"


def test_once_a_few_steps_are_taken_a_failure_is_not_the_compilers(tmp_path, monkeypatch):
    def compile_network(network, mode):
        calls = iter(range(100))

        def call(*args):
            if next(calls) == 4:
                raise RuntimeError("something else")
            return network.forward(*args)

        network._compiled_call_impl = call

    monkeypatch.setattr(compiling, "compile_network", compile_network)
    with pytest.raises(RuntimeError, match="something else"):
        finish(make_trainer(tmp_path / "run"))


@pytest.mark.parametrize("is_possible", [True, False])
def test_sampling_compiles_the_network_or_reports_why_not(tiny_run, monkeypatch, capsys, is_possible, tmp_path):
    def backend(graph, inputs):
        if not is_possible:
            raise RuntimeError("no compiler\nand much more")
        return graph.forward

    def compile_network(network, mode):
        if mode != "off":
            assert mode == "max-autotune"
            network.compile(backend=backend, dynamic=False)

    monkeypatch.setattr(compiling, "compile_network", compile_network)
    own = shutil.copytree(tiny_run, tmp_path / "run")  # a failure leaves what was measured in the run
    words = ["eval", str(own), "--n", "4", "--t", "2", "--features", "none", "--json"]
    status, out, err = cli([*words, "--compile", "max-autotune"], capsys)
    if is_possible:
        plainly = cli(words, capsys)
        assert (status, timeless(out)) == (plainly[0], timeless(plainly[1]))
    else:
        assert status == 1
        assert "cannot be compiled: " in err
        assert len(err.splitlines()) <= 3
        assert "Traceback" not in err


@pytest.mark.parametrize("is_possible", [True, False])
def test_only_a_long_generation_compiles_by_itself(monkeypatch, is_possible):
    """A batch of 16 takes five evaluations; here the threshold is 15. If compiling fails, it runs uncompiled."""
    chosen = []

    def compile_network(network, mode):
        chosen.append(mode)
        if mode == "default":
            network.compile(backend=backend, dynamic=False)

    def backend(graph, inputs):
        if not is_possible:
            raise RuntimeError("no compiler\nand much more")
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "mode", lambda name, device, count, side: "default" if count >= 15 else "")
    monkeypatch.setattr(compiling, "compile_network", compile_network)
    wide_stride = ["sample.stride=10", "train.precision=float32"]
    expected = generate.generate(open_run.open_run(PRETRAINED, overrides=wide_stride), 33)
    assert chosen == ["off"]
    long = open_run.open_run(PRETRAINED, overrides=[*wide_stride, "sample.compile=auto"])
    generate.generate(long, 1)
    assert chosen == ["off", ""]
    warned = pytest.warns(ColddiffWarning, match="not compiled: .*no compiler$")
    with contextlib.nullcontext() if is_possible else warned:
        found = generate.generate(long, 33)
    assert chosen == ["off", "", "default"]
    assert compiling.is_compiled(long.experiment.restorer.unet) == is_possible
    assert torch.allclose(found, expected, atol=1e-3)


def cli(words, capsys):
    torch._dynamo.reset()
    status = main.run(words)
    return status, *capsys.readouterr()


def timeless(out: str) -> dict:
    result = json.loads(out)
    for figures in result["metrics"].values():
        figures.pop("milliseconds", None)
    return result
