"""torch.compile for a network: when to use it, and how to disable it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from colddiff_core.errors import ColddiffWarning, MachineError, is_out_of_memory, reason

OFF, AUTO = "off", "auto"
MIN_EVALUATIONS = 5_000  # from here on a GPU makes up for the minute or two that compiling takes
CUDA_GRAPH_SIDE_PIXELS = 64  # up to this side a GPU waits for the CPU to launch kernels, which CUDA graphs avoid


def mode(requested: str, device: torch.device, evaluations: int, side: int) -> str:
    """Return the mode to pass to torch.compile, or "" to not compile.

    "auto" compiles on a GPU only: on a CPU the convolutions take the time, and compiling does not speed them up
    (docs/performance.md). Compiled runs are not reproducible bit for bit, because torch chooses kernels by timing.

    Args:
        requested: "off", "auto" or a mode of torch.compile.
        device: where the network runs.
        evaluations: the total for the run or command, so that a resumed one gets the same mode.
        side: of the pictures, in pixels.
    """
    if requested == OFF:
        return ""
    if requested != AUTO:
        return requested
    if device.type != "cuda" or evaluations < MIN_EVALUATIONS:
        return ""
    return "reduce-overhead" if side <= CUDA_GRAPH_SIDE_PIXELS else "default"


def compile_network(network: nn.Module, chosen: str) -> None:
    """Compile a network in place on its first call; its weights, their names and its copies do not change."""
    if chosen not in ("", OFF):
        import torch._inductor.config as inductor  # noqa: PLC0415 - takes a second

        # Keep the layout of UNet.lay_out: the compiler's own is a quarter slower on a CPU.
        inductor.layout_optimization = False
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns about missing CUDA on a CPU
        network.compile(mode=chosen, dynamic=False)


def is_compiled(network: nn.Module) -> bool:
    """Return whether a network is compiled, or will be on its first call."""
    return network._compiled_call_impl is not None


def disable(network: nn.Module) -> None:
    """Make a network run uncompiled again, and free the memory that compiling took."""
    network._compiled_call_impl = None
    forget()


def forget() -> None:
    """Drop all compiled code and its CUDA graphs' memory; a compiled network is compiled again when called."""
    torch._dynamo.reset()
    torch.cuda.empty_cache()  # does nothing without a GPU


def begin_step() -> None:
    """Allow the CUDA graphs of "reduce-overhead" to overwrite their previous outputs."""
    if torch.cuda.is_initialized():  # a CPU has none, and marking a step imports inductor, which takes a second
        torch.compiler.cudagraph_mark_step_begin()


def failure(error: Exception) -> str:
    """Return why compiling failed, on one line: the compiler's own error if torch wraps it."""
    return " ".join(reason(getattr(error, "inner_exception", error)).split("\n")[0].split())


class CompiledRestorer:
    """Calls a restorer whose network is compiled, and copies the results, because CUDA graphs reuse the buffer."""

    def __init__(self, restorer: Callable[..., Tensor], network: nn.Module, *, is_optional: bool) -> None:
        """With `is_optional`, a network that cannot be compiled runs uncompiled from then on, with a warning."""
        self._restorer, self._network, self._is_optional = restorer, network, is_optional

    def __call__(self, x_t: Tensor, t: int | Tensor, frozen: Any, labels: Tensor | None = None) -> Tensor:
        """Return R(x_t, t), (B, C, H, W) float32; arguments as for `Restorer`.

        Raises:
            MachineError: The network cannot be compiled, and that is not optional.
        """
        if not is_compiled(self._network):
            return self._restorer(x_t, t, frozen, labels)
        begin_step()
        try:
            return self._restorer(x_t, t, frozen, labels).clone()
        except torch._dynamo.exc.TorchDynamoException as error:
            if is_out_of_memory(error):
                raise
            why = failure(error)
            if not self._is_optional:
                raise MachineError(f"The network cannot be compiled: {why}", "Leave out --compile.") from None
        # Not in the handler: the error keeps the tensors of the failed call alive.
        disable(self._network)
        warnings.warn(ColddiffWarning(f"the network is not compiled: {why}"), stacklevel=2)
        return self._restorer(x_t, t, frozen, labels)
