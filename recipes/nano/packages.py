"""Fetches Debian packages and unpacks them beside each other; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from recipes.nano import RecipeError


def fetch(package: str, debs: Path, root: Path) -> Path:
    """Download and unpack one package, if that has not been done, and return its folder `root/package`.

    Args:
        package: name of a package in Debian 12 `main`.
        debs: where the `.deb` files are kept.
        root: where each package gets a folder.

    Raises:
        RecipeError: a tool is missing, or the download or the unpacking failed.
    """
    folder = root / package
    if folder.is_dir():
        return folder
    deb = _download(package, debs)
    # A folder with the final name is a complete one, also after an interruption.
    partial = root / f"{package}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _run(
        ["dpkg", "-x", str(deb.resolve()), str(partial.resolve())],
        partial,
        f"unpack {deb.name}",
        "delete it and run again",
    )
    partial.rename(folder)
    return folder


def _download(package: str, debs: Path) -> Path:
    debs.mkdir(parents=True, exist_ok=True)
    found = sorted(debs.glob(f"{package}_*.deb"))
    if not found:
        # apt-get downloads under another name first, so a .deb here is whole.
        _run(
            ["apt-get", "download", package],
            debs,
            f"download the Debian package {package}",
            "run `apt-get update` first",
        )
        found = sorted(debs.glob(f"{package}_*.deb"))
    if not found:
        raise RecipeError(
            f"apt-get left no {package}_*.deb in {debs}; look at the disk's free space and run again."
        )
    return found[-1]


def _run(command: list[str], folder: Path, deed: str, advice: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RecipeError(f"cannot {deed}: {command[0]} is not here; run the recipe on Debian 12.") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RecipeError(f"cannot {deed} ({last}); {advice}.") from error
