#!/usr/bin/python
# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module hostnet.qemu.file_capabilities: what a file lends to whoever executes it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: file_capabilities
short_description: Set or remove the capabilities of a file
version_added: 1.0.0
description:
  - Gives a file exactly the capabilities named, or takes all of them away, see C(capabilities(7)).
  - Works on the extended attribute C(security.capability) itself, so the host needs no C(setcap), and compares what the
    attribute means, so that a second run changes nothing however the capabilities were spelled.
extends_documentation_fragment:
  - hostnet.qemu.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  path:
    description:
      - The absolute path of a regular file.
      - A symbolic link is refused, as C(setcap) refuses it; name the file that it leads to.
      - Where the file is missing, V(present) fails and V(absent) has nothing to do. In check mode V(present) warns and
        reports a change, as an earlier task would make the file.
    type: path
    required: true
  capabilities:
    description:
      - The whole set that the file shall have, in the notation of C(cap_from_text(3)) and C(getcap(8)), such as
        V(cap_net_admin=p) or V(cap_net_admin,cap_net_raw=ep). Several clauses are separated by blanks.
      - The flags are V(p) (permitted), V(i) (inheritable) and V(e) (effective). A file has one effective bit for all
        that it lends, so V(e) goes to all of its capabilities or to none.
      - Capabilities are given by name. V(all) and numbers, which are not the same on every kernel, are refused.
      - V(=) is the empty set. It is not the same as none, since it takes from a program that is set-user-ID root the
        capabilities that it would gain.
      - Required if O(state=present), refused if O(state=absent).
    type: str
  state:
    description:
      - V(present) sets O(capabilities) in place of any that the file has.
      - V(absent) removes all capabilities from the file.
    type: str
    choices: [present, absent]
    default: present
notes:
  - A file loses its capabilities whenever it is written or its owner changes, so set them after the tasks that do so.
  - The task needs CAP_SETFCAP over the file, which root has.
  - Capabilities that were set for the root of another user namespace (C(getcap -n) shows a rootid) never equal those of
    O(capabilities), and are replaced.
  - The kernel ignores capabilities on a C(#!) script and on a file system mounted C(nosuid). The module sets them there
    too, and warns.
seealso:
  - name: capabilities(7)
    description: What capabilities are, and what execve does with those of a file.
    link: https://man7.org/linux/man-pages/man7/capabilities.7.html
  - name: cap_from_text(3)
    description: The notation.
    link: https://man7.org/linux/man-pages/man3/cap_from_text.3.html
author:
  - The hostnet.qemu authors (@hostnet)
"""

EXAMPLES = r"""
- name: Let the launcher of the bridge helper take CAP_NET_ADMIN
  hostnet.qemu.file_capabilities:
    path: /usr/local/libexec/qemu-bridge-helper
    capabilities: cap_net_admin=p

- name: Let a web server listen on ports below 1024 without being root
  hostnet.qemu.file_capabilities:
    path: /opt/web/bin/server
    capabilities: cap_net_bind_service=ep

- name: Two capabilities with different flags
  hostnet.qemu.file_capabilities:
    path: /opt/monitor/bin/probe
    capabilities: cap_net_raw=p cap_sys_ptrace=i

- name: Take all capabilities from a program
  hostnet.qemu.file_capabilities:
    path: /usr/bin/ping
    state: absent
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
  sample: /usr/local/libexec/qemu-bridge-helper
capabilities:
  description:
    - The capabilities that the file has now, in check mode those it would have, as C(getcap) of libcap 2.41 and newer
      prints them.
    - Empty where it has none.
  returned: success
  type: str
  sample: cap_net_admin=p
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.hostnet.qemu.plugins.module_utils import filecaps
from ansible_collections.hostnet.qemu.plugins.module_utils.filecaps import FileCapabilities

_WAYS_OUT = {
    errno.EACCES: "run the task with become: true, or let its user walk the directories above the file",
    errno.EPERM: "this needs CAP_SETFCAP (run the task with become: true) and a file that is not immutable (lsattr)",
    errno.EROFS: "its file system is mounted read-only; mount it read-write first",
    errno.ENOTSUP: "its file system keeps no such attributes; put the file on ext4, XFS, Btrfs or tmpfs",
    errno.EOVERFLOW: "they are for a user namespace that has no name in this one; run the task outside of it",
}


class Refusal(Exception):
    """The task can't be done; the message is a sentence for its reader."""


class Unsupported(Refusal):
    """The file system keeps no `security.*` attributes."""


def refusal(operation: str, path: str, error: OSError) -> Refusal:
    """Say which operation failed on which file, with the errno's name and a way out where one is known."""
    number = error.errno or 0
    name = errno.errorcode.get(number, str(number))
    way_out = _WAYS_OUT.get(number)
    kind = Unsupported if number == errno.ENOTSUP else Refusal
    return kind(f"Cannot {operation} {path}: {error.strerror} ({name})" + (f"; {way_out}" if way_out else "") + ".")


@contextmanager
def opened(path: str) -> Iterator[File]:
    """A regular file; FileNotFoundError where there is none, Refusal where it is something else."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refusal("open", path, error) from error
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISLNK(mode):
            raise Refusal(f"{path} is a symbolic link to {os.readlink('', dir_fd=fd)}; name the file that it leads to.")
        if not stat.S_ISREG(mode):
            raise Refusal(f"{path} is not a regular file ({stat.filemode(mode)}); capabilities belong to programs.")
        yield File(path, fd)
    finally:
        os.close(fd)


class File:
    """A regular file, held by a descriptor: what was judged is what gets changed, wherever its name leads next."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        # xattr calls don't take an O_PATH descriptor, but its link in /proc leads to the same file.
        self._handle = f"/proc/self/fd/{fd}"

    def read(self) -> FileCapabilities | None:
        """The capabilities of the file, None if it has none; Unsupported where it could have none."""
        try:
            return filecaps.decode(os.getxattr(self._handle, filecaps.XATTR_NAME_CAPS))
        except OSError as error:
            if error.errno == errno.ENODATA:
                return None
            raise refusal("read the capabilities of", self.path, error) from error
        except ValueError as error:
            raise Refusal(f"Cannot read the capabilities of {self.path}: {error}.") from error

    def write(self, wanted: FileCapabilities | None) -> None:
        """Give the file these capabilities, None for none, and see that the kernel stored them."""
        try:
            if wanted is None:
                os.removexattr(self._handle, filecaps.XATTR_NAME_CAPS)
            else:
                os.setxattr(self._handle, filecaps.XATTR_NAME_CAPS, filecaps.encode(wanted))
        except OSError as error:
            raise refusal(
                "remove the capabilities of" if wanted is None else "set the capabilities of", self.path, error
            ) from error
        stored = self.read()
        if stored != wanted:
            raise Refusal(
                f"The kernel took the capabilities {filecaps.render(wanted)!r} for {self.path}, but reads back "
                f"{filecaps.render(stored)!r}; something else may be writing the file."
            )

    def without_effect(self) -> list[str]:
        """Why the kernel would not honour capabilities of this file, one sentence for each reason."""
        reasons = []
        if os.statvfs(self._handle).f_flag & os.ST_NOSUID:
            reasons.append(f"{self.path} is on a file system mounted nosuid, where the kernel ignores capabilities.")
        try:
            with open(self._handle, "rb") as file:
                if file.read(2) == b"#!":
                    reasons.append(f"{self.path} is a #! script, and the kernel ignores the capabilities of scripts.")
        except OSError:
            pass  # Capabilities may be set on what may not be read; this is but a hint.
        return reasons


def wanted_capabilities(text: str) -> FileCapabilities:
    """Read the option; Refusal where it is wrong or names what this kernel doesn't know (and would ignore)."""
    try:
        wanted = filecaps.parse(text)
    except ValueError as error:
        raise Refusal(f"capabilities: {error}.") from error
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    unknown = [filecaps.name_of(number) for number in range(last + 1, len(filecaps.NAMES)) if wanted.all >> number & 1]
    if unknown:
        raise Refusal(
            f"capabilities: this kernel ({os.uname().release}) does not know {', '.join(unknown)}; its last one is "
            f"{filecaps.name_of(last)}."
        )
    return wanted


def bring(file: File, wanted: FileCapabilities | None, module: AnsibleModule) -> FileCapabilities | None:
    """Give the file the capabilities wanted, unless in check mode, and return those it had."""
    try:
        current = file.read()
    except Unsupported:
        if wanted is not None:
            raise
        return None
    if current != wanted and not module.check_mode:
        file.write(wanted)
    if wanted is not None and wanted.all:
        for reason in file.without_effect():
            module.warn(reason)
    return current


def run(module: AnsibleModule) -> dict[str, object]:
    """Bring the file to the state asked for and return the module's result."""
    path = module.params["path"]
    wanted = wanted_capabilities(module.params["capabilities"]) if module.params["state"] == "present" else None
    if not os.path.isabs(path) or "\0" in path:
        raise Refusal(f"path: {path!r} is not an absolute path.")
    current = None
    try:
        with opened(path) as file:
            current = bring(file, wanted, module)
    except FileNotFoundError as error:
        if wanted is not None and not module.check_mode:
            raise refusal("set the capabilities of", path, error) from error
        if wanted is not None:
            module.warn(f"{path} does not exist; this task fails unless an earlier one makes it.")
    return {
        "changed": current != wanted,
        "path": path,
        "capabilities": filecaps.render(wanted),
        "diff": {
            "before": {"path": path, "capabilities": filecaps.render(current)},
            "after": {"path": path, "capabilities": filecaps.render(wanted)},
        },
    }


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "capabilities": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("capabilities",))],
        supports_check_mode=True,
    )
    if module.params["state"] == "absent" and module.params["capabilities"] is not None:
        module.fail_json(msg="capabilities: state absent removes all capabilities of the file; leave this option out.")
    try:
        result = run(module)
    except Refusal as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
