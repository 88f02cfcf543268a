"""Files of a repository on the Hugging Face hub, downloaded so that an interruption loses nothing.

The hub's own library does not keep parts of interrupted files, and the network's checkpoint is one file of 32 GB. So
the library lists and transfers, and parts are kept here as FILE.incomplete until they are whole and have the hub's
hash. Whole files in the library's cache are used.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sanawm_env.system.files import file_sha256
from sanawm_env.system.packages import needing
from sanawm_env.system.saving import only_writer

INCOMPLETE = ".incomplete"


@dataclass(frozen=True)
class Listing:
    """Files of a repository at a commit.

    Attributes:
        repository: on the hub.
        commit: its hash.
        sizes: bytes of each file.
        hashes: SHA-256 of files, where the hub has it.
    """

    repository: str
    commit: str
    sizes: Mapping[str, int]
    hashes: Mapping[str, str]


def list_files(repository: str, revision: str | None, patterns: Sequence[str]) -> Listing:
    """Ask the hub for the files of a repository.

    Args:
        repository: on the hub.
        revision: a commit, branch or tag; None for the newest.
        patterns: of names.

    Raises:
        ImportError: without huggingface_hub.
        ValueError: for an unknown revision or repository.
        FileNotFoundError: where no file matches the first pattern. Errors of the library, where the hub cannot be
            reached, pass through.
    """
    with needing("Fetching needs huggingface_hub", "official"):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.utils import filter_repo_objects
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    except RevisionNotFoundError as error:
        raise ValueError(
            f"{repository} has no revision {revision} (any more): name another with --revision; main is the newest."
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{repository} is not on the hub for you: it has moved, or needs a login (hf auth login)."
        ) from error
    commit = cast(str, info.sha)
    found = {file.rfilename: file for file in info.siblings or []}
    wanted = list(filter_repo_objects(found, allow_patterns=list(patterns)))
    if not any(filter_repo_objects(wanted, allow_patterns=list(patterns[:1]))):
        raise FileNotFoundError(f"{repository} has no {patterns[0]} at {commit[:12]}: the hub's layout has changed.")
    return Listing(
        repository,
        commit,
        {name: found[name].size or 0 for name in wanted},
        {name: lfs.sha256 for name in wanted if (lfs := found[name].lfs) is not None},
    )


def in_cache(listing: Listing) -> Path | None:
    """The folder in the library's cache that holds all these files; None where one is missing."""
    folder = cached(listing.repository, listing.commit, [*listing.sizes])
    return folder if folder and all((folder / name).is_file() for name in listing.sizes) else None


def cached(repository: str, revision: str | None, patterns: Sequence[str]) -> Path | None:
    """Without asking the hub: the folder of a revision in the library's cache, or None."""
    from huggingface_hub import snapshot_download

    with suppress(Exception):  # the library raises many types for what is not there
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(patterns), local_files_only=True)
        )
        return folder if any(folder.glob(patterns[0])) else None
    return None


def missing_bytes(listing: Listing, folder: Path) -> int:
    """Bytes that are still to be downloaded into a folder; of interrupted files, the rest."""
    have = {name: _size(folder / name) or _size(_incomplete(folder / name)) for name in listing.sizes}
    return sum(max(0, size - have[name]) for name, size in listing.sizes.items())


def download(listing: Listing, folder: Path) -> None:
    """Download files into a folder. Files that are there stay, and interrupted ones continue.

    Args:
        listing: of the files.
        folder: where to.

    Raises:
        ValueError: for a file with another hash than the hub's, which is then downloaded from its beginning.
        BlockingIOError: where another process downloads into this folder.
        OSError: of the disk. Errors of the network, which the library raises, pass through.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder):
        for name, size in listing.sizes.items():
            target = folder / name
            if target.is_file() and target.stat().st_size == size:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            part = _incomplete(target)
            if _size(part) > size:
                part.unlink()
            url = hf_hub_url(listing.repository, name, revision=listing.commit)
            with open(part, "ab") as file:
                http_get(url, file, resume_size=file.tell(), headers=build_hf_headers(), expected_size=size)
            if name in listing.hashes and file_sha256(part) != listing.hashes[name]:
                part.unlink()
                raise ValueError(f"{name} of {listing.repository} did not arrive as it is on the hub: fetch it again.")
            part.replace(target)


def _incomplete(path: Path) -> Path:
    return path.with_name(path.name + INCOMPLETE)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
