"""Converted models, kept in the user's cache folder: a model is converted once, whatever folder it lies in."""

import functools
import hashlib
import json
import os
import sys
from pathlib import Path

from common.files import atomic_write, scratch_folder
from completion.gguf_export.errors import CannotConvert

LIMIT = 8 * 1024**3  # bytes of all kept files; those unused for longest go first
SOURCES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")  # and the safetensors
CONVERTER = ("architectures.py", "gguf_file.py", "gguf_vocabulary.py")


def converted(folder: Path, kind: str = "q8_0") -> Path:
    """The GGUF file of the model in `folder`, made now unless the cache has it.

    The content of the folder decides, not its name. Where the cache folder cannot be written, the file lies in a
    temporary folder until the process ends.

    Args:
        kind: as `convert`'s.
    Raises:
        CannotConvert: as `convert`, or the file can be written nowhere.
    """
    try:
        cache = cache_folder()
        str(cache).encode()  # as llama.cpp takes names
        cache.mkdir(parents=True, exist_ok=True)
        return _kept(folder, kind, cache)
    except (OSError, RuntimeError, UnicodeEncodeError):  # read-only or full, no home, or a home that is not UTF-8
        try:
            return _kept(folder, kind, _temporary_folder())
        except OSError as error:
            raise CannotConvert(f"its converted form cannot be written ({error.strerror or error})") from None


def cache_folder() -> Path:
    """Where converted models are kept on this system. RuntimeError where the user has no home."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "autocoder" / "gguf"


_temporary_folder = functools.cache(scratch_folder)


def _kept(folder: Path, kind: str, cache: Path) -> Path:
    path = cache / f"{_content(folder, cache)}-{kind}.gguf"
    if path.is_file():
        os.utime(path)
        return path
    from completion.gguf_export.gguf_file import convert

    try:
        convert(folder, path, kind)
    except PermissionError:  # on Windows, where another process has made it meanwhile and reads it
        if not path.is_file():
            raise
    _remove_old(cache, keep=path)
    return path


def _content(folder: Path, cache: Path) -> str:
    """32 hex digits of all that the GGUF file is made from.

    Reading a large model takes seconds, so what was read is noted with the files' identities, times and sizes. The
    time of a file's last change (ctime) cannot be set back, unlike that of its content.
    """
    files = [folder / name for name in SOURCES if (folder / name).is_file()]
    files += sorted(folder.glob("*.safetensors*"))
    files += [Path(__file__).with_name(name) for name in CONVERTER]
    marks = [[path.name, *_marks(path)] for path in files]
    note = cache / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.json"
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        if noted["files"] == marks:
            return noted["content"]
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or torn
        pass
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    content = digest.hexdigest()[:32]
    with atomic_write(note) as file:
        json.dump({"files": marks, "content": content}, file)
    return content


def _marks(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _remove_old(cache: Path, keep: Path) -> None:
    """Remove the files unused for longest until the rest fit LIMIT, and what interrupted conversions left."""
    newest_first = sorted(cache.glob("*.gguf*"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = keep.stat().st_size
    for path in newest_first:
        if path == keep:
            continue
        stat = path.stat()
        total += stat.st_size
        stale = path.suffix == ".tmp" and stat.st_mtime < keep.stat().st_mtime - 86400
        if total > LIMIT or stale:
            path.unlink(missing_ok=True)
