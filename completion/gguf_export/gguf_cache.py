"""Converted models, kept in the user's cache folder: a model is converted once, whatever folder it lies in."""

import contextlib
import functools
import hashlib
import json
import os
import sys
from pathlib import Path

from common.files import atomic_write, lock, scratch_folder
from completion.gguf_export.errors import CannotConvert

LIMIT = 8 * 1024**3  # bytes of all kept files; those unused for longest go first
SOURCES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")  # and the safetensors
_temporary_folder = functools.cache(scratch_folder)  # one for this process


def converted(folder: Path, kind: str = "q8_0", again: bool = False) -> Path:
    """The GGUF file of the model in `folder`, made now unless the cache has it.

    The content of the folder decides, not its name. Where the cache folder cannot be written, the file lies in a
    temporary folder until the process ends.

    Args:
        kind: as `convert`'s.
        again: convert even if the cache has it, since llama.cpp cannot load the cached file.
    Raises:
        CannotConvert, InputError: as `convert`, or the file cannot be written anywhere.
    """
    try:
        cache = cache_folder()
        str(cache).encode()  # as llama.cpp takes names
        return _kept(folder, kind, cache, again)
    except (OSError, RuntimeError, UnicodeEncodeError):  # read-only or full, no home, or a home that is not UTF-8
        try:
            return _kept(folder, kind, _temporary_folder(), again)
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


def _kept(folder: Path, kind: str, cache: Path, again: bool) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{_content(folder, cache)}-{kind}.gguf"
    note = path.with_suffix(".json")
    if not again and _is_whole(path, note):
        os.utime(note)  # its time says when the file was used last
        return path
    from completion.gguf_export.gguf_file import convert

    with lock(cache / "lock", wait=True):
        if again or not _is_whole(path, note):  # another process may have made it meanwhile
            for left in cache.glob("*.gguf.*.tmp"):  # by a writer that was killed: there is no other one now
                left.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            convert(folder, path, kind)
            with atomic_write(note) as file:
                json.dump(_marks(path)[:2], file)
            _remove_old(cache, keep=path)
    return path


def _is_whole(path: Path, note: Path) -> bool:
    """Whether a converted file still has the size and time that were noted after it was written."""
    try:
        return json.loads(note.read_bytes()) == _marks(path)[:2]
    except (OSError, ValueError):  # not there, or torn
        return False


def _content(folder: Path, cache: Path) -> str:
    """32 hex digits of all that the GGUF file is made from, the converter included.

    Reading a large model takes seconds, so what was read is noted with the files' identities, times and sizes. The
    time of a file's last change (ctime) cannot be set back, unlike that of its content.
    """
    files = [folder / name for name in SOURCES if (folder / name).is_file()]
    files += sorted(folder.glob("*.safetensors*"))
    files += sorted(Path(__file__).parent.glob("*.py"))
    marks = [[path.name, *_marks(path)] for path in files]
    note = cache / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # none yet, or torn
        noted = json.loads(note.read_bytes())
        if noted["files"] == marks:
            return noted["content"]
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
    """Remove the files that were not used for longest until the rest fit LIMIT."""

    def last_use(path: Path) -> float:
        note = path.with_suffix(".json")
        return (note if note.is_file() else path).stat().st_mtime

    total = keep.stat().st_size
    for path in sorted({*cache.glob("*.gguf")} - {keep}, key=last_use, reverse=True):
        total += path.stat().st_size
        if total > LIMIT:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
