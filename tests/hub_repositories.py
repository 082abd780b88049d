"""The contents of a Hub: accounts, repositories with commits and refs, files. No HTTP here.

Git is imitated as far as a client can see it: a commit has an id, a parent and all its files; a
revision is a branch, a tag, the ref of a pull request, or a commit id, complete or abbreviated.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
DATE = "2026-01-02T03:04:05.000Z"


@dataclass(frozen=True)
class Blob:
    """A file's content, in git or in large file storage."""

    content: bytes
    is_lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """The pointer file that git stores for a large file."""
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}")
        return "\n".join([*lines, f"size {len(self.content)}", ""]).encode()

    @cached_property
    def git_oid(self) -> str:
        content = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    """A state of a repository, with its title and description."""

    parent: str | None
    title: str
    message: str
    files: Mapping[str, Blob]

    @cached_property
    def oid(self) -> str:
        parts = [str(self.parent), self.title, self.message]
        parts += [f"{path} {blob.git_oid}" for path, blob in sorted(self.files.items())]
        return hashlib.sha1("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Account:
    """The owner of a token, and what the token permits."""

    name: str
    can_write: bool = True
    granted: frozenset[str] = frozenset()  # gated repositories that it has access to
    orgs: tuple[str, ...] = ()  # organizations that it is a member of
    contributes: tuple[str, ...] = ()  # organizations that it may write to

    @property
    def names(self) -> tuple[str, ...]:
        """The owners whose private repositories it can read."""
        return (self.name, *self.orgs)


@dataclass
class Repository:
    """A model, dataset or Space."""

    id: str
    type: str = "model"
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)  # number to commit

    def __post_init__(self) -> None:
        self.add_commit("main", "initial commit", "", {".gitattributes": Blob(GITATTRIBUTES)})

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    def add_commit(
        self, branch: str, title: str, message: str, files: Mapping[str, Blob]
    ) -> Commit:
        """Add a commit with exactly these files to `branch`."""
        commit = Commit(self.branches.get(branch), title, message, dict(files))
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def open_pull_request(
        self, base: Commit, title: str, message: str, files: Mapping[str, Blob]
    ) -> str:
        """Open a pull request of one commit on top of `base`; return its number."""
        commit = Commit(base.oid, title, message, dict(files))
        self.commits[commit.oid] = commit
        number = str(len(self.pulls) + 1)
        self.pulls[number] = commit.oid
        return number

    def commit(self, revision: str) -> Commit | None:
        """The commit of a revision; None if there is none."""
        revision = revision.removeprefix("refs/heads/")
        oid = self.branches.get(revision) or self.tags.get(revision)
        if revision.startswith("refs/pr/"):
            oid = self.pulls.get(revision.removeprefix("refs/pr/"))
        if oid is None and len(revision) >= 7:
            oid = next((oid for oid in self.commits if oid.startswith(revision)), None)
        return self.commits[oid] if oid is not None else None

    def history(self, commit: Commit) -> list[Commit]:
        """A commit and its ancestors, newest first."""
        found = [commit]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found


@dataclass
class Collection:
    """A list of repositories under a title."""

    title: str
    owner: str
    private: bool = False
    items: list[tuple[str, str]] = field(default_factory=list)  # type and id

    @property
    def slug(self) -> str:
        number = hashlib.sha1(f"{self.owner}/{self.title}".encode()).hexdigest()[:24]
        return f"{self.owner}/{self.title.lower().replace(' ', '-')}-{number}"


@dataclass
class Holdings:
    """Everything that a Hub stores."""

    accounts: dict[str, Account] = field(default_factory=dict)  # by token
    repositories: list[Repository] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)  # contents of large files, by sha256
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)  # by sha256 and number
    collections: list[Collection] = field(default_factory=list)

    def repository(self, type: str, repo_id: str) -> Repository | None:
        """The repository with this id, compared without case."""
        for repository in self.repositories:
            if repository.type == type and repository.id.lower() == repo_id.lower():
                return repository
        return None

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        type: str = "model",
        private: bool = False,
        gated: bool = False,
    ) -> Repository:
        """Add a repository with these files on main."""
        repository = Repository(repo_id, type, private, gated)
        self.repositories.append(repository)
        self.replace_files(repository, files)
        return repository

    def replace_files(self, repository: Repository, files: Mapping[str, bytes]) -> Commit:
        """Add a commit with exactly these files to main."""
        blobs = {path: Blob(content, is_large(path, content)) for path, content in files.items()}
        self.stored |= {blob.sha256: blob.content for blob in blobs.values() if blob.is_lfs}
        return repository.add_commit("main", "Upload", "", blobs)


def is_large(path: str, sample: bytes, size: int | None = None) -> bool:
    """Whether the Hub stores a file as a large file (LFS)."""
    endings = (".safetensors", ".bin", ".nemo", ".model", ".png")
    return path.endswith(endings) or b"\0" in sample or (size or len(sample)) > 10_000_000
