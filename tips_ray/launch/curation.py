"""Curate raw pairs on Ray: signals, embeddings of what is left, stages, selection. What is made is not made again."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.exceptions import RayError

from tips_ray import storage
from tips_ray.config import SourceConfig
from tips_ray.config.curation import CurationConfig, SealedBounds, WeakestConfig
from tips_ray.config.embedding import EmbeddingConfig
from tips_ray.curation import stages
from tips_ray.curation.lock import is_in
from tips_ray.curation.report import page
from tips_ray.curation.selection import read_lock, read_parts
from tips_ray.curation.sets import set_source
from tips_ray.curation.stages import Funnel, Pictures
from tips_ray.curation.vectors import EmbeddedRows, Vectors
from tips_ray.curation.weakness import margins, weakest
from tips_ray.data import sources
from tips_ray.data.index import Index
from tips_ray.data.index_folder import check_apart, index_of
from tips_ray.data.tables import write_table
from tips_ray.embedding.layout import WEB
from tips_ray.errors import RunFailedError, RunInterrupted, described, listed
from tips_ray.evaluation.load_encoder import load_encoder
from tips_ray.launch.curation_files import GOES_ON, Tell, connect, made_signals, tables
from tips_ray.launch.curation_selection import rows_digest, write_positions, write_selection
from tips_ray.launch.embedding import embed_source

WRITTEN = {"positions": "where they are in the raw shards", "shards": "in new shards"}


@dataclass
class Curated:
    """What `curate` has made."""

    selection: str
    """Folder that `pretrain` streams: `data.sources.0.uri`."""
    lock: Mapping[str, Any]
    report: str
    """HTML page."""


def curate(config: CurationConfig, tell: Tell) -> Curated:
    """Choose the rows of a training set.

    Args:
        config: data, thresholds and resources.
        tell: gets progress lines.

    Raises:
        ValueError: config or data are wrong, or there is no room for an actor.
        RunFailedError: the work stopped; what was made is kept.
        RunInterrupted: Ctrl-C; what was made is kept.
    """
    try:
        return _Curation(config, tell).run()
    except KeyboardInterrupt:
        raise RunInterrupted(f"interrupted; {GOES_ON}") from None
    except RayError as error:
        raise RunFailedError(f"curation stopped: {described(error)}; {GOES_ON}") from None


@dataclass
class _Curation:
    config: CurationConfig
    tell: Tell
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def out(self) -> str:
        return storage.resolved(self.config.out)

    def run(self) -> Curated:
        config = self.config
        storage.mark_output(self.out)
        index = index_of(config.data, storage.join(self.out, "index"))
        check_apart("out", self.out, index)
        self.tell(f"data       {index.rows:,} rows of {config.source.uri}")
        self._require_fields(index)
        self._require_inputs()
        connect(config)
        signal_files = self._signals(config, index, storage.join(self.out, "signals"))
        signals = pa.concat_tables(list(tables(signal_files)))
        if config.blocked_domains and not any(signals["domain"].unique().to_pylist()):
            where = f"url_field ({config.url_field})" if config.url_field else "the key"
            raise ValueError(f"blocked_domains: {where} holds no URL in any row; name the field that does in url_field")
        funnel = stages.cheap_stages(signals, config, self._base(signals))
        self.tell(f"signals    {_counted(funnel)}")
        _require_rows(funnel)
        embedded = self._embedded(index, signal_files, funnel)
        self._judge(signals, funnel, embedded)
        if config.most_repeats:
            stages.repeats_stage(funnel, signals["caption_id"].to_numpy(), config.most_repeats)
        self.tell(f"kept       {_counted(funnel)}")
        _require_rows(funnel)
        begun = time.monotonic()
        place, lock = write_selection(config, self.out, index, signal_files, funnel, self.tell)
        self.seconds["selection"] = time.monotonic() - begun
        return Curated(place, lock, self._report(index, signals, funnel, place, lock))

    def _report(self, index: Index, signals: pa.Table, funnel: Funnel, place: str, lock: Mapping[str, Any]) -> str:
        """Write the page, and a table of what was decided on each row."""
        folder = storage.join(self.out, "reports", rows_digest(index, funnel))
        table = {"sample_id": signals["sample_id"], **stages.decisions(signals, funnel)}
        write_table(storage.join(folder, "decisions.parquet"), pa.table(table))
        facts = {"selection": place, "images": WRITTEN[lock["written"]], "order": lock["order_sha256"]}
        facts |= {"share of rows kept in the chunks that are read": f"{lock['kept_share_of_chunks']:.1%}"}
        facts |= {"encoder": self.config.encoder or "none", "decisions on each row": f"{folder}/decisions.parquet"}
        text = page(self.config, index, signals, funnel, facts, self.seconds)
        storage.write_text(storage.join(folder, "report.html"), text)
        return storage.join(folder, "report.html")

    def _require_fields(self, index: Index) -> None:
        """
        Raises:
            ValueError: a field that is named is in none of the first rows.
        """
        config = self.config
        shard, columns = index.shard(int(index.chunks.shard[0]))
        rows = sources.read_fields(shard, index.chunk(0), columns, None)
        there = {name for row in rows for name in row}
        named = {f"fields.{name}": name for name in config.fields} | {"url_field": config.url_field}
        for key, name in named.items():
            if name and name not in there:
                known = listed(sorted(there)) if there else "no fields"
                raise ValueError(f"{key}: none of the first {len(rows)} rows has {name!r}; they have {known}")

    def _require_inputs(self) -> None:
        """Look at what is needed later, before hours of reading.

        Raises:
            ValueError: a set has no images, the base is no selection, or the encoder is not there or reads no texts.
        """
        config = self.config
        self._sealed_sources()
        for name, one in config.near.sets.items() if config.near else ():
            set_source(one, self._set_folder(name, one.uri))
        if config.base:
            read_lock(config.base)
        if config.encoder:
            encoder = load_encoder(config.encoder, config.image_size_px)
            if (config.similarity or config.weakest) and not encoder.text_embeddings:
                raise ValueError(f"encoder ({config.encoder}) reads no texts; similarity and weakest need some")

    def _signals(self, config: CurationConfig, index: Index, folder: str) -> list[str]:
        begun = time.monotonic()
        made = made_signals(config, index, folder, self.tell)
        self.seconds["signals"] = self.seconds.get("signals", 0) + time.monotonic() - begun
        return made

    def _embedded(self, index: Index, signal_files: list[str], funnel: Funnel) -> EmbeddedRows | None:
        """Embeddings of the rows that the funnel has left; None without an encoder."""
        config = self.config
        if not config.encoder:
            return None
        digest = rows_digest(index, funnel)
        passed = storage.join(self.out, "passed", digest)
        write_positions(index, signal_files, funnel, passed, {})
        with_captions = config.similarity is not None
        place = storage.join(self.out, "embeddings", digest)
        return self._embed(SourceConfig(uri=passed), place, with_captions, funnel.kept_K)

    def _embed(self, source: SourceConfig, out: str, captions: bool, sample_K: NDArray[np.int64]) -> EmbeddedRows:
        config, begun = self.config, time.monotonic()
        shared = ("image_size_px", "chunk_rows", "max_image_bytes", "max_image_pixels", "actors", "cpus_per_actor")
        options = {name: getattr(config, name) for name in (*shared, "gpus_per_actor", "max_bad_fraction", "data_cpus")}
        embedding = EmbeddingConfig(source=source, captions=captions, dtype="float16", **options)
        inputs = embed_source(config.encoder or "", embedding, out, self.tell)
        self.seconds["embeddings"] = self.seconds.get("embeddings", 0) + time.monotonic() - begun
        names = list(inputs.layout.images)
        image = config.embedding or (*inputs.text_embeddings, *names)[0]
        allowed = inputs.text_embeddings if captions else names
        if image not in allowed:
            which = "can be compared with captions" if captions else "the encoder gives"
            raise ValueError(f"embedding ({image}) must be one of {', '.join(allowed)}, which {which}")
        return EmbeddedRows.at(inputs.folder.rows_uri, image, sample_K)

    def _judge(self, signals: pa.Table, funnel: Funnel, embedded: EmbeddedRows | None) -> None:
        """The stages that compare images."""
        config, begun = self.config, time.monotonic()
        near_QD = self._near_queries()
        if config.similarity and embedded:
            stages.similarity_stage(funnel, embedded, WEB, config.similarity.min)
        if config.near and embedded:
            stages.near_stage(funnel, embedded, near_QD, config.near.min)
        self._drop_duplicates(signals, funnel, embedded)
        most_bytes = int(config.memory_gb * 1e9)
        if config.near and config.near.per_query and embedded:
            stages.nearest_stage(funnel, "not among the nearest", embedded, near_QD, config.near.per_query, most_bytes)
        if config.weakest and embedded:
            weak_QD = self._weak_queries(config.weakest)
            stages.nearest_stage(funnel, "far from weak pairs", embedded, weak_QD, config.weakest.per_query, most_bytes)
        self.seconds["search"] = time.monotonic() - begun

    def _drop_duplicates(self, signals: pa.Table, funnel: Funnel, embedded: EmbeddedRows | None) -> None:
        """Drop near duplicates of sealed images and of the validation, then all but one of each group."""
        config = self.config
        bounds = config.sealed or SealedBounds()
        for name, source, folder in self._sealed_sources():
            sealed = self._pictures_of_set(source, folder, bounds.similarity is not None)
            kept_K, found = _pictures(signals, funnel, embedded if bounds.similarity is not None else None)
            stages.sealed_stage(funnel, name, kept_K, found, sealed, bounds)
        if config.duplicates:
            pixels_N = signals["width"].fill_null(0).to_numpy() * signals["height"].fill_null(0).to_numpy().astype(int)
            seen = embedded if config.duplicates.similarity is not None else None
            kept_K, found = _pictures(signals, funnel, seen)
            stages.duplicates_stage(funnel, kept_K, found, pixels_N[kept_K], config)

    def _sealed_sources(self) -> list[tuple[str, SourceConfig, str]]:
        """Name, images and folder of each set that must not be trained on."""
        sets = self.config.sealed.sets if self.config.sealed else {}
        found = [(name, set_source(one, self._set_folder(name, one.uri)), one.uri) for name, one in sets.items()]
        if self.config.weakest:
            validation = self.config.weakest.validation
            found.append(("validation", validation, validation.uri))
        return [(name, source, self._set_folder(name, uri)) for name, source, uri in found]

    def _near_queries(self) -> Vectors:
        """Embeddings of all curated images."""
        found = [np.empty((0, 0), np.float32)]
        for name, one in self.config.near.sets.items() if self.config.near else ():
            folder = self._set_folder(name, one.uri)
            found.append(self._set_vectors(set_source(one, folder), folder))
        return np.concatenate(found[1:] or found)

    def _weak_queries(self, weak: WeakestConfig) -> Vectors:
        """Images of the validation pairs that find themselves worst."""
        folder = storage.join(self._set_folder("validation", weak.validation.uri), "pairs")
        self.tell(f"validation {weak.validation.uri}")
        rows = self._embed(weak.validation, folder, True, np.empty(0, np.int64))
        image_ND = rows.all()
        margin_N = margins(image_ND, np.concatenate([rows.block(number, WEB) for number in range(len(rows.names))]))
        chosen_Q, wrong = weakest(margin_N, weak.share), int((margin_N < 0).sum())
        self.tell(
            f"weakest    {len(chosen_Q):,} of {len(margin_N):,} validation pairs; {wrong:,} do not find themselves"
        )
        return image_ND[chosen_Q]

    def _set_vectors(self, source: SourceConfig, folder: str) -> Vectors:
        self.tell(f"set        {source.uri}")
        vectors_QD = self._embed(source, storage.join(folder, "embeddings"), False, np.empty(0, np.int64)).all()
        return vectors_QD[np.abs(vectors_QD).sum(1) > 0]

    def _set_folder(self, name: str, uri: str) -> str:
        return storage.join(self.out, "sets", f"{name}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}")

    def _pictures_of_set(self, source: SourceConfig, folder: str, with_vectors: bool) -> Pictures:
        without = {"source": source, "language": None, "fields": {}, "url_field": None}
        index = index_of(self.config.data_at(source), storage.join(folder, "index"))
        config = self.config.model_copy(update=without)
        signals = pa.concat_tables(list(tables(self._signals(config, index, storage.join(folder, "signals")))))
        signals = signals.filter(pa.array(signals["hash"].is_valid()))
        vectors_MD = self._set_vectors(source, folder) if with_vectors else None
        return Pictures(signals["hash"].to_numpy(), signals["mirrored_hash"].to_numpy(), vectors_MD)

    def _base(self, signals: pa.Table) -> NDArray[np.bool_] | None:
        """Which rows are those of the base."""
        if not self.config.base:
            return None
        wanted = pa.concat_tables([part.rows for _, part in read_parts(read_lock(self.config.base))])
        is_base_N = is_in(signals, wanted)
        if is_base_N.sum() < wanted.num_rows:
            lost = wanted.num_rows - int(is_base_N.sum())
            raise ValueError(f"base ({self.config.base}): {lost:,} of its rows are not in {self.config.source.uri}")
        return is_base_N


def _require_rows(funnel: Funnel) -> None:
    """
    Raises:
        ValueError: no row is left.
    """
    if not len(funnel.kept_K):
        raise ValueError(f"no row was kept ({_counted(funnel)}): loosen the stage that dropped most")


def _pictures(signals: pa.Table, funnel: Funnel, embedded: EmbeddedRows | None) -> tuple[NDArray[np.int64], Pictures]:
    """The rows that are left, and what duplicates are found by."""
    kept_K = funnel.kept_K
    vectors_KD = None
    if embedded is not None:
        vectors_KD = embedded.all()[np.searchsorted(embedded.sample_K, kept_K)]
    plain_N, mirrored_N = (signals[name].fill_null(0).to_numpy() for name in ("hash", "mirrored_hash"))
    return kept_K, Pictures(plain_N[kept_K], mirrored_N[kept_K], vectors_KD)


def _counted(funnel: Funnel) -> str:
    return ", ".join(f"{count:,} {stage}" for stage, count in funnel.counts().items() if count or stage == stages.KEPT)
