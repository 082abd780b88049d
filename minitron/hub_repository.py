"""HubRepository: a place on the Hub, pinned to one revision and fetched file by file.

Knows huggingface_hub's cache and its many ways of failing, each of which becomes one line that
says what to do. Works offline on what is cached. Does not know what the files mean.

    HubRepository("nvidia/Minitron-4B-Base").file("config.json")
"""

from functools import cached_property
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from minitron.errors import SourceError


class HubRepository:
    """A model repository; every file comes from the revision seen first."""

    def __init__(self, repo_id: str, revision: str | None = None) -> None:
        self.name = repo_id
        self.revision: str | None = revision
        config = self.file("config.json")
        if config is None:
            raise SourceError(f"{repo_id} has no config.json: it is not a transformers model")
        self._snapshot = config.parent
        self.revision = self._snapshot.name  # the commit, from here on

    def file(self, name: str) -> Path | None:
        """The file in the cache, downloaded where it is not; None where the repository has none."""
        asked = self.name if self.revision is None else f"{self.name}@{self.revision}"
        try:
            return Path(hf_hub_download(self.name, name, revision=self.revision))
        except LocalEntryNotFoundError as error:
            if hasattr(self, "_snapshot") and self._offline:
                return None
            raise SourceError(
                f"{asked} is neither a folder nor in the cache, and the Hub cannot be reached: "
                "check the name and the connection"
            ) from error
        except EntryNotFoundError:
            return None
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
        except (HFValidationError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SourceError(f"{self.name} cannot be fetched: {first_line}") from error

    def names(self) -> list[str]:
        """The repository's files, or, offline, those of them that are cached."""
        if self._offline:
            return sorted(path.name for path in self._snapshot.iterdir() if path.is_file())
        try:
            files = HfApi().list_repo_files(self.name, revision=self.revision)
        except (HfHubHTTPError, OSError) as error:
            raise SourceError(f"{self.name} cannot be listed: {error}") from error
        return sorted(name for name in files if "/" not in name)

    @cached_property
    def _offline(self) -> bool:
        from huggingface_hub.constants import is_offline_mode

        return is_offline_mode()
