"""Predictors of magnetic resonance that need no targets: water and fat, and images of undersampled k-space."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.complex_channels import to_channels, to_complex
from ..core.errors import UserError
from ..core.fourier import Cartesian, zero_filled
from ..core.rng import BatchRNG
from ..core.water_fat import FAT_MODELS, MAPS, FatModel
from ..data.cases import Case, Cases
from ..data.pair_files import Kind
from ..data.paired import PairedData
from ..evaluation.comparison import Judge
from ..evaluation.references import Reference
from ..evaluation.water_fat_scores import WaterFatJudge, fraction_of
from ..models.data_consistency import Reconstructor
from ..models.unet import UNet
from ..models.water_fat import UNITS, WaterFat
from ..objectives.reconstruction import Reconstruction, ReconstructionConfig
from ..objectives.water_fat import Signal, SignalConfig
from .applications import Application

if TYPE_CHECKING:
    from .prediction import PredictConfig


class ComplexImages(Application):
    """Complex images in channels real_1, imag_1, real_2, ..., whose targets are optional."""

    @property
    def kind(self) -> Kind:
        return "images"

    def prepared(self, pairs: PairedData) -> PairedData:
        """Return the data. Raise UserError unless images are complex and remain so under augmentation."""
        if (channels := pairs.config.channels or 0) % 2:
            raise UserError(
                f"data.path: complex images have a real and an imaginary channel each (got {channels} channels); save "
                "them as complex .npy"
            )
        if pairs.config.intensity != "set":
            raise UserError("data.intensity: complex images keep their zero and their unit; use set")
        for name in ("gamma", "contrast", "brightness", "noise"):
            if getattr(self.config.augment, name):
                raise UserError(f"augment.{name}: changes gray values, and these are complex numbers; use 0")
        return pairs

    def statistics(self, pairs: PairedData) -> dict[str, Tensor]:
        """Return buffers by which all channels have mean 0 and one unit: phases remain."""
        unit = pairs.image.rms.square().mean().sqrt()
        return {"input_mean": torch.zeros(len(pairs.image.std)), "input_std": unit.expand(len(pairs.image.std)).clone()}


class WaterFatSeparation(ComplexImages):
    """Water, fat, field and R2* by the signal equation."""

    @property
    def objective(self) -> SignalConfig:
        assert isinstance(self.config.objective, SignalConfig)
        return self.config.objective

    def outputs(self, pairs: PairedData) -> int:
        """Return those of the field and R2*, from which water and fat follow."""
        return len(UNITS)

    def settled(self, pairs: PairedData) -> dict[str, Any]:
        """Raise UserError unless there is a time for each echo."""
        times, channels = self.objective.echo_times, pairs.config.channels or 0
        if times is None or self.objective.field_strength is None:
            raise UserError("objective.echo_times: needed, in seconds, and objective.field_strength, in tesla")
        if len(times) < 3:
            raise UserError(f"objective.echo_times: three or more tell water from fat (got {len(times)})")
        if channels != 2 * len(times):
            raise UserError(
                f"objective.echo_times: {len(times)} for images of {channels // 2} echoes; give one for each"
            )
        return {}

    @property
    def acquisition(self) -> tuple[Sequence[float], float, FatModel]:
        """Echo times in seconds, field strength in tesla, and the spectrum of fat."""
        assert self.objective.echo_times and self.objective.field_strength
        return self.objective.echo_times, self.objective.field_strength, FAT_MODELS[self.objective.fat_model]

    @property
    def channels(self) -> int:
        return len(MAPS)

    def build(self) -> WaterFat:
        return WaterFat(UNet(self.config.unet), *self.acquisition)

    def build_objective(self, pairs: PairedData) -> Signal:
        return Signal(self.objective, power=float(2 * pairs.image.rms.square().mean()))

    def statistics(self, pairs: PairedData) -> dict[str, Tensor]:
        return super().statistics(pairs) | {"field_range": torch.tensor(self.objective.field_limit)}

    def derived(self, output: Tensor) -> dict[str, Tensor]:
        """Return the fraction of fat in [0, 1], (*S)."""
        return {"fat_fraction": fraction_of(output)}

    def judge(self, cases: Cases, pairs: PairedData, scored: Sequence[int], fitted: Sequence[int]) -> Judge:
        return WaterFatJudge.of_echoes(*self.acquisition)

    def drawn(self, case: Case, output: Tensor) -> tuple[Case, Tensor]:
        """Return the magnitude of the first echo, the true fraction of fat or gray, and the predicted one."""
        truth = fraction_of(case.target)[None]
        shown = replace(case, image=case.image[:2].float().norm(dim=0, keepdim=True), target=truth)
        return shown, fraction_of(output)[None]


class KSpaceReconstruction(ComplexImages):
    """Complex images from some lines of their k-space."""

    whole = True

    @property
    def objective(self) -> ReconstructionConfig:
        assert isinstance(self.config.objective, ReconstructionConfig)
        return self.config.objective

    @property
    def input_channels(self) -> int:
        return (self.config.data.channels or 0) + 1

    def outputs(self, pairs: PairedData) -> int:
        return pairs.config.channels or 0

    def prepared(self, pairs: PairedData) -> PairedData:
        """Return the data with lines missing. Raise UserError for images of several sizes or distortions of them."""
        pairs = super().prepared(pairs)
        augment = self.config.augment
        if augment.elastic or augment.scale or augment.rotate not in (0, "quarters"):
            raise UserError("augment: k-space needs whole images; use mirror, and rotate 0 or quarters, alone")
        sizes = {pairs.cases[index].size for index in range(len(pairs.names))}
        if len(sizes) > 1:
            listed = " and ".join("×".join(map(str, size)) for size in sorted(sizes)[:2])
            raise UserError(f"data.path: k-space needs images of one size (got {listed}); crop or pad some")
        return replace(pairs, cases=Undersampled(pairs.cases, Reconstruction(self.objective)))

    def build(self) -> Reconstructor:
        return Reconstructor(UNet(self.config.unet))

    def build_objective(self, pairs: PairedData) -> Reconstruction:
        return Reconstruction(self.objective, magnitude=math.sqrt(float(2 * pairs.image.rms.square().mean())))

    def statistics(self, pairs: PairedData) -> dict[str, Tensor]:
        shared = super().statistics(pairs)
        identity = torch.eye(len(shared["input_std"]))
        return shared | {"output_std": shared["input_std"], "linear": identity}  # the zero-filled image, corrected

    def member(self, model: Reconstructor, tile: tuple[int, ...], settings: "PredictConfig") -> nn.Module:
        if settings.average:
            raise UserError("average: lines of k-space are not mirrored with an image; leave it out")
        return model

    def judge(self, cases: Cases, pairs: PairedData, scored: Sequence[int], fitted: Sequence[int]) -> Judge:
        zero_filled = Reference(lambda image: image[:-1])
        return replace(super().judge(cases, pairs, scored, fitted), references={"zero_filled": zero_filled})

    def input_of(self, image: Tensor) -> Tensor:
        """Return the input of the model, (2E + 1, *S), for measured k-space in channels (2E, *S), 0 where it was not.

        k-space is that of `core.fourier.to_kspace`: centered and orthonormal.
        """
        values = to_complex(image[None].float())
        mask = (values.abs() > 0).any(1)
        zero = to_channels(Cartesian(mask, dims=image.ndim - 1).adjoint(values[:, :, None]))
        return torch.cat([zero, mask[:, None].to(zero)], dim=1)[0]

    def derived(self, output: Tensor) -> dict[str, Tensor]:
        """Return the magnitude of each complex image, (E, *S)."""
        return {"magnitude": to_complex(output[None])[0].abs()}

    def drawn(self, case: Case, output: Tensor) -> tuple[Case, Tensor]:
        """Return the magnitudes of the first image: zero-filled, whole and predicted."""
        zero, whole, found = (values[:2].norm(dim=0, keepdim=True) for values in (case.image, case.target, output))
        return replace(case, image=zero, target=whole), found


@dataclass(frozen=True)
class Undersampled:
    """Cases whose whole images, (2E, *S), become targets of what remains without some lines of k-space."""

    cases: Cases
    objective: Reconstruction

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Case:
        """Return a case with the channels of `core.fourier.zero_filled`; its lines are always the same."""
        case = self.cases[index]
        whole = case.image.float()
        rng = BatchRNG(torch.Generator().manual_seed(index))
        image = zero_filled(whole[None], self.objective.masks(whole[None], rng))[0]
        return replace(case, image=image, target=whole)
