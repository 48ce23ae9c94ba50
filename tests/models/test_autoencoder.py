"""Autoencoders of diffusers, read and written as folders."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from helpers import randomized

from diffunet.core.errors import UserError
from diffunet.models.autoencoder import AutoencoderConfig, load_autoencoder

SMALL = {"block_out_channels": (8, 16), "norm_num_groups": 4}
KINDS = {
    "AutoencoderKL": SMALL
    | {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    },
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 4,
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        "encoder_block_out_channels": (8, 16),
        "decoder_block_out_channels": (8, 16),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), ()),
        "decoder_qkv_multiscales": ((), ()),
    },
}


def saved(kind: str, folder: Path) -> torch.nn.Module:
    """Return an autoencoder of diffusers that it has written to a folder."""
    network = randomized(getattr(diffusers, kind)(**KINDS[kind])).eval()
    network.save_pretrained(folder)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_diffusers_is_read_as_diffusers_reads_it(kind, tmp_path):
    saved(kind, tmp_path / "vae")
    theirs = getattr(diffusers, kind).from_pretrained(tmp_path / "vae").eval()
    ours = load_autoencoder(tmp_path)
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        mean, log_variance = ours.encode(image)
        found = theirs.encode(image)
        expected = found.latent_dist.mean if kind == "AutoencoderKL" else found[0]
        assert torch.equal(mean, expected)
        assert (log_variance is None) == (kind != "AutoencoderKL")
        if log_variance is not None:
            assert torch.equal(log_variance, found.latent_dist.logvar)
        assert torch.equal(ours.decode(mean), theirs.decode(expected).sample)
    assert mean.shape == (2, ours.latent_channels, 16 // ours.factor, 24 // ours.factor)
    assert ours.image_channels == 3 and not any(p.requires_grad for p in ours.parameters())


def test_a_network_by_its_config_has_the_documented_latents():
    autoencoder = AutoencoderConfig(channels=(8, 8, 16), latent_channels=3, norm_groups=4).build(1)
    mean, log_variance = autoencoder.encode(torch.zeros(2, 1, 16, 32))
    assert mean.shape == log_variance.shape == (2, 3, 4, 8) and autoencoder.factor == 4
    assert autoencoder.decode(mean).shape == (2, 1, 16, 32)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="norm_groups: 16 does not divide 24 channels"):
        AutoencoderConfig(channels=(32, 24))


def damaged(folder: Path, **changes) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_a_folder_that_does_not_fit_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no autoencoder here"):
        load_autoencoder(tmp_path)
    saved("AutoencoderKL", tmp_path)
    with pytest.raises(UserError, match="config.json: .*unexpected keyword argument 'shape'"):
        load_autoencoder(damaged(tmp_path, shape=3))
    saved("AutoencoderKL", tmp_path)
    with pytest.raises(UserError, match="latent_channels|expected|shape"):
        load_autoencoder(damaged(tmp_path, latent_channels=5))
    with pytest.raises(UserError, match="not an autoencoder of diffusers"):
        load_autoencoder(damaged(tmp_path, _class_name="VQModel"))
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError):
        load_autoencoder(damaged(tmp_path, _class_name="AutoencoderKL", latent_channels=4))


def test_an_id_is_looked_up_on_the_hub(tmp_path, monkeypatch):
    """Only the files that are read; a folder of that name comes first."""
    import huggingface_hub

    saved("AutoencoderKL", tmp_path / "snapshot" / "vae")
    asked = []

    def download(name, allow_patterns):
        asked.append((name, sorted(allow_patterns)))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert load_autoencoder("someone/vae").latent_channels == 4
    files = ["config.json", "diffusion_pytorch_model.safetensors"]
    assert asked == [("someone/vae", sorted([*files, *(f"vae/{file}" for file in files)]))]
    (tmp_path / "someone" / "vae").mkdir(parents=True)
    with pytest.raises(UserError, match="no autoencoder here"):
        load_autoencoder("someone/vae")

    def offline(name, allow_patterns):
        raise OSError("no connection\nlong advice")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="^other/vae: no such folder, and on the hub: no connection$"):
        load_autoencoder("other/vae")
