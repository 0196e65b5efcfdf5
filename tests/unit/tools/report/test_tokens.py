"""Token texts, by real tokenizers: joined they are the text, and garbage is shown instead of raised."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sppo_megatron.errors import ConfigError
from sppo_report.tokens import TokenTexts, find_tokenizer


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """Byte-level BPE with a few merges, as of GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    tokenizer.train_from_iterator(["the answer is hello world"], trainer)
    return save(tokenizer, tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory):
    """Characters with a fallback to bytes, as of Llama 2 and Mistral; its decoder rejects what is no text."""
    vocabulary = {text: place for place, text in enumerate(["<unk>", "▁", "▁he", "llo", "a"])}
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return save(tokenizer, tmp_path_factory.mktemp("fallback"))


def save(tokenizer, folder):
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer, folder / "tokenizer.json"


@pytest.mark.parametrize("text", ["the answer is hello", "wörld 日本 🎉\n</script>", ""])
def test_joined_they_are_the_text(byte_level, text):
    tokenizer, path = byte_level
    ids = [*tokenizer.encode(text).ids, 0]
    texts = TokenTexts(path)(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids, skip_special_tokens=False) == text + "<end>"


def test_a_character_of_several_tokens_is_with_the_last(byte_level):
    tokenizer, path = byte_level
    ids = tokenizer.encode("🎉").ids
    assert len(ids) == 4
    assert TokenTexts(path)(ids) == ["", "", "", "🎉"]


def test_what_is_no_token(byte_level):
    _, path = byte_level
    assert TokenTexts(path)([-1, 10**6, 2**40, "x", None, 0]) == [
        "[-1]", "[1000000]", "[1099511627776]", "[x]", "[None]", "<end>",
    ]  # fmt: skip


def test_garbage_of_an_untrained_policy(byte_fallback):
    tokenizer, path = byte_fallback
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(20)]
        assert len(TokenTexts(path)(ids)) == 20


def test_where_the_tokenizer_is_found(byte_level, make_run, tmp_path):
    _, path = byte_level
    run = make_run(config=f"model: {{hf_path: {path.parent}}}\n")
    assert find_tokenizer(run) == path, "the model that the run started from"
    (run.folder / "hf").mkdir()
    (run.folder / "hf" / "tokenizer.json").write_text("{}")
    assert find_tokenizer(run) == run.folder / "hf" / "tokenizer.json", "the exported policy before it"
    assert find_tokenizer(run, path.parent) == path, "the given one before all"
    assert find_tokenizer(make_run(name="bare")) is None
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        find_tokenizer(run, tmp_path)
    with pytest.raises(ValueError, match="can't be read"):
        TokenTexts(run.folder / "hf" / "tokenizer.json")
