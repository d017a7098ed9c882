"""The pure-Python part of learn2learn, put where it can be imported without building the package.

learn2learn 0.2.0 is a source archive with Cython extensions that do not build on Python 3.11, and its
`__init__` imports things (gym, torchvision) that MAML does not need. Only the files of MAML are taken; without
the `__init__` files the folders are namespace packages.

    python -m benchmarks.unpack FOLDER_OF_THE_ARCHIVE
"""

import sys
import sysconfig
import tarfile
from pathlib import Path

WANTED = {
    "learn2learn/algorithms/maml.py": "learn2learn/algorithms/maml.py",
    "learn2learn/algorithms/base_learner.py": "learn2learn/algorithms/base_learner.py",
    "learn2learn/utils/__init__.py": "learn2learn/utils/__init__.py",
    "PKG-INFO": "learn2learn.dist-info/METADATA",
}
"""Files of the archive, and where they go among the installed packages."""


def unpack(archive: Path, target: Path) -> None:
    """Copy the wanted files of a source archive into `target`.

    Raises:
        SystemExit: The archive has not all of them.
    """
    with tarfile.open(archive) as opened:
        members = {member.name.partition("/")[2]: member for member in opened.getmembers() if member.isfile()}
        missing = [name for name in WANTED if name not in members]
        if missing:
            raise SystemExit(f"{archive} has no {', '.join(missing)}: is it another version than 0.2.0?")
        for name, place in WANTED.items():
            content = opened.extractfile(members[name])
            assert content is not None
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            (target / place).write_bytes(content.read())


def main() -> None:
    """Unpack the one archive in the folder named."""
    archives = sorted(Path(sys.argv[1]).glob("learn2learn-*.tar.gz"))
    if not archives:
        raise SystemExit(f"There is no learn2learn-*.tar.gz in {sys.argv[1]}.")
    unpack(archives[-1], Path(sysconfig.get_paths()["purelib"]))


if __name__ == "__main__":
    main()
