"""The tokenizer files of merged models, as the tokenizers library and transformers read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trials import trials
from vocabularies import FLAGS, model, word_tokenizer
from weft.errors import CheckpointError
from weft.planner.catalog import Checkpoint
from weft.planner.chat_templates import TEMPLATES, ChatTemplate, choose_template
from weft.planner.token_ids import LostToken, token_ids
from weft.planner.tokenizer_config import Override, Source
from weft.planner.tokenizer_files import is_tokenizer_file, tokenizer_files, with_chat_template
from weft.planner.vocabulary import Vocabulary, plan_vocabulary

DATA = Path(__file__).parent / "data" / "vocabulary"
CODE = ["def merge(model): return model", "for token in tokens: yield token.id", "x = [1, 2, 3]", "while True: pass"] * 5
PROSE = ["the merging of the models", "there were many other weights in the other one", "é naïve – café", "der Vogel singt"] * 5
TEXTS = [
    *CODE[:4],
    *PROSE[:4],
    "",
    " ",
    "  two  spaces\n\ttab",
    "日本語 and emoji 🙂",
    "<|im_start|>user\nhi<|im_end|>",
    "MiXeD CaSe",
]


def golden(name: str) -> Checkpoint:
    files = {path.name: path.read_bytes() for path in (DATA / "models" / name).iterdir() if path.name != "config.json"}
    config = json.loads((DATA / "models" / name / "config.json").read_text())
    return model(name, files, config["vocab_size"], config)


CASES: list[tuple[str, list[str], int | None, Source, dict[str, Override], int | None]] = [
    ("base", ["llama-chatml", "llama-base"], 1, "base", {}, None),
    (
        "model-override",
        ["llama-chatml", "llama-tools", "llama-base"],
        2,
        0,
        {"<|im_end|>": Override(0, "</s>", force=True)},
        16,
    ),
    ("union", ["llama-chatml", "llama-tools"], None, "union", {}, None),
]


@pytest.mark.parametrize(("case", "names", "base", "source", "overrides", "multiple"), CASES)
def test_files_agree_with_the_reference_tool(
    case: str, names: list[str], base: int | None, source: Source, overrides: dict[str, Override], multiple: int | None
) -> None:
    checkpoints = [golden(name) for name in names]
    vocabulary = plan_vocabulary(checkpoints, base, source, overrides, multiple)
    files = tokenizer_files(checkpoints, base, vocabulary, source)
    expected = {path.name: json.loads(path.read_text()) for path in (DATA / "cases" / case).glob("*.json")}
    assert json.loads(files["tokenizer.json"]) == expected["tokenizer.json"]
    # The reference tool notes on its own where it read the tokenizer from.
    settings = {
        key: value for key, value in expected["tokenizer_config.json"].items() if key not in ("is_local", "local_files_only")
    }
    assert json.loads(files["tokenizer_config.json"]).items() >= settings.items()
    ids = token_ids(checkpoints, base, vocabulary, source)
    origin = checkpoints[base or 0]
    assert ids.config(origin.config) == (expected["config.json"], ())
    generation = json.loads(origin.store.read("generation_config.json"))
    assert ids.settings(generation, "generation_config.json") == (generation, ())
    assert set(Tokenizer.from_str(files["tokenizer.json"].decode()).get_vocab().items()) == set(vocabulary.tokens.items())


def test_files_that_are_right_come_byte_for_byte() -> None:
    checkpoints = [golden("llama-chatml"), golden("llama-base")]
    files = tokenizer_files(checkpoints, 1, plan_vocabulary(checkpoints, 1, "base"), "base")
    assert files == {name: checkpoints[1].store.read(name) for name in ("tokenizer.json", "tokenizer_config.json")}


# Tokenizers trained here


def byte_level(texts: list[str], special: Sequence[str], size: int = 330) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def word_piece(texts: list[str], special: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[CLS]", "[SEP]", *special], show_progress=False),
    )
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return tokenizer


def unigram(texts: list[str], special: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<s>", "<unk>", *special], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def checkpoint(label: str, tokenizer: Tokenizer, padding: int = 0, **files: object) -> Checkpoint:
    """A model of this tokenizer; other files are named with two underscores for the dot."""
    more = {name.replace("__", "."): value for name, value in files.items()}
    return model(label, {"tokenizer.json": tokenizer.to_str().encode(), **more}, tokenizer.get_vocab_size() + padding)


def union(checkpoints: Sequence[Checkpoint], source: Source = "union") -> tuple[Tokenizer, Vocabulary]:
    vocabulary = plan_vocabulary(checkpoints, 0, source)
    files = tokenizer_files(checkpoints, 0, vocabulary, source)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert tokenizer.get_vocab() == dict(vocabulary.tokens)
    assert sorted(vocabulary.tokens.values()) == list(range(vocabulary.real))
    return tokenizer, vocabulary


def same_texts(tokenizer: Tokenizer, original: Tokenizer, vocabulary: Vocabulary, texts: Sequence[str] = TEXTS) -> None:
    """Every text decodes to what it does with `original`, through ids that have a row."""
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert all(number < vocabulary.real for number in ids)
        expected = original.decode(original.encode(text).ids)
        assert tokenizer.decode(ids) == expected, text


@pytest.fixture(scope="module")
def pair() -> tuple[Tokenizer, Tokenizer]:
    """Two byte-level BPE tokenizers trained on different texts."""
    second = byte_level(PROSE, ["<pad>"])
    second.add_special_tokens(["<|im_start|>", AddedToken("<|im_end|>", rstrip=True, special=True)])
    return byte_level(CODE, ["<s>", "</s>"]), second


def test_a_union_of_two_bpe_tokenizers(pair: tuple[Tokenizer, Tokenizer]) -> None:
    first, second = pair
    tokenizer, vocabulary = union([checkpoint("a", first), checkpoint("b", second)])
    assert set(vocabulary.tokens) == set(first.get_vocab()) | set(second.get_vocab())
    assert list(vocabulary.tokens)[: first.get_vocab_size()] == sorted(first.get_vocab(), key=first.get_vocab().__getitem__)
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False).replace("\n", "") == text.replace("\n", ""), text
    for special in ("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"):
        assert tokenizer.encode(special).ids == [vocabulary.tokens[special]]
    # Base tokens first; the other model's are reached where they are longer.
    assert tokenizer.encode("def merge(model)").tokens == first.encode("def merge(model)").tokens
    assert len(tokenizer.encode("der Vogel singt").ids) < len(first.encode("der Vogel singt").ids)
    added = {item["content"]: item for item in json.loads(tokenizer.to_str())["added_tokens"]}
    assert set(added) == {"<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"}
    assert added["<|im_end|>"]["rstrip"] and added["<|im_end|>"]["special"]


def test_an_extended_vocabulary_is_reached_as_in_the_model_that_has_it() -> None:
    """A model whose tokenizer is the base's and more: the union splits like it."""
    base = byte_level(CODE + PROSE, [], 300)
    longer = json.loads(byte_level(CODE + PROSE, [], 360).to_str())
    assert longer["model"]["merges"][:20] == json.loads(base.to_str())["model"]["merges"][:20]
    extended = Tokenizer.from_str(json.dumps(longer))
    tokenizer, _ = union([checkpoint("a", base), checkpoint("b", extended)])
    for text in TEXTS:
        assert tokenizer.encode(text).tokens == extended.encode(text).tokens


@pytest.mark.parametrize("source", ["union", "base", 1])
def test_word_piece(source: Source) -> None:
    first, second = word_piece(CODE, ["[A]"]), word_piece(PROSE, ["[B]", "[C]"])
    tokenizer, vocabulary = union([checkpoint("a", first), checkpoint("b", second)], source)
    same_texts(tokenizer, second if source == 1 else first, vocabulary, CODE[:4] if source != 1 else PROSE[:4])
    cls, sep = vocabulary.tokens["[CLS]"], vocabulary.tokens["[SEP]"]
    assert tokenizer.encode("zzz").ids[0] == cls and tokenizer.encode("zzz").ids[-1] == sep
    for special in ("[A]", "[B]", "[C]"):
        if special in vocabulary.tokens:
            assert tokenizer.encode(special, add_special_tokens=False).ids == [vocabulary.tokens[special]]


@pytest.mark.parametrize("source", ["union", "base", 1])
def test_unigram(source: Source) -> None:
    first, second = unigram(CODE, ["<a>"]), unigram(PROSE, ["<b>"])
    second.add_special_tokens(["<late>"])
    tokenizer, vocabulary = union([checkpoint("a", first), checkpoint("b", second)], source)
    texts = PROSE[:4] if source == 1 else CODE[:4]
    same_texts(tokenizer, second if source == 1 else first, vocabulary, texts)
    document = json.loads(tokenizer.to_str())
    assert document["model"]["vocab"][document["model"]["unk_id"]][0] == "<unk>"
    for special in ("<a>", "<b>", "<s>", "<late>"):
        if special in vocabulary.tokens:
            number = vocabulary.tokens[special]
            assert tokenizer.encode(special).ids[-1] == number and tokenizer.token_to_id(special) == number


def test_tokenizers_of_different_kinds(pair: tuple[Tokenizer, Tokenizer]) -> None:
    pieces = unigram(PROSE, [])
    for first, second in ((pair[0], pieces), (pair[0], word_piece(PROSE, ["[B]"])), (pieces, pair[0])):
        tokenizer, vocabulary = union([checkpoint("a", first), checkpoint("b", second)])
        # Pieces know no other characters than those they were trained on.
        same_texts(tokenizer, first, vocabulary, PROSE[:4] if first is pieces else TEXTS)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=4))
def test_any_text_comes_back(texts: list[str]) -> None:
    tokenizer, vocabulary = UNION
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert all(number < vocabulary.real for number in ids) and tokenizer.decode(ids) == text


UNION = union([checkpoint("a", byte_level(CODE, [])), checkpoint("b", byte_level(PROSE, [], 400))])


@pytest.mark.parametrize("missing", [1, 2, 10, 30])
def test_tokens_without_a_row_are_gone(pair: tuple[Tokenizer, Tokenizer], missing: int) -> None:
    """The embedding ends before the tokenizer does: no text and no special token gives an id without a row."""
    first, second = pair
    config = {"pad_token": "<late>", "eos_token": "</s>", "additional_special_tokens": ["</s>", {"content": "<late>"}]}
    decoder = {"added_tokens_decoder": {str(first.get_vocab_size()): {"content": "<late>", **FLAGS}}}
    late = Tokenizer.from_str(first.to_str())
    late.add_special_tokens(["<late>"])
    files = {
        "tokenizer.json": late.to_str().encode(), "tokenizer_config.json": config | decoder,
        "special_tokens_map.json": config, "added_tokens.json": {"<late>": first.get_vocab_size()},
    }  # fmt: skip
    cut = model("a", files, late.get_vocab_size() - missing)
    vocabulary = plan_vocabulary([cut, checkpoint("b", second)], 0, "base")
    assert vocabulary.real == late.get_vocab_size() - missing
    new = tokenizer_files([cut], 0, vocabulary, "base")
    tokenizer = Tokenizer.from_str(new["tokenizer.json"].decode())
    assert tokenizer.get_vocab() == dict(vocabulary.tokens)
    same_texts(tokenizer, first, vocabulary)
    written = {name: json.loads(data) for name, data in new.items()}
    assert written["tokenizer_config.json"]["pad_token"] is None
    assert written["tokenizer_config.json"]["additional_special_tokens"] == ["</s>"]
    assert [item["content"] for item in written["tokenizer_config.json"]["added_tokens_decoder"].values()] == ["<s>", "</s>"]
    assert written["special_tokens_map.json"] == {"eos_token": "</s>", "additional_special_tokens": ["</s>"]}
    assert written["added_tokens.json"] == {}


def test_holes_between_ids_are_closed() -> None:
    files = {"tokenizer.json": word_tokenizer({"<unk>": 0, "x": 3, "y": 9}, {"y": 9})}
    config = {"vocab_size": 16, "eos_token_id": 9, "pad_token_id": None, "bos_token_id": 3, "sep_token_id": 5, "cls_token_id": 1}
    checkpoint = model("m", files, 16, config)
    tokenizer, vocabulary = union([checkpoint], "base")
    assert vocabulary.tokens == {"<unk>": 0, "x": 1, "y": 2} and tokenizer.encode("x y").ids == [1, 2]
    new = token_ids([checkpoint], 0, vocabulary, "base").config(config)
    assert new == (
        config | {"vocab_size": 3, "eos_token_id": 2, "bos_token_id": 1},
        (
            "config.json: sep_token_id stays 5, which is not a token of m's tokenizer",
            "config.json: cls_token_id stays 1, which is not a token of m's tokenizer; it is 'x' in the result",
        ),
    )
    with pytest.raises(LostToken, match=r"^m/config.json: pad_token_id is 5, .* past the end of the result's 3 rows"):
        token_ids([checkpoint], 0, vocabulary, "base").config({"pad_token_id": 5})


def test_template_processing_gets_new_ids_and_loses_what_is_gone() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "x": 4, "<s>": 7, "</s>": 9, "<pad>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    template = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 7), ("</s>", 9)]
    )
    tokenizer.post_processor = processors.Sequence([template, processors.ByteLevel()])
    tokenizer.enable_padding(pad_id=2, pad_token="<pad>")
    whole, vocabulary = union([model("m", {"tokenizer.json": tokenizer.to_str().encode()}, 10)], "base")
    assert vocabulary.tokens == {"<unk>": 0, "<pad>": 1, "x": 2, "<s>": 3, "</s>": 4}
    assert whole.encode("x").ids == [3, 2, 4] and whole.encode_batch(["x x", ""])[1].ids == [3, 4, 1, 1]
    cut, _ = union([model("m", {"tokenizer.json": tokenizer.to_str().encode()}, 8)], "base")
    assert cut.encode("x").ids == [3, 2]


def test_tokens_named_in_the_config_are_added(pair: tuple[Tokenizer, Tokenizer]) -> None:
    checkpoints = [checkpoint("a", pair[0]), checkpoint("b", pair[1])]
    vocabulary = plan_vocabulary(checkpoints, 0, "base", {"<new>": Override(None), "<|im_end|>": Override(1, "<|im_end|>")})
    tokenizer = Tokenizer.from_str(tokenizer_files(checkpoints, 0, vocabulary, "base")["tokenizer.json"].decode())
    assert tokenizer.encode("a<new>b<|im_end|>").tokens == ["a", "<new>", "b", "<|im_end|>"]
    assert tokenizer.get_vocab() == dict(vocabulary.tokens)


def test_transformers_loads_the_files(pair: tuple[Tokenizer, Tokenizer], tmp_path: Path) -> None:
    saved = []
    specials: list[dict[str, str]] = [
        {"bos_token": "<s>", "eos_token": "</s>"},
        {"pad_token": "<pad>", "eos_token": "<|im_end|>"},
    ]
    for number, tokenizer in enumerate(pair):
        folder = tmp_path / str(number)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials[number]).save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        saved.append(model(str(number), files, tokenizer.get_vocab_size()))
    sources: tuple[Source, ...] = ("union", "base", 1)
    for source in sources:
        vocabulary = plan_vocabulary(saved, 0, source, {}, 64)
        out = tmp_path / f"out-{source}"
        out.mkdir()
        for name, data in tokenizer_files(saved, 0, vocabulary, source, TEMPLATES["chatml"]).items():
            (out / name).write_bytes(data)
        loaded = AutoTokenizer.from_pretrained(out)
        assert loaded.get_vocab() == dict(vocabulary.tokens) and len(loaded) == vocabulary.real
        assert loaded.eos_token_id == vocabulary.tokens["<|im_end|>" if source == 1 else "</s>"]
        chat = loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
        assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


# Which files there are


def test_files_that_describe_the_old_vocabulary_go() -> None:
    first, second = golden("llama-base"), golden("llama-tools")
    extra = {"tokenizer.model": b"pieces", "vocab.json": {}, "chat_template.jinja": b"{{ 1 }}"}
    files = {name: first.store.read(name) for name in ("tokenizer.json", "tokenizer_config.json")} | extra
    base = model("llama-base", files, 288)
    vocabulary = plan_vocabulary([base, second], 0, "union")
    # Only an added token came: what describes the others is still right.
    assert set(tokenizer_files([base, second], 0, vocabulary, "union")) == set(files)
    words = model("words", {"tokenizer.json": word_tokenizer({"another": 0})}, 1)
    vocabulary = plan_vocabulary([base, words], 0, "union")
    new = tokenizer_files([base, words], 0, vocabulary, "union")
    assert set(new) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def test_which_files_are_the_tokenizers() -> None:
    ours = "tokenizer.json tokenizer_config.json tokenizer.model vocab.json vocab.txt merges.txt special_tokens_map.json"
    ours += (
        " added_tokens.json chat_template.jinja chat_template.json spiece.model sentencepiece.bpe.model qwen.tiktoken tekken.json"
    )
    assert all(is_tokenizer_file(name) for name in ours.split())
    assert not any(is_tokenizer_file(name) for name in ("generation_config.json", "preprocessor_config.json", "modules.json"))


def test_what_is_no_tokenizer_of_the_library() -> None:
    document = word_tokenizer({"x": 0}) | {"post_processor": {"type": "TemplateProcessing", "special_tokens": [1]}}
    broken = model("m", {"tokenizer.json": document}, 1)
    vocabulary = plan_vocabulary([broken], 0, "base", {"<t>": Override(None)})
    with pytest.raises(CheckpointError, match=r"^m/tokenizer.json: not as the tokenizers library writes it"):
        tokenizer_files([broken], 0, vocabulary, "base")


# Ids in the settings


def two_models(source: Source) -> tuple[list[Checkpoint], Vocabulary]:
    base = {"tokenizer.json": word_tokenizer({"x": 0, "</s>": 1, "<pad>": 2}), "tokenizer_config.json": {"eos_token": "</s>"}}
    chat = {"tokenizer.json": word_tokenizer({"<end>": 0, "</s>": 1, "x": 2}), "tokenizer_config.json": {"eos_token": "<end>"}}
    checkpoints = [model("base", base, 8), model("chat", chat, 3)]
    return checkpoints, plan_vocabulary(checkpoints, 0, source, {}, 8)


CONFIG: dict[str, Any] = {
    "vocab_size": 8, "bos_token_id": None, "eos_token_id": [1, 2, 7, 1000], "pad_token_id": 2, "image_token_index": 0,
    "decoder_start_token_id": -1, "num_tokens": 3, "suppress_tokens": [0, 2], "bad_words_ids": [[0], [2]], "hidden_size": 2,
}  # fmt: skip


@pytest.mark.parametrize("source", ["union", "base"])
def test_ids_stay_with_their_tokens(source: Source) -> None:
    checkpoints, vocabulary = two_models(source)
    new, notes = token_ids(checkpoints, 0, vocabulary, source).config(CONFIG)
    assert new == CONFIG | {"eos_token_id": [1, 2]} and len(notes) == 2


def test_ids_follow_the_tokenizer_of_another_model() -> None:
    checkpoints, vocabulary = two_models(1)
    ids = token_ids(checkpoints, 0, vocabulary, 1)
    config = {key: value for key, value in CONFIG.items() if key != "pad_token_id"}
    new, notes = ids.config(config)
    assert new == config | {
        "eos_token_id": [0, 1], "image_token_index": 2, "suppress_tokens": [2], "bad_words_ids": [[2]],
    }  # fmt: skip
    assert "config.json: suppress_tokens no longer has 2, the token '<pad>', which the result does not have" in notes
    for old, want in ((1, [0, 1]), ([2], 0)):
        assert ids.settings({"eos_token_id": old}, "generation_config.json")[0] == {"eos_token_id": want}
    assert ids.settings({"max_length": 1}, "generation_config.json") == ({"max_length": 1}, ())


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"pad_token_id": 2}, "pad_token_id"),
        ({"vision_config": {"image_token_id": 2}}, "vision_config.image_token_id"),
        ({"thinker_config": {"text_config": {"pad_token_id": 2}}}, "thinker_config.text_config.pad_token_id"),
        ({"visual_indicator_token_ids": [0, 2]}, "visual_indicator_token_ids"),
        ({"forced_decoder_ids": [[1, 0], [2, 2]]}, "forced_decoder_ids"),
        ({"im_start_id": 2}, "im_start_id"),
        ({"image_token": "<pad>"}, "image_token"),
    ],
)
def test_a_setting_that_names_a_lost_token(settings: dict[str, Any], key: str) -> None:
    checkpoints, vocabulary = two_models(1)
    with pytest.raises(LostToken) as caught:
        token_ids(checkpoints, 0, vocabulary, 1).config(settings)
    assert str(caught.value) == (
        f"base/config.json names '<pad>' as {key}, and chat has no such token: take its row along with "
        "'tokenizer: {source: chat, tokens: {\"<pad>\": {source: base}}}', or choose a tokenizer_source that has it"
    )


def test_ids_of_other_vocabularies_stay() -> None:
    checkpoints, vocabulary = two_models(1)
    config = {
        "codec_eos_token_id": 2, "codebook_pad_token_id": 2, "t2u_eos_token_id": 2, "num_image_token": 2, "lang_id": 2,
        "talker_config": {"vocab_size": 90, "pad_token_id": 2, "text_config": {"vocab_size": 90, "eos_token_id": 1}},
        "vision_config": {"pad_token_id": 2, "hidden_size": 2},
    }  # fmt: skip
    new, notes = token_ids(checkpoints, 0, vocabulary, 1).config(config)
    assert new == config | {"vocab_size": 8} and not notes


NUMBERS = st.none() | st.booleans() | st.integers(-2, 12) | st.lists(st.integers(-2, 12), max_size=4)
PARTS = ["text_config", "vision_config", "decoder", "rope"]
KEYS = [
    "bos_token_id", "eos_token_id", "pad_token_id", "image_token_id", "audio_token_index", "decoder_start_token_id", "vocab_size",
    "suppress_tokens", "bad_words_ids", "visual_indicator_token_ids", "hidden_size", "num_layers",
]  # fmt: skip
PLAIN = st.dictionaries(st.sampled_from(KEYS), NUMBERS, max_size=5)
SETTINGS = st.builds(lambda plain, parts: plain | parts, PLAIN, st.dictionaries(st.sampled_from(PARTS), PLAIN, max_size=3))


@trials(200)
@given(SETTINGS, st.sampled_from(["union", "base", 1]))
def test_an_id_follows_its_token_or_stays_or_is_an_error(config: dict[str, Any], source: Source) -> None:
    checkpoints, vocabulary = two_models(source)
    ids = token_ids(checkpoints, 0, vocabulary, source)
    try:
        new, notes = ids.config(config)
    except LostToken as error:
        assert "\n" not in str(error) and str(error).startswith("base/config.json")
        return

    def agree(old: Any, now: Any, key: str) -> None:
        if isinstance(old, dict):
            assert old.keys() <= now.keys()
            for name, value in old.items():
                agree(value, now[name], name)
        elif isinstance(now, list):
            assert isinstance(old, list) or now[0] == ids.special[key[:3]]
        elif type(old) is int:
            # What was an integer is one, and whatever moved is the same token.
            assert type(now) is int
            assert now == old or key == "vocab_size" or key[:3] in ids.special or now == ids.moved[old]
        elif not isinstance(old, list):
            assert now == old or key == "vocab_size" or (old is None and key[:3] in ids.special)

    agree(config, new, "")
    assert all("\n" not in note for note in notes)
    assert ids.config(config) == (new, notes), "the same again"


def test_the_language_models_part_is_updated() -> None:
    checkpoints, vocabulary = two_models("union")
    ids = token_ids(checkpoints, 0, vocabulary, "union")
    text, vision = {"vocab_size": 4, "eos_token_id": 1}, {"vocab_size": 4, "pad_token_id": 500}
    new, _ = ids.config({"text_config": text, "vision_config": vision})
    assert new == {"text_config": {"vocab_size": 8, "eos_token_id": 1}, "vision_config": vision}
    assert ids.config({"text_config": {}, "vocab_size": 3})[0] == {"text_config": {"vocab_size": 8}, "vocab_size": 8}
    assert ids.config({})[0] == {"vocab_size": 8}
    deep: dict[str, Any] = {
        "thinker_config": {"text_config": {"vocab_size": 8, "vocab_size_per_layer_input": 8}},
        "decoder": {"vocab_size": 8},
    }
    assert ids.config(deep)[0] == deep


# Chat templates

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
]
RENDERED = {
    "alpaca": "<s>Be brief.\n\n### Instruction:\nhi\n\n### Response:\nhello</s>\n\n### Instruction:\nbye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
    "<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]hi\n[|assistant|]hello[|endofturn|]\n[|user|]bye\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nhi"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nhello<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nbye"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nhi [/INST] hello</s>[INST] bye [/INST]",
}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_known_templates(name: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(CODE, ["<s>", "</s>"]), bos_token="<s>", eos_token="</s>")

    def render(messages: Sequence[Mapping[str, str]], prompt: bool) -> object:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, chat_template=choose_template(name, [])
        )

    assert render(TALK, True) == RENDERED[name]
    assert "hi" in str(render(TALK[1:], False)) and "Be brief" not in str(render(TALK[1:], False))


def talker(label: str, template: object, file: str | None = None) -> Checkpoint:
    files: dict[str, object] = {"tokenizer_config.json": {"chat_template": template} if template is not None else {}}
    return model(label, files | ({"chat_template.jinja": file.encode()} if file else {}), 1)


def test_auto_takes_the_most_frequent_template() -> None:
    named = [{"name": "tool_use", "template": "{{x}}"}, {"name": "default", "template": "{{b}}"}]
    checkpoints = [talker("a", "{{a}}"), talker("b", "{{a}}", "{{b}}"), talker("c", None), talker("d", named), model("e", {}, 1)]
    assert choose_template("auto", checkpoints) == "{{b}}"
    assert choose_template("auto", checkpoints[:2]) == "{{a}}"
    assert choose_template("auto", checkpoints[2:3]) is None
    assert choose_template("{{ 1 }}", checkpoints) == "{{ 1 }}"


def test_unknown_templates_are_errors() -> None:
    template = TypeAdapter[str](ChatTemplate)
    assert [template.validate_python(text) for text in ("auto", "llama3", "{{ x }}")] == ["auto", "llama3", "{{ x }}"]
    with pytest.raises(
        ValidationError, match=r"there is no chat template 'chatlm'; did you mean 'chatml'.*alpaca, chatml, exaone"
    ):
        template.validate_python("chatlm")
    with pytest.raises(ValueError, match="write one of auto, alpaca, chatml, exaone, llama3, mistral, or a Jinja text"):
        choose_template("vicuna", [])


def test_a_template_replaces_all_that_there_were() -> None:
    files = {
        "chat_template.jinja": b"old",
        "chat_template.json": b"old",
        "tokenizer_config.json": b'{"chat_template": [], "a": 1}',
    }
    new = with_chat_template("m", files, "{{ é }}")
    assert new["chat_template.jinja"].decode() == json.loads(new["chat_template.json"])["chat_template"] == "{{ é }}"
    assert json.loads(new["tokenizer_config.json"]) == {"chat_template": "{{ é }}", "a": 1}
    assert with_chat_template("m", files, None) == files
    assert list(with_chat_template("m", {}, "{{ x }}")) == ["tokenizer_config.json"]
