"""A small S3 on loopback: what Polars and pyarrow ask of a store, kept in memory.

python store_tools.py PORT

It answers as S3's documents say, and what it does not know with 501. The slow suite has the same
tests run against moto, which is fifty times as large.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import sys
import threading
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

OBJECTS: dict[str, tuple[bytes, datetime]] = {}  # by bucket/key
BUCKETS: set[str] = set()
UPLOADS: dict[str, dict[int, bytes]] = {}
NUMBERS = itertools.count()
LOCK = threading.Lock()
RESET = "/moto-api/reset"


def etag(content):
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def element(name, *content):
    return f"<{name}>{''.join(content)}</{name}>"


def leaf(name, text):
    return element(name, escape(str(text)))


def listed(key, content, changed):
    return element(
        "Contents",
        leaf("Key", key),
        leaf("LastModified", f"{changed:%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"),
        leaf("ETag", etag(content)),
        leaf("Size", len(content)),
        leaf("StorageClass", "STANDARD"),
    )


def chunks(file):
    """Return what comes in chunks that have their sizes before them, until one of none."""
    found = []
    while size := int(file.readline().split(b";")[0], 16):
        found.append(file.read(size))
        file.readline()
    while file.readline().strip():  # checksums
        pass
    return b"".join(found)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_):
        pass

    def handle_expect_100(self):
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def answer(self, status, body=b"", **headers):
        if isinstance(body, str):
            body = b'<?xml version="1.0" encoding="UTF-8"?>' + body.encode()
            headers["Content-Type"] = "application/xml"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status, code):
        self.answer(status, element("Error", leaf("Code", code), leaf("Message", code)))

    def handle_one(self):
        url = urlsplit(self.path)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = chunks(self.rfile)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            body = chunks(BytesIO(body))
        place, query = unquote(url.path), dict(parse_qsl(url.query, keep_blank_values=True))
        bucket, _, key = place[1:].partition("/")
        with LOCK:
            if url.path.startswith("/moto-api/"):
                if url.path == RESET:
                    OBJECTS.clear(), BUCKETS.clear(), UPLOADS.clear()
                self.answer(200)
            elif key:
                self.of_object(f"{bucket}/{key}", query, body)
            else:
                self.of_bucket(bucket, query, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815

    def of_bucket(self, bucket, query, body):
        if self.command == "PUT" and not query:
            BUCKETS.add(bucket)
            self.answer(200)
        elif bucket not in BUCKETS:
            self.fail(404, "NoSuchBucket")
        elif self.command == "HEAD":
            self.answer(200)
        elif self.command == "GET" and query.get("list-type") == "2":
            self.list(bucket, query)
        elif self.command == "POST" and "delete" in query:
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for key in keys:
                OBJECTS.pop(f"{bucket}/{key}", None)
            self.answer(200, element("DeleteResult"))
        else:
            self.fail(501, "NotImplemented")

    def list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        most, found, folders = int(query.get("max-keys", 1000)), [], []
        truncated, last = "false", ""
        for place in sorted(OBJECTS):
            in_bucket, _, key = place.partition("/")
            if in_bucket != bucket or not key.startswith(prefix) or key <= after:
                continue
            head, is_folder, _ = key[len(prefix) :].partition(delimiter or "\0")
            folder = prefix + head + delimiter
            if is_folder and (folder in folders or after.startswith(folder)):
                continue
            if len(found) + len(folders) == most:
                truncated = "true"
                break
            last = key
            if is_folder:
                folders.append(folder)
            else:
                found.append(key)
        contents = [listed(key, *OBJECTS[f"{bucket}/{key}"]) for key in found]
        common = [element("CommonPrefixes", leaf("Prefix", each)) for each in folders]
        more = [leaf("NextContinuationToken", last)] if truncated == "true" else []
        facts = {
            "Name": bucket,
            "Prefix": prefix,
            "MaxKeys": most,
            "KeyCount": len(found) + len(folders),
            "IsTruncated": truncated,
        }
        told = [leaf(name, value) for name, value in facts.items()]
        self.answer(200, element("ListBucketResult", *told, *more, *contents, *common))

    def of_object(self, place, query, body):
        known = {"GET": self.get, "HEAD": self.get, "PUT": self.put, "POST": self.post}
        known.get(self.command, self.delete)(place, query, body)

    def get(self, place, query, _body):
        if query:
            self.fail(501, "NotImplemented")
        elif place in OBJECTS:
            self.give(*OBJECTS[place])
        else:
            self.fail(404, "NoSuchKey")

    def put(self, place, query, body):
        source = unquote(self.headers.get("x-amz-copy-source", "")).lstrip("/")
        if source and source in OBJECTS:
            self.keep(place, OBJECTS[source][0])
            self.answer(200, element("CopyObjectResult", leaf("ETag", etag(OBJECTS[place][0]))))
        elif source:
            self.fail(404, "NoSuchKey")
        elif "uploadId" in query:
            UPLOADS[query["uploadId"]][int(query["partNumber"])] = body
            self.answer(200, ETag=etag(body))
        elif set(query) <= {"x-id"}:
            self.keep(place, body)
            self.answer(200, ETag=etag(body))
        else:
            self.fail(501, "NotImplemented")

    def post(self, place, query, _body):
        if "uploads" in query:
            name = f"upload-{next(NUMBERS)}"
            UPLOADS[name] = {}
            self.answer(200, element("InitiateMultipartUploadResult", leaf("UploadId", name)))
        elif "uploadId" in query:
            parts = UPLOADS.pop(query["uploadId"])
            self.keep(place, b"".join(parts[number] for number in sorted(parts)))
            made = leaf("ETag", etag(OBJECTS[place][0]))
            self.answer(200, element("CompleteMultipartUploadResult", made))
        else:
            self.fail(501, "NotImplemented")

    def delete(self, place, query, _body):
        if "uploadId" in query:
            UPLOADS.pop(query["uploadId"], None)
        else:
            OBJECTS.pop(place, None)
        self.answer(204)

    def keep(self, place, content):
        OBJECTS[place] = content, datetime.now(UTC)

    def give(self, content, changed):
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        told = {
            "ETag": etag(content),
            "Last_Modified": format_datetime(changed, usegmt=True),
            "Accept_Ranges": "bytes",
            "Content_Type": "application/octet-stream",
        }
        if asked is None:
            self.answer(200, content, Content_Length=str(len(content)), **told)
            return
        first, last = asked.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            self.fail(416, "InvalidRange")
            return
        part = content[start:end]
        told["Content_Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self.answer(206, part, Content_Length=str(len(part)), **told)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
