"""A cluster that runs already: its address or its file, and its certificates."""

from __future__ import annotations

import os
import time
from typing import Any

from distributed import Client, Security

from nmf_dask.config import ClusterSettings
from nmf_dask.errors import ConfigurationError, RetryableError

CONNECT_SECONDS = 30


def connect(settings: ClusterSettings) -> Client:
    """A client of the scheduler that settings name."""
    scheduler = settings.scheduler or ""
    given: dict[str, Any] = {"address": scheduler}
    if "://" not in scheduler and ":" not in scheduler:
        if not os.path.exists(scheduler):
            _wait_for_file(scheduler)
        given = {"scheduler_file": scheduler}
    try:
        return Client(**given, **_security(settings), timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError) as error:
        raise RetryableError(
            f"no Dask scheduler answers at {scheduler} ({type(error).__name__} after {CONNECT_SECONDS} s): check the "
            "address, and that it runs; one with TLS answers tls:// addresses and known certificates alone (--tls-ca, "
            "--tls-cert, --tls-key)"
        ) from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigurationError(
            f"{scheduler!r} is no address of a Dask scheduler, nor its file, or TLS is not set up for it: {error}"
        ) from error


def _security(settings: ClusterSettings) -> dict[str, Any]:
    """What the client needs to know of TLS, where the settings say it; Dask's own configuration holds otherwise."""
    if settings.tls_ca is None or settings.tls_cert is None or settings.tls_key is None:
        return {}
    security = Security(
        require_encryption=True,
        tls_ca_file=settings.tls_ca,
        tls_client_cert=settings.tls_cert,
        tls_client_key=settings.tls_key,
    )
    try:
        security.get_connection_args("client")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join((settings.tls_ca, settings.tls_cert, settings.tls_key))
        raise ConfigurationError(
            f"the TLS files cannot be used ({error}): give PEM files that this process can read, found: {files}"
        ) from error
    return {"security": security}


def _wait_for_file(path: str) -> None:
    """A scheduler started at the same time as the job writes its file when it is up."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise RetryableError(
                f"the scheduler file {path} does not exist after {CONNECT_SECONDS} s: "
                "is the scheduler started with --scheduler-file, on a disk that is shared?"
            )
        time.sleep(0.2)
