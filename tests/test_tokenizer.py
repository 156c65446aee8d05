import io
import json
import pickle

import pytest
import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from tips_ray.models import load_tokenizer, train_tokenizer

TEXTS = [
    f"A {size} {colour} {shape} lies {where} the {place}."
    for size in ("small", "large")
    for colour in ("red", "blue", "grey")
    for shape in ("cube", "sphere")
    for where in ("on", "behind")
    for place in ("table", "wet grass", "wooden floor")
]
PROBES = [*TEXTS[::7], "TWO Cubes,  three\tspheres", "", "naïve café 東京", "<pad> is <unk> here", "grass " * 40]


def _sentencepiece(path, **options):
    """A small SentencePiece file; returns the library's own processor of it."""
    model, given = io.BytesIO(), dict(pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, model_type="bpe", byte_fallback=True)
    texts = iter([text.lower() for text in TEXTS])
    options = {"vocab_size": 350, "hard_vocab_limit": False, "minloglevel": 2, **given, **options}
    SentencePieceTrainer.train(sentence_iterator=texts, model_writer=model, **options)  # pyright: ignore[reportAttributeAccessIssue]
    path.write_bytes(model.getvalue())
    return SentencePieceProcessor(model_proto=model.getvalue())


def _word_file(path, vocabulary, special=()):
    """A tokenizers file of whole words that also adds [CLS], cuts at two ids and pads with 7."""
    backend = Backend(models.WordLevel(vocabulary, unk_token="unknown"))  # pyright: ignore[reportArgumentType, reportCallIssue]
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    backend.add_special_tokens(list(special))
    if special:
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])  # pyright: ignore[reportAttributeAccessIssue]
    backend.enable_truncation(2)
    backend.enable_padding(length=6, pad_id=7)
    backend.save(str(path))
    return path


def test_rows_are_cut_and_padded_with_0_one_by_one(tmp_path):
    vocabulary = {"[PAD]": 0, "[CLS]": 1, "unknown": 2, "a": 3, "red": 4, "cube": 5}
    tokenizer = load_tokenizer(_word_file(tmp_path / "words.json", vocabulary, ["[PAD]", "[CLS]"]))
    ids = tokenizer(["A red cube", "cube", "a RED a red a", "sphere"], max_tokens=4)
    assert ids.tolist() == [[3, 4, 5, 0], [5, 0, 0, 0], [3, 4, 3, 4], [2, 0, 0, 0]]
    assert ids.dtype == torch.int64 and tokenizer.vocab_size == 6
    assert tokenizer([], max_tokens=4).shape == (0, 4)


@pytest.mark.parametrize("vocab_size", [80, 1100])
def test_a_trained_vocabulary_gives_the_ids_of_transformers_tipsv2_tokenizer(vocab_size):
    from transformers import Tipsv2Tokenizer

    tokenizer = train_tokenizer(TEXTS, vocab_size)
    model = json.loads(tokenizer.source)["model"]
    theirs = Tipsv2Tokenizer(model["vocab"], [tuple(merge) for merge in model["merges"]], split_special_tokens=True)
    expected = theirs(PROBES, padding="max_length", truncation=True, max_length=24, return_tensors="pt")["input_ids"]
    assert torch.equal(tokenizer(PROBES, max_tokens=24), expected)


def test_training_is_deterministic_and_keeps_to_its_size():
    tokenizer = train_tokenizer(TEXTS, 80)
    assert tokenizer.source == train_tokenizer(iter(TEXTS), 80).source
    assert tokenizer.vocab_size == 80 and [tokenizer.piece(token_id) for token_id in (0, 1)] == ["<pad>", "<unk>"]
    whole_words = tokenizer(["a red cube", "a grey sphere"], max_tokens=8)
    assert (whole_words > 0).sum() < 23, "merges were learned"  # 8 + 1 and 13 + 1 single characters


def test_only_a_large_vocabulary_spells_unknown_characters_in_bytes():
    small, large = train_tokenizer(TEXTS, 80), train_tokenizer(TEXTS, 1100)
    assert small(["a 東 cube"]).tolist() == small(["a \u6771\u6771 cube"]).tolist()  # only the word mark is left
    spelled = [large.piece(token_id) for token_id in large(["東"])[0].tolist() if token_id]
    assert spelled == ["▁", *(f"<0x{value:02X}>" for value in "東".encode())]


def test_rare_characters_leave_a_large_vocabulary_half_of_its_entries_for_words():
    rare = "".join(chr(0x4E00 + code) for code in range(900))
    tokenizer = train_tokenizer([*TEXTS, rare], 1024)
    assert tokenizer.vocab_size <= 1024
    assert (tokenizer(["a wooden cube"]) > 0).sum() == 3


def test_a_vocabulary_too_small_for_its_characters_is_refused_with_numbers():
    with pytest.raises(ValueError, match=r"vocab_size \(4\) must be at least 6: 2 special pieces and 4 characters"):
        train_tokenizer(["abc", "CAB"], 4)  # a, b, c and the word mark
    assert train_tokenizer(["abc"], 6).vocab_size == 6
    with pytest.raises(ValueError, match=r"texts \(2\) hold no word"):
        train_tokenizer(["", "  "], 100)


@pytest.mark.parametrize("options", [{}, {"model_type": "unigram"}, {"byte_fallback": False, "vocab_size": 100}])
def test_sentencepiece_ids_are_the_librarys_own(options, tmp_path):
    theirs = _sentencepiece(tmp_path / "tokenizer.model", **options)
    tokenizer = load_tokenizer(tmp_path)  # the folder
    expected = theirs.encode([text.lower() for text in PROBES])
    for row, ids in zip(tokenizer(PROBES, max_tokens=30).tolist(), expected, strict=True):
        assert row == (ids + [0] * 30)[:30]
    assert tokenizer.vocab_size == theirs.get_piece_size()


def test_a_special_token_written_in_a_text_is_text():
    tokenizer = train_tokenizer([*TEXTS, "<pad>"], 100)
    ids = tokenizer(["a <pad> cube"])[0]
    assert "".join(tokenizer.piece(token_id) for token_id in ids[ids > 0].tolist()) == "▁a▁<pad>▁cube"


def test_both_kinds_survive_pickling_and_saving(tmp_path):
    _sentencepiece(tmp_path / "any.model")
    for tokenizer in (load_tokenizer(tmp_path / "any.model"), train_tokenizer(TEXTS, 80)):
        expected, folder = tokenizer(PROBES), tmp_path / tokenizer.file_name.replace(".", "_")
        folder.mkdir()
        assert torch.equal(pickle.loads(pickle.dumps(tokenizer))(PROBES), expected)
        assert tokenizer.save(folder) == folder / tokenizer.file_name
        assert torch.equal(load_tokenizer(folder)(PROBES), expected)
        with pytest.raises(ValueError, match=r"must end in \."):
            tokenizer.save(tmp_path / "vocabulary.txt")


def test_an_ordinary_piece_at_id_0_is_refused_by_name(tmp_path):
    words = _word_file(tmp_path / "words.json", {"cube": 0, "unknown": 1})
    with pytest.raises(ValueError, match=r"words\.json: id 0 .* is the ordinary piece 'cube'; id 0 is padding"):
        load_tokenizer(words)
    _sentencepiece(tmp_path / "pieces.model", pad_id=-1, unk_id=4, byte_fallback=False, vocab_size=60)
    with pytest.raises(ValueError, match=r"pieces\.model: id 0 .* must be a padding, unknown or control piece"):
        load_tokenizer(tmp_path / "pieces.model")


def test_an_unknown_piece_may_be_id_0(tmp_path):
    assert load_tokenizer(_word_file(tmp_path / "words.json", {"unknown": 0, "cube": 1}))(["cube"], 2).tolist() == [
        [1, 0]
    ]


def test_files_of_no_known_kind_are_named(tmp_path):
    for name, content, message in [
        ("broken.model", b"no protobuf", "not a SentencePiece model"),
        ("empty.model", b"", "not a SentencePiece model"),
        ("list.json", b"[]", 'it has no "model"'),
        ("other.json", b'{"model": {"type": "Other"}}', "not a tokenizers file"),
        ("broken.json", b"{", "broken.json"),
        ("vocabulary.txt", b"", "must be a SentencePiece .model or a tokenizers .json"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path / name)
    with pytest.raises(ValueError, match="holds neither tokenizer.model nor tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("texts", "max_tokens"), [("a red cube", 4), (["a red cube"], 0)])
def test_one_string_and_no_room_are_refused(texts, max_tokens):
    with pytest.raises(ValueError, match=r"texts \((str|list)\) must be a list of strings"):
        train_tokenizer(TEXTS, 80)(texts, max_tokens)
