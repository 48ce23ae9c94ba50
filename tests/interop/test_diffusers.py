import re
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import randomized, small_unet

from diffunet.conditions.augmentation import AugmentationConfig
from diffunet.conditions.label import LabelConfig
from diffunet.core.errors import UserError
from diffunet.data.config import DataConfig
from diffunet.interop.diffusers import export_run, load_diffusers
from diffunet.models.conditioning import LabelEmbedding, PlaneEmbedding, TextEmbedding, TimeEmbedding
from diffunet.models.denoiser import Denoiser
from diffunet.models.text_encoder import PaddedTokens
from diffunet.models.unet import UNet
from diffunet.objectives.edm import EDMConfig
from diffunet.runs.config import Config
from diffunet.runs.run import Run
from diffunet.sampling.loop import sample


def a_run(*labels, objective=None, **unet):
    """Return a configuration with three classes for each label, and its denoiser."""
    config = Config(
        unet=small_unet(**unet),
        conditions={name: LabelConfig(num_classes=3, class_names=("zero", "one", "two")) for name in labels},
        data=DataConfig(resolution=16, channels=3, bit_depth=8),
        **({"objective": objective} if objective else {}),
    )
    return config, randomized(Denoiser.from_config(config.unet, config.conditions, config.time))


WITHOUT_DIFFUNET = """
import sys
sys.modules["diffunet"] = None                             # import diffunet fails
import numpy, torch
from diffusers import DDPMPipeline
pipeline = DDPMPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
generator = torch.Generator().manual_seed(0)
images = pipeline(batch_size=2, generator=generator, num_inference_steps=5, output_type="np").images
numpy.save(sys.argv[2], images)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "usage"), [(None, "unconditional, as no class was chosen"), ("two", r"every image is of class 2 \(two\)")]
)
def test_ddpm_pipeline_samples_the_same_images_without_diffunet(tmp_path, label, usage):
    config, denoiser = a_run("digit")
    assert re.search(usage, export_run(denoiser, config, label, tmp_path / "out"))
    assert re.search(usage, (tmp_path / "out" / "README.md").read_text())
    arguments = [sys.executable, "-c", WITHOUT_DIFFUNET, str(tmp_path / "out"), str(tmp_path / "images.npy")]
    subprocess.run(arguments, check=True, cwd=tmp_path)
    import numpy

    theirs = torch.from_numpy(numpy.load(tmp_path / "images.npy")).permute(0, 3, 1, 2)

    scheduler = DDPMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, 16, 16, generator=generator)
    conditions = {} if label is None else {"digit": torch.tensor([2, 2])}
    ours = (sample(denoiser, scheduler, noise, generator, **conditions) / 2 + 0.5).clamp(0, 1)
    assert ours.std() > 0.05
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("labels", [(), ("label",)])
def test_round_trip(tmp_path, labels):
    config, denoiser = a_run(*labels, modulation="shift", resampling="conv_end_padded", dropout=0.1)
    export_run(denoiser, config, "all" if labels else None, tmp_path / "out")
    found, back = load_diffusers(str(tmp_path / "out"))
    assert found.unet == config.unet
    assert found.objective == config.objective
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    conditions = {"label": torch.tensor([0, 2])} if labels else {}
    torch.testing.assert_close(back(x, t, **conditions), denoiser(x, t, **conditions), atol=1e-5, rtol=1e-5)


def test_number_of_heads_becomes_channels_per_head(tmp_path):
    config, denoiser = a_run(heads=4)
    export_run(denoiser, config, None, tmp_path / "out")
    found, back = load_diffusers(str(tmp_path / "out"))
    assert (found.unet.heads, found.unet.head_channels) == (None, 4)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    torch.testing.assert_close(back(x, t), denoiser(x, t), atol=1e-5, rtol=1e-5)


def test_augmentation_labels_are_left_out(tmp_path):
    config, _ = a_run()
    config = config.model_copy(update={"conditions": {"augmentation": AugmentationConfig(width=9)}})
    denoiser = randomized(Denoiser.from_config(config.unet, config.conditions))
    export_run(denoiser, config, None, tmp_path / "out")
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    torch.testing.assert_close(load_diffusers(str(tmp_path / "out"))[1](x, t), denoiser(x, t), atol=1e-5, rtol=1e-5)


def test_model_card_of_kept_classes_shows_how_to_call_the_network(tmp_path):
    config, denoiser = a_run("digit")
    folder = tmp_path / "out"
    assert "DDPMPipeline passes none" in export_run(denoiser, config, "all", folder)
    card = (folder / "README.md").read_text()
    assert "| 2 | two |" in card
    code = card.partition("```python\n")[2].partition("```")[0].replace('"FOLDER"', repr(str(folder)))
    x_t, t, labels = torch.randn(2, 3, 16, 16), torch.tensor([3, 700]), torch.tensor([2, 3])
    found = {"x_t": x_t, "t": t, "labels": labels}
    exec(code, found)
    expected = torch.cat([denoiser(x_t[:1], t[:1], digit=labels[:1]), denoiser(x_t[1:], t[1:])])
    torch.testing.assert_close(found["output"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("label", [None, "two", "all"])
def test_image_conditions_become_input_channels(tmp_path, label):
    """Also at the border, and where the image is absent."""
    config, _ = a_run("digit", plane_channels=6)
    vector_dim = config.unet.vector_dim
    embeddings = {"sketch": PlaneEmbedding(1), "digit": LabelEmbedding(vector_dim, 3), "source": PlaneEmbedding(3)}
    denoiser = randomized(Denoiser(UNet(config.unet), TimeEmbedding(vector_dim, 8), **embeddings))
    folder = tmp_path / "out"
    assert "call its UNet2DModel with sketch, source" in export_run(denoiser, config, label, folder)
    card = (folder / "README.md").read_text()
    for row in (
        "| 0 to 2 | x_t |",
        "| 3 | sketch, in",
        "| 4 | 1; 0 where sketch",
        "| 5 to 7 | source, in",
        "| 8 | 1; 0",
    ):
        assert row in card
    code = card.partition("```python\n")[2].partition("```")[0].replace('"FOLDER"', repr(str(folder)))
    x_t, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    images, labels = {"sketch": torch.randn(2, 1, 16, 16), "source": torch.randn(2, 3, 16, 16)}, torch.tensor([2, 2])
    found = {"x_t": x_t, "t": t, "labels": labels, **images}
    exec(code, found)
    digit = {} if label is None else {"digit": labels}
    torch.testing.assert_close(found["output"], denoiser(x_t, t, **images, **digit), atol=1e-5, rtol=1e-5)
    absent = torch.cat([x_t, torch.zeros(2, 6, 16, 16)], dim=1)
    output = found["unet"](absent, t, class_labels=labels if label == "all" else None).sample
    torch.testing.assert_close(output, denoiser(x_t, t, **digit), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="in_channels 9 is not supported with fewer out_channels"):
        load_diffusers(str(folder))


def test_text_is_refused_with_the_folder_that_has_it(tmp_path):
    config, _ = a_run(token_dim=6)
    embedding = TextEmbedding(PaddedTokens(5), 5, token_dim=6, vector_dim=config.unet.vector_dim)
    denoiser = Denoiser(UNet(config.unet), TimeEmbedding(config.unet.vector_dim, 8), caption=embedding)
    with pytest.raises(UserError, match="conditions.caption: .* UNet2DModel has no text; share .* model/ folder"):
        export_run(denoiser, config, None, tmp_path / "out")


def test_import_of_a_network_built_by_diffusers(tmp_path):
    """It has the shape of google/ddpm-cifar10-32: sines first, padding at the end only, one head."""
    theirs = randomized(
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
    run.create(config)
    run.publish(ours)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    again = run.denoiser()
    torch.testing.assert_close(again(x, t), theirs(x, t).sample, atol=1e-5, rtol=1e-5)


def test_inexpressible_settings_are_refused_by_name(tmp_path):
    config, denoiser = a_run("digit", "writer")
    with pytest.raises(UserError, match=r"UNet2DModel has one label condition \(got digit, writer\)"):
        export_run(denoiser, config, None, tmp_path / "two")
    config, denoiser = a_run()
    with pytest.raises(UserError, match="--label: this run has no classes"):
        export_run(denoiser, config, "2", tmp_path / "none")
    config, denoiser = a_run("digit")
    with pytest.raises(UserError, match=r"--label: DDPMPipeline samples one class \(got 1,two\)"):
        export_run(denoiser, config, "1,two", tmp_path / "several")
    with pytest.raises(UserError, match="--label: three is not one of the 3 classes"):
        export_run(denoiser, config, "three", tmp_path / "unknown")
    config, denoiser = a_run(objective=EDMConfig())
    with pytest.raises(UserError, match="objective: DDPMPipeline cannot sample from a network trained with edm"):
        export_run(denoiser, config, None, tmp_path / "edm")
    for changes, name in (({"norm_groups": 3}, "norm_groups"), ({"token_dim": 4}, "token_dim")):
        config, denoiser = a_run(**changes)
        with pytest.raises(UserError, match=f"unet.{name}"):
            export_run(denoiser, config, None, tmp_path / name)
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
