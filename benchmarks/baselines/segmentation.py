"""Networks and training steps of other libraries for segmentation, as their own tutorials combine them.

    pip install monai segmentation-models-pytorch

- MONAI (Apache-2.0): `UNet` with channels 16 to 256, strides 2 and two residual units; intensities scaled to [0, 1],
  `RandCropByPosNegLabeld` (2 images × 4 crops of 96×96) and `RandRotate90d` as in its 2-D tutorial, here with flips of
  both axes too; `DiceCELoss` of the softmax, Adam 1e-3; `sliding_window_inference` with windows of 96×96.
- segmentation-models-pytorch (MIT): `Unet` with the encoder resnet34, its default, or resnet18, without pretrained
  weights; its `DiceLoss` of all classes, Adam 1e-3. It has no transforms of its own: images are standardized, 8 random
  crops of 128×128 a step, flipped and turned as diffunet's. Whole images are predicted at once.

Learning rates are constant, without EMA, and none was searched for. Only the libraries' interfaces are used.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CROP = 128
"""Side of a crop for segmentation-models-pytorch."""
WINDOW = 96
"""Side of a crop and of a window for MONAI."""


@dataclass
class Peer:
    """A network with its training batches, loss and prediction."""

    network: nn.Module
    batches: Iterator[tuple[Tensor, Tensor]]
    """Endless images (B, 1, H, W) and classes (B, 1, H, W) int64."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """Of scores (B, K, H, W) and classes (B, 1, H, W)."""
    infer: Callable[[Tensor], Tensor]
    """Scores (1, K, H, W) of an image (1, 1, H, W) in the units of the files."""

    def __post_init__(self):
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)

    def step(self) -> None:
        """Make a training step."""
        image, classes = next(self.batches)
        self.network.train()
        self.optimizer.zero_grad()
        self.loss(self.network(image), classes).backward()
        self.optimizer.step()

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Return the probabilities of the classes (K, H, W) of an image (1, H, W)."""
        self.network.eval()
        return self.infer(image[None].float()).softmax(1)[0]


Build = Callable[[Sequence[tuple[Tensor, Tensor]], int], Peer]
"""From images (1, H, W) with their classes (H, W), and a seed."""


def monai_unet(cases: Sequence[tuple[Tensor, Tensor]], seed: int) -> Peer:
    from monai.data.dataloader import DataLoader
    from monai.data.dataset import CacheDataset
    from monai.data.utils import list_data_collate
    from monai.inferers.utils import sliding_window_inference
    from monai.losses.dice import DiceCELoss
    from monai.networks.nets.unet import UNet
    from monai.transforms.compose import Compose
    from monai.transforms.croppad.dictionary import RandCropByPosNegLabeld
    from monai.transforms.intensity.array import ScaleIntensity
    from monai.transforms.intensity.dictionary import ScaleIntensityd
    from monai.transforms.spatial.dictionary import RandFlipd, RandRotate90d
    from monai.utils.misc import set_determinism

    set_determinism(seed)
    keys = ["image", "label"]
    transforms = Compose(
        [
            ScaleIntensityd("image"),
            RandCropByPosNegLabeld(keys, label_key="label", spatial_size=(WINDOW, WINDOW), pos=1, neg=1, num_samples=4),
            *(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in (0, 1)),
            RandRotate90d(keys, prob=0.5, spatial_axes=(0, 1)),
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

    network = UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
    )

    def infer(image: Tensor) -> Tensor:
        scaled = torch.as_tensor(ScaleIntensity()(image))
        return torch.as_tensor(sliding_window_inference(scaled, (WINDOW, WINDOW), 4, network))

    return Peer(network, batches(), DiceCELoss(to_onehot_y=True, softmax=True), infer)


def smp_unet(encoder: str) -> Build:
    """Return the peer with an encoder such as resnet34."""

    def build(cases: Sequence[tuple[Tensor, Tensor]], seed: int) -> Peer:
        import segmentation_models_pytorch as smp

        torch.manual_seed(seed)
        network = smp.Unet(encoder, encoder_weights=None, in_channels=1, classes=2)
        loss = smp.losses.DiceLoss("multiclass")
        pixels = torch.cat([image.float().flatten() for image, _ in cases])
        std, mean = torch.std_mean(pixels)
        return Peer(
            network,
            ((image.sub(mean) / std, classes) for image, classes in _crops(cases)),
            lambda scores, classes: loss(scores, classes[:, 0]),
            lambda image: network((image - mean) / std),
        )

    return build


def _crops(cases: Sequence[tuple[Tensor, Tensor]], number: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random crops, flipped and turned by quarters."""
    while True:
        chosen = []
        for index in torch.randint(len(cases), (number,)).tolist():
            image, classes = cases[index]
            top, left = (int(torch.randint(side - CROP + 1, ())) for side in classes.shape)
            both = torch.cat([image.float(), classes[None].float()])[:, top : top + CROP, left : left + CROP]
            both = both.rot90(int(torch.randint(4, ())), (1, 2))
            chosen.append(both.flip(2) if torch.rand(()) < 0.5 else both)
        batch = torch.stack(chosen)
        yield batch[:, :1], batch[:, 1:].long()


PEERS: dict[str, Build] = {
    "MONAI UNet": monai_unet,
    "SMP Unet, resnet18": smp_unet("resnet18"),
    "SMP Unet, resnet34": smp_unet("resnet34"),
}
