"""Read a whole source at once, as the index and the stream read it part by part."""

from tips_ray.config import SourceConfig
from tips_ray.data import sources


def read_all(uri, chunk_rows=64, **options):
    """All rows of a source, its scans' rejects, and its columns."""
    source = SourceConfig(uri=str(uri), **options)
    shards = sources.shards(source)
    columns = sources.columns_of(shards, source.columns)
    scans = [(shard, sources.scan(shard, columns, chunk_rows)) for shard in shards]
    rows = [row for shard, scan in scans for chunk in scan.chunks for row in sources.read_chunk(shard, chunk, columns)]
    return rows, [reject for _, scan in scans for reject in scan.rejects], columns


def captions_in(rows) -> list[tuple[str, list[str]]]:
    return [(row["web_caption"], row["synthetic_captions"]) for row in rows]
