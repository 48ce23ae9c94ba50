"""MONAI's U-Net for volumes, as its 3-D tutorials combine it (Apache-2.0): `pip install monai`.

`UNet` with channels 16 to 256 (or fewer where volumes are small), strides 2 and two residual units; intensities
standardized by volume, `RandCropByPosNegLabeld` (2 volumes × 2 crops), flips of all axes; `DiceCELoss` of the softmax,
Adam 1e-3, constant, without EMA; `sliding_window_inference`. None of it was searched for.
"""

from collections.abc import Iterator, Sequence

import torch
from segmentation import Peer
from torch import Tensor


def monai_unet_3d(cases: Sequence[tuple[Tensor, Tensor]], classes: int, window: Sequence[int], seed: int) -> Peer:
    """Return MONAI's network with its training batches, from volumes (C, D, H, W) and their classes (D, H, W)."""
    from monai.data.dataloader import DataLoader
    from monai.data.dataset import CacheDataset
    from monai.data.utils import list_data_collate
    from monai.inferers.utils import sliding_window_inference
    from monai.losses.dice import DiceCELoss
    from monai.networks.nets.unet import UNet
    from monai.transforms.compose import Compose
    from monai.transforms.croppad.dictionary import RandCropByPosNegLabeld, SpatialPadd
    from monai.transforms.intensity.array import NormalizeIntensity
    from monai.transforms.intensity.dictionary import NormalizeIntensityd
    from monai.transforms.spatial.dictionary import RandFlipd
    from monai.utils.misc import set_determinism

    set_determinism(seed)
    keys, size = ["image", "label"], tuple(window)
    transforms = Compose(
        [
            NormalizeIntensityd("image", channel_wise=True),
            SpatialPadd(keys, size),
            RandCropByPosNegLabeld(keys, label_key="label", spatial_size=size, pos=1, neg=1, num_samples=2),
            *(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
        ]
    )
    rows = [{"image": image.float(), "label": classes[None].float()} for image, classes in cases]
    loader = DataLoader(
        CacheDataset(rows, transforms, progress=False), batch_size=2, shuffle=True, collate_fn=list_data_collate
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for batch in loader:
                yield batch["image"].as_tensor(), batch["label"].as_tensor().long()

    widths = (16, 32, 64, 128, 256)[: max(2, min(size).bit_length() - 2)]
    network = UNet(
        spatial_dims=3,
        in_channels=len(cases[0][0]),
        out_channels=classes,
        channels=widths,
        strides=(2,) * (len(widths) - 1),
        num_res_units=2,
    )

    def infer(image: Tensor) -> Tensor:
        scaled = torch.as_tensor(NormalizeIntensity(channel_wise=True)(image[0]))[None]
        return torch.as_tensor(sliding_window_inference(scaled, size, 4, network))

    return Peer(network, batches(), DiceCELoss(to_onehot_y=True, softmax=True), infer)
