"""What is loaded from the cache folder is what its user or root put there; where it cannot be written, another is."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octavo_kernels.native import build, cache

NOBODY = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")


@pytest.fixture(autouse=True)
def _nothing_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test has a temporary folder of its own, and warns anew."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    remembered = (cache._safe, cache.temporary_folder, cache._warn)
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "above" / "cache"))
    return tmp_path / "above" / "cache"


def is_temporary(found: Path) -> bool:
    return found == Path(tempfile.gettempdir()) / f"octavo-{os.getuid()}"


def test_a_new_folder_is_the_users_alone(folder):
    assert cache.cache_folder() == folder
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_users_own_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv("OCTAVO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "octavo"


@pytest.mark.parametrize("mode", [0o777, 0o722, 0o702])
@pytest.mark.parametrize("which", ["the folder", "one above"])
def test_a_folder_in_which_others_may_write_is_not_read(folder, mode, which, caplog):
    folder.mkdir(parents=True)
    place = folder if which == "the folder" else folder.parent
    os.chown(place, -1, NOBODY) if os.getuid() == 0 else None
    place.chmod(mode)
    assert is_temporary(cache.cache_folder())
    assert f"others may write in {place}: set OCTAVO_CACHE to a folder of your own" in caplog.text
    cache.cache_folder()
    assert len(caplog.records) == 1


def test_a_folder_for_all_has_one_for_each_user(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o1777)
    own = folder / f"octavo-{os.getuid()}"
    assert cache.cache_folder() == own
    assert own.stat().st_mode & 0o777 == 0o700


def test_a_subfolder_that_another_made_is_not_taken(folder, tmp_path):
    folder.mkdir(parents=True)
    folder.chmod(0o1777)
    bait = tmp_path / "bait"
    bait.mkdir()
    bait.chmod(0o777)
    (folder / f"octavo-{os.getuid()}").symlink_to(bait)
    assert is_temporary(cache.cache_folder())


@needs_root
@pytest.mark.parametrize("which", ["the folder", "one above"])
def test_a_folder_of_another_user_is_not_read(folder, which):
    folder.mkdir(parents=True)
    os.chown(folder if which == "the folder" else folder.parent, NOBODY, NOBODY)
    assert is_temporary(cache.cache_folder())


@needs_root
def test_a_temporary_folder_that_another_took_is_not_taken():
    taken = Path(tempfile.gettempdir()) / f"octavo-{os.getuid()}"
    taken.mkdir()
    os.chown(taken, NOBODY, NOBODY)
    found = cache.temporary_folder()
    assert found != taken
    assert found.stat().st_uid == os.getuid()
    assert found.stat().st_mode & 0o077 == 0


def test_files_that_others_may_have_written_are_not_ours(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch(0o644)
    assert cache.own_file(file)
    link.symlink_to(file)
    assert not cache.own_file(link)
    assert not cache.own_file(tmp_path)
    assert not cache.own_file(tmp_path / "absent")
    file.chmod(0o646)
    assert not cache.own_file(file)
    if os.getuid() == 0:
        file.chmod(0o644)
        os.chown(file, NOBODY, NOBODY)
        assert not cache.own_file(file)


@pytest.mark.parametrize("error", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT])
def test_what_cannot_be_written_is_made_in_a_temporary_folder_after_one_warning(folder, error, caplog):
    def make(place: Path) -> Path:
        if place == folder:
            raise OSError(error, os.strerror(error))
        return place

    assert [is_temporary(cache.with_cache(make)) for _ in range(3)] == [True] * 3
    assert len(caplog.records) == 1
    assert f"{folder} cannot be used" in caplog.text


def as_nobody(function: Callable[[], None]) -> None:
    """Run a function as another user, in a process of its own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that other users can get to, as they cannot to pytest's."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@needs_root
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_another_user_takes_what_root_made_and_writes_elsewhere(open_folder, monkeypatch):
    """A read-only cache, as in an image that was filled when it was built."""
    monkeypatch.setenv("OCTAVO_CACHE", str(open_folder / "cache"))
    (open_folder / "cache").mkdir()
    (open_folder / "cache" / "file").write_text("root's")
    (open_folder / "tmp").mkdir()
    (open_folder / "tmp").chmod(0o1777)

    def check() -> None:
        tempfile.tempdir = str(open_folder / "tmp")
        assert cache.cache_folder() == open_folder / "cache"
        assert cache.own_file(cache.cache_folder() / "file")
        made = cache.with_cache(lambda folder: (folder / "new").write_text("mine") and folder)
        assert made == open_folder / "tmp" / f"octavo-{NOBODY}"

    as_nobody(check)


@needs_root
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_what_another_user_puts_into_a_shared_folder_is_not_loaded(open_folder, monkeypatch):
    shared = open_folder / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv("OCTAVO_CACHE", str(shared))

    def bait() -> None:
        (shared / "native").mkdir()
        (shared / "native" / "library.so").write_text("theirs")
        (shared / "octavo-0").mkdir()

    as_nobody(bait)
    found = cache.cache_folder()
    assert is_temporary(found)
    assert not cache.own_file(shared / "native" / "library.so")


def test_a_library_that_others_may_write_is_compiled_anew(folder, tmp_path, monkeypatch):
    (tmp_path / "source" / "op").mkdir(parents=True)
    (tmp_path / "source" / "op" / "cpu.cpp").write_text('extern "C" int f() { return 7; }\n')
    monkeypatch.setattr(build, "ROOT", tmp_path / "source")
    try:
        library = build.library_path("portable")
    except build.NoCompiler:
        pytest.skip("no C++ compiler")
    assert library.is_relative_to(folder)
    before = library.stat()
    assert build.library_path("portable").stat() == before
    library.chmod(0o666)
    assert build.library_path("portable").stat().st_ino != before.st_ino
    assert library.stat().st_mode & 0o022 == 0


def test_a_folder_too_full_to_compile_in_gives_way_to_the_temporary_one(folder, tmp_path, monkeypatch, caplog):
    compiler = tmp_path / "compiler"
    compiler.write_text(f"""#!/bin/sh
        for last; do :; done
        case "$last" in
            --version) echo 1 ;;
            {folder}*) echo "fatal error: can't write: '{os.strerror(errno.ENOSPC)}'" >&2; exit 1 ;;
            *) touch "$last" ;;
        esac
    """)
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "find_compiler", lambda: str(compiler))
    assert build.library_path("portable").is_relative_to(Path(tempfile.gettempdir()) / f"octavo-{os.getuid()}")
    assert f"{folder} cannot be used" in caplog.text
