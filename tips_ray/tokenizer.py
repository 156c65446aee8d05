"""Tokenizers: texts -> token ids [B, T] by any SentencePiece or tokenizers file, and a trainer for small vocabularies.

Id 0 is padding, texts are lower-cased, there is neither BOS nor EOS (as in the released inference code).
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

SENTENCEPIECE_FILE, TOKENIZERS_FILE = "tokenizer.model", "tokenizer.json"
SPECIAL_PIECES = ("<pad>", "<unk>")
PADDING_PIECES = ("<pad>", "[PAD]", "<unk>", "[UNK]")
BYTE_PIECES = tuple(f"<0x{value:02X}>" for value in range(256))
BYTES_FROM_VOCABULARY = 1024
"""Smallest trained vocabulary that spends 256 entries on byte pieces."""


class _Backend(Protocol):
    vocab_size: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def piece(self, token_id: int) -> str: ...

    def is_ordinary(self, token_id: int) -> bool: ...


class Tokenizer:
    """One vocabulary and its rules, picklable; build it with `load_tokenizer` or `train_tokenizer`.

    If id 0 is the unknown piece, unknown words count as padding, because the text encoder ignores id 0.
    """

    def __init__(self, source: bytes, file_name: str) -> None:
        self.source, self.file_name = source, file_name
        """Content of the vocabulary file; its kind as the name `tokenizer.model` or `tokenizer.json`."""
        self._backend: _Backend = (_SentencePiece if file_name == SENTENCEPIECE_FILE else _Tokenizers)(source)
        self.vocab_size = self._backend.vocab_size
        if self._backend.is_ordinary(0):
            raise ValueError(
                f"id 0 of this {file_name} is the ordinary piece {self.piece(0)!r}; id 0 is padding, "
                "so it must be a padding, unknown or control piece"
            )

    def __reduce__(self) -> tuple:
        return Tokenizer, (self.source, self.file_name)

    def __call__(self, texts: Sequence[str], max_tokens: int = 64) -> Tensor:
        """int64 ids [B, max_tokens]: each text cut to `max_tokens` ids, then padded with 0.

        Raises:
            ValueError: `texts` is one string instead of a list, or `max_tokens` is below 1.
        """
        if isinstance(texts, str) or max_tokens < 1:
            raise ValueError(f"texts ({type(texts).__name__}) must be a list of strings, max_tokens ({max_tokens}) > 0")
        ids_BT = torch.zeros(len(texts), max_tokens, dtype=torch.long)
        for row_T, ids in zip(ids_BT, self._backend.encode(texts), strict=True):
            kept = ids[:max_tokens]
            row_T[: len(kept)] = torch.tensor(kept, dtype=torch.long)
        return ids_BT

    def piece(self, token_id: int) -> str:
        """Text of one vocabulary entry."""
        return self._backend.piece(token_id)

    def save(self, path: Path | str) -> Path:
        """Write the vocabulary to `path`, a file or an existing folder; return the file.

        Raises:
            ValueError: the suffix does not fit this kind of vocabulary (.model or .json).
        """
        path = Path(path)
        path = path / self.file_name if path.is_dir() else path
        suffix = Path(self.file_name).suffix
        if path.suffix != suffix:
            raise ValueError(f"path ({path}) must end in {suffix}: the vocabulary is a {self.file_name}")
        path.write_bytes(self.source)
        return path


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Load a SentencePiece `.model`, a tokenizers `.json`, or a folder with tokenizer.model (preferred) or .json.

    A tokenizers file keeps its rules, but lower-casing comes first; special tokens, truncation and padding are off.

    Raises:
        ValueError: neither kind of file, an unreadable one, or one whose id 0 is an ordinary piece.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in (SENTENCEPIECE_FILE, TOKENIZERS_FILE) if (path / name).is_file()]
        if not found:
            raise ValueError(f"folder {path} holds neither {SENTENCEPIECE_FILE} nor {TOKENIZERS_FILE}")
        path = found[0]
    if path.suffix not in (".model", ".json"):
        raise ValueError(f"tokenizer ({path}) must be a SentencePiece .model or a tokenizers .json file")
    try:
        if path.suffix == ".model":
            return Tokenizer(path.read_bytes(), SENTENCEPIECE_FILE)
        return Tokenizer(_normalized(path.read_text(encoding="utf-8")), TOKENIZERS_FILE)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train BPE with the rules of transformers' `Tipsv2Tokenizer`: lower-case, split at whitespace, "▁" before a word.

    A vocabulary of 1,024 or more entries has 256 byte pieces; at most half of the others are single characters, and
    rarer characters become bytes. A smaller one holds every character of `texts`; other characters vanish.

    Args:
        texts: read once and held in memory; equal texts give an equal vocabulary.
        vocab_size: upper bound; few texts may give fewer entries.

    Raises:
        ValueError: `texts` hold no word, or more characters than fit into a vocabulary without bytes.
    """
    from tokenizers.trainers import BpeTrainer

    pipeline, texts = _tipsv2_pipeline({}, []), list(texts)
    alphabet = _alphabet(pipeline, texts, vocab_size)
    fixed = [*SPECIAL_PIECES, *(BYTE_PIECES if vocab_size >= BYTES_FROM_VOCABULARY else ())]
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=fixed,  # pyright: ignore[reportArgumentType]
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    pipeline.train_from_iterator(texts, trainer)
    model = json.loads(pipeline.to_str())["model"]
    trained = _tipsv2_pipeline(model["vocab"], [tuple(merge) for merge in model["merges"]])
    trained.add_special_tokens(list(SPECIAL_PIECES))
    return Tokenizer(trained.to_str(pretty=True).encode(), TOKENIZERS_FILE)


class _SentencePiece:
    """Backend with the sentencepiece library, so that ids are exact."""

    def __init__(self, source: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self._processor: Any = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(source)
        except RuntimeError as error:
            raise ValueError("this is not a SentencePiece model") from error
        self.vocab_size: int = self._processor.get_piece_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode([text.lower() for text in texts], num_threads=1)

    def piece(self, token_id: int) -> str:
        return self._processor.id_to_piece(token_id)

    def is_ordinary(self, token_id: int) -> bool:
        return not (self._processor.is_control(token_id) or self._processor.is_unknown(token_id))


class _Tokenizers:
    def __init__(self, source: bytes) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(source.decode())
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"this is not a tokenizers file: {error}") from error
        self._tokenizer.encode_special_tokens = True  # a caption with "<pad>" in it is text
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def piece(self, token_id: int) -> str:
        return self._tokenizer.id_to_token(token_id) or ""

    def is_ordinary(self, token_id: int) -> bool:
        added = self._tokenizer.get_added_tokens_decoder().get(token_id)
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        return not (added and added.special) and self.piece(token_id) not in (*PADDING_PIECES, unknown)


def _normalized(text: str) -> bytes:
    """The tokenizers file changed to lower-case first and to add, truncate and pad nothing."""
    tree = json.loads(text)
    if not isinstance(tree, dict) or "model" not in tree:
        raise ValueError('this is not a tokenizers file: it has no "model"')
    lower, given = {"type": "Lowercase"}, tree.get("normalizer")
    steps = given["normalizers"] if given and given.get("type") == "Sequence" else [given] if given else []
    if lower not in steps[:1]:
        steps = [lower, *steps]
    changed = {"normalizer": {"type": "Sequence", "normalizers": steps}}
    off = dict.fromkeys(("truncation", "padding", "post_processor"))
    return json.dumps({**tree, **changed, **off}, ensure_ascii=False, indent=2).encode()


def _tipsv2_pipeline(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """Tokenizer with Tipsv2Tokenizer's steps. Source: transformers.models.tipsv2.tokenization_tipsv2."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    metaspace: dict[str, Any] = {"replacement": "▁", "prepend_scheme": "always"}
    pipeline: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=True, byte_fallback=True))
    pipeline.normalizer = normalizers.Sequence([normalizers.Lowercase()])
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**metaspace)]
    )
    pipeline.decoder = decoders.Sequence(
        [decoders.Metaspace(**metaspace), decoders.ByteFallback(), decoders.Fuse()]  # pyright: ignore[reportArgumentType]
    )
    return pipeline


def _alphabet(pipeline: Any, texts: list[str], vocab_size: int) -> list[str]:
    """Characters that become vocabulary entries, frequent ones first; BpeTrainer would break ties at random."""
    counts: Counter[str] = Counter()
    for text in texts:
        for word, _ in pipeline.pre_tokenizer.pre_tokenize_str(pipeline.normalizer.normalize_str(text)):
            counts.update(word)
    characters = sorted(counts, key=lambda character: (-counts[character], character))
    if not characters:
        raise ValueError(f"texts ({len(texts)}) hold no word to learn a vocabulary from")
    if vocab_size >= BYTES_FROM_VOCABULARY:
        return characters[: (vocab_size - len(SPECIAL_PIECES) - len(BYTE_PIECES)) // 2]
    needed = len(SPECIAL_PIECES) + len(characters)
    if vocab_size < needed:
        raise ValueError(
            f"vocab_size ({vocab_size}) must be at least {needed}: {len(SPECIAL_PIECES)} special pieces and "
            f"{len(characters)} characters of the texts (from {BYTES_FROM_VOCABULARY} on, rare ones become bytes)"
        )
    return characters


def tokenizer_at(uri: str) -> Tokenizer:
    """`load_tokenizer` for a local path or an object of a store.

    Raises:
        ValueError: there is no vocabulary, or it is damaged.
    """
    from tips_ray import storage  # imports pyarrow, which models do not need

    if storage.is_local(uri):
        return load_tokenizer(uri)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, uri.rsplit("/", 1)[-1])
        storage.download(uri, path)
        return load_tokenizer(path)
