"""Where the cache is, and that nothing is loaded from one that others can change."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from alignbeam.cache_folder import cache_folder, make_cache_folder, untrusted

posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners and modes of files")
root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away"
)


def test_cache_folder_is_named_by_the_environment_then_lies_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("ALIGNBEAM_CACHE", str(tmp_path))
    assert cache_folder("data") == tmp_path / "data"
    monkeypatch.setenv("ALIGNBEAM_CACHE", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder("data") == tmp_path / "home" / ".cache" / "alignbeam" / "data"


def test_cache_folder_is_none_for_a_user_without_a_home(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ALIGNBEAM_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder("data") is None


@posix
def test_make_cache_folder_is_for_this_user_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        make_cache_folder(tmp_path / "home" / "cache" / "data")
    finally:
        os.umask(before)
    for folder in (tmp_path / "home", tmp_path / "home" / "cache", tmp_path / "home/cache/data"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert untrusted(tmp_path / "home" / "cache", tmp_path / "home" / "cache" / "data") is None


@posix
@pytest.mark.parametrize("mode", [0o720, 0o702, 0o1777])
def test_untrusted_names_a_folder_that_others_can_write_to(tmp_path, mode):
    tmp_path.chmod(mode)
    assert untrusted(tmp_path) == (
        f"{tmp_path} can be changed by other users; chmod go-w it, or set ALIGNBEAM_CACHE to a "
        "folder of your own"
    )
    tmp_path.chmod(0o755)
    assert untrusted(tmp_path) is None


@root
def test_untrusted_names_what_belongs_to_another_user(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    os.chown(given, 12345, -1)
    assert str(untrusted(tmp_path, given)).startswith(f"{given} belongs to another user")


def test_untrusted_passes_over_what_is_not_there(tmp_path):
    assert untrusted(tmp_path / "no") is None


@posix
def test_untrusted_names_a_folder_above_in_which_others_can_put_another_one(tmp_path):
    cache = tmp_path / "shared" / "mine" / "cache"
    make_cache_folder(cache)
    (tmp_path / "shared").chmod(0o777)
    assert str(untrusted(cache)).startswith(f"{tmp_path / 'shared'} can be changed by other users")
    (tmp_path / "link").symlink_to(cache)
    assert str(untrusted(tmp_path / "link")).startswith(f"{tmp_path / 'shared'} can be changed")
    (tmp_path / "shared").chmod(0o1777)  # as /tmp is: what lies there is its owner's
    assert untrusted(cache) is untrusted(tmp_path / "link") is None


@root
@pytest.mark.parametrize("of", ["folder", "link"])
def test_untrusted_names_a_folder_above_that_belongs_to_another_user(tmp_path, of):
    cache = tmp_path / "theirs" / "mine"
    cache.mkdir(parents=True)
    theirs = {"folder": cache.parent, "link": tmp_path / "link"}[of]
    if of == "link":
        theirs.symlink_to(cache)
        cache = theirs
    os.chown(theirs, 12345, -1, follow_symlinks=False)
    assert str(untrusted(cache)).startswith(f"{theirs} belongs to another user")


@root
def test_untrusted_lets_a_group_of_this_user_alone_write_above(tmp_path):
    cache = tmp_path / "own" / "cache"
    make_cache_folder(cache)
    cache.parent.chmod(0o770)
    os.chown(cache.parent, -1, 0)  # root's own
    assert untrusted(cache) is None
    os.chown(cache.parent, -1, 12345)
    assert str(untrusted(cache)).startswith(f"{cache.parent} can be changed by other users")
