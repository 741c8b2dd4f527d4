"""One error family: every fault is data with a stable code, one printable line and a remedy."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistlib import errors
from persistlib.errors import (
    Code,
    Finding,
    PersistlibError,
    PersistlibWarning,
    Severity,
    error,
    error_of,
    family_of,
    finding,
    missing_extra,
    printable,
    warn,
)

EVERY = pytest.mark.parametrize("code", Code)


def subclasses(kind: type[PersistlibError]) -> set[type[PersistlibError]]:
    below = set(kind.__subclasses__())
    return below.union(*map(subclasses, below)) if below else below


def test_identifiers_are_unique_and_well_formed() -> None:
    identifiers = [code.identifier for code in Code.__members__.values()]
    assert len(set(identifiers)) == len(identifiers) == len(Code)
    assert all(re.fullmatch(r"PL[1-9][0-9]{2}", identifier) for identifier in identifiers)


@EVERY
def test_a_code_makes_an_error_of_its_class(code: Code) -> None:
    fault = error(code, "here", "seen", "do this")
    assert type(fault) is code.family is family_of(code.identifier)
    assert (fault.code, fault.location, fault.reason, fault.remedy) == (
        *(code.identifier, "here", "seen", "do this"),
    )
    assert str(fault) == f"{code.identifier} here: seen | do this"
    assert code.title[0].islower() or code.title.split()[0].isupper()


def test_every_error_class_has_a_code() -> None:
    assert subclasses(PersistlibError) - {code.family for code in Code} == set()


@EVERY
def test_an_error_is_copied_whole_as_the_way_between_processes_does(code: Code) -> None:
    fault = error_of([finding(code, "a", "b"), finding(Code.USAGE, "c", "d")])
    for other in (copy.copy(fault), copy.deepcopy(fault)):
        assert type(other) is type(fault)
        assert other.findings == fault.findings
        assert str(other) == f"{code.identifier} a: b (and 1 more)"


@given(st.text(), st.text(), st.text())
def test_whatever_a_file_says_is_printed_on_one_plain_line(
    location: str, reason: str, remedy: str
) -> None:
    fault = error(Code.FORMAT_NAME, location, reason, remedy)
    assert str(fault).isprintable()
    str(fault).encode()


@given(st.text(st.characters(exclude_categories=["C", "Z"])))
def test_printable_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_what_would_drive_a_terminal_is_escaped() -> None:
    assert printable("\x1b[2J\r\n\u202e\ud800\u2028") == "\\x1b[2J\\r\\n\\u202e\\ud800\\u2028"


def test_the_first_error_decides_and_notes_do_not_count() -> None:
    found = [
        finding(Code.PACKAGE_DRIFT, "a", "b", severity=Severity.WARNING),
        finding(Code.FILE_SIZE, "c", "d"),
        finding(Code.MANIFEST_FIELD, "e", "f"),
        finding(Code.USAGE, "g", "h", severity=Severity.NOTE),
    ]
    fault = error_of(found)
    assert type(fault) is Code.FILE_SIZE.family
    assert fault.findings == (found[1], found[2])
    assert fault.finding == found[1]
    with pytest.raises(ValueError, match="no finding"):
        error_of([found[0], found[3]])


def test_a_finding_is_a_frozen_value_that_becomes_json() -> None:
    one = finding(Code.FILE_SIZE, "c", "d", "e")
    assert one == Finding("PL112", "error", "c", "d", "e")
    assert one.to_dict() == {
        "code": "PL112",
        "severity": "error",
        "location": "c",
        "message": "d",
        "remedy": "e",
    }
    assert hash(one) == hash(copy.deepcopy(one))
    with pytest.raises(AttributeError):
        one.code = "PL000"  # type: ignore[misc]


def test_a_warning_carries_its_finding() -> None:
    with pytest.warns(PersistlibWarning) as caught:
        warn(Code.LOCK_TAKEN_OVER, "here", "seen\n")
    [record] = caught
    assert isinstance(record.message, PersistlibWarning)
    assert record.message.finding == Finding("PL409", "warning", "here", "seen\\n")
    assert str(record.message) == "PL409 here: seen\\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.PersistlibWarning)
        with pytest.raises(PersistlibWarning):
            warn(Code.LOCK_TAKEN_OVER, "here", "seen")


def test_a_missing_package_names_the_extra_to_install() -> None:
    fault = missing_extra("keras", "keras", "reading .keras files")
    assert isinstance(fault, errors.MissingExtra)
    assert fault.remedy == "pip install 'persistlib[keras]'"
