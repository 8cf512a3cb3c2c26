"""Pairs for runs that meet with faults, and a store of objects."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from importlib.util import find_spec

import polars as pl
import pytest
from pyarrow import fs

from pair_tools import LOGPS, TOOLS
from process_tools import PATIENCE, until


@pytest.fixture
def source(tmp_path, real_pairs):
    path = tmp_path / "pairs.parquet"
    real_pairs.with_columns(
        policy_chosen_logps=pl.when(pl.int_range(pl.len()) == 7)
        .then(1.0)
        .otherwise("policy_chosen_logps")
    ).write_parquet(path)
    return path


@pytest.fixture
def large(tmp_path, real_pairs):
    path = tmp_path / "pairs.parquet"
    pl.concat([real_pairs] * 300).write_parquet(path, compression="uncompressed")
    return path


@pytest.fixture
def noisy(tmp_path):
    """Few pairs of many bytes: what comes of them is larger than a small disk."""
    path = tmp_path / "pairs.parquet"
    row = pl.int_range(20_000, dtype=pl.UInt64)
    noise = {name: -(row.hash(seed=i) / 2.0**60) for i, name in enumerate(LOGPS)}
    pl.select(**noise).write_parquet(path)
    return path


# Object stores


KEYS = {"aws_access_key_id": "one", "aws_secret_access_key": "two", "aws_region": "us-east-1"}


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=PATIENCE).close()  # noqa: S310
    except OSError:
        return False
    return True


SERVERS = {"small": [str(TOOLS / "store_tools.py")], "moto": ["-m", "moto.server", "-p"]}


# The calls of a store are those of the small server. Moto takes a second to import, and 14 of the
# 22 CPU seconds that these tests took with it.
@pytest.fixture(scope="module", params=["small", pytest.param("moto", marks=pytest.mark.slow)])
def address(request):
    if request.param == "moto" and find_spec("moto") is None:
        pytest.skip("moto is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, *SERVERS[request.param], str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: server.poll() is not None or answers(f"{url}/moto-api/"))
        assert server.poll() is None
        yield url
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def options(address):
    return {**KEYS, "aws_endpoint_url": address, "aws_allow_http": "true", "max_retries": 1}


@pytest.fixture
def how(options):
    """What calls are told; nothing of this machine's own credentials."""
    return {"storage_options": options, "credential_provider": None}


@pytest.fixture(scope="module")
def server(address):
    system = fs.S3FileSystem(
        access_key="one",
        secret_key="two",  # noqa: S106
        region="us-east-1",
        endpoint_override=address,
        allow_bucket_creation=True,
    )
    return Store(system, address)


@pytest.fixture
def store(server, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    if server.inputs is None or server.listed() != server.inputs:
        server.empty()
    return server


class Store:
    def __init__(self, system, address):
        self.system, self.address, self.inputs = system, address, None

    def empty(self):
        request = urllib.request.Request(f"{self.address}/moto-api/reset", method="POST")  # noqa: S310
        urllib.request.urlopen(request, timeout=PATIENCE).close()  # noqa: S310
        self.system.create_dir("bucket")
        self.inputs = None

    def listed(self):
        """Return what is there, with sizes and times."""
        found = self.system.get_file_info(fs.FileSelector("bucket", recursive=True))
        return {(each.path, each.size, each.mtime_ns) for each in found}

    def put(self, path, content):
        with self.system.open_output_stream(f"bucket/{path}") as file:
            file.write(content)

    def files(self, folder=""):
        """Return the bytes of all objects below a folder."""
        found = self.system.get_file_info(
            fs.FileSelector(f"bucket/{folder}", recursive=True, allow_not_found=True)
        )
        made = {}
        for each in found:
            if each.type == fs.FileType.File:
                with self.system.open_input_stream(each.path) as file:
                    name = each.path.removeprefix("bucket/").removeprefix(folder).strip("/")
                    made[name] = file.read()
        return made


@pytest.fixture
def both(store, real_pairs, tmp_path):
    """The same four files here and in the store, some pairs being invalid."""
    pairs = real_pairs.with_columns(
        policy_chosen_logps=pl.when(pl.int_range(pl.len()) % 100 == 3)
        .then(1.0)
        .otherwise("policy_chosen_logps")
    )
    here = tmp_path / "in"
    for i, name in enumerate(("a", "b", "deep/c", "deep/d")):
        path = here / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pairs[180 * i : 180 * (i + 1)].write_parquet(path, row_group_size=50)
    if store.inputs is None:  # else the test before left them as they were
        for path in here.rglob("*.parquet"):
            store.put(f"in/{path.relative_to(here)}", path.read_bytes())
        store.put("in/_notes", b"hidden")
        store.put("in/notes.txt", b"not Parquet")
        store.inputs = store.listed()
    return here
