import os

import pytest

from tips_ray import storage
from tips_ray.storage import NotFoundError, StorageError, errors
from tips_ray.storage.files import as_regex, without_braces


def _names(files) -> list[str]:
    return [os.path.basename(file.uri) for file in files]


def test_bytes_come_back_whole_and_in_ranges(folder):
    uri = storage.join(folder, "deep", "file.bin")
    storage.write_bytes(uri, b"0123456789")
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.read_bytes(uri, 2, 5) == b"234"
    assert storage.read_bytes(uri, 7) == b"789"
    assert storage.read_bytes(uri, 8, 20) == b"89"
    assert storage.read_bytes(uri, 20, 30) == storage.read_bytes(uri, 3, 3) == b""
    assert storage.stat(uri).bytes == 10


def test_text_is_utf8(folder):
    uri = storage.join(folder, "a.txt")
    storage.write_text(uri, "größer\n")
    assert storage.read_text(uri) == "größer\n"
    storage.write_bytes(uri, b"abc\xff")
    with pytest.raises(StorageError, match="a.txt: byte 3 is not UTF-8"):
        storage.read_text(uri)


def test_of_two_writers_who_create_a_file_one_wins(folder):
    uri = storage.join(folder, "claim")
    assert storage.create_text(uri, "first")
    assert not storage.create_text(uri, "second")
    assert storage.read_text(uri) == "first"


def test_a_changed_file_has_another_etag(folder):
    uri = storage.join(folder, "x")
    storage.write_text(uri, "one")
    before = storage.stat(uri)
    assert storage.stat(uri) == before
    storage.write_text(uri, "two")
    assert storage.stat(uri).etag != before.etag


def test_patterns_find_files_in_order(folder):
    for name in ("a/001.tar", "a/000.tar", "a/002.txt", "a/b/003.tar", "a2/004.tar", "a/.hidden.tar"):
        storage.write_text(storage.join(folder, name), name)
    assert _names(storage.list_files(f"{folder}/a")) == ["000.tar", "001.tar", "002.txt", "003.tar"]
    assert _names(storage.list_files(f"{folder}/a/")) == ["000.tar", "001.tar", "002.txt", "003.tar"]
    assert _names(storage.list_files(f"{folder}/a/*.tar")) == ["000.tar", "001.tar"]
    assert _names(storage.list_files(f"{folder}/**/*.tar")) == ["000.tar", "001.tar", "003.tar", "004.tar"]
    assert _names(storage.list_files(f"{folder}/a/{{000..001}}.tar")) == ["000.tar", "001.tar"]
    assert _names(storage.list_files(f"{folder}/{{a,a2}}/*.tar")) == ["000.tar", "001.tar", "004.tar"]
    assert [file.bytes for file in storage.list_files(f"{folder}/a/000.tar")] == [9]


def test_what_is_hidden_or_kept_by_a_system_counts_only_where_it_is_named(folder):
    kept = ("@eaDir", "__MACOSX", "lost+found", "#recycle", "_temporary", ".ipynb_checkpoints", "deep/.cache")
    for name in ("a.tar", "deep/b.tar", "._a.tar", "_x/c.tar", *(f"{place}/hidden.tar" for place in kept)):
        storage.write_text(storage.join(folder, name), name)
    assert _names(storage.list_files(folder)) == _names(storage.list_files(f"{folder}/**/*.tar"))
    assert _names(storage.list_files(folder)) == ["c.tar", "a.tar", "b.tar"]
    assert _names(storage.list_files(f"{folder}/*/*.tar")) == ["c.tar", "b.tar"]
    assert len(storage.list_files(folder, hidden=True)) == 4 + len(kept)
    for pattern in (
        "@eaDir",
        "@eaDir/*.tar",
        "@eaDir/hidden.tar",
        ".ipynb*/*.tar",
        "**/.cache/*.tar",
        "{.x,deep/.cache}",
    ):
        storage.write_text(storage.join(folder, ".x", "hidden.tar"), "")
        found = storage.list_files(f"{folder}/{pattern}")
        assert set(_names(found)) == {"hidden.tar"}, pattern


def test_a_marked_folder_counts_only_where_it_or_a_place_in_it_is_named(folder):
    for name in ("a.tar", "out/x.tar", "out/deep/y.tar", "other/z.tar"):
        storage.write_text(storage.join(folder, name), name)
    storage.mark_output(f"{folder}/out")
    storage.mark_output(f"{folder}/out")
    assert _names(storage.list_files(folder)) == _names(storage.list_files(f"{folder}/**/*.tar")) == ["a.tar", "z.tar"]
    assert _names(storage.list_files(f"{folder}/*/*.tar")) == ["z.tar"]
    assert _names(storage.list_files(f"{folder}/{{out,other}}")) == ["z.tar", "y.tar", "x.tar"]
    for pattern, names in (("out", ["y.tar", "x.tar"]), ("out/*.tar", ["x.tar"]), ("out/deep", ["y.tar"])):
        assert _names(storage.list_files(f"{folder}/{pattern}")) == names
    assert len(storage.list_files(folder, hidden=True)) == 5


def test_links_to_folders_are_followed_once_and_never_in_circles(tmp_path):
    for name in ("data/a/1.tar", "elsewhere/2.tar", "elsewhere/deep/3.tar", "above/inside/4.tar"):
        storage.write_text(str(tmp_path / name), name)
    links = {"data/b": "elsewhere", "data/again": "elsewhere", "data/deep": "elsewhere/deep", "data/a/up": "data"}
    links |= {"data/out": "", "elsewhere/back": "data", "above/inside/up": "above", "data/c": "above/inside"}
    for link, place in links.items():
        (tmp_path / link).symlink_to(tmp_path / place)
    for pattern in ("data", "data/**/*.tar"):
        assert _names(storage.list_files(str(tmp_path / pattern))) == ["1.tar", "2.tar", "3.tar", "4.tar"]
    assert _names(storage.list_files(str(tmp_path / "data" / "b" / "*.tar"))) == ["2.tar"]


def test_a_link_to_nothing_is_found_and_says_so(tmp_path):
    for name, place in (("a.tar", tmp_path / "none"), ("b.tar", tmp_path / "b.tar"), ("c", "none/none")):
        (tmp_path / name).symlink_to(place)
    (tmp_path / "d.tar").write_text("")
    for pattern in ("", "*", "**", "{a.tar,b.tar,c,d.tar}"):
        files = storage.list_files(f"{tmp_path}/{pattern}")
        assert [file.is_broken_link for file in files] == [True, True, True, False], pattern
    with pytest.raises(NotFoundError, match="a.tar: there is no such file"):
        storage.read_bytes(str(tmp_path / "a.tar"))


def test_a_file_where_a_folder_is_meant_and_a_long_name_are_told_as_such(tmp_path):
    (tmp_path / "run.yaml").write_text("")
    for uri, text in (
        ("run.yaml/a", "a folder stands where a file is meant"),
        ("x" * 300, "too long .* a shorter one"),
    ):
        with pytest.raises(StorageError, match=text):
            storage.write_text(f"{tmp_path}/{uri}", "")


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    storage.write_text(str(tmp_path / "a.jpg"), "")
    for pattern in (str(tmp_path), f"{tmp_path}/*.jpg", f"{tmp_path}/**"):
        assert _names(storage.list_files(pattern)) == ["a.jpg"]
    with pytest.raises(NotFoundError, match="pipe.jpg: there is a pipe, socket or device and no file"):
        storage.read_bytes(str(tmp_path / "pipe.jpg"))
    with pytest.raises(NotFoundError, match="pipe.jpg: no file is there"):
        storage.list_files(str(tmp_path / "pipe.jpg"))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "open" / "shut").mkdir(parents=True)
    scandir = os.scandir

    def refuse(place):
        if str(place).endswith("shut"):
            raise PermissionError(place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match="open/shut: permission is denied"):
        storage.list_files(str(tmp_path / "open"))


def test_a_name_in_braces_that_is_missing_is_named(folder):
    storage.write_text(f"{folder}/000.tar", "")
    with pytest.raises(NotFoundError, match="/001.tar .of 2 names"):
        storage.list_files(f"{folder}/{{000..001}}.tar")


@pytest.mark.parametrize("pattern", ["none", "none/*.tar", "none.tar"])
def test_nothing_there_is_an_error_that_names_it(folder, pattern):
    storage.write_text(f"{folder}/x", "")
    with pytest.raises(NotFoundError, match=f"{folder}/none.*: no file is there"):
        storage.list_files(f"{folder}/{pattern}")


def test_names_and_folders_right_below(folder):
    for name in ("top.txt", ".hidden", "one/a", "two/b/c"):
        storage.write_text(storage.join(folder, name), "")
    assert storage.list_names(folder) == ["top.txt"]
    assert storage.list_folders(folder) == [storage.join(folder, "one"), storage.join(folder, "two")]
    assert storage.list_names(f"{folder}/none") == storage.list_folders(f"{folder}/none") == []


def test_a_folder_is_no_file(folder):
    storage.write_text(f"{folder}/a/b", "")
    assert storage.exists(f"{folder}/a/b") and not storage.exists(f"{folder}/a") and not storage.exists(f"{folder}/c")


def test_deleting_leaves_the_neighbours(folder):
    for name in ("a/x", "a/b/y", "ab/z"):
        storage.write_text(storage.join(folder, name), "")
    storage.delete(f"{folder}/a/x")
    storage.delete(f"{folder}/a/x")
    assert not storage.exists(f"{folder}/a/x")
    storage.delete_folder(f"{folder}/a")
    storage.delete_folder(f"{folder}/a")
    assert _names(storage.list_files(folder)) == ["z"]


def test_files_are_copied_up_and_down(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(storage.s3, "PIECE_BYTES", 1000)
    content = os.urandom(4567)
    (tmp_path / "from").write_bytes(content)
    storage.upload(tmp_path / "from", f"{folder}/there")
    storage.download(f"{folder}/there", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == content


def test_a_part_that_fails_is_sent_again_by_itself(door, s3, tmp_path):
    content = os.urandom(17 * 2**20)  # three parts
    (tmp_path / "from").write_bytes(content)
    door.refused += [b"partNumber=2", b"partNumber=3"]
    storage.upload(tmp_path / "from", uri := f"{s3.make_bucket('folders')}/parts")
    assert not door.refused and sum(line.startswith(b"POST") for line in door.requests) == 2, "one beginning, one end"
    assert storage.read_bytes(uri) == content


def test_what_may_pass_is_tried_until_it_does(monkeypatch):
    monkeypatch.setattr(errors, "BACKOFF_SECONDS", (0.01, 0.01))
    outcomes = [StorageError("away", may_pass=True), StorageError("away", may_pass=True), None]

    def action() -> str:
        if error := outcomes.pop(0):
            raise error
        return "done"

    assert storage.keep_trying(action, seconds=60) == "done"


@pytest.mark.parametrize(("may_pass", "seconds"), [(False, 60), (True, 0)])
def test_what_will_not_pass_is_not_tried_again_nor_beyond_its_time(may_pass, seconds):
    tries = []

    def action() -> None:
        tries.append(1)
        raise StorageError("away", may_pass)

    with pytest.raises(StorageError, match="away"):
        storage.keep_trying(action, seconds)
    assert len(tries) == 1


def test_arrow_reads_the_same_file(folder):
    storage.write_bytes(f"{folder}/x", b"content")
    filesystem, path = storage.filesystem(f"{folder}/x")
    assert filesystem.open_input_file(path).read() == b"content"


def test_a_missing_file_is_one_sentence(folder):
    with pytest.raises(NotFoundError, match="nothing.txt: there is no such") as caught:
        storage.read_text(f"{folder}/nothing.txt")
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")

    def fail(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.local, "_flush", fail)
    with pytest.raises(StorageError, match="no space is left"):
        storage.write_text(str(tmp_path / "file"), "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


def test_a_file_is_replaced_and_not_written_over(tmp_path):
    (tmp_path / "file").write_text("old")
    with open(tmp_path / "file") as reader:
        storage.write_text(str(tmp_path / "file"), "new")
        assert reader.read() == "old"


def test_file_uris_and_relative_paths_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.write_text(f"file://{tmp_path}/a%20b/x", "1")
    assert storage.resolved("a b/x") == str(tmp_path / "a b" / "x") and storage.read_text("a b/x") == "1"
    assert storage.join(f"file://{tmp_path}", "x") == str(tmp_path / "x")


def test_schemes_are_compared_without_regard_to_case(tmp_path):
    assert storage.resolved(f"FILE://{tmp_path}/x") == str(tmp_path / "x")


@pytest.mark.parametrize(
    "uri, words", [("gs://b/x", "gs:// is not supported"), ("s3:///x", "bucket is missing"), ("", "empty")]
)
def test_a_uri_of_another_kind_is_refused(uri, words):
    with pytest.raises(StorageError, match=words):
        storage.list_files(uri)


def test_braces_stand_for_ranges_and_lists():
    assert without_braces("{08..11}-{a,b}") == ["08-a", "08-b", "09-a", "09-b", "10-a", "10-b", "11-a", "11-b"]
    assert without_braces("plain") == ["plain"]


def test_a_star_stays_inside_a_folder():
    assert as_regex("a/*.tar").fullmatch("a/x.tar") and not as_regex("a/*.tar").fullmatch("a/b/x.tar")
    assert as_regex("a/**/x").fullmatch("a/x") and as_regex("a/**/x").fullmatch("a/b/c/x")
    assert not as_regex("a.b*").fullmatch("axb1")
