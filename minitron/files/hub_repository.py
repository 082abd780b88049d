"""HubRepository: a model repository on the Hub, pinned to one revision and read file by file.

A file is downloaded into huggingface_hub's cache, or read by ranges as a `HubFile`, of which
nothing is stored. Works offline on what is cached. Does not know what the files mean.

    HubRepository("nvidia/Minitron-4B-Base").file("config.json")
"""

import logging
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import httpx2
from huggingface_hub import (
    HfApi,
    constants,
    hf_hub_download,
    hf_hub_url,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
)

from minitron.credentials import masked_errors
from minitron.errors import SourceError
from minitron.files.checked_json import read_object
from minitron.files.file import File
from minitron.files.hub_errors import (
    CHECK,
    HUB_ERRORS,
    HubAnswerError,
    HubUnreachableError,
    answer_errors,
    reason,
    required_text,
)
from minitron.files.hub_retry import bounded_waiting, retry
from minitron.files.model_files import ADAPTER, is_model_file, merge_advice, model_files
from minitron.files.verified_file import verify

logger = logging.getLogger(__name__)

_CONFIG = "config.json"
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_COMMIT = re.compile(r"\w[\w.-]*")  # a mirror's may be shorter than git's
_FILE_NAME = re.compile(r"(?!\.{1,2}$)[^/\\:]+")
_BEYOND_THE_END = 416  # HTTP, of a range; a file of no bytes has no other
_BEGINNING = 1 << 17  # bytes: the header of most safetensors files, in the first request


class HubRepository:
    """A model repository; every file is of one revision.

    It is that of the file `first`, which is downloaded; or, with None, the one that the Hub names.
    """

    def __init__(
        self, repo_id: str, revision: str | None = None, *, first: str | None = _CONFIG
    ) -> None:
        self.name = repo_id
        self.revision: str | None = revision
        self._offline = is_offline_mode()
        self._snapshot: Path | None = None  # in the cache; None until a file is there
        if first is None:
            with self._source_errors():
                ask = partial(HfApi().model_info, repo_id, revision=revision)
                self.revision = _commit(retry(ask, is_read=True).sha)
            return
        path = self.file(first)
        if path is None:
            adapter = self.file(ADAPTER) if first == _CONFIG else None
            if adapter is not None:
                settings = read_object(adapter, SourceError, "fetch it again")
                raise SourceError(merge_advice(repo_id, settings))
            why = "check its path"
            if first == _CONFIG:
                why = f"it is not a transformers model; of a GGUF file name {repo_id}:FILE.gguf"
            raise SourceError(f"{repo_id} has no {first}: {why}")
        self._snapshot = path.parents[first.count("/")]
        with self._source_errors():
            self.revision = _commit(self._snapshot.name)  # from here on

    def file(self, name: str) -> Path | None:
        """The file in the cache, downloaded if needed; None where the repository has none.

        Raises SourceError for a large file whose bytes are not those of the Hub.
        """
        asked = self.name if self.revision is None else f"{self.name}@{self.revision}"
        with self._source_errors():
            try:
                with answer_errors():
                    path = Path(
                        hf_hub_download(
                            self.name, name, revision=self.revision, local_files_only=self._offline
                        )
                    )
                verify(path)
                return path
            except LocalEntryNotFoundError as error:
                if self._snapshot is not None and name not in self.names():
                    return None
                why = "the Hub cannot be reached: check the name and the connection"
                if self._offline:
                    why = "HF_HUB_OFFLINE is set: unset it, or check the name"
                raise SourceError(
                    f"{asked} is neither a folder nor in the cache, and {why}"
                ) from error
            except EntryNotFoundError:
                return None

    def is_local(self, name: str) -> bool:
        """Whether `file` would download nothing large."""
        found = try_to_load_from_cache(self.name, name, revision=self.revision)
        return self._offline or isinstance(found, str)

    def remote_file(self, name: str) -> "HubFile | None":
        """The file as ranges; None where it is cached, missing, or can only be fetched whole."""
        if self.is_local(name):
            return None
        # One request brings the size and, of most safetensors files, the whole header.
        found = self._read_range(name, 0, _BEGINNING)
        if found is None:
            return None
        beginning, size = found
        return HubFile(self, name, f"{self.name}/{name}", size, beginning)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a remote file. Raises SourceError where it has changed."""
        found = self._read_range(name, start, stop)
        if found is None or len(found[0]) != stop - start:
            raise SourceError(f"{self.name} has changed while {name} was read: try again")
        return found[0]

    def _read_range(self, name: str, start: int, stop: int) -> tuple[bytes, int] | None:
        """Bytes [start, stop), or up to the end, and the file's size, in one or more requests.

        None where there is no such file, or the storage does not answer with ranges.
        """
        content, size = b"", stop
        while start + len(content) < min(stop, size):
            with self._source_errors():
                request = partial(self._request_range, name, start + len(content), stop)
                part = retry(request, is_read=True)
            if part is None or not part[0]:
                return None
            content, size = content + part[0], part[1]
        return content, size

    def _request_range(self, name: str, start: int, stop: int) -> tuple[bytes, int] | None:
        """Bytes from `start` on, at most to `stop`, and the file's size, in one request."""
        url = hf_hub_url(self.name, name, revision=self.revision)
        headers = {
            **build_hf_headers(),
            "Range": f"bytes={start}-{stop - 1}",
            "Accept-Encoding": "identity",  # a range of a compressed file is another
        }
        try:
            with http_stream_backoff(
                "GET",
                url,
                headers=headers,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                retry_on_exceptions=(),  # `retry` repeats it
                retry_on_status_codes=(),
            ) as response:
                hf_raise_for_status(response)
                sent = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if response.status_code != 206 or sent is None or int(sent[1]) != start:
                    return None
                return response.read()[: stop - start], int(sent[3])
        except EntryNotFoundError:
            return None
        except HfHubHTTPError as error:
            if error.response.status_code == _BEYOND_THE_END:
                return None
            raise

    def remedy(self, name: str) -> str:
        """The command that downloads a file which an earlier run did not need."""
        if not self._offline:
            return "its repository is not whole, choose another revision"
        command = ["hf", "download", self.name, name]
        command += ["--revision", self.revision] if self.revision is not None else []
        return f"fetch it where there is a network: {shlex.join(command)}"

    def names(self) -> list[str]:
        """The repository's files, or, offline, those of them that are cached."""
        return self._names

    @cached_property
    def _names(self) -> list[str]:
        if not self._offline:
            with self._source_errors():
                try:
                    with answer_errors():
                        files = HfApi().list_repo_files(self.name, revision=self.revision)
                    return _model_files(files)
                except (httpx2.ConnectError, HubUnreachableError):
                    if self._snapshot is None:
                        raise
            logger.warning("%s: the Hub cannot be reached, reading what is in the cache", self.name)
            self._offline = True
        assert self._snapshot is not None, "offline, only the cache has files"
        return model_files(self._snapshot)

    @contextmanager
    def _source_errors(self) -> Iterator[None]:
        """Turn errors of the Hub into a SourceError of one line."""
        with masked_errors(), self._named_errors(), bounded_waiting():
            yield

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except GatedRepoError as error:
            raise SourceError(
                f"{self.name} is gated: accept its terms on the Hub and log in with `hf auth login`"
            ) from error
        except RepositoryNotFoundError as error:
            raise SourceError(
                f"{self.name} is neither a folder nor a repository you can see on the Hub: "
                "check the name, or log in with `hf auth login`"
            ) from error
        except RevisionNotFoundError as error:
            raise SourceError(f"{self.name} has no revision {self.revision}: check it") from error
        except HUB_ERRORS as error:
            why = reason(error, self.name)
            raise SourceError(f"{self.name} cannot be fetched: {why}") from error


@dataclass(frozen=True)
class HubFile(File):
    """A file of a repository that is not on this machine: each read requests its range."""

    repository: HubRepository
    path: str  # in the repository
    name: str
    size: int
    beginning: bytes = field(default=b"", compare=False, repr=False)  # of the first request

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop)."""
        stop = self.size if stop is None else stop
        self.check_end(stop)
        known = self.beginning[start:stop]
        rest = start + len(known)
        return known + (self.repository.read_range(self.path, rest, stop) if rest < stop else b"")

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` with the bytes from `start` on."""
        target[:] = self.read(start, start + len(target))


def _commit(answer: object) -> str:
    """A commit's id, checked, since it becomes the name of a folder in the cache."""
    if not isinstance(answer, str) or not _COMMIT.fullmatch(answer):
        raise HubAnswerError(f"its answer has {answer!r:.40} as a commit, which is none; {CHECK}")
    return answer


def _model_files(files: Sequence[object]) -> list[str]:
    """The files of a model, without names that some systems do not allow."""
    names = [required_text(name, "a file's name") for name in files]
    safe = (name for name in names if all(map(_FILE_NAME.fullmatch, name.split("/"))))
    return sorted(filter(is_model_file, safe))
