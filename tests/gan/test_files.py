"""A file is written completely or not at all."""

import os
import pathlib

import pytest

from jaxsp.gan import files


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "picture.png"
    path.write_text("old")
    with files.replacing(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["picture.png"]


def test_an_error_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")

    def fail_half_way():
        with files.replacing(path) as temporary:
            temporary.write_text("half of the")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *p: calls.append("name") or replace(*p))
    with files.replacing(tmp_path / "file") as temporary:
        temporary.write_text("text")
    assert calls == ["fsync", "name", "fsync"]  # the last is the directory's


def test_two_writers_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "file"
    with files.replacing(path) as first, files.replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the last to finish
    assert os.listdir(tmp_path) == ["file"]


def test_directory_is_made_where_asked_for(tmp_path):
    path = tmp_path / "new" / "file"
    with pytest.raises(FileNotFoundError), files.replacing(path) as temporary:
        temporary.write_text("text")
    with files.replacing(path, parents=True) as temporary:
        temporary.write_text("text")
    assert path.read_text() == "text"


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with files.replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "pipe", "is no regular file"),
        (os.devnull, "is no regular file"),
    ):
        with pytest.raises(ValueError, match=message), files.replacing(path):
            pass


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://a", pathlib.Path("gs://b")])
def test_the_address_of_a_store_is_no_path(path):
    with pytest.raises(
        ValueError, match=r"^workdir must be a path .*: mount the store"
    ):
        files.local_path("workdir", path)
    with pytest.raises(ValueError, match="mount the store"), files.replacing(path):
        pass


def test_a_path_of_this_machine_is_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.local_path("workdir", "~/run") == tmp_path / "run"
    for path in ("C:/runs", "a:b/c", "runs/a", "/tmp"):
        assert files.local_path("workdir", path) == pathlib.Path(path)
    with pytest.raises(ValueError, match="workdir must be a path, got an empty text"):
        files.local_path("workdir", "")
