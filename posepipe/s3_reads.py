"""Reads whole objects of S3 with a client that takes a quarter of s3fs's CPU time; what that one cannot read is left to s3fs."""

import datetime
import logging
import math
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from fsspec.asyn import sync

STRIKES = 128
"""So many objects in a row s3fs may read that the quick client could not, before that one is left alone; who stumbles costs fewer."""
CREDENTIALS_LAST = datetime.timedelta(minutes=10)  # botocore renews those that expire earlier
CONNECT, SILENCE, LONGEST = "10s", "30s", "300s"
OPENING, CLOSED = 30.0, 60.0
"""Seconds that it may take to find out how a bucket is reached, and in which that is not tried again after a failure."""
_KNOWN_OPTIONS = {"anon", "use_listings_cache"}
logger = logging.getLogger(__name__)
_AWS_HOST = re.compile(r"s3(\.[a-z0-9-]+)?\.amazonaws\.com")


class Bucket:
    """A bucket as s3fs reaches it: its endpoint, its credentials. May be used by several threads."""

    def __init__(self, filesystem: Any, name: str) -> None:
        self._filesystem, self._name = filesystem, name
        self._store: Any = None
        self._opens_at, self._why_closed = -math.inf, ""
        self._error: Exception | None = None
        self._lock = threading.Lock()
        # What else fsspec's configuration says (encryption, who pays, other keys) is s3fs's own.
        self._strikes = 0 if set(filesystem.storage_options) <= _KNOWN_OPTIONS else STRIKES

    def read(self, key: str, check_size: Callable[[int], None]) -> bytes | None:
        """The object's bytes, or None where s3fs has to be asked, whatever the reason.

        Args:
            key: of the object.
            check_size: called with its bytes before they are read; what it raises, this raises.
        """
        if self._strikes >= STRIKES:
            return None
        try:
            # It would read the object without this slash. Other keys that it has no name for it refuses.
            if key.startswith("/") or key.endswith("/"):
                raise ValueError(f"no name for {key!r}")
            found = self._open().get(key)
            size = found.meta["size"]
        except Exception as error:  # Its errors are others than those that `retrying` knows, which s3fs raises when it is asked next.
            self._error = error
            return None
        check_size(size)
        try:
            data = found.bytes().to_bytes()
        except Exception as error:  # as above
            self._error = error
            return None
        if len(data) != size:
            self._error = ConnectionError(f"{len(data)} of {size} bytes came")
            return None
        self._strikes = 0
        return data

    def count_strike(self) -> None:
        """s3fs has read what `read` could not."""
        self._strikes += 1
        if self._strikes == STRIKES:
            logger.warning("s3://%s is read by s3fs from here on, as obstore cannot: %s", self._name, self._error)

    def _open(self) -> Any:
        with self._lock:
            if self._store is None:
                if time.monotonic() < self._opens_at:
                    raise ConnectionError(self._why_closed)
                try:
                    self._store = self._build_store()
                except Exception as error:
                    self._opens_at, self._why_closed = time.monotonic() + CLOSED, f"{type(error).__name__}: {error}"
                    raise
        return self._store

    def _build_store(self) -> Any:
        from obstore.store import S3Store

        options = sync(self._filesystem.loop, find_options, self._filesystem, self._name, timeout=OPENING)
        if not self._filesystem.anon:
            options["credential_provider"] = self._credentials
        return S3Store(self._name, **options)

    def _credentials(self) -> dict[str, Any]:
        """Those of s3fs, in the client's words."""
        frozen = sync(self._filesystem.loop, _find_credentials, self._filesystem, timeout=OPENING)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.datetime.now(datetime.timezone.utc) + CREDENTIALS_LAST,
        }


def open_bucket(filesystem: Any, name: str) -> Bucket:
    """The one of this filesystem: connections and credentials are kept."""
    # Not by a cache of this module: filesystems with the same options are equal, whatever their environment was.
    return vars(filesystem).setdefault("_posepipe_buckets", {}).setdefault(name, Bucket(filesystem, name))


async def find_options(filesystem: Any, bucket: str) -> dict[str, Any]:
    """Arguments of obstore's S3Store that reach what s3fs reaches."""
    client = await filesystem.set_session()
    endpoint, region = client.meta.endpoint_url, client.meta.region_name
    options: dict[str, Any] = {
        "skip_signature": bool(filesystem.anon),
        # What fails is tried again where all faults of the storage are.
        "retry_config": {"max_retries": 0},
        "client_options": {"connect_timeout": CONNECT, "read_timeout": SILENCE, "timeout": LONGEST},
    }
    if bundle := filesystem.session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE"):
        with open(bundle, "rb") as file:
            options["client_options"]["root_certificate"] = file.read()
    address = urllib.parse.urlsplit(endpoint)
    if _AWS_HOST.fullmatch(address.hostname or ""):
        # s3fs follows a bucket to its region, this client does not.
        return options | {"region": await _find_region(client, bucket) or region, "virtual_hosted_style_request": "." not in bucket}
    options["client_options"]["allow_http"] = address.scheme == "http"
    return options | {"endpoint": endpoint, "region": region}


async def _find_region(client: Any, bucket: str) -> str | None:
    from botocore.exceptions import ClientError

    try:
        answer = await client.head_bucket(Bucket=bucket)
    except ClientError as error:  # who may read objects need not be allowed to ask this, and is told all the same
        answer = error.response
    return answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")


async def _find_credentials(filesystem: Any) -> Any:
    credentials = await filesystem.session.get_credentials()
    return await credentials.get_frozen_credentials()
