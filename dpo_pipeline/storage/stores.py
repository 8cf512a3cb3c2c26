"""Object stores: how they are reached, and what lies in them.

Polars reads and writes the rows. pyarrow lists, reads footers, moves and deletes, with the same
options. Addresses for which pyarrow has no file system (hf://, https://) can only be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from dpo_pipeline.errors import UsageError

if TYPE_CHECKING:
    from dpo_pipeline.options import Execution

CredentialProvider: TypeAlias = Callable[[], tuple[Mapping[str, str | None], int | None]]
"""Gives credentials, and the second since 1970 at which they end, as Polars takes it."""

_ADDRESS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_S3: Final = ("s3", "s3a")
_GOOGLE: Final = ("gs", "gcs")
_AZURE: Final = ("az", "azure", "abfs", "abfss", "adl")
_MAGIC: Final = re.compile(r"[*?\[]")


def is_address(path: object) -> bool:
    """Return whether it is the address of something in an object store, and no path."""
    return isinstance(path, str) and _ADDRESS.match(path) is not None


def joined(*parts: str) -> str:
    """Return an address of an object below another one."""
    return "/".join(part.strip("/") if i else part.rstrip("/") for i, part in enumerate(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How object stores are reached: two arguments of Polars, which it documents."""

    storage_options: Mapping[str, Any] | None = None
    credential_provider: CredentialProvider | Literal["auto"] | None = "auto"

    @classmethod
    def of(cls, execution: Execution) -> Access:
        """Return how a call reaches object stores."""
        options, provider = execution.storage_options, execution.credential_provider
        return cls(storage_options=options, credential_provider=provider)

    def polars(self, path: str) -> dict[str, Any]:
        """Return what a scan or a sink of Polars has to be told."""
        if not is_address(path):
            return {}
        options = None if self.storage_options is None else dict(self.storage_options)
        return {"storage_options": options, "credential_provider": self.credential_provider}

    def filesystem(self, address: str) -> tuple[Any, str]:
        """Return pyarrow's file system of an address, and its name there."""
        from pyarrow import fs

        scheme, _, path = address.partition("://")
        options = {key.lower(): value for key, value in (self.storage_options or {}).items()}
        ends = None
        if callable(self.credential_provider):
            given, ends = self.credential_provider()
            options |= {key.lower(): value for key, value in given.items()}
        if scheme in _S3:
            return fs.S3FileSystem(**_s3(options)), path
        if scheme in _GOOGLE:
            return fs.GcsFileSystem(**_google(options, ends)), path
        if scheme in _AZURE:
            return fs.AzureFileSystem(**_azure(options)), path
        raise UsageError(f"{address}: it can be read, and not listed or written to")

    def is_known(self, address: str) -> bool:
        """Return whether what lies there can be listed and written to."""
        return address.partition("://")[0] in (*_S3, *_GOOGLE, *_AZURE)

    def find(self, address: str) -> tuple[str, list[str]]:
        """List what an address (an object, a folder or a glob) can mean.

        Return the folder that was listed (empty for one object), and all objects in it, at any
        depth and in no order. Of a glob it is the folder before the first wildcard.
        """
        from pyarrow import fs

        system, path = self.filesystem(address)
        scheme = address.partition("://")[0]
        magic = _MAGIC.search(path)
        root = path if magic is None else path[: path.rfind("/", 0, magic.start())]
        if magic is None:
            found = system.get_file_info(path)
            if found.type == fs.FileType.File:
                return "", [address]
        listed = system.get_file_info(
            fs.FileSelector(root.rstrip("/"), recursive=True, allow_not_found=True)
        )
        files = (each.path for each in listed if each.type == fs.FileType.File)
        return f"{scheme}://{root}", [f"{scheme}://{file}" for file in files]

    def identities(self, addresses: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Return what tells whether objects changed; empty for one that is gone."""
        by_scheme: dict[str, list[str]] = {}
        for address in addresses:
            by_scheme.setdefault(address.partition("://")[0], []).append(address)
        found: dict[str, tuple[int, ...]] = {}
        for some in by_scheme.values():
            system, _ = self.filesystem(some[0])
            infos = system.get_file_info([address.partition("://")[2] for address in some])
            for address, info in zip(some, infos, strict=True):
                found[address] = (info.size or 0, info.mtime_ns or 0) if info.is_file else ()
        return found

    def identity(self, address: str) -> tuple[int, ...]:
        """Return what tells whether an object changed; empty if it is gone."""
        return self.identities([address])[address]


LOCAL: Final = Access()
"""As the environment says."""


def glob_regex(pattern: str) -> str:
    """Return a glob as a regular expression; `**/` stands for any number of folders."""
    made = []
    for part in re.findall(r"\*\*/|\*\*|\*|\?|\[[^]]+\]|[^*?\[]+|\[", pattern):
        known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part)
        is_set = part.startswith("[") and part.endswith("]")
        made.append(known or (part.replace("[!", "[^", 1) if is_set else re.escape(part)))
    return "".join(made)


def _first(options: Mapping[str, Any], *names: str) -> Any:
    return next((options[name] for name in names if options.get(name) is not None), None)


def _some(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _s3(options: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key.removeprefix("aws_"): value for key, value in options.items()}
    environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = _first(plain, "endpoint_url", "endpoint") or environment
    return _some(
        access_key=_first(plain, "access_key_id"),
        secret_key=_first(plain, "secret_access_key"),
        session_token=_first(plain, "session_token", "token"),
        region=_first(plain, "region", "default_region"),
        endpoint_override=endpoint,
        anonymous=True if str(plain.get("skip_signature")).lower() == "true" else None,
    )


def _google(options: Mapping[str, Any], ends: int | None) -> dict[str, Any]:
    token = _first(options, "bearer_token")
    if token is None:
        return {}
    from datetime import UTC, datetime

    last = datetime.max.replace(tzinfo=UTC) if ends is None else datetime.fromtimestamp(ends, UTC)
    return {"access_token": token, "credential_token_expiration": last}


def _azure(options: Mapping[str, Any]) -> dict[str, Any]:
    plain = {
        key.removeprefix("azure_").removeprefix("storage_"): value for key, value in options.items()
    }
    return _some(
        account_name=_first(plain, "account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME"),
        account_key=_first(plain, "account_key", "access_key"),
        sas_token=_first(plain, "sas_token", "sas_key"),
    )
