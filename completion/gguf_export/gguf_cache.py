"""Converted models, kept in the user's cache folder, so that each model is converted only once."""

import contextlib
import functools
import hashlib
import json
import os
import sys
from pathlib import Path

from common.files import atomic_write, lock, scratch_folder
from completion.gguf_export.errors import CannotConvert

LIMIT = 8 * 1024**3  # bytes of all kept files; above that, the files that were not used for longest are removed
SOURCES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")  # and the safetensors files
_temporary_folder = functools.cache(scratch_folder)  # one for this process


def converted(folder: Path, kind: str = "q8_0", again: bool = False) -> Path:
    """Return the GGUF file of the model in `folder`. Converts the model if the cache does not have it.

    The cache knows a model by its content, not by its folder. If the cache folder cannot be written, the file is in a
    temporary folder until the process ends.

    Args:
        kind: as for `convert`.
        again: convert even if the cache has the model, because llama.cpp cannot load the cached file.
    Raises:
        CannotConvert, InputError: as `convert`, or the file cannot be written anywhere.
    """
    try:
        cache = cache_folder()
        str(cache).encode()  # llama.cpp needs names in UTF-8
        return _cached(folder, kind, cache, again)
    except (OSError, RuntimeError, UnicodeEncodeError):  # read-only or full, no home, or a name that is not UTF-8
        try:
            return _cached(folder, kind, _temporary_folder(), again)
        except OSError as error:
            raise CannotConvert(f"its converted form cannot be written ({error.strerror or error})") from None


def cache_folder() -> Path:
    """Return the folder for converted models on this system. Raises RuntimeError if the user has no home folder."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "autocoder" / "gguf"


def _cached(folder: Path, kind: str, cache: Path, again: bool) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{_content(folder, cache)}-{kind}.gguf"
    if again or not path.is_file():
        from completion.gguf_export.gguf_file import convert

        with lock(cache / "lock", wait=True):
            if again or not path.is_file():  # another process may have converted it meanwhile
                for left in cache.glob("*.gguf.*.tmp"):  # by a writer that was killed: the lock excludes any other
                    left.unlink(missing_ok=True)
                convert(folder, path, kind)
                _remove_old(cache, keep=path)
    os.utime(path)  # the file's time says when it was used last
    return path


def _content(folder: Path, cache: Path) -> str:
    """Return 32 hex digits that depend on everything that the GGUF file is made from, including the converter.

    Reading a large model takes seconds. So a note in the cache keeps the digits, together with the files' sizes, times
    and inodes. A program can set the time of a file's content back, but not the time of its last change (ctime).
    """
    files = [folder / name for name in SOURCES if (folder / name).is_file()]
    files += sorted(folder.glob("*.safetensors*"))
    files += sorted(Path(__file__).parent.glob("*.py"))
    stats = [(path.name, path.stat()) for path in files]
    marks = [[name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for name, stat in stats]
    note = cache / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # there is no note yet, or it is damaged
        noted = json.loads(note.read_bytes())
        if noted["files"] == marks:
            return noted["content"]
    digest = hashlib.sha256()
    for path, (name, stat) in zip(files, stats, strict=True):
        digest.update(f"{name}\0{stat.st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    content = digest.hexdigest()[:32]
    with atomic_write(note) as file:
        json.dump({"files": marks, "content": content}, file)
    return content


def _remove_old(cache: Path, keep: Path) -> None:
    """Remove the files that were not used for longest, until the rest fit into LIMIT."""
    total = keep.stat().st_size
    for path in sorted({*cache.glob("*.gguf")} - {keep}, key=lambda path: path.stat().st_mtime, reverse=True):
        total += path.stat().st_size
        if total > LIMIT:
            path.unlink(missing_ok=True)
