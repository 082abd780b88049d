"""The routes of a Hub: the answer of huggingface.co to each request. No sockets here.

Checks tokens and the rights to read and write, as the Hub does. Paths are quoted, because the name
of a branch can contain a slash.
"""

import hashlib
import json
import re
import threading
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import yaml

from tests.hub_repositories import (
    DATE,
    Account,
    Blob,
    Collection,
    Commit,
    Holdings,
    Repository,
    is_large,
)

PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][A-Za-z0-9_.-]{0,94}[A-Za-z0-9_]|[A-Za-z0-9_]")


@dataclass
class Fault:
    """A failure of the next requests with this method and a path that matches this pattern."""

    method: str
    path: str
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drop_after: int | None = None  # bytes of the answer; for PUT and POST, of the request
    delay: float = 0.0  # seconds before the answer
    corrupt: bool = False  # change one byte of the answer; for PUT and POST, of the request
    body: bytes = b""  # the body of the answer, with a status
    trickle: float = 0.0  # seconds between the bytes of the answer


@dataclass(frozen=True)
class Request:
    """A request, parsed."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    account: Account | None

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Seen:
    """A request as the record of a test holds it."""

    method: str
    path: str
    account: str | None
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, content: object, status: int = 200, **headers: str) -> "Answer":
        return cls(json.dumps(content).encode(), status, {**headers})


class Refusal(Exception):
    """An error status as the answer."""

    def __init__(self, status: int, message: str, code: str | None = None, **content: Any) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer = Answer.of({"error": message, **content}, status, **headers)


Route = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    """Register a method of Hub for a path: {name} matches one part of it, {name*} several."""
    regex = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.+)", pattern)
    regex = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", regex)
    regex = regex.replace("KIND", "(?P<kind>model|dataset|space)s")
    regex = regex.replace("PREFIX", "(?P<prefix>datasets/|spaces/)?")
    regex = regex.replace("ID", "(?P<repo>[^/]+/[^/]+)")

    def decorate(answer: Route) -> Route:
        ROUTES.append((method, re.compile(regex), answer))
        return answer

    return decorate


class Hub(Holdings):
    """The routes, and the contents that they serve and change."""

    def __init__(self) -> None:
        super().__init__()
        self.url = ""
        self.part_size = 5_000_000  # larger files are uploaded in parts
        self.page_size = 1000
        self.serves_ranges = True
        self.ignored: set[str] = set()  # paths that .gitignore excludes
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.lock = threading.RLock()

    def fail(self, fault: Fault) -> None:
        """Add a fault, which is applied before those added earlier."""
        self.faults.insert(0, fault)

    def requests(self, method: str, path: str) -> list[Seen]:
        """The recorded requests with this method and a path that matches this pattern."""
        return [s for s in self.seen if s.method == method and re.search(path, s.path)]

    def answer(self, request: Request) -> Answer:
        """The answer to a request, after its token is checked."""
        with self.lock:
            try:
                if request.account is None and "authorization" in request.headers:
                    raise Refusal(401, "Invalid credentials in Authorization header")
                for method, pattern, found in ROUTES:
                    match = pattern.fullmatch(request.path)
                    if match and method == ("GET" if request.method == "HEAD" else request.method):
                        parts = {k: unquote(v) if v else v for k, v in match.groupdict().items()}
                        return found(self, request, **parts)
                raise Refusal(404, f"Sorry, we can't find {request.path}")
            except Refusal as refusal:
                return refusal.answer

    # Rights, repositories and commits

    def writer(self, request: Request, owner: str) -> Account:
        account = self.account_of(request)
        if not account.can_write or owner not in (account.name, *account.contributes):
            raise Refusal(403, f"You don't have the rights to write to the namespace {owner!r}")
        return account

    def account_of(self, request: Request) -> Account:
        if request.account is None:
            raise Refusal(401, "Invalid username or password.")
        return request.account

    def readable(self, request: Request, kind: str, repo: str) -> Repository:
        """The repository, if the account may read it; another case of its name redirects."""
        repository = self.repository(kind, repo)
        names = request.account.names if request.account else ()
        if repository is None or (repository.private and repository.owner not in names):
            status = 401 if request.account is None else 404
            raise Refusal(status, "Repository not found", "RepoNotFound")
        if repository.id != repo:
            location = request.path.replace(repo, repository.id, 1)
            if request.query:
                location += "?" + "&".join(f"{k}={quote(v)}" for k, v in request.query.items())
            moved = Refusal(307, f"Temporary Redirect. Redirecting to {location}")
            moved.answer = Answer(b"", 307, {"Location": location})
            raise moved
        return repository

    def at(self, repository: Repository, revision: str) -> Commit:
        commit = repository.commit(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # Accounts

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Answer:
        account = self.account_of(request)
        role = "write" if account.can_write else "read"
        token = {"displayName": "test", "role": role}
        auth = {"type": "access_token", "accessToken": token}
        orgs = [{"type": "org", "name": name} for name in account.orgs]
        return Answer.of({"type": "user", "name": account.name, "orgs": orgs, "auth": auth})

    # Repositories

    @route("POST", "/api/repos/create")
    def create(self, request: Request) -> Answer:
        asked = request.json()
        owner = asked.get("organization") or self.account_of(request).name
        if not NAME.fullmatch(asked["name"]):
            raise Refusal(400, f"Invalid repo name: {asked['name']}")
        self.writer(request, owner)
        kind, repo_id = asked.get("type", "model"), f"{owner}/{asked['name']}"
        url = f"{self.url}/{PREFIXES[kind]}{repo_id}"
        if self.repository(kind, repo_id):
            raise Refusal(409, f"You already created this {kind} repo", url=url)
        if kind == "space" and "sdk" not in asked:
            raise Refusal(400, "A Space needs an sdk")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repositories.append(Repository(repo_id, kind, private=private))
        return Answer.of({"url": url})

    @route("POST", "/api/validate-yaml")
    def validate(self, request: Request) -> Answer:
        header = re.match(r"---\n(.*?)\n?---(\n|$)", request.json()["content"], re.DOTALL)
        errors, warnings = [], []
        try:
            data = yaml.safe_load(header[1]) if header else None
        except yaml.YAMLError as error:
            data, errors = {}, [str(error)]
        if data is None:
            warnings = ["empty or missing yaml metadata in repo card"]
        elif not isinstance(data.get("license", ""), str):
            errors = ['"license" must be a string']
        status = 400 if errors else 200
        if request.headers.get("accept") == "text/plain":
            return Answer("\n".join(f"- Error: {error}" for error in errors).encode(), status)
        sections = {"errors": errors, "warnings": warnings}
        content = {key: [{"message": line} for line in lines] for key, lines in sections.items()}
        return Answer.of(content, status)

    @route("GET", "/api/KIND/ID(/revision/{revision})?")
    def info(self, request: Request, kind: str, repo: str, revision: str | None) -> Answer:
        repository = self.readable(request, kind, repo)
        commit = self.at(repository, revision or "main")
        files = [_sibling(path, blob) for path, blob in sorted(commit.files.items())]
        content: dict[str, Any] = {"_id": "0" * 24, "id": repository.id, "modelId": repository.id}
        content |= {"author": repository.owner, "sha": commit.oid, "private": repository.private}
        content |= {"gated": "auto" if repository.gated else False, "disabled": False, "tags": []}
        content |= {"lastModified": DATE, "createdAt": DATE, "siblings": files}
        return Answer.of(content)

    @route("GET", "/api/KIND/ID/auth-check(?P<write>/write)?")
    def auth_check(self, request: Request, kind: str, repo: str, write: str | None) -> Answer:
        repository = self.readable(request, kind, repo)
        if write:
            self.writer(request, repository.owner)
        return Answer.of({})

    @route("GET", "/api/KIND/ID/tree/{revision}(/{path*})?")
    def tree(
        self, request: Request, kind: str, repo: str, revision: str, path: str | None
    ) -> Answer:
        repository = self.readable(request, kind, repo)
        commit, under = self.at(repository, revision), f"{path}/" if path else ""
        recursive = request.query.get("recursive", "").lower() == "true"
        entries = _entries(commit, under, recursive)
        if path and not entries:
            raise Refusal(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
        start = int(request.query.get("cursor", 0))
        stop = start + int(request.query.get("limit", self.page_size))
        if stop >= len(entries):
            return Answer.of(entries[start:])
        asked = "".join(f"&{k}={v}" for k, v in request.query.items() if k != "cursor")
        link = f'<{self.url}{quote(request.path)}?cursor={stop}{asked}>; rel="next"'
        return Answer.of(entries[start:stop], Link=link)

    @route("POST", "/api/KIND/ID/paths-info/{revision}")
    def paths_info(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        commit = self.at(self.readable(request, kind, repo), revision)
        paths = parse_qs(request.body.decode()).get("paths", [])
        entries = {entry["path"]: entry for entry in _entries(commit, "", True)}
        return Answer.of([entries[path] for path in paths if path in entries])

    @route("GET", "/api/KIND/ID/refs")
    def refs(self, request: Request, kind: str, repo: str) -> Answer:
        repository = self.readable(request, kind, repo)

        def listed(refs: Mapping[str, str], under: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{under}/{name}", "targetCommit": oid}
                for name, oid in refs.items()
            ]

        content: dict[str, Any] = {"branches": listed(repository.branches, "heads"), "converts": []}
        content |= {"tags": listed(repository.tags, "tags")}
        if "include_prs" in request.query:
            content["pullRequests"] = listed(repository.pulls, "pr")
        return Answer.of(content)

    @route("GET", "/api/KIND/ID/commits/{revision}")
    def commits_of(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        repository = self.readable(request, kind, repo)
        history = repository.history(self.at(repository, revision))
        commits = [{"id": c.oid, "title": c.title, "message": c.message} for c in history]
        return Answer.of([{**one, "authors": [{"user": "me"}], "date": DATE} for one in commits])

    @route("POST", "/api/KIND/ID/branch/{branch}")
    def branch(self, request: Request, kind: str, repo: str, branch: str) -> Answer:
        repository = self.readable(request, kind, repo)
        self.writer(request, repository.owner)
        if branch in repository.branches:
            raise Refusal(409, f"Reference already exists: {branch}")
        start = self.at(repository, request.json().get("startingPoint", "main"))
        repository.branches[branch] = start.oid
        return Answer.of({})

    @route("POST", "/api/KIND/ID/tag/{revision}")
    def tag(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        repository = self.readable(request, kind, repo)
        self.writer(request, repository.owner)
        commit, name = self.at(repository, revision), request.json()["tag"]
        if name in repository.tags:
            raise Refusal(409, f"Tag reference exists already: {name}")
        repository.tags[name] = commit.oid
        return Answer.of({})

    # Commits and large files

    @route("POST", "/api/KIND/ID/preupload/{revision}")
    def preupload(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        commit = self._to_change(request, kind, repo, revision)[1]
        files = []
        for file in request.json()["files"]:
            path, sample = file["path"], b64decode(file["sample"])
            mode = "lfs" if is_large(path, sample, file["size"]) else "regular"
            known = commit.files.get(path)
            oid = {"oid": known.etag} if known else {}
            dropped = path in self.ignored
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": dropped, **oid})
        return Answer.of({"files": files})

    @route("POST", "/api/KIND/ID/commit/{revision}")
    def commit(self, request: Request, kind: str, repo: str, revision: str) -> Answer:
        repository, base = self._to_change(request, kind, repo, revision)
        lines = [json.loads(line) for line in request.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, base.oid):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for line in lines[1:]:
            self._apply(files, line["key"], line["value"])
        url, texts = f"{self.url}/{repository.id}", (header["summary"], header["description"])
        if "create_pr" in request.query:
            number = repository.open_pull_request(base, *texts, files)
            oid, pull = repository.pulls[number], f"{url}/discussions/{number}"
        else:
            oid, pull = repository.add_commit(revision, *texts, files).oid, None
        content = {"commitUrl": f"{url}/commit/{oid}", "commitOid": oid, "pullRequestUrl": pull}
        return Answer.of(content)

    def _to_change(
        self, request: Request, kind: str, repo: str, revision: str
    ) -> tuple[Repository, Commit]:
        """A repository with the tip that the asker may add to, or ask others to add to."""
        repository = self.readable(request, kind, repo)
        owner = self.account_of(request).name if "create_pr" in request.query else repository.owner
        self.writer(request, owner)
        return repository, self.at(repository, revision)

    def _apply(self, files: dict[str, Blob], key: str, value: Mapping[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = Blob(b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in self.stored:
                raise Refusal(400, f"Your push was rejected: {path} was not uploaded")
            files[path] = Blob(self.stored[value["oid"]], is_lfs=True)
        elif key == "deletedFile" and files.pop(path, None) is None:
            raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        elif key == "deletedFolder":
            for inside in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                del files[inside]

    @route("POST", r"/PREFIXID\.git/info/lfs/objects/batch")
    def batch(self, request: Request, prefix: str | None, repo: str) -> Answer:
        kind = {value: kind for kind, value in PREFIXES.items()}[prefix or ""]
        self.readable(request, kind, repo)
        if not self.account_of(request).can_write:
            raise Refusal(403, "This token may only read")
        objects = []
        for wished in request.json()["objects"]:
            one = {"oid": wished["oid"], "size": wished["size"]}
            if wished["oid"] not in self.stored:
                verify = {"href": f"{self.url}/lfs/verify"}
                one["actions"] = {"upload": self._upload(**wished), "verify": verify}
            objects.append(one)
        return Answer.of({"objects": objects, "transfer": "basic"})

    def _upload(self, oid: str, size: int) -> dict[str, Any]:
        """Where to put a large file, whole or in parts."""
        href = f"{self.url}/lfs/{oid}"
        if size <= self.part_size:
            return {"href": href}
        count = -(-size // self.part_size)
        parts = {str(number): f"{href}/{number}" for number in range(1, count + 1)}
        return {"href": f"{href}/complete", "header": {"chunk_size": str(self.part_size), **parts}}

    @route("PUT", "/lfs/{oid}(/{number})?")
    def store(self, request: Request, oid: str, number: str | None) -> Answer:
        if "authorization" in request.headers:
            raise Refusal(400, "Only one auth mechanism allowed")  # as S3 answers
        if number is not None:
            self.parts[oid, int(number)] = request.body
        else:
            self._keep(oid, request.body)
        return Answer(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    @route("POST", "/lfs/{oid}/complete")
    def complete(self, request: Request, oid: str) -> Answer:
        numbers = [part["partNumber"] for part in request.json()["parts"]]
        for part in request.json()["parts"]:
            content = self.parts[oid, part["partNumber"]]
            if part["etag"].strip('"') != hashlib.md5(content).hexdigest():
                raise Refusal(400, f"Part {part['partNumber']} has another ETag")
        self._keep(oid, b"".join(self.parts.pop((oid, number)) for number in numbers))
        return Answer.of({})

    def _keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "The SHA-256 you specified did not match what we received")
        self.stored[oid] = content

    @route("POST", "/lfs/verify")
    def verify(self, request: Request) -> Answer:
        self.account_of(request)
        file = request.json()
        if len(self.stored.get(file["oid"], b"")) != file["size"]:
            raise Refusal(404, "Object not found")
        return Answer.of({})

    # Downloads

    @route("GET", "/PREFIXID/resolve/{revision}/{path*}")
    def resolve(
        self, request: Request, prefix: str | None, repo: str, revision: str, path: str
    ) -> Answer:
        kind = {value: kind for kind, value in PREFIXES.items()}[prefix or ""]
        repository = self.readable(request, kind, repo)
        if repository.gated and repository.id not in (
            request.account.granted if request.account else ()
        ):
            status = 401 if request.account is None else 403
            raise Refusal(status, f"Access to model {repository.id} is restricted", "GatedRepo")
        commit = self.at(repository, revision)
        blob, headers = commit.files.get(path), {"X-Repo-Commit": commit.oid}
        if blob is None:
            missing = Refusal(404, "Entry not found", "EntryNotFound")
            missing.answer = Answer(b"", 404, {**missing.answer.headers, **headers})
            raise missing
        if not blob.is_lfs:
            return _ranged(request, blob.content, {**headers, "ETag": f'"{blob.git_oid}"'})
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        # The Hub's storage is another host, to which a client must not send the token.
        elsewhere = self.url.replace("127.0.0.1", "localhost")
        location = f"{elsewhere}/storage/{blob.sha256}?signature=1"
        return Answer(b"", 302, {**headers, "Location": location})

    @route("GET", "/storage/{oid}")
    def storage(self, request: Request, oid: str) -> Answer:
        if "authorization" in request.headers:
            raise Refusal(400, "Only one auth mechanism allowed")
        headers = {"ETag": f'"{oid}"'}
        if not self.serves_ranges:
            return Answer(self.stored[oid], 200, headers)
        return _ranged(request, self.stored[oid], headers)

    # Collections

    @route("POST", "/api/collections")
    def create_collection(self, request: Request) -> Answer:
        asked = request.json()
        self.writer(request, asked["namespace"])
        made = Collection(asked["title"], asked["namespace"], asked["private"])
        if any(one.slug == made.slug for one in self.collections):
            raise Refusal(409, "This collection already exists", slug=made.slug)
        self.collections.append(made)
        return Answer.of(_collection_json(made))

    @route("GET", "/api/collections/{slug*}")
    def collection(self, request: Request, slug: str) -> Answer:
        return Answer.of(_collection_json(self._collection(slug)))

    @route("POST", "/api/collections/{slug*}/items")
    def add_item(self, request: Request, slug: str) -> Answer:
        collection = self._collection(slug)
        self.writer(request, collection.owner)
        item = request.json()["item"]
        self.readable(request, item["type"], item["id"])
        if (item["type"], item["id"]) in collection.items:
            raise Refusal(409, "Item is already in the collection")
        collection.items.append((item["type"], item["id"]))
        return Answer.of(_collection_json(collection))

    def _collection(self, slug: str) -> Collection:
        for collection in self.collections:
            if collection.slug == slug:
                return collection
        raise Refusal(404, "Collection not found")


def _sibling(path: str, blob: Blob) -> dict[str, Any]:
    sibling = {"rfilename": path, "size": len(blob.content), "blobId": blob.git_oid}
    if blob.is_lfs:
        lfs = {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
        sibling["lfs"] = lfs
    return sibling


def _entries(commit: Commit, under: str, recursive: bool) -> list[dict[str, Any]]:
    """The files and folders under a folder, as the tree route lists them."""
    found: dict[str, dict[str, Any]] = {}
    for path, blob in sorted(commit.files.items()):
        if not path.startswith(under):
            continue
        folders = path.removeprefix(under).split("/")[:-1]
        for depth in range(1, len(folders) + 1 if recursive else min(2, len(folders) + 1)):
            folder = under + "/".join(folders[:depth])
            oid = hashlib.sha1(folder.encode()).hexdigest()
            found[folder] = {"type": "directory", "path": folder, "oid": oid, "size": 0}
        if recursive or not folders:
            size = len(blob.content)
            found[path] = {"type": "file", "path": path, "oid": blob.git_oid, "size": size}
            if blob.is_lfs:
                lfs = {"oid": blob.sha256, "size": size, "pointerSize": len(blob.pointer)}
                found[path]["lfs"] = lfs
    return list(found.values())


def _ranged(request: Request, content: bytes, headers: Mapping[str, str]) -> Answer:
    """The content, or the part of it that the Range header requests."""
    headers = {**headers, "Accept-Ranges": "bytes"}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if asked is None:
        return Answer(content, 200, headers)
    size = len(content)
    if asked[1]:
        start, stop = int(asked[1]), min(int(asked[2] or size) + 1, size)
    else:
        start, stop = max(0, size - int(asked[2])), size
    if start >= stop:
        return Answer(b"", 416, {"Content-Range": f"bytes */{size}"})
    content_range = f"bytes {start}-{stop - 1}/{size}"
    return Answer(content[start:stop], 206, {**headers, "Content-Range": content_range})


def _collection_json(collection: Collection) -> dict[str, Any]:
    items = [
        {"_id": str(position), "id": item_id, "type": type, "position": position}
        for position, (type, item_id) in enumerate(collection.items)
    ]
    content: dict[str, Any] = {
        "slug": collection.slug,
        "title": collection.title,
        "owner": collection.owner,
    }
    content |= {"items": items, "lastUpdated": DATE, "position": 0, "theme": "blue", "upvotes": 0}
    return {**content, "private": collection.private}
