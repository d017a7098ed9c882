"""Where a data set's files lie, or are fetched from, and what is inside an archive."""

import http.client
import logging
import os
import re
import tempfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from headstart.tasks.cache import cache_folder

_log = logging.getLogger(__name__)

_SILENCE_S = 20.0  # without a byte
_DOWNLOAD_S = 600.0
_DOWNLOAD_BYTES = 1 << 30


class DataNotFound(FileNotFoundError):  # noqa: N818
    """A data set is neither on this machine nor to be had; the message says which files to put where."""


def locate(dataset: str, files: Mapping[str, str], data: Path | None = None) -> list[Path]:
    """Paths of a data set's files: in the data folder if one is named, else downloaded once into the cache.

    Args:
        dataset: The folder the files lie in, inside the data folder.
        files: Where to download each file from, by its name.
        data: The data folder; the environment variable HEADSTART_DATA by default.

    Raises:
        DataNotFound: If the named data folder lacks a file, or none is named and a download fails.
    """
    named = data or (Path(os.environ["HEADSTART_DATA"]) if os.environ.get("HEADSTART_DATA") else None)
    if named is not None:
        folder = named.expanduser() / dataset
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise DataNotFound(_advice(dataset, files, f"{folder} lacks {', '.join(missing)}"))
        return [folder / name for name in files]
    folder = cache_folder() / "downloads" / dataset
    for name, url in files.items():
        if not (folder / name).is_file():
            try:
                download(url, folder / name)
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise DataNotFound(_advice(dataset, files, f"{url}: {error}")) from error
    return [folder / name for name in files]


def discard_downloads(paths: Iterable[Path]) -> None:
    """Remove those of `paths` that were downloaded, so that the next attempt fetches them again."""
    for path in paths:
        if path.is_relative_to(cache_folder() / "downloads"):
            path.unlink(missing_ok=True)


def download(url: str, path: Path, limit_s: float = _DOWNLOAD_S, limit_bytes: int = _DOWNLOAD_BYTES) -> None:
    """Fetch a zip file; it appears at `path` only when whole.

    Raises:
        OSError: If the server cannot be reached, falls silent or takes longer than `limit_s`, or the
            file cannot be written.
        ValueError: If what comes is no zip file or is larger than `limit_bytes`.
    """
    _log.info("downloading %s to %s", url, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + limit_s
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / "part"
        with urllib.request.urlopen(url, timeout=_SILENCE_S) as response, part.open("wb") as file:
            while block := response.read(1 << 16):
                file.write(block)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not finished after {limit_s:.0f} s")
                if file.tell() > limit_bytes:
                    raise ValueError(f"larger than {limit_bytes} bytes")
        if not zipfile.is_zipfile(part):
            raise ValueError("what the server sent is not a zip file")
        part.replace(path)


def entries(archive: Path, pattern: str, limit_bytes: int) -> Iterator[tuple[re.Match[str], bytes]]:
    """The files in a zip archive whose whole name matches `pattern`: the match and the content; others are ignored.

    Nothing is written, and no size that the archive states is trusted.

    Raises:
        ValueError: If the archive is damaged, or a matching file is larger than `limit_bytes`.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                match = re.fullmatch(pattern, info.filename)
                if match is None:
                    continue
                with opened.open(info) as file:
                    content = file.read(limit_bytes + 1)
                if len(content) > limit_bytes:
                    raise ValueError(f"{info.filename} is larger than {limit_bytes} bytes")
                yield match, content
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(f"cannot read {archive}: {error}; fetch it again") from error


def _advice(dataset: str, files: Mapping[str, str], reason: str) -> str:
    listed = "".join(f"\n  <data>/{dataset}/{name}    from {url}" for name, url in files.items())
    return (
        f"no {dataset} data: {reason}.\nPut these files there:{listed}\n"
        "and name the folder <data> by data=..., --data or the environment variable HEADSTART_DATA. "
        "`glyphs` needs no data at all."
    )
