import os

import pytest

from support.tiny_bundle import write_tiny_bundle
from trt_moe import blob_cache
from trt_moe.model import Model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TRT_MOE_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "openvino"
    folder.mkdir()
    return folder


def write(folder, name, used):
    (folder / f"{name}.blob").write_bytes(bytes(100))
    os.utime(folder / f"{name}.blob", (used, 1))


def test_the_least_recently_used_go_first(folder):
    for name, used in (("a", 30), ("b", 10), ("c", 20)):
        write(folder, name, used)
    (folder / "notes.txt").touch()
    assert [blob.path.stem for blob in blob_cache.blobs()] == ["b", "c", "a"]
    assert blob_cache.trim(300) == []
    assert [blob.path.stem for blob in blob_cache.trim(299)] == ["b"]
    assert [blob.path.stem for blob in blob_cache.trim(0)] == ["c", "a"]
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_without_a_cache_there_is_nothing(monkeypatch):
    monkeypatch.setenv("TRT_MOE_CACHE_DIR", "")
    assert blob_cache.trim(0) == blob_cache.blobs() == []


def test_compiling_keeps_the_cache_within_its_limit(folder, tmp_path, monkeypatch):
    write(folder, "old", 10)
    bundle = write_tiny_bundle(tmp_path / "tiny").path
    Model.load(bundle, "gater", threads=1)
    assert (folder / "old.blob").exists()
    size = sum(blob.bytes for blob in blob_cache.blobs())
    monkeypatch.setattr(blob_cache, "LIMIT", size - 1)
    Model.load(bundle, "gater", threads=1)
    assert blob_cache.blobs() != []
    assert not (folder / "old.blob").exists()
