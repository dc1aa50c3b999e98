"""Object stores: the file system of a URI, with keys and retries by the environment; what errors of stores mean.

A URI is written to files, logs and task graphs, so it holds no key: whoever uses it builds the file system anew.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from nmf_dask.errors import ConfigurationError, InputDataError, NmfDaskError, RetryableError

# Waits of 25 ms, 50 ms and so on: 13 s in all. More is for whoever runs the job again.
ATTEMPTS = 10
FIRST_WAIT = 0.025
T = TypeVar("T")
_SECRET_OPTION = re.compile(r"[^=&;?]*(?:key|secret|token|password|credential|\bsig)[^=&;?]*=", re.IGNORECASE)
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where there is one, AWS_SESSION_TOKEN",
    "abfs": "AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|NoSuchBucket|ContainerNotFound|bucket does not exist", re.IGNORECASE)
_REGION = re.compile(
    r"Looks like the configured region|PermanentRedirect|HTTP status 301|AuthorizationHeaderMalformed"
    r"|IllegalLocationConstraint"
)
_REGION_NAMED = re.compile(r"(?:located in|expecting) '([a-z0-9-]+)'")
_EXPIRED = re.compile(r"Expired_?Token|TokenRefreshRequired|token has expired", re.IGNORECASE)
_UNKNOWN_KEYS = re.compile(
    r"INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN|InvalidToken|UNAUTHENTICATED"
    r"|AuthenticationFailed|AuthorizationFailure|InvalidAuthenticationInfo|AuthenticationException"
    r"|credentials? .*(?:not found|unavailable)|HTTP status 401",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"ACCESS_DENIED|AccessDenied|HTTP status 403|Forbidden|PERMISSION_DENIED|AuthorizationPermissionMismatch"
    r"|\] 403 "
)
_UNEXPLAINED = re.compile(r"HTTP status 400\) during Head\w+ operation: No response body")
_BUSY = re.compile(
    r"SLOW_DOWN|SlowDown|THROTTLING|TooManyRequests|HTTP status (?:429|503)|ServerBusy|\] 503 "
)
_NO_ROOM = re.compile("Failed to flush response stream")
_CUT_OFF = re.compile("closed before getting full response")
_OPERATION = re.compile(r"during (\w+) operation")
# What a store calls the permission for the requests that are made here.
_PERMISSIONS = {
    "ListObjects": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "Head": "s3:GetObject",
    "Get": "s3:GetObject",
    "Put": "s3:PutObject",
    "CreateMultipart": "s3:PutObject",
    "Upload": "s3:PutObject",
    "Delete": "s3:DeleteObject",
}


def refuse_credentials(uri: str) -> None:
    """Raise ConfigurationError for a URI that carries a key, a password or a token; the message does not."""
    scheme, authority = scheme_of(uri), _authority(uri)
    user, _, host = authority.rpartition("@")
    port = host.partition(":")[2]
    # No bucket's name has a colon; and a secret with a slash ends what looks like the authority.
    is_key = ":" in user or (port and (scheme == "s3" or not port.isdecimal()))
    if is_key or _SECRET_OPTION.search(uri.partition("?")[2]):
        raise ConfigurationError(
            f"a URI of scheme {scheme}:// holds a key or password, and a URI is written to run.json, to logs and to "
            f"tasks. Put it into the environment ({_VARIABLES.get(scheme, 'as the store wants it')})"
        )


def _authority(uri: str) -> str:
    return uri.partition("://")[2].partition("/")[0].partition("?")[0]


def scheme_of(uri: str) -> str:
    """The scheme of a URI, of which some have more than one name."""
    scheme = uri.partition("://")[0].lower()
    return {"abfss": "abfs", "gcs": "gs"}.get(scheme, scheme)


def built(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI, and the path that the URI stands for on it.

    Keys come from the environment. Requests that fail for a reason that passes are made again, with growing waits:
    those to S3 at most AWS_MAX_ATTEMPTS times (10 unless set).

    Raises what pyarrow raises, and ConfigurationError for AWS_MAX_ATTEMPTS that is no number.
    """
    scheme = scheme_of(uri)
    if scheme == "abfs":
        handler, root = fs.FileSystem.from_uri(_with_account(uri))
        return _azure(handler), root
    handler, root = fs.FileSystem.from_uri(uri)
    return (_s3(handler) if scheme == "s3" else handler), root


def _s3(handler: fs.FileSystem) -> fs.FileSystem:
    """The same with retries that back off, which a URI cannot ask for.

    What the file system was made of is what it pickles. It holds keys only where its URI did.
    """
    _, (options,) = handler.__reduce__()
    if "allow_delayed_open" in options:  # pyarrow 20 and later: a small file is one request, not three
        options["allow_delayed_open"] = True
    text = os.environ.get("AWS_MAX_ATTEMPTS") or str(ATTEMPTS)
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(
            f"AWS_MAX_ATTEMPTS is {text!r}: write a number of attempts, such as {ATTEMPTS}"
        )
    # It counts what comes after the first.
    options["retry_strategy"] = fs.AwsDefaultS3RetryStrategy(max_attempts=int(text) - 1)
    return fs.S3FileSystem(**options)


def _with_account(uri: str) -> str:
    """abfs://container/path with the account of the environment, where the URI names none."""
    authority = _authority(uri)
    if re.search("[@.:]", authority):
        return uri
    account = os.environ.get("AZURE_STORAGE_ACCOUNT")
    if not account:
        raise ConfigurationError(
            f"{uri} names no storage account: set AZURE_STORAGE_ACCOUNT, or write "
            f"abfs://{authority}@ACCOUNT.dfs.core.windows.net/path"
        )
    return uri.replace("://", f"://{account}@", 1)


def _azure(handler: fs.FileSystem) -> fs.FileSystem:
    """The same with the key and the address that the environment holds, which a URI cannot or should not."""
    _, (options,) = handler.__reduce__()
    given: dict[str, Any] = {}
    if key := os.environ.get("AZURE_STORAGE_KEY"):
        given["account_key"] = key
    elif token := os.environ.get("AZURE_STORAGE_SAS_TOKEN"):
        given["sas_token"] = token if token.startswith("?") else f"?{token}"
    if endpoint := os.environ.get("AZURE_STORAGE_SERVICE_ENDPOINT"):
        address = urlsplit(endpoint)
        for kind in ("blob", "dfs"):
            given[f"{kind}_storage_authority"] = address.netloc
            given[f"{kind}_storage_scheme"] = address.scheme
    return fs.AzureFileSystem(**{**options, **given}) if given else handler


def patiently(read: Callable[[], T]) -> T:
    """What `read` returns; tried again where the store's answer was an error longer than the bytes that were asked for.

    Such an answer has no room where the bytes were to go. The client then does not see what it was, and does not ask
    again by itself. It is met by the small files of a model, such as LATEST.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return read()
        except OSError as error:
            if not _NO_ROOM.search(str(error)):
                raise
            time.sleep(FIRST_WAIT * 2**attempt)
    return read()


def understood(error: BaseException, what: str, uri: str) -> NmfDaskError | None:
    """The error to raise for one of an object store that tells what is wrong; None: it does not.

    `what` begins the message ("cannot read s3://bucket/key"); `uri` is the place that was spoken of.
    """
    if not isinstance(error, OSError | pa.ArrowException):
        return None
    text = str(error)
    scheme = scheme_of(uri)
    bucket = _bucket(uri)
    keys = f"Check {_VARIABLES.get(scheme, 'the credentials in the environment')}"
    if _NO_BUCKET.search(text):
        return without_bucket(what, uri)
    if _REGION.search(text):
        return InputDataError(f"{what}: {_elsewhere(text, bucket)}")
    if _EXPIRED.search(text):
        return InputDataError(
            f"{what}: the session token in the environment has expired. Get new credentials, and run the same "
            "command again: what was done before is not done again"
        )
    if _UNKNOWN_KEYS.search(text):
        return InputDataError(f"{what}: the store does not accept the credentials in the environment. {keys}")
    if _DENIED.search(text):
        return InputDataError(f"{what}: {_not_allowed(text, bucket)}")
    if _UNEXPLAINED.search(text):
        return InputDataError(
            f"{what}: the store refused without a reason (HTTP status 400), as it does where a session token has "
            f"expired or the region of bucket {bucket} is another. {keys}, and ?region= in the URI"
        )
    if _NO_ROOM.search(text):
        return RetryableError(
            f"{what}: the store found it, but did not hand it out in {ATTEMPTS} attempts. Look whether the credentials "
            "in the environment may read and decrypt it, and run the same command again"
        )
    if _BUSY.search(text):
        return RetryableError(
            f"{what}: the store is busy, and was after several attempts. Run the same command again later"
        )
    return None


def is_cut_off(error: BaseException) -> bool:
    """Whether the answer of a store ended before its end, so that nobody knows what it was.

    A store that refuses a request at once may hang up while the request is still on its way.
    """
    return isinstance(error, OSError) and _CUT_OFF.search(str(error)) is not None


def without_bucket(what: str, uri: str) -> InputDataError:
    """The error to raise where the bucket of a URI does not exist."""
    return InputDataError(f"{what}: there is no bucket {_bucket(uri)}. Create it, or mend its name")


def _bucket(uri: str) -> str:
    """The bucket or container of a URI; Azure has several ways to name one."""
    user, _, host = _authority(uri).rpartition("@")
    if ".dfs." in host and user:
        return user
    if scheme_of(uri) == "abfs" and re.search(
        "[.:]", host
    ):  # of a service, which stands before the container
        return uri.partition("://")[2].partition("/")[2].partition("/")[0].partition("?")[0]
    return host


def _elsewhere(text: str, bucket: str) -> str:
    named = _REGION_NAMED.search(text)
    region = named[1] if named is not None else "REGION"
    where = f"in region {region}" if named is not None else "in another region than the one asked"
    return f"bucket {bucket} is {where}. Write ?region={region} behind the URI, or set AWS_DEFAULT_REGION"


def _not_allowed(text: str, bucket: str) -> str:
    operation = _OPERATION.search(text)
    names = [
        permission
        for prefix, permission in _PERMISSIONS.items()
        if operation is not None and operation[1].startswith(prefix)
    ]
    allow = f"Allow them {names[0]}" if names else "Grant them access"
    return f"the credentials in the environment have no permission for that. {allow} in bucket {bucket}"
