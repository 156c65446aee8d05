"""What travels to a cluster: named files, folders without data, environments and keys, and never a key."""

import subprocess
from pathlib import Path

import pytest

from cluster import package as package_room
from cluster.package import named_files, named_folders, package, require_no_password


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(name: str, text: str = "x") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_files_that_words_and_overrides_name_are_found_once():
    _write("run.yaml")
    _write("configs/suite.yaml")
    words = ["run.yaml", "suite=configs/suite.yaml", "seed=1", "--quiet", "run.yaml", "a\0b", "x" * 5000, "configs"]
    assert named_files(words) == [Path("run.yaml"), Path("configs/suite.yaml")]
    assert named_folders(words) == ["configs"]


def test_a_package_has_the_files_at_their_places_below_this_folder(folder, tmp_path_factory):
    found = package([_write("run.yaml", "a"), (folder / _write("configs/suite.yaml", "bb"))], [])
    assert list(found.files) == ["configs/suite.yaml", "run.yaml"] and found.bytes == 3
    out = tmp_path_factory.mktemp("out")
    found.write(out)
    assert (out / "configs/suite.yaml").read_text() == "bb"
    assert [line.split() for line in found.lines()][:2] == [
        ["package", "2", "files,", "3", "B"],
        ["2", "B", "configs/suite.yaml"],
    ]


def test_a_file_outside_of_this_folder_is_refused(tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "run.yaml"
    other.write_text("x")
    with pytest.raises(ValueError, match="outside of this folder"):
        package([other], [])


def test_an_added_folder_travels_without_environments_data_keys_and_what_git_ignores():
    for name in ("code/train.py", "code/deep/x.yaml", "code/.venv/lib.py", "code/own/pyvenv.cfg", "code/own/lib.py",
                 "code/shard.tar", "code/photo.JPG", "code/.env", "code/id_rsa", "code/.git/config",
                 "code/__pycache__/a.pyc", "code/ignored/big.txt", "code/notes.log", "code/.aws/config"):  # fmt: skip
        _write(name)
    _write("code/.gitignore", "ignored/\n*.log\n")
    subprocess.run(["git", "init", "-q", "."], check=True)
    found = package([], [Path("code")])
    assert list(found.files) == ["code/deep/x.yaml", "code/train.py"]
    left = " ".join(found.left_out)
    assert all(name in left for name in ("code/.venv/", "code/own/", "code/.aws/", "code/.env", "code/id_rsa"))
    assert "2 data files of code (2 B)" in left and "notes.log" in left and "ignored/" in left


def test_without_git_nothing_is_ignored(monkeypatch):
    monkeypatch.setenv("PATH", "")
    _write("code/notes.log")
    _write("code/.gitignore", "*.log\n")
    assert list(package([], [Path("code")]).files) == ["code/notes.log"]


@pytest.mark.parametrize(
    "text",
    [
        "key: AKIAABCDEFGHIJKLMNOP",
        "-----BEGIN RSA PRIVATE KEY-----",
        "uri: https://me:secret@host/x",
        f"token: hf_{'a' * 34}",
        f"ghp_{'b' * 36}",
        "AWS_SECRET_ACCESS_KEY=minio-secret-12345",
        f"sk-proj-{'c' * 30}",
    ],
)
def test_a_file_with_a_key_is_refused_by_name(text):
    with pytest.raises(ValueError, match=r"run\.yaml holds a key or a password"):
        package([_write("run.yaml", text)], [])


@pytest.mark.parametrize("name", ["s3.env", ".envrc", "s3_credentials", "postgres_password", "server.pem"])
def test_a_file_that_is_named_like_a_key_is_refused_unless_it_is_left_out(name):
    with pytest.raises(ValueError, match=rf"{name} holds a key .* --without {name}"):
        package([_write(name)], [])
    assert not package([Path(name)], [], [Path(name)]).files


def test_passwords_in_words_are_refused_without_showing_them():
    with pytest.raises(ValueError, match=r"^tracking\.mlflow_uri holds a key or a password") as error:
        require_no_password(["pretrain", "run.yaml", "tracking.mlflow_uri=https://me:secret@host"])
    assert "secret" not in str(error.value)


def test_a_link_has_the_content_of_its_file_and_stays_where_it_is(tmp_path_factory):
    _write("conf/a.yaml", "a")
    Path("link.yaml").symlink_to("conf/a.yaml")
    out = tmp_path_factory.mktemp("out")
    package([Path("link.yaml")], []).write(out)
    assert (out / "link.yaml").read_text() == "a" and not (out / "link.yaml").is_symlink()


def test_links_in_folders_stay_here_and_are_named(tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    _write("code/a.py")
    for name in ("folder", "latest.pt", "there.py"):
        (Path("code") / name).symlink_to(elsewhere / name)
    (elsewhere / "folder").mkdir()
    found = package([], [Path("code")])
    assert list(found.files) == ["code/a.py"]
    assert {"code/folder/", "code/latest.pt", "code/there.py"} == set(found.left_out)


def test_a_whole_path_below_this_folder_is_refused_because_the_cluster_has_another(folder):
    _write("run.yaml")
    with pytest.raises(ValueError, match="write it relative"):
        named_files([str(folder / "run.yaml")])


def test_what_is_changed_after_the_start_does_not_travel_with_a_retry(tmp_path_factory):
    found, out = package([_write("run.yaml", "first")], []), tmp_path_factory.mktemp("out")
    found.write(out)
    _write("run.yaml", "second")
    assert (out / "run.yaml").read_text() == "first"


def test_a_config_of_plain_addresses_is_no_key():
    package([_write("run.yaml", "storage: s3://bucket/runs\nuri: http://host:9000/x\nmail: me@host\n")], [])


def test_a_missing_file_is_told():
    with pytest.raises(ValueError, match="no such file"):
        package([], [Path("nowhere")])


def test_a_package_that_is_too_large_names_its_largest_file(monkeypatch):
    monkeypatch.setattr(package_room, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match=r"has 12 B, the largest file is b\.txt"):
        package([_write("a.txt", "x" * 3), _write("b.txt", "x" * 9)], [])
