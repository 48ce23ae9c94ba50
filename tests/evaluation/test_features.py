import pytest
import torch
import torch.nn.functional as F

from diffunet.evaluation import report as evaluation
from diffunet.evaluation.classifier import Classifier, ClassifierConfig, save_classifier
from diffunet.data.dataset import DataConfig, ImageDataset
from diffunet.evaluation.features import PixelFeatures, features_of, load_features
from diffunet.core.errors import UserError
from diffunet.core.storage import sha256_of_file

CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (6, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_pixels_of_any_pictures():
    assert torch.equal(PixelFeatures(8)(PIXELS), PIXELS.flatten(1) / 255)
    large = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    expected = F.avg_pool2d(large / 255, (2, 3)).flatten(1)
    torch.testing.assert_close(PixelFeatures(8)(large), expected)
    assert PixelFeatures(16)(torch.full((1, 1, 4, 4), 65535, dtype=torch.int32)).max() == 1


def test_features_of_a_set_come_in_the_order_asked_for():
    found = features_of(PixelFeatures(8), PIXELS, [4, 0])
    assert torch.equal(found, PixelFeatures(8)(PIXELS[[4, 0]]))
    assert features_of(PixelFeatures(8), PIXELS, []).shape == (0, 360)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """torch-fidelity's network with random weights, in a file as its users have it."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason='pip install -e ".[evaluate]"')
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
    patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
    torch.manual_seed(0)
    network = module.FeatureExtractorInceptionV3("inception", ["2048"])
    patch.undo()
    torch.save(network.state_dict(), file)
    return file, network


def test_inception_is_torch_fidelitys(inception):
    file, network = inception
    features = load_features("inception", str(file), 8, CPU)
    torch.testing.assert_close(features(PIXELS), network(PIXELS)[0])
    assert features(PIXELS).shape == (6, 2048)
    grey = features(PIXELS[:, :1])
    torch.testing.assert_close(grey, network(PIXELS[:, :1].repeat(1, 3, 1, 1))[0])
    torch.testing.assert_close(features(torch.cat([PIXELS, PIXELS[:, :1]], dim=1)), network(PIXELS)[0])
    assert features.weights == sha256_of_file(file)
    assert evaluation.frechet_name(features, 50_000, 50_000) == "frechet_distance"       # random weights: no FID


def test_missing_inception_weights_are_one_line_with_where_to_put_them(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity", reason='pip install -e ".[evaluate]"')
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(UserError) as mistake:
        load_features("inception", None, 8, CPU)
    line = str(mistake.value)
    assert "\n" not in line
    assert "https://github.com/toshas/torch-fidelity/releases" in line
    assert str(tmp_path) in line
    with pytest.raises(UserError, match=r"--weights: .*nowhere.pth does not exist"):
        load_features("inception", str(tmp_path / "nowhere.pth"), 8, CPU)


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_hostile_weights_are_not_executed(tmp_path, capsys):
    pytest.importorskip("torch_fidelity", reason='pip install -e ".[evaluate]"')
    torch.save({"fc.weight": Hostile()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights.pth: not the weights of https"):
        load_features("inception", str(tmp_path / "weights.pth"), 8, CPU)
    assert "executed" not in capsys.readouterr().out


def test_dinov2_is_transformers_with_its_own_preparation(tmp_path):
    transformers = pytest.importorskip("transformers", reason='pip install -e ".[evaluate]"')
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=224, patch_size=14
    )
    network = transformers.Dinov2Model(config).eval()
    network.save_pretrained(tmp_path)
    features = load_features("dinov2", str(tmp_path), 8, CPU)
    processor = transformers.BitImageProcessor(
        size={"height": 224, "width": 224}, do_center_crop=False, resample=3, do_rescale=True
    )
    pictures = [picture.permute(1, 2, 0).numpy() for picture in PIXELS]
    values = processor(pictures, return_tensors="pt", image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = network(values["pixel_values"]).last_hidden_state[:, 0]
    torch.testing.assert_close(features(PIXELS), expected, atol=0.03, rtol=0)    # Pillow resizes in 8 bits
    assert features.name == "dinov2 class token"
    with pytest.raises(UserError, match=r"--features dinov2: .*cannot be loaded .*https://huggingface.co/facebook"):
        load_features("dinov2", str(tmp_path / "nowhere"), 8, CPU)


def test_a_classifier_from_a_folder(tmp_path):
    config = ClassifierConfig(shape=[3, 12, 10], class_names=("cat", "dog"), blocks=[1, 1, 1, 1])
    torch.manual_seed(0)
    classifier = Classifier(config).eval()
    save_classifier(classifier, 0.75, tmp_path / "c")
    features = load_features(str(tmp_path / "c"), None, 8, CPU)
    image = PIXELS.float() * (2 / 255) - 1
    torch.testing.assert_close(features(PIXELS), classifier.features(image))
    assert torch.equal(features.named(PIXELS), classifier(image).argmax(1))
    assert features.class_names == ("cat", "dog")
    assert features.weights == sha256_of_file(tmp_path / "c" / "classifier.safetensors")
    assert "0.75" in features.name
    with pytest.raises(UserError, match="trained on pictures of 3×12×10, not 3×12×12"):
        features(torch.zeros(1, 3, 12, 12, dtype=torch.uint8))


def test_unknown_features_name_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"--features: inceptoin is neither .*; did you mean inception"):
        load_features("inceptoin", None, 8, CPU)
    with pytest.raises(UserError, match=r"--features inception: sees 8-bit pictures only, these have 16 bits"):
        load_features("inception", None, 16, CPU)


def test_what_a_network_saw_of_the_real_pictures_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    looked = []

    class Counted(PixelFeatures):
        weights = "a" * 64

        def __call__(self, pixels):
            looked.append(len(pixels))
            return super().__call__(pixels)

    real = ImageDataset(DataConfig(resolution=10, channels=3, bit_depth=8, held_out=0.2), PIXELS.repeat(5, 1, 1, 1), None)
    first = evaluation.evaluate_pictures(PIXELS, [None] * 6, real, Counted(8))
    assert sum(looked) == 30 + 6
    assert evaluation.evaluate_pictures(PIXELS, [None] * 6, real, Counted(8)) == first
    assert sum(looked) == 30 + 6 + 6
    changed = ImageDataset(real.config, 255 - real.images, None)
    evaluation.evaluate_pictures(PIXELS, [None] * 6, changed, Counted(8))
    assert sum(looked) == 30 + 6 + 6 + 30 + 6
