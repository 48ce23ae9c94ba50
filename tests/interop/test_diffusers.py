import subprocess
import sys

import pytest
import torch
from helpers import randomised, small_unet
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from diffunet.runs.run import Run
from diffunet.runs.config import Config
from diffunet.data.dataset import DataConfig
from diffunet.models.denoiser import ConditionsConfig, Denoiser
from diffunet.interop.diffusers import export, load_diffusers
from diffunet.sampling.loop import sample
from diffunet.core.errors import UserError


def a_run(classes=0, **unet):
    config = Config(
        unet=small_unet(**unet),
        conditions=ConditionsConfig(classes=classes, class_names=tuple(map(str, range(classes)))),
        data=DataConfig(resolution=16, channels=3, bit_depth=8),
    )
    return config, randomised(Denoiser.from_config(config.unet, config.conditions))


STRANGER = """
import sys
sys.modules["diffunet"] = None                             # as good as not installed
import numpy, torch
from diffusers import DDPMPipeline
pipeline = DDPMPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(0)
images = pipeline(batch_size=2, generator=generator, num_inference_steps=5, output_type="np").images
numpy.save(sys.argv[2], images)
"""


@pytest.mark.parametrize("label", [None, 2])
def test_the_stock_pipeline_draws_the_same_pictures_without_diffunet(tmp_path, label):
    config, denoiser = a_run(classes=3)
    export(denoiser, config, label, tmp_path / "out")
    arguments = [sys.executable, "-c", STRANGER, str(tmp_path / "out"), str(tmp_path / "images.npy")]
    subprocess.run(arguments, check=True, cwd=tmp_path)
    import numpy

    theirs = torch.from_numpy(numpy.load(tmp_path / "images.npy")).permute(0, 3, 1, 2)

    scheduler = DDPMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, 16, 16, generator=generator)
    told = {} if label is None else {"label": torch.tensor([label, label])}
    ours = (sample(denoiser, scheduler, noise, generator, **told) / 2 + 0.5).clamp(0, 1)
    assert ours.std() > 0.05
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("classes", [0, 3])
def test_there_and_back(tmp_path, classes):
    config, denoiser = a_run(classes, modulation="shift", resampling="conv_end_padded", dropout=0.1)
    export(denoiser, config, "all", tmp_path / "out")
    found, back = load_diffusers(str(tmp_path / "out"))
    assert found.unet == config.unet
    assert found.diffusion == config.diffusion
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    told = {"label": torch.tensor([0, 2])} if classes else {}
    torch.testing.assert_close(back(x, t, **told), denoiser(x, t, **told), atol=1e-5, rtol=1e-5)


def test_a_folder_of_diffusers_own_making_comes_in(tmp_path):
    """In the shape of google/ddpm-cifar10-32: sines first, padding at the end only, one head."""
    theirs = randomised(
        UNet2DModel(
            sample_size=16,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            attention_head_dim=None,
        )
    )
    DDPMPipeline(theirs, DDPMScheduler()).save_pretrained(tmp_path / "theirs")
    config, ours = load_diffusers(str(tmp_path / "theirs"))
    run = Run(tmp_path / "run")
    run.begin(config)
    run.publish(ours)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    again = run.denoiser()
    torch.testing.assert_close(again(x, t), theirs(x, t).sample, atol=1e-5, rtol=1e-5)


def test_what_the_other_side_cannot_express_is_refused_by_name(tmp_path):
    for changes, name in (({"norm_groups": 3}, "norm_groups"), ({"token_dim": 4}, "token_dim")):
        config, denoiser = a_run(**changes)
        with pytest.raises(UserError, match=f"unet.{name}"):
            export(denoiser, config, None, tmp_path / name)
    small = {"block_out_channels": (8, 8), "norm_num_groups": 8, "sample_size": 8}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    for changes, message in (
        ({"downsample_padding": 2}, "downsample_padding 2 is not supported"),
        ({"act_fn": "gelu"}, "act_fn 'gelu' is not supported, only 'silu'"),
        ({"down_block_types": ("DownBlock2D", "SkipDownBlock2D")}, "block type SkipDownBlock2D"),
        ({"down_block_types": ("DownBlock2D", "AttnDownBlock2D")}, "attention on one side"),
    ):
        folder = tmp_path / message[:8]
        DDPMPipeline(UNet2DModel(**(small | blocks | changes)), DDPMScheduler()).save_pretrained(folder)
        with pytest.raises(UserError, match=message):
            load_diffusers(str(folder))
    folder = tmp_path / "betas"
    DDPMPipeline(UNet2DModel(**(small | blocks)), DDPMScheduler(beta_schedule="sigmoid")).save_pretrained(folder)
    with pytest.raises(UserError, match="beta_schedule .*sigmoid"):
        load_diffusers(str(folder))
    with pytest.raises(UserError, match="not a DDPMPipeline folder"):
        load_diffusers(str(tmp_path / "nowhere"))
