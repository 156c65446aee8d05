"""Continuous batching: rows that end leave the batch and waiting ones take their places. R rows in flight, C columns of
the cache, P tokens of the longest prompt.

`generate` runs a batch until its longest row ends. Here rows of different age share the batch: every row's keys and
values are aligned at the right of the cache, what lies left of its prompt is masked, and positions count from its own
start. A row attends to what it would attend to alone, so its text is that of the row by itself, up to rounding.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PaliGemmaForConditionalGeneration

from tips_ray.devices import is_out_of_memory
from tips_ray.keyed import uniform

REFILL_SHARE = 8
"""Rows leave and enter once an eighth of the places is free: a change of the batch copies the cache."""
log = logging.getLogger(__name__)


@dataclass(eq=False)
class Row:
    """One caption to write."""

    prompt: Tensor
    """Token ids, placeholders of the image included."""
    pixels: Callable[[], Tensor]
    """The image as the model wants it, made when the row enters the batch; a ValueError becomes the row's error."""
    key: int = 0
    """Key of the row's draws, where the temperature is above 0."""
    tokens: list[int] = field(default_factory=list)
    """What was written, without the token that ends it."""
    ended: bool = False
    error: str = ""


@dataclass(frozen=True)
class Decoding:
    """How a caption is written."""

    max_new_tokens: int
    temperature: float
    pad_token: int
    end_tokens: frozenset[int]


class Decoder:
    """Writes the captions of any number of rows, `places` of them at a time."""

    def __init__(self, model: PaliGemmaForConditionalGeneration, decoding: Decoding, places: int) -> None:
        self.places = places
        """Halved for good when memory runs out."""
        self._model, self._decoding = model, decoding

    @torch.inference_mode()
    def write(self, rows: Iterable[Row]) -> None:
        """Fill `tokens`, or `error` where an image cannot be used.

        Raises:
            RuntimeError, MemoryError: there is no room for even one row; as torch or a library of the device says it.
        """
        waiting, batch = deque(rows), _Batch(self._model, self._decoding)
        while waiting or batch.rows:
            try:
                self._advance(batch, waiting)
                continue
            except (RuntimeError, MemoryError) as error:
                if self.places == 1 or not is_out_of_memory(error):
                    raise
                self.places //= 2
                log.warning("out of memory: captions are written %d at a time from now on", self.places)
            waiting.extendleft(_begun_again(batch.rows))
            batch = _Batch(self._model, self._decoding)
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()

    def _advance(self, batch: "_Batch", waiting: deque[Row]) -> None:
        room = self.places - len(batch.rows)
        if waiting and room >= max(self.places // REFILL_SHARE, 1):
            entering = list(islice(waiting, room))
            batch.enter(entering)
            for _ in entering:
                waiting.popleft()
        going_on = batch.hand_out()
        if len(batch.rows) - len(going_on) >= max(len(batch.rows) // REFILL_SHARE, 1):
            batch.keep(going_on)
        if batch.rows:
            batch.step()


class _Batch:
    """Rows in flight with their keys and values; each has a token that is chosen and not handed out yet."""

    def __init__(self, model: PaliGemmaForConditionalGeneration, decoding: Decoding) -> None:
        self.rows: list[Row] = []
        self._model, self._decoding, self._cache = model, decoding, DynamicCache()
        self._mask_RC = self._position_R = self._next_R = torch.empty(0)

    def enter(self, rows: Sequence[Row]) -> None:
        """Read image and prompt of new rows and choose their first tokens; a row whose image is bad stays out."""
        rows, pixels = _with_pixels(rows)
        if not rows:
            return
        device, longest = self._model.device, max(len(row.prompt) for row in rows)
        mask_RP = torch.stack([_padded(torch.ones_like(row.prompt), longest) for row in rows]).to(device)
        ids_RP = torch.stack([_padded(row.prompt, longest, self._decoding.pad_token) for row in rows]).to(device)
        inputs = {"input_ids": ids_RP, "pixel_values": torch.stack(pixels).to(device, self._model.dtype)}
        # Type 0 throughout: image and prompt are a prefix that sees all of itself. Positions begin at 1.
        inputs |= {"token_type_ids": torch.zeros_like(ids_RP), "position_ids": mask_RP.cumsum(1).clamp(min=1)}
        cache = DynamicCache()
        logits_RV = self._logits(cache, attention_mask=mask_RP, **inputs)
        self._join(rows, cache, mask_RP, self._chosen(rows, logits_RV))

    def step(self) -> None:
        """Read the newest token of every row and choose the next."""
        self._mask_RC, self._position_R = F.pad(self._mask_RC, (0, 1), value=1), self._position_R + 1
        inputs = {"input_ids": self._next_R[:, None], "position_ids": self._position_R[:, None]}
        logits_RV = self._logits(self._cache, attention_mask=self._mask_RC, **inputs)
        self._next_R = self._chosen(self.rows, logits_RV)

    def hand_out(self) -> list[int]:
        """Give every row the token chosen for it; returns the numbers of those that go on."""
        most = self._decoding.max_new_tokens
        for row, token in zip(self.rows, self._next_R.tolist(), strict=True):
            if not row.ended and token not in self._decoding.end_tokens:
                row.tokens.append(token)
            row.ended |= token in self._decoding.end_tokens or len(row.tokens) == most
        return [number for number, row in enumerate(self.rows) if not row.ended]

    def keep(self, numbers: list[int]) -> None:
        """Drop all other rows, and the columns that only they needed."""
        self.rows = [self.rows[number] for number in numbers]
        if not self.rows:
            return
        index = torch.tensor(numbers, device=self._mask_RC.device)
        first = int(self._mask_RC[index].argmax(1).min())
        self._mask_RC, self._position_R, self._next_R = (
            self._mask_RC[index, first:],
            self._position_R[index],
            self._next_R[index],
        )
        for layer in _layers(self._cache):
            layer.keys, layer.values = layer.keys[index, :, first:], layer.values[index, :, first:]

    def _join(self, rows: list[Row], cache: DynamicCache, mask: Tensor, following: Tensor) -> None:
        """Put new rows below those in flight, aligned at the right."""
        position = mask.sum(1)
        if self.rows:
            for old, new in zip(_layers(self._cache), _layers(cache), strict=True):
                new.keys, new.values = _below(old.keys, new.keys, 2), _below(old.values, new.values, 2)
            mask = _below(self._mask_RC, mask, 1)
            position, following = torch.cat([self._position_R, position]), torch.cat([self._next_R, following])
        self.rows, self._cache = self.rows + rows, cache
        self._mask_RC, self._position_R, self._next_R = mask, position, following

    def _logits(self, cache: DynamicCache, **inputs: Tensor) -> Tensor:
        output: Any = self._model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1]

    def _chosen(self, rows: Sequence[Row], logits_RV: Tensor) -> Tensor:
        """Next token of each row: the likeliest, or one drawn by a number that its key and its length determine."""
        if self._decoding.temperature == 0:
            return logits_RV.argmax(-1)
        below_RV = torch.softmax(logits_RV.float() / self._decoding.temperature, -1).cumsum(-1)
        draws = [uniform(torch.tensor([row.key]), len(row.tokens)) for row in rows]
        drawn_R1 = torch.stack(draws).to(below_RV.device) * below_RV[:, -1:]
        return torch.searchsorted(below_RV, drawn_R1, right=True)[:, 0].clamp(max=below_RV.shape[1] - 1)


def _with_pixels(rows: Sequence[Row]) -> tuple[list[Row], list[Tensor]]:
    found = []
    for row in rows:
        try:
            found.append((row, row.pixels()))
        except ValueError as error:
            row.error = str(error)
    return [row for row, _ in found], [pixels for _, pixels in found]


def _begun_again(rows: Iterable[Row]) -> list[Row]:
    """Rows that had not ended, the last one first."""
    unfinished = [row for row in rows if not row.ended]
    for row in unfinished:
        row.tokens.clear()
    return unfinished[::-1]


def _layers(cache: DynamicCache) -> Any:
    return cache.layers


def _padded(tokens: Tensor, length: int, value: int = 0) -> Tensor:
    return F.pad(tokens, (length - len(tokens), 0), value=value)


def _below(old: Tensor, new: Tensor, dim: int) -> Tensor:
    """`new` under `old`, the shorter of the two padded on the left along `dim`."""
    columns = max(old.shape[dim], new.shape[dim])
    behind = [0] * (2 * (old.ndim - 1 - dim))
    return torch.cat([F.pad(part, (*behind, columns - part.shape[dim], 0)) for part in (old, new)])
