import json
import shutil

import pytest
import torch
from helpers import small_unet

from diffunet.conditions.pretrained_text import PretrainedText
from diffunet.conditions.text import TextConfig
from diffunet.core.errors import UserError
from diffunet.core.rng import BatchRNG
from diffunet.core.storage import cache_folder, load_tensors
from diffunet.data.sources import Table

CAPTIONS = ["a red circle", "a red square", None, "a blue circle", ["blue square", "a square that is blue"], ""]
TABLE = Table("shapes", {"caption": CAPTIONS, "size": [1, 2, 3, 4, 5, 6], "empty": [None] * 6})
SIZE = (8, 8)
KINDS = ("bert", "t5", "clip")


def written(config: TextConfig, folder, table: Table = TABLE):
    """Return what `read` returns, with the files of the column in a folder."""
    config, column = config.read("caption", table, None)
    for file, text in column.files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return config, column


@pytest.fixture(autouse=True)
def _own_text_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Return folders of tiny random encoders of each kind."""
    import transformers as tf
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    torch.manual_seed(0)
    words = ["<pad>", "<unk>", "<s>", "</s>", "a", "red", "blue", "circle", "square", "that", "is"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 2), ("</s>", 3)])
    common = {"vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    clip = tf.CLIPTextConfig(**common, **sizes, max_position_embeddings=16)
    networks = {
        "bert": tf.BertModel(tf.BertConfig(**common, **sizes)),
        "t5": tf.T5EncoderModel(tf.T5Config(**common, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)),
        "clip": tf.CLIPTextModel(clip),
    }
    folders = {}
    for kind, network in networks.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        network.eval().save_pretrained(folders[kind])
        special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        fast = tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special)
        fast.save_pretrained(folders[kind])
    return folders, networks


# ── own encoder ───────────────────────────────────────────────────────────────────────────────────


def test_prompt_has_the_tokens_of_the_same_caption(tmp_path):
    config, column = written(TextConfig(), tmp_path)
    batch = column.prepare(column[torch.tensor([0, 2])], torch.zeros(2, 1, 8, 8), BatchRNG())
    dropped = batch == 0
    prompt, absent = config.parse("caption", ["A red  circle", None], tmp_path, SIZE)
    assert torch.equal(prompt.tensor.masked_fill(dropped[0], 0), batch[0])
    assert absent.tensor is None
    assert prompt.word == "A red  circle"
    assert (config.word_dropout, config.missing) == (0.1, 0)


def test_config_is_completed_and_read_again_unchanged(tmp_path):
    config, column = written(TextConfig(), tmp_path)
    assert list(column.files) == ["caption.tokenizer.json"]
    assert config.vocab_size == len(json.loads(column.files["caption.tokenizer.json"])["model"]["vocab"])
    again, same = config.read("caption", TABLE, tmp_path)
    assert again == config == TextConfig.model_validate(json.loads(config.model_dump_json()))
    assert same.digest() == column.digest()


def test_evaluation_on_other_captions_keeps_the_tokenizer(tmp_path):
    config, column = written(TextConfig(), tmp_path)
    other = Table("others", {"caption": ["a cat on a mat"] * 3})
    again, others = config.read("caption", other, tmp_path)
    assert again == config
    assert others.files == column.files


def test_lost_or_changed_tokenizer_is_refused(tmp_path):
    config, _ = written(TextConfig(), tmp_path)
    other = Table("others", {"caption": ["a cat on a mat"] * 3})
    file = tmp_path / "caption.tokenizer.json"
    file.write_text(file.read_text().replace("circle", "cycles"))
    with pytest.raises(UserError, match="caption.tokenizer.json: damaged"):
        config.read("caption", other, tmp_path)
    with pytest.raises(UserError, match="caption.tokenizer.json: damaged"):
        config.parse("caption", "a cat", tmp_path, SIZE)
    file.unlink()
    with pytest.raises(UserError, match="caption.tokenizer.json: missing"):
        config.read("caption", other, tmp_path)
    with pytest.raises(UserError, match="caption.tokenizer.json: missing"):
        config.parse("caption", "a cat", tmp_path, SIZE)
    assert config.read("caption", TABLE, tmp_path)[0] == config  # trained again, the same


def test_prompts_come_from_a_file_or_a_list(tmp_path):
    config, _ = written(TextConfig(), tmp_path)
    (tmp_path / "prompts.txt").write_text("a red circle, blue\n\nnone\na square\n", encoding="utf-8")
    values = config.parse("caption", str(tmp_path / "prompts.txt"), tmp_path, SIZE)
    assert [value.word for value in values] == ["a red circle, blue", None, "a square"]
    assert [value.word for value in config.parse("caption", "red, blue", tmp_path, SIZE)] == ["red, blue"]
    assert [value.word for value in config.parse("caption", [None, "red", 3], tmp_path, SIZE)] == [None, "red", "3"]
    assert config.parse("caption", "none", tmp_path, SIZE)[0].tensor is None
    assert config.stack(values).shape == (3, config.max_length)
    assert config.stack(values)[1].eq(0).all()


@pytest.mark.parametrize("word, problem", [
    ("a red square " * 20, "tokens, the run was trained on at most"),
    ("missing.txt", "missing.txt cannot be read"),
    ([["a"]], "is not text"),
])  # fmt: skip
def test_unusable_prompts_are_one_line(tmp_path, word, problem):
    config, _ = written(TextConfig(), tmp_path)
    with pytest.raises(UserError, match=f"^caption: .*{problem}") as error:
        config.parse("caption", word, tmp_path, SIZE)
    assert "\n" not in str(error.value)


def test_file_without_prompts_is_refused(tmp_path):
    config, _ = written(TextConfig(), tmp_path)
    (tmp_path / "prompts.txt").write_text("\n\n")
    with pytest.raises(UserError, match="has no prompts"):
        config.parse("caption", str(tmp_path / "prompts.txt"), tmp_path, SIZE)


@pytest.mark.parametrize("column, problem", [
    ("captoin", "no column captoin in shapes; did you mean caption"),
    ("size", "column size of shapes contains no captions"),
    ("empty", "column empty of shapes has only empty captions"),
])  # fmt: skip
def test_unusable_columns_are_one_line(column, problem):
    with pytest.raises(UserError, match=f"^conditions.caption.column: {problem}"):
        TextConfig(column=column).read("caption", TABLE, None)


def test_condition_without_a_column_is_left_out():
    assert TextConfig().read("prompt", TABLE, None) is None


def test_long_captions_are_cut_and_counted(capsys):
    config, column = TextConfig(max_length=2).read("caption", TABLE, None)
    assert "of 5 captions are cut to 2 tokens" in capsys.readouterr().out
    assert config.max_length == 2
    assert column.tokens.offsets.diff().max() == 2


@pytest.mark.parametrize("settings, problem", [
    ({"width": 10}, "heads: 4 does not divide"),
    ({"encoder": "folder", "word_dropout": 0.1}, "word_dropout: 0.1 needs encoder own"),
])  # fmt: skip
def test_inconsistent_settings_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        TextConfig(**settings)


def test_embedding_needs_a_completed_config(tmp_path):
    with pytest.raises(ValueError, match="conditions.caption.max_length: not set"):
        TextConfig().build_embedding("caption", small_unet(token_dim=16))
    config, column = written(TextConfig(width=16), tmp_path)
    embedding = config.build_embedding("caption", small_unet(token_dim=24))
    cond = embedding(column.prepare(column[torch.arange(6)], torch.zeros(6, 1, 8, 8), BatchRNG()))
    assert cond.vector.shape == (6, 32)
    assert cond.tokens.shape == (6, config.max_length, 24)
    with pytest.raises(ValueError, match="unet.token_dim"):
        config.build_embedding("caption", small_unet())


# ── frozen encoders ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_the_encoder(encoders, kind):
    folders, networks = encoders
    encoder = PretrainedText(str(folders[kind]), "here")
    captions = ["", "a red circle", "blue"]
    encoded = encoder.encode(captions, 16)
    assert encoded.offsets.tolist() == [0, 0, 5, 8]
    with torch.no_grad():
        expected = networks[kind](input_ids=torch.tensor([[2, 4, 5, 7, 3]])).last_hidden_state[0]
    torch.testing.assert_close(encoded.values[:5].float(), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_caption_alone_in_a_batch_and_cached_has_the_same_bytes(encoders, kind):
    encoder = PretrainedText(str(encoders[0][kind]), "here")
    words = ["red", "blue", "circle", "square", "that"]
    captions = [f"a {one} {other}" for one in words for other in words] + ["red", "a"]
    fresh = encoder.encode_anew(captions, 16, torch.device("cpu"))
    first, cached = encoder.encode(captions, 16), encoder.encode(captions, 16)
    assert torch.equal(fresh.values, first.values)
    assert torch.equal(fresh.values, cached.values)
    for index, caption in enumerate(captions):
        alone = encoder.encode_anew([caption], 16, torch.device("cpu"))
        assert torch.equal(alone.values, fresh.values[fresh.offsets[index] : fresh.offsets[index + 1]])
    assert len(list(cache_folder("texts").glob("*.safetensors"))) == 1


@pytest.mark.slow
def test_damaged_cache_is_written_again(encoders):
    encoder = PretrainedText(str(encoders[0]["bert"]), "here")
    encoded = encoder.encode(["a red circle"], 16)
    values = encoded.values.clone()
    (file,) = cache_folder("texts").glob("*.safetensors")
    del encoded
    file.write_bytes(file.read_bytes()[:-7])
    assert torch.equal(encoder.encode(["a red circle"], 16).values, values)
    assert set(load_tensors(file)) == {"values", "offsets"}


@pytest.mark.slow
def test_cached_captions_need_no_network(encoders, monkeypatch):
    encoder = PretrainedText(str(encoders[0]["bert"]), "here")
    encoder.encode(["a red circle"], 16)
    monkeypatch.setattr(PretrainedText, "_model", lambda self: pytest.fail("loaded"))
    encoder.encode(["a red circle"], 16)


@pytest.mark.slow
def test_values_beyond_fp16_are_kept_in_bf16(encoders, monkeypatch):
    encoder = PretrainedText(str(encoders[0]["bert"]), "here")
    model = encoder._model()
    torch.nn.init.constant_(model.encoder.layer[-1].output.LayerNorm.bias, 1e6)
    monkeypatch.setattr(PretrainedText, "_model", lambda self: model)
    encoded = encoder.encode(["a red circle"], 16)
    assert encoded.values.dtype == torch.bfloat16
    assert encoded.values.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_encoder_reads_captions_and_prompts_alike(encoders, kind, tmp_path):
    config, column = TextConfig(encoder=str(encoders[0][kind])).read("caption", TABLE, None)
    assert (config.width, config.max_length, config.word_dropout) == (32, 7, None)
    assert not column.files
    batch = column.prepare(column[torch.tensor([0, 2])], torch.zeros(2, 1, 8, 8), BatchRNG())
    values = config.parse("caption", ["a red circle", None], tmp_path, SIZE)
    torch.testing.assert_close(config.stack(values), batch, equal_nan=True, atol=0, rtol=0)
    cond = config.build_embedding("caption", small_unet(token_dim=16))(batch)
    assert cond.token_mask.sum(1).tolist() == [5, 0]
    with pytest.raises(UserError, match="^caption: the prompt has 12 tokens, the run was trained on at most 7"):
        config.parse("caption", "a red circle " * 3 + "a", tmp_path, SIZE)


@pytest.mark.slow
def test_another_encoder_is_refused_in_a_run(encoders, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(encoders[0]["bert"], folder)
    config, _ = TextConfig(encoder=str(folder)).read("caption", TABLE, None)
    assert config.read("caption", TABLE, tmp_path)[0] == config
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    for use in (lambda: config.read("caption", TABLE, tmp_path), lambda: config.parse("caption", "a", tmp_path, SIZE)):
        with pytest.raises(UserError, match="encoder: .* is not the encoder that the run was trained with"):
            use()


@pytest.mark.slow
def test_missing_encoders_are_one_line(tmp_path, encoders):
    pickled = tmp_path / "pickled"
    shutil.copytree(encoders[0]["bert"], pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    damaged = tmp_path / "damaged"
    shutil.copytree(encoders[0]["bert"], damaged)
    (damaged / "model.safetensors").write_bytes(b"0" * 100)
    cases = {
        str(tmp_path / "nowhere"): "is no folder",
        "nowhere": "is no folder",
        "owner/name": "cannot be downloaded",
        str(tmp_path): "has no config.json",
        str(pickled): "has no .*safetensors weights",
        str(damaged): "cannot be loaded",
    }
    for source, problem in cases.items():
        with pytest.raises(UserError, match=f"^conditions.caption.encoder: .*{problem}.*; give a folder") as error:
            TextConfig(encoder=source).read("caption", TABLE, None)
        assert "\n" not in str(error.value)


def test_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match=r'needs transformers; run pip install "diffunet\[text\]"'):
        TextConfig(encoder="owner/name").read("caption", TABLE, None)
