"""Shards of an index that could not be looked through to their end."""

from tips_ray.data.index import Index


def unread_bytes(index: Index) -> dict[str, int]:
    """Bytes behind the last row of each tar with a damaged header, by the shard's URI."""
    shards = {row["path"]: (number, row) for number, row in enumerate(index.shards.to_pylist())}
    found = {}
    for reject in index.rejects.to_pylist():
        number, shard = shards[reject["path"]]
        if reject["row"] >= shard["rows"]:  # no row of it: what ends the shard
            stops = index.chunks.stop[index.chunks.shard == number]
            found[shard["path"]] = shard["bytes"] - int(stops.max(initial=0))
    return found
