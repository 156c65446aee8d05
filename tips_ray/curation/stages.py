"""Which rows are kept, and why not: one stage after the other. N rows of the source, K rows that are left."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tips_ray.config.curation import BoundsConfig, CurationConfig, SealedBounds
from tips_ray.curation.components import components, kept
from tips_ray.curation.hashes import close_pairs, close_to
from tips_ray.curation.search import best_query, nearest, similar_pairs
from tips_ray.curation.signals import NO_CAPTION
from tips_ray.curation.vectors import EmbeddedRows, Vectors

Flags = NDArray[np.bool_]
KEPT = "kept"


@dataclass
class Funnel:
    """The stages so far, and the stage that dropped each row."""

    reason_N: NDArray[np.uint8]
    """Number of the stage that dropped the row; 0: it is kept."""
    is_base_N: Flags
    """Rows of an earlier selection, which only unreadable and sealed images leave."""
    stages: list[str] = field(default_factory=lambda: [KEPT])
    values: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """What stages judged, for each row; NaN where a row did not come so far."""
    partner_N: NDArray[np.int64] | None = None
    """Sample id of the duplicate that is kept instead; -1: none."""

    @classmethod
    def over(cls, rows: int, is_base_N: Flags | None = None) -> "Funnel":
        """All rows are kept."""
        return cls(np.zeros(rows, np.uint8), np.zeros(rows, np.bool_) if is_base_N is None else is_base_N)

    @property
    def is_kept_N(self) -> Flags:
        """Whether no stage has dropped the row."""
        return self.reason_N == 0

    @property
    def kept_K(self) -> NDArray[np.int64]:
        """Sample ids of the rows that are left."""
        return np.flatnonzero(self.is_kept_N)

    def drop(self, stage: str, is_dropped_N: Flags, of_base: bool = False) -> None:
        """Add a stage, which drops those of the rows that are left; with `of_base` also rows of the base."""
        self.stages.append(stage)
        may_go_N = self.is_kept_N if of_base else self.is_kept_N & ~self.is_base_N
        self.reason_N[is_dropped_N & may_go_N] = len(self.stages) - 1

    def drop_left(self, stage: str, is_dropped_K: Flags, kept_K: NDArray[np.int64], of_base: bool = False) -> None:
        """Add a stage that judged the rows `kept_K` alone."""
        is_dropped_N = np.zeros(len(self.reason_N), np.bool_)
        is_dropped_N[kept_K] = is_dropped_K
        self.drop(stage, is_dropped_N, of_base)

    def note(self, name: str, value_K: NDArray[np.float32], kept_K: NDArray[np.int64]) -> None:
        """Keep what a stage judged."""
        self.values[name] = np.full(len(self.reason_N), np.nan, np.float32)
        self.values[name][kept_K] = value_K

    def counts(self) -> dict[str, int]:
        """Rows by stage; `kept` comes first."""
        count_S = np.bincount(self.reason_N, minlength=len(self.stages))
        return dict(zip(self.stages, count_S.tolist(), strict=True))


def cheap_stages(signals: pa.Table, config: CurationConfig, is_base_N: Flags | None = None) -> Funnel:
    """The stages that need no encoder.

    Args:
        signals: of all rows; see `curation.signals.schema`.
        config: thresholds.
        is_base_N: rows of an earlier selection, which stay.
    """
    funnel = Funnel.over(signals.num_rows, is_base_N)
    funnel.drop("unreadable", ~np.equal(_texts(signals, "error"), ""), of_base=True)
    width_N, height_N = (signals[name].fill_null(1).to_numpy().astype(np.float64) for name in ("width", "height"))
    shorter_N, longer_N = np.minimum(width_N, height_N), np.maximum(width_N, height_N)
    funnel.drop("too small", shorter_N < config.images.min_side_px)
    funnel.drop("too long", longer_N > config.images.max_aspect * shorter_N)
    for name, bounds in config.fields.items():
        number_N = signals[f"field.{name}"].fill_null(np.nan).to_numpy()
        funnel.drop(f"field {name}", _is_out(number_N, bounds))
    if config.blocked_domains:
        funnel.drop("blocked domain", _is_below(signals["domain"], config.blocked_domains))
    if config.language or config.similarity:
        funnel.drop("no caption", signals["caption_id"].to_numpy() == NO_CAPTION)
    if config.language:
        funnel.drop("not English", signals["english_votes"].to_numpy() < config.language.needed)
    return funnel


def _texts(signals: pa.Table, name: str) -> NDArray[np.str_]:
    return signals[name].fill_null("").to_numpy(zero_copy_only=False).astype(str)


def _is_out(number_N: NDArray[np.float64], bounds: BoundsConfig) -> Flags:
    low = -np.inf if bounds.min is None else bounds.min
    high = np.inf if bounds.max is None else bounds.max
    return np.where(np.isnan(number_N), bounds.missing == "drop", (number_N < low) | (number_N > high))


def _is_below(domains: pa.ChunkedArray, blocked: tuple[str, ...]) -> Flags:
    """Whether a domain is one of `blocked`, or below one."""
    held = domains.unique().to_pylist()
    ends = tuple(f".{name.lower().strip('.')}" for name in blocked)
    return np.isin(domains.to_numpy(zero_copy_only=False), [name for name in held if f".{name}".endswith(ends)])


def similarity_stage(funnel: Funnel, rows: EmbeddedRows, text: str, least: float) -> None:
    """Drop rows whose caption is not like their image.

    Args:
        funnel: `rows` are those that it has left.
        rows: their embeddings.
        text: column of the web caption's embedding.
        least: smallest cosine that is kept.
    """
    cosines = [
        np.einsum("nd,nd->n", rows.block(number, rows.image), rows.block(number, text))
        for number in range(len(rows.names))
    ]
    cosine_K = np.concatenate([*cosines, np.empty(0, np.float32)])
    funnel.note("similarity", cosine_K, rows.sample_K)
    funnel.drop_left("unlike its caption", ~(cosine_K >= least), rows.sample_K)


def near_stage(funnel: Funnel, rows: EmbeddedRows, queries_QD: Vectors, least: float) -> None:
    """Drop rows whose nearest curated image is too far; exact.

    Args:
        funnel: the stages so far.
        rows: embeddings, also of rows that it has dropped.
        queries_QD: curated images.
        least: smallest cosine that is kept.
    """
    is_left_K = funnel.is_kept_N[rows.sample_K]
    score_K = np.full(len(rows.sample_K), np.nan, np.float32)
    for first, block_ND in rows.blocks():
        left_M = first + np.flatnonzero(is_left_K[first : first + len(block_ND)])
        score_K[left_M] = best_query(block_ND[left_M - first], queries_QD)[0]
    funnel.note("near a curated image", score_K, rows.sample_K)
    funnel.drop_left("far from curated images", ~(score_K >= least), rows.sample_K)


def nearest_stage(
    funnel: Funnel, stage: str, rows: EmbeddedRows, queries_QD: Vectors, per_query: int, memory_bytes: int
) -> None:
    """Drop rows that are not among the `per_query` nearest of any query; exact. Rows of the base take no places.

    Arguments as those of `near_stage`.
    """
    is_left_K = (funnel.is_kept_N & ~funnel.is_base_N)[rows.sample_K]
    pool = ((first, block_ND * is_left_K[first : first + len(block_ND), None]) for first, block_ND in rows.blocks())
    scores_QK, ids_QK = nearest(queries_QD, pool, per_query, memory_bytes)
    is_near_K = np.zeros(len(rows.sample_K), np.bool_)
    is_near_K[ids_QK[(ids_QK >= 0) & np.isfinite(scores_QK)]] = True
    funnel.drop_left(stage, ~is_near_K, rows.sample_K)


@dataclass(frozen=True)
class Pictures:
    """What duplicates are found by, for some rows. K rows."""

    hash_K: NDArray[np.uint64]
    mirrored_K: NDArray[np.uint64]
    vectors_KD: Vectors | None
    """None: hashes alone."""


def sealed_stage(
    funnel: Funnel, name: str, kept_K: NDArray[np.int64], found: Pictures, sealed: Pictures, bounds: SealedBounds
) -> None:
    """Drop near duplicates of the sealed set `name`."""
    is_like_K = close_to(found.hash_K, sealed.hash_K, sealed.mirrored_K, bounds.hash_distance) >= 0
    if bounds.similarity is not None and found.vectors_KD is not None and sealed.vectors_KD is not None:
        score_K, _ = best_query(found.vectors_KD, sealed.vectors_KD)
        funnel.note(f"near {name}", score_K, kept_K)
        is_like_K |= score_K >= bounds.similarity
    funnel.drop_left(f"sealed {name}", is_like_K, kept_K, of_base=True)


def duplicates_stage(
    funnel: Funnel, kept_K: NDArray[np.int64], found: Pictures, pixels_K: NDArray[np.int64], config: CurationConfig
) -> None:
    """Keep one row of each group of near duplicates, and note which."""
    assert config.duplicates is not None
    pairs = [close_pairs(found.hash_K, found.mirrored_K, config.duplicates.hash_distance)]
    if config.duplicates.similarity is not None and found.vectors_KD is not None:
        pairs += list(similar_pairs([found.vectors_KD], config.duplicates.similarity, config.duplicates.clusters))
    component_K = components(len(kept_K), np.concatenate(pairs))
    size_K = pixels_K if config.duplicates.keep == "largest" else np.zeros_like(pixels_K)
    rank_K = np.empty(len(kept_K), np.int64)
    rank_K[np.lexsort((kept_K, -size_K, ~funnel.is_base_N[kept_K]))] = np.arange(len(kept_K))
    is_kept_K = kept(component_K, rank_K)
    survivor_C = np.full(int(component_K.max(initial=-1)) + 1, -1, np.int64)
    survivor_C[component_K[is_kept_K]] = kept_K[is_kept_K]
    funnel.partner_N = np.full(len(funnel.reason_N), -1, np.int64)
    funnel.partner_N[kept_K[~is_kept_K]] = survivor_C[component_K[~is_kept_K]]
    funnel.drop_left("duplicate", ~is_kept_K, kept_K)


def repeats_stage(funnel: Funnel, caption_N: NDArray[np.uint64], most: int) -> None:
    """Keep the first `most` rows of each web caption."""
    kept_K = funnel.kept_K
    caption_K = caption_N[kept_K]
    order_K = np.argsort(caption_K, kind="stable")
    is_first_K = np.diff(caption_K[order_K], prepend=caption_K[order_K][:1] ^ np.uint64(1)) != 0
    start_K = np.maximum.accumulate(np.where(is_first_K, np.arange(len(order_K)), 0))
    is_dropped_K = np.empty(len(kept_K), np.bool_)
    is_dropped_K[order_K] = np.arange(len(order_K)) - start_K >= most
    funnel.drop_left("repeated caption", is_dropped_K, kept_K)


def decisions(signals: pa.Table, funnel: Funnel) -> Mapping[str, NDArray | pa.ChunkedArray]:
    """What was decided on each row, for people: the stage, what it judged, and the duplicate that is kept."""
    stage_N = np.array(funnel.stages)[funnel.reason_N]
    partner_N = np.full(signals.num_rows, -1) if funnel.partner_N is None else funnel.partner_N
    shown = [name for name in signals.column_names if not name.endswith(("sha256", "hash", "_id"))]
    judged = {name: signals[name] for name in shown}
    return {"stage": stage_N, **judged, **funnel.values, "kept_duplicate": partner_N}
