"""The tokens of tokenizer.json, whatever class the folder names; compared with the package `tokenizers` alone."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from sppo_megatron.errors import ConfigError
from sppo_megatron.hf.tokenizer import PROBE, decoder, load_tokenizer

ENDS = ["<unk>", "<s>", "</s>"]
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config}


def byte_level() -> Tokenizer:
    """Every byte a token, some pairs merged; digits one by one, which is nobody's default."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("l", "l"), ("Ġ", "w"), ("Ċ", "Ċ"), ("1", "2"), ("Ġ", "Ġ")]
    vocabulary = {token: i for i, token in enumerate([*letters, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(ENDS)
    return tokenizer


def blanks_as_bars() -> Tokenizer:
    """As sentencepiece models are: blanks are bars, and letters that are unknown are bytes."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*ENDS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(ENDS)
    return tokenizer


def whole_words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "Hello": 1, "world": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(ENDS)
    return tokenizer


def cut_off() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    return tokenizer


def save(folder, tokenizer, family="llama", **settings):
    folder.mkdir(exist_ok=True)
    CONFIGS[family]().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"} | settings))
    return folder


def same_as_the_file(folder) -> bool:
    own, tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json")), load_tokenizer(folder)
    own.no_truncation()
    own.no_padding()
    decode = decoder(tokenizer)
    for text in (*PROBE, "a<s>b</s>", " "):
        expected = own.encode(text, add_special_tokens=False)
        found = tokenizer(text, add_special_tokens=False, return_tensors="np")["input_ids"][0]
        if found.tolist() != expected.ids or decode([found]) != [own.decode(expected.ids)]:
            return False
    return True


CASES = [
    (byte_level, "llama", "LlamaTokenizerFast", True),
    (byte_level, "llama", "LlamaTokenizer", True),
    (byte_level, "qwen2", "Qwen2Tokenizer", True),
    (byte_level, "qwen2", None, True),
    (byte_level, "llama", "GemmaTokenizer", True),
    (byte_level, "llama", "BertTokenizer", True),
    (byte_level, "llama", "T5Tokenizer", True),  # transformers can't even build it
    (byte_level, "llama", "NoSuchTokenizer", False),
    (byte_level, "llama", "PreTrainedTokenizerFast", False),
    (blanks_as_bars, "qwen2", "PreTrainedTokenizerFast", True),
    (blanks_as_bars, "llama", "PreTrainedTokenizerFast", False),
    (blanks_as_bars, "qwen2", "LlamaTokenizerFast", True),
    (whole_words, "qwen2", "PreTrainedTokenizerFast", True),  # every text would be empty
    (cut_off, "llama", "LlamaTokenizer", True),
    (cut_off, "llama", "PreTrainedTokenizerFast", False),
]


@pytest.mark.parametrize(("make", "family", "name", "is_said"), CASES)
def test_the_tokens_are_those_of_the_file(tmp_path, caplog, make, family, name, is_said):
    folder = save(tmp_path, make(), family, **({} if name is None else {"tokenizer_class": name}))
    with caplog.at_level(logging.WARNING, "sppo_megatron"):
        assert same_as_the_file(folder)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("sppo_megatron")]
    assert len(said) == is_said, said
    assert all(f"the tokenizer of {folder} is read from its tokenizer.json alone" in text for text in said)


def test_a_class_that_is_the_files_own_is_kept(tmp_path, caplog):
    """Qwen2Tokenizer, saved by itself."""
    from transformers import Qwen2Tokenizer

    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    Qwen2Config().save_pretrained(tmp_path)
    Qwen2Tokenizer(vocab=vocabulary | {"<|endoftext|>": 256}, merges=[]).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "sppo_megatron"):
        assert type(load_tokenizer(tmp_path)) is Qwen2Tokenizer
    assert not caplog.records


def test_code_of_the_folder_is_not_run(tmp_path, caplog):
    folder = save(tmp_path, byte_level(), tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    assert same_as_the_file(folder)
    assert not (tmp_path / "ran").exists()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"the tokenizer of .* comes with Python code of its own"):
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


def test_special_tokens_around_a_text_are_those_of_the_file(tmp_path):
    """LlamaTokenizer has a begin token by default; the file says by itself whether one is put in front."""
    tokenizer = byte_level()
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    folder = save(tmp_path, tokenizer, tokenizer_class="LlamaTokenizer")
    assert load_tokenizer(folder)("a")["input_ids"] == [begin, tokenizer.token_to_id("a")]


def test_settings_beside_the_file_come_along(tmp_path):
    token = {"content": "<think>", "special": False, "normalized": False, "lstrip": False, "rstrip": False}
    folder = save(
        tmp_path,
        byte_level(),
        tokenizer_class="LlamaTokenizer",
        pad_token="<unk>",
        chat_template="{{ messages[0].content }}",
        added_tokens_decoder={str(byte_level().get_vocab_size()): {**token, "single_word": False}},
    )
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "<unk>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"
    assert tokenizer("<think>")["input_ids"] == [byte_level().get_vocab_size()]


def test_no_token_is_made_up_by_the_class(tmp_path):
    """LlamaTokenizer would add </s> behind the vocabulary, an id that the model has no row for."""
    tokenizer = Tokenizer(models.BPE({"<0x41>": 0, "a": 1}, [], byte_fallback=True))
    folder = save(tmp_path, tokenizer, tokenizer_class="LlamaTokenizer")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    assert len(load_tokenizer(folder)) == 2


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_torn_file_is_named(tmp_path, name):
    folder = save(tmp_path, byte_level())
    (folder / name).write_text("{")
    with pytest.raises(ConfigError, match=rf"the tokenizer of {folder} can't be read: "):
        load_tokenizer(folder)


def test_blanks_before_marks_stay(tmp_path):
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, ".": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=True)
    assert tokenizer.decode([1, 2]) == "a."
    assert decoder(tokenizer)([np.array([1, 2], np.int32), np.array([1], np.int32)]) == ["a .", "a"]


def test_a_folder_without_tokenizer(tmp_path):
    assert load_tokenizer(tmp_path) is None
