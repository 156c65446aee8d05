"""What a file is by its first bytes, where its name says something else."""

_KINDS = {
    b"\x1f\x8b": "a gzip file: decompress it",
    b"\x28\xb5\x2f\xfd": "a zstd file: decompress it",
    b"BZh": "a bzip2 file: decompress it",
    b"\xfd7zXZ\0": "an xz file: decompress it",
    b"PK\x03\x04": "a zip archive or an Excel file: unpack it, or save the table as CSV in UTF-8",
    b"PAR1": "a Parquet file: give its name the suffix .parquet",
    b"\xff\xfe": "text in UTF-16: convert it to UTF-8",
    b"\xfe\xff": "text in UTF-16: convert it to UTF-8",
}
_HTML = (b"<!doctype html", b"<html")


def looks_like(content: bytes) -> str:
    """What a file that begins with these bytes is, and the cure; empty for kinds that are not known here."""
    if content[:99].lstrip().lower().startswith(_HTML):
        return "a page of HTML, as a server gives in place of a file: fetch it again"
    halves = content[:12:2], content[1:12:2]
    if any(all(letters) and letters and not any(zeros) for letters, zeros in (halves, halves[::-1])):
        return "text in UTF-16 without a mark: convert it to UTF-8"
    return next((words for mark, words in _KINDS.items() if content.startswith(mark)), "")
