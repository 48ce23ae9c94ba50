import pytest
import torch
import torch.nn.functional as F

from diffunet.conditions.label import LabelConfig
from diffunet.core.errors import UserError
from diffunet.core.storage import sha256_of_file
from diffunet.data.config import DataConfig
from diffunet.data.dataset import ImageDataset, load_images
from diffunet.evaluation.classifier import Classifier, ClassifierConfig, save_classifier
from diffunet.evaluation.features import DigitFeatures, PixelFeatures, choose_features, extract, load_features
from diffunet.evaluation.report import evaluate_images, frechet_name

CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (6, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_pixel_features():
    assert torch.equal(PixelFeatures(8)(PIXELS), PIXELS.flatten(1) / 255)
    large = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    expected = F.avg_pool2d(large / 255, (2, 3)).flatten(1)
    torch.testing.assert_close(PixelFeatures(8)(large), expected)
    assert PixelFeatures(16)(torch.full((1, 1, 4, 4), 65535, dtype=torch.int32)).max() == 1


def test_features_come_in_the_order_of_the_indices():
    found = extract(PixelFeatures(8), PIXELS, [4, 0])
    assert torch.equal(found, PixelFeatures(8)(PIXELS[[4, 0]]))
    assert extract(PixelFeatures(8), PIXELS, []).shape == (0, 360)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Return the file and the network of torch-fidelity, with random weights."""
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


@pytest.mark.slow
def test_inception_matches_torch_fidelity(inception):
    file, network = inception
    features = load_features("inception", str(file), 8, CPU)
    torch.testing.assert_close(features(PIXELS), network(PIXELS)[0])
    assert features(PIXELS).shape == (6, 2048)
    gray = features(PIXELS[:, :1])
    torch.testing.assert_close(gray, network(PIXELS[:, :1].repeat(1, 3, 1, 1))[0])
    torch.testing.assert_close(features(torch.cat([PIXELS, PIXELS[:, :1]], dim=1)), network(PIXELS)[0])
    assert features.weights == sha256_of_file(file)
    assert frechet_name(features, 50_000, 50_000) == "frechet_distance"  # random weights, so not FID


@pytest.mark.slow
def test_missing_inception_weights_are_an_error_with_the_place_to_put_them(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity", reason='pip install -e ".[evaluate]"')
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(UserError) as error:
        load_features("inception", None, 8, CPU)
    line = str(error.value)
    assert "\n" not in line
    assert "https://github.com/toshas/torch-fidelity/releases" in line
    assert str(tmp_path) in line
    with pytest.raises(UserError, match=r"--weights: .*nowhere.pth does not exist"):
        load_features("inception", str(tmp_path / "nowhere.pth"), 8, CPU)


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.slow
def test_hostile_weights_are_not_executed(tmp_path, capsys):
    pytest.importorskip("torch_fidelity", reason='pip install -e ".[evaluate]"')
    torch.save({"fc.weight": Hostile()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights.pth: not the Inception weights .*download https"):
        load_features("inception", str(tmp_path / "weights.pth"), 8, CPU)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.slow
def test_dinov2_matches_transformers_and_its_preprocessing(tmp_path):
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
    images = [image.permute(1, 2, 0).numpy() for image in PIXELS]
    values = processor(images, return_tensors="pt", image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = network(values["pixel_values"]).last_hidden_state[:, 0]
    torch.testing.assert_close(features(PIXELS), expected, atol=0.03, rtol=0)  # Pillow resizes in 8 bits
    assert features.name == "dinov2 class token"
    with pytest.raises(UserError, match=r"--features dinov2: cannot load .*https://huggingface.co/facebook"):
        load_features("dinov2", str(tmp_path / "nowhere"), 8, CPU)


def test_classifier_features(tmp_path):
    config = ClassifierConfig(shape=[3, 12, 10], class_names=("cat", "dog"), blocks=[1, 1, 1, 1])
    torch.manual_seed(0)
    classifier = Classifier(config).eval()
    save_classifier(classifier, 0.75, tmp_path / "c")
    features = load_features(str(tmp_path / "c"), None, 8, CPU)
    image = PIXELS.float() * (2 / 255) - 1
    torch.testing.assert_close(features(PIXELS), classifier.features(image))
    assert torch.equal(features.predict(PIXELS), classifier(image).argmax(1))
    assert features.class_names == ("cat", "dog")
    assert features.weights == sha256_of_file(tmp_path / "c" / "classifier.safetensors")
    assert "0.75" in features.name
    with pytest.raises(UserError, match=r"trained on 3×12×10 images \(got 3×12×12\)"):
        features(torch.zeros(1, 3, 12, 12, dtype=torch.uint8))


def test_unknown_features_are_an_error_with_the_closest_match():
    with pytest.raises(UserError, match=r"--features: inceptoin is neither .*; did you mean inception"):
        load_features("inceptoin", None, 8, CPU)
    with pytest.raises(UserError, match=r"--features inception: needs 8-bit images \(got 16 bits\)"):
        load_features("inception", None, 16, CPU)


def test_the_built_in_digits_have_features_of_their_own():
    digits = load_images(DataConfig(), {"label": LabelConfig()})
    assert isinstance(choose_features(None, None, digits, CPU), DigitFeatures)
    assert isinstance(choose_features("pixels", None, digits, CPU), PixelFeatures)
    larger = load_images(DataConfig(resolution=16))
    assert isinstance(choose_features(None, None, larger, CPU), PixelFeatures)


def test_network_features_of_the_real_images_are_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen = []

    class Counted(PixelFeatures):
        weights = "a" * 64

        def __call__(self, pixels):
            seen.append(len(pixels))
            return super().__call__(pixels)

    real = ImageDataset(DataConfig(resolution=10, channels=3, bit_depth=8, held_out=0.2), PIXELS.repeat(5, 1, 1, 1))
    first = evaluate_images(PIXELS, {}, real, Counted(8))
    assert sum(seen) == 30 + 6
    assert evaluate_images(PIXELS, {}, real, Counted(8)) == first
    assert sum(seen) == 30 + 6 + 6
    changed = ImageDataset(real.config, 255 - real.images)
    evaluate_images(PIXELS, {}, changed, Counted(8))
    assert sum(seen) == 30 + 6 + 6 + 30 + 6
