"""Where the weights of a training are: whole in each process, or in shards over all processes.

A shard is a part of each weight, with its gradient, moments and averages (ZeRO, stage 3; Rajbhandari et al. 2020), by
torch's `fully_shard`. Modules that set `own_shard` are gathered only for the time that they compute.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.storage import check_state_dict
from .config import TrainConfig
from .ema import constants_of, copy_of

if TYPE_CHECKING:
    from accelerate import Accelerator

REFUSED = {
    "batch_size": ("auto", "a number"),
    "publish": ("least_val_loss", "newest"),
    "optimizer": ("muon", "adamw"),
    "runtime.mixed_precision": ("fp16", "bf16"),
    "runtime.compile": (True, "false"),
}
"""Settings that do not go with `shard`, and what to use instead."""
BuildOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


class Replicas:
    """The whole model in each process; gradients are averaged by DDP where there are several."""

    def __init__(self, model: nn.Module, accelerator: "Accelerator"):
        self.accelerator = accelerator
        self.module = model.to(accelerator.device).train()
        """The model itself."""

    def prepare(self, build_optimizer: BuildOptimizer) -> None:
        """Make `model`, to be called in training, and `optimizer`. Copies are made before."""
        optimizer = build_optimizer(self.module)
        self.model, self.optimizer = self.accelerator.prepare(self.module, optimizer)

    def copy(self, model: nn.Module) -> nn.Module:
        """Return a copy of the model, or of another copy, whose weights are in the same places."""
        return copy_of(model)

    def whole(self, copied: nn.Module) -> nn.Module:
        """Return a copy with all its weights, in the main process. All processes have to call this."""
        return copied

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the state dict of the model or of a copy, in the main process. All processes have to call this."""
        return model.state_dict()

    def moments(self) -> dict[str, Tensor]:
        """Return the state of the optimizer by "parameter:moment", as `tensors`."""
        return moments_of(self.module, self.optimizer.optimizer)

    def without_sync(self) -> AbstractContextManager:
        """Return a context in which gradients are added up without an exchange between processes."""
        return self.accelerator.no_sync(self.model)

    def clip(self, max_norm: float) -> Tensor:
        """Limit the norm of the gradients. Return what it was, a scalar that all processes agree on."""
        return self.accelerator.clip_grad_norm_(self.module.parameters(), max_norm)


class Shards(Replicas):
    """A part of each weight in each process. bf16 gathers the weights of blocks in 16 bits, and adds up in fp32.

    Raise UserError for a model with batch norms.
    """

    def __init__(self, model: nn.Module, accelerator: "Accelerator"):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            raise UserError("train.shard: batch norms have other statistics in each process; use --unet.norm group")
        self.accelerator = accelerator
        self._blank = _without_weights(model)
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        policy = MixedPrecisionPolicy()
        if accelerator.mixed_precision == "bf16":
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        model.to(memory_format=torch.contiguous_format).train()  # strides do not survive
        model.register_forward_hook(_without_views)
        for module in reversed(list(model.modules())):
            if getattr(module, "own_shard", False):
                fully_shard(module, mesh=mesh, mp_policy=policy)
        self.module = fully_shard(model, mesh=mesh)

    def prepare(self, build_optimizer: BuildOptimizer) -> None:
        from accelerate.utils import convert_to_fp32

        def call(*inputs: Any, **conditions: Any) -> Any:
            with self.accelerator.autocast():
                return convert_to_fp32(self.module(*inputs, **conditions))

        self.model = call if self.accelerator.mixed_precision == "bf16" else self.module
        self.optimizer = self.accelerator.prepare(build_optimizer(self.module))

    def copy(self, model: nn.Module) -> nn.Module:
        return _with_weights(self._blank, {name: tensor.clone() for name, tensor in model.state_dict().items()})

    def whole(self, copied: nn.Module) -> nn.Module:
        tensors = self._gathered(copied.state_dict(), self.accelerator.device)
        return _with_weights(self._blank, tensors) if tensors else self._blank

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        return self._gathered(model.state_dict(), torch.device("cpu"))

    def moments(self) -> dict[str, Tensor]:
        return self._gathered(super().moments(), torch.device("cpu"))

    def without_sync(self) -> AbstractContextManager:
        return nullcontext()  # sums of whole gradients would not fit where the weights do not

    def clip(self, max_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(self.module.parameters(), max_norm).full_tensor()

    def _gathered(self, tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        whole = {}
        for name, tensor in tensors.items():  # one after the other: no process needs memory for all
            full = _full(tensor)
            if self.accelerator.is_main_process:
                whole[name] = full.to(device)
        return whole


def check_shardable(config: TrainConfig) -> None:
    """Raise UserError for a setting that does not go with shards."""
    settings = config.model_dump()
    for key, (refused, instead) in REFUSED.items():
        *section, name = key.split(".")
        if (settings[section[0]] if section else settings)[name] == refused:
            found = str(refused).lower()
            raise UserError(f"train.{key}: does not go with train.shard (got {found}); use --train.{key} {instead}")


# ── the weights of a module ───────────────────────────────────────────────────────────────────────


def moments_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of the optimizer of a model by "parameter:moment"."""
    states = ((name, optimizer.state.get(parameter, {})) for name, parameter in model.named_parameters())
    return {f"{name}:{key}": value for name, state in states for key, value in state.items() if value is not None}


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Copy whole tensors into a module, which may have shards. Raise UserError, naming a tensor, if they do not fit."""
    expected = model.state_dict()
    check_state_dict(expected, dict(tensors), source)
    model.load_state_dict({name: _placed(tensor, expected[name]) for name, tensor in tensors.items()})


def load_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], source: Path | str
) -> None:
    """Load what `moments_of` returned, gathered. Raise UserError if the parameters are not the model's."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not tensors:  # saved before the first step that was not skipped
        return
    if {label.rpartition(":")[0] for label in tensors} != set(parameters):
        raise UserError(f"{source}: does not match the network")
    for label, tensor in tensors.items():
        name, _, key = label.rpartition(":")
        optimizer.state[parameters[name]][key] = _like(parameters[name], tensor)


def _like(parameter: Tensor, moment: Tensor) -> Tensor:
    """Return a copy of a moment in its parameter's place and memory format, which fused optimizers expect."""
    if moment.shape != parameter.shape:  # the number of steps
        return moment.clone().to(parameter.device)
    placed = _placed(moment, parameter)
    return placed if placed is not moment else torch.empty_like(parameter).copy_(moment)


def _placed(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's shard of a whole tensor, if `like` is a shard."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _full(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _without_views(module: nn.Module, inputs: tuple, output: Any) -> Any:
    """A hook that copies an output that is a view, of which `fully_shard` might lose the gradient."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def _without_weights(model: nn.Module) -> nn.Module:
    """Return a copy whose weights take no memory."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, {**constants_of(model), **empty}).eval()


def _with_weights(blank: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy with this state dict, which it does not copy."""
    module = copy.deepcopy(blank, constants_of(blank))
    module.load_state_dict(tensors, assign=True)
    return module.requires_grad_(False).eval()
