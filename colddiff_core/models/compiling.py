"""torch.compile for a network: when it pays, and how to go back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from colddiff_core.errors import MachineError, is_out_of_memory

OFF = "off"
LONG = 5_000  # evaluations from which on a GPU wins back the minute or two that compiling takes
SMALL = 64  # pixels of a side up to which a GPU waits for the CPU to launch kernels: there graphs of them pay


def mode(asked: str, device: torch.device, evaluations: int, side: int) -> str:
    """Return torch.compile's mode for a network on pictures of `side` pixels, empty for not to compile.

    "auto" compiles on a GPU alone: on a CPU the time goes into the convolutions, which it leaves as they are
    (docs/performance.md). `evaluations` is the length of the whole run, so that a resumed one computes as it began; but
    torch picks kernels by timing, and bit for bit the same is only a run that is not compiled.
    """
    if asked == OFF:
        return ""
    if asked != "auto":
        return asked
    if device.type != "cuda" or evaluations < LONG:
        return ""
    return "reduce-overhead" if side <= SMALL else "default"


def compile_network(network: nn.Module, chosen: str) -> None:
    """Have a network compiled when it is first called; weights, their names and copies of it stay as they are."""
    if chosen not in ("", OFF):
        import torch._inductor.config as inductor  # noqa: PLC0415 - a second, for who compiles

        # The weights lie as UNet.lay_out has them: laid out anew by the compiler, they cost a quarter more on a CPU.
        inductor.layout_optimization = False
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA where none is wanted
        network.compile(mode=chosen, dynamic=False)


def is_compiled(network: nn.Module) -> bool:
    """Tell whether a network is compiled, or will be when it is first called."""
    return network._compiled_call_impl is not None


def undo(network: nn.Module) -> None:
    """Have a network run as it is written again, and give back what compiling took."""
    network._compiled_call_impl = None
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def begin_step() -> None:
    """Tell the graphs of "reduce-overhead" that what they returned before may be overwritten."""
    torch.compiler.cudagraph_mark_step_begin()


def evaluated(restorer: Callable[..., Tensor], *arguments: Any, **named: Any) -> Tensor:
    """Return what a restorer with a compiled network says, in memory that its next evaluation leaves alone.

    Raises MachineError where the network cannot be compiled.
    """
    begin_step()
    try:
        return restorer(*arguments, **named).clone()
    except torch._dynamo.exc.TorchDynamoException as error:
        if is_out_of_memory(error):
            raise
        why = next(iter(str(error).split("\n")), "") or type(error).__name__
        raise MachineError(f"The network cannot be compiled: {why}", "Leave --compile out.") from None
