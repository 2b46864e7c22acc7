# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytes and the text of file capabilities, held against linux/capability.h and libcap's own tools."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.hostnet.qemu.plugins.module_utils import filecaps
from ansible_collections.hostnet.qemu.plugins.module_utils.filecaps import FileCapabilities
from hypothesis import example, given, settings
from hypothesis import strategies as st

NET_ADMIN = 1 << 12
NET_RAW = 1 << 13
CHECKPOINT_RESTORE = 1 << 40

# One process of libcap per example: a few hundred are what a unit test may cost.
WITH_LIBCAP = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("filecaps") / "program"
    path.write_bytes(b"\x7fELF")
    yield path


def getcap(path: Path) -> str:
    """What getcap prints after the path; -n adds the rootid."""
    printed = subprocess.run(["getcap", "-n", path], check=True, capture_output=True, text=True).stdout
    return printed.rstrip("\n").removeprefix(str(path)).lstrip()


def setcap(text: str, path: Path) -> bool:
    """Whether setcap took the text."""
    return subprocess.run(["setcap", text, path], check=False, capture_output=True).returncode == 0


def test_libcap_knows_every_name_by_the_same_number(file: Path) -> None:
    for number, name in enumerate(filecaps.NAMES):
        assert setcap(f"{name}=p", file)
        assert filecaps.decode(os.getxattr(file, filecaps.XATTR_NAME_CAPS)).permitted == 1 << number


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("01000001 00100000 00200000", FileCapabilities(NET_ADMIN, NET_RAW, True)),
        ("00000002 00100000 00000000 00000000 00000000", FileCapabilities(NET_ADMIN, 0, False)),
        ("01000002 00100000 00000000 00000000 00000000", FileCapabilities(NET_ADMIN, 0, True)),
        ("00000002 00000000 00000000 00010000 00000000", FileCapabilities(CHECKPOINT_RESTORE, 0, False)),
        ("00000002 00000000 00000000 00000000 00010000", FileCapabilities(0, CHECKPOINT_RESTORE, False)),
        ("01000003 00100000 00000000 00000000 00000000 e8030000", FileCapabilities(NET_ADMIN, 0, True, 1000)),
        ("01000002 00000000 00000000 00000000 00000000", FileCapabilities(0, 0, False)),
    ],
)
def test_decodes_every_revision(raw: str, expected: FileCapabilities) -> None:
    assert filecaps.decode(bytes.fromhex(raw)) == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\x00\x00",
        struct.pack("<3I", 0x02000000, 0, 0),
        struct.pack("<5I", 0x03000000, 0, 0, 0, 0),
        struct.pack("<6I", 0x02000000, 0, 0, 0, 0, 0),
        struct.pack("<5I", 0x04000000, 0, 0, 0, 0),
        struct.pack("<5I", 0x02000002, 0, 0, 0, 0),
        struct.pack(">5I", 0x02000000, 0, 0, 0, 0),
    ],
)
def test_refuses_bytes_of_no_revision(raw: bytes) -> None:
    with pytest.raises(ValueError, match="no vfs_cap_data"):
        filecaps.decode(raw)


few = st.sets(st.integers(0, 40), max_size=6).map(lambda bits: sum(1 << bit for bit in bits))
masks = st.integers(0, 2**64 - 1) | few


@st.composite
def capabilities(draw: st.DrawFn) -> FileCapabilities:
    permitted, inheritable = draw(masks), draw(masks)
    effective = draw(st.booleans()) and bool(permitted | inheritable)
    return FileCapabilities(permitted, inheritable, effective, draw(st.sampled_from([0, 0, 1000, 2**32 - 2])))


@given(capabilities())
def test_what_is_encoded_decodes_to_itself(value: FileCapabilities) -> None:
    assert filecaps.decode(filecaps.encode(value)) == value


@WITH_LIBCAP
@given(permitted=few, inheritable=few, effective=st.booleans(), rootid=st.sampled_from([0, 1000]))
@example(permitted=NET_ADMIN, inheritable=0, effective=False, rootid=0)
@example(permitted=NET_ADMIN | CHECKPOINT_RESTORE, inheritable=NET_RAW | NET_ADMIN, effective=True, rootid=0)
@example(permitted=0, inheritable=0, effective=False, rootid=0)
def test_getcap_reads_what_we_write_and_prints_it_as_we_do(
    file: Path, permitted: int, inheritable: int, effective: bool, rootid: int
) -> None:
    value = FileCapabilities(permitted, inheritable, effective and bool(permitted | inheritable), rootid)
    os.setxattr(file, filecaps.XATTR_NAME_CAPS, filecaps.encode(value))
    assert getcap(file) == filecaps.render(value)
    assert filecaps.decode(os.getxattr(file, filecaps.XATTR_NAME_CAPS)) == value


names = st.sampled_from(["cap_net_admin", "cap_net_raw", "CAP_Chown", "cap_checkpoint_restore"])
name_lists = st.lists(names, min_size=1, max_size=3).map(",".join)
operations = st.tuples(st.sampled_from("=+"), st.text("eip", max_size=3)).map("".join)
clauses = st.tuples(name_lists, operations, st.just("") | operations).map("".join)
texts = st.lists(clauses | st.just("="), min_size=1, max_size=4).map(" ".join)


@WITH_LIBCAP
@given(text=texts)
@example("cap_net_admin=p")
@example("cap_net_admin=ep cap_net_raw=p")
@example("cap_net_admin=p cap_net_admin=i")
@example("cap_net_admin=+p")
@example("cap_net_admin+p=i")
@example("cap_net_admin=ep = cap_net_raw+i")
def test_a_text_means_what_setcap_makes_of_it(file: Path, text: str) -> None:
    try:
        ours = filecaps.parse(text)
    except ValueError as error:
        # The one text of this alphabet that libcap takes and we don't: an effective bit for nothing that is lent.
        assert "means nothing without" in str(error) or not setcap(text, file)
        return
    assert setcap(text, file)
    assert filecaps.decode(os.getxattr(file, filecaps.XATTR_NAME_CAPS)) == ours


@WITH_LIBCAP
@given(text=st.text("capnetdmirw_,=+- ", max_size=30) | st.text("pei=+- \tcap_kill,", max_size=16))
@example("cap_net_admin=p,cap_net_raw=p")
@example("cap_net_admin, cap_net_raw=p")
@example("cap_net_admin,=p")
@example("cap_net_admin+")
def test_what_we_take_setcap_takes_too(file: Path, text: str) -> None:
    try:
        ours = filecaps.parse(text)
    except ValueError:
        return
    assert setcap(text, file)
    assert filecaps.decode(os.getxattr(file, filecaps.XATTR_NAME_CAPS)) == ours


@given(permitted=few, inheritable=few, effective=st.booleans())
def test_what_is_rendered_parses_to_itself(permitted: int, inheritable: int, effective: bool) -> None:
    value = FileCapabilities(permitted, inheritable, effective and bool(permitted | inheritable))
    assert filecaps.parse(filecaps.render(value)) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no capabilities given"),
        (" \t", "no capabilities given"),
        ("cap_net_admin", "not of the form"),
        ("cap_net_admin=x", "not of the form"),
        ("cap_net_admin-p", "not of the form"),
        ("cap_net_admin=p;cap_net_raw=p", "not of the form"),
        ("cap_net_admin+", "not of the form"),
        ("=ep", "name the capabilities"),
        ("all=p", "name the capabilities"),
        ("cap_net_admin,all=p", "name the capabilities"),
        ("12=p", "unknown capability '12'; known are cap_chown, .*, cap_checkpoint_restore"),
        ("net_admin=p", "unknown capability 'net_admin'"),
        ("cap_net_admin,=p", "unknown capability ''"),
        ("cap_net_admin=e", "cap_net_admin: on a file, effective .* means nothing"),
        ("cap_net_admin=ep cap_net_raw=p", "set for cap_net_admin, not for cap_net_raw"),
        ("cap_net_admin=ep cap_net_raw=i", "set for cap_net_admin, not for cap_net_raw"),
    ],
)
def test_says_what_is_wrong_with_a_text(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        filecaps.parse(text)


def test_renders_what_has_no_name_by_number_and_nothing_as_nothing() -> None:
    assert filecaps.render(FileCapabilities(1 << 63 | NET_ADMIN, 0, False)) == "cap_net_admin,63=p"
    assert filecaps.render(None) == ""
    assert filecaps.render(FileCapabilities(0, 0, False)) == "="
