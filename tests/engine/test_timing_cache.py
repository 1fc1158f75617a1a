"""A shared timing cache, with a fake library: TensorRT for RTX has no cache, and TensorRT needs a GPU."""
import threading
from types import SimpleNamespace

import pytest

from dyvit_deploy.engine.timing_cache import DAMAGED, load_timing_cache, save_timing_cache
from dyvit_deploy.errors import ArtifactError


class Cache:
    """A cache whose entries are one byte each; `other` bytes are of another GPU."""

    def __init__(self, content):
        self.entries = set(content)

    def combine(self, other, ignore_mismatch):
        assert not ignore_mismatch
        if ord("X") not in other.entries:
            self.entries |= other.entries

    def serialize(self):
        return bytes(sorted(self.entries))


class Config:
    def __init__(self, library, rest=b""):
        self.library, self.cache = library, None

    def create_timing_cache(self, content):
        if b"garbage" in content:
            self.library.logger.warnings.append(f"{DAMAGED}. Returning an empty timing cache.")
            return Cache(b"")
        return Cache(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        if ord("X") in cache.entries:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


@pytest.fixture
def library():
    return SimpleNamespace(logger=SimpleNamespace(warnings=[]))


def build(library, path, timed=b""):
    config = Config(library)
    note = load_timing_cache(library, config, path)
    config.cache.entries |= set(timed)
    save_timing_cache(config, path)
    return note


def test_the_next_build_finds_what_the_last_one_timed(library, tmp_path):
    path = tmp_path / "cache"
    assert build(library, path, b"ab") is None and path.read_bytes() == b"ab"
    config = Config(library)
    assert load_timing_cache(library, config, path) is None and config.cache.entries == set(b"ab")


def test_builds_at_once_lose_nothing_of_one_another(library, tmp_path):
    threads = [threading.Thread(target=build, args=(library, tmp_path / "cache", bytes([i]))) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "cache").read_bytes() == bytes(range(12))


@pytest.mark.parametrize("content, words", [(b"garbage", "is damaged"), (b"X", "is of another GPU or version")])
def test_an_unusable_cache_is_replaced_with_a_note(library, tmp_path, content, words):
    path = tmp_path / "cache"
    path.write_bytes(content)
    note = build(library, path, b"new")
    assert f"{path} {words}; it is replaced" in note
    assert set(path.read_bytes()) == set(b"new") and path.with_name("cache.old").read_bytes() == content


def test_a_place_that_cannot_be_written_is_refused_before_the_build(library, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="choose another"):
        load_timing_cache(library, Config(library), tmp_path / "file" / "cache")
