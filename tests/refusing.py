"""What every refusal is: an error of ours, of a known code, with a remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from persistlib.errors import PersistlibError

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistlib.errors import Code


def refused(code: Code, call: Callable[[], object]) -> PersistlibError:
    with pytest.raises(PersistlibError) as caught:
        call()
    assert caught.value.code == code.identifier
    assert caught.value.remedy
    return caught.value
