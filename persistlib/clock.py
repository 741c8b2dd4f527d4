"""The time as files record it."""

from __future__ import annotations

import os
from datetime import datetime, timezone

from persistlib.errors import Code, error

_EPOCH = "SOURCE_DATE_EPOCH"  # https://reproducible-builds.org/specs/source-date-epoch/


def now() -> datetime:
    """Return the time in UTC: that of `SOURCE_DATE_EPOCH` where it is set.

    Raises:
        UsageError: the variable holds no number of seconds.
    """
    epoch = os.environ.get(_EPOCH)
    if not epoch:
        return datetime.now(timezone.utc)
    try:
        return datetime.fromtimestamp(int(epoch), timezone.utc)
    except (ValueError, OverflowError, OSError) as fault:
        remedy = "give whole seconds since 1970, or unset it"
        raise error(Code.USAGE, _EPOCH, f"{epoch!r} is no time", remedy) from fault


def timestamp() -> str:
    """Return the time as `created` holds it."""
    return now().strftime("%Y-%m-%dT%H:%M:%SZ")
