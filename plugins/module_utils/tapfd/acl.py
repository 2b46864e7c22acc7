# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read bridge.conf and decide who may have a tap on which bridge, and say why.

The grammar is that of QEMU's helper: `allow NAME`, `deny NAME`, `include PATH`, comment lines; `all` stands for every
bridge; what no rule allows is denied; a deny beats every allow, wherever it stands. One law: what is granted here,
QEMU's helper grants. Where QEMU's helper reads on over a doubt (a broken line in an included file, one that does not
open, a name that the kernel would cut), the policy is refused here, with file and line.

Files are opened with the rights of the caller: an included file that only some may read grants to those only.
"""

import errno
import posix

from .errors import Refusal, because, show

DEFAULT_POLICY = b"/etc/qemu/bridge.conf"

# fgets(line, 4096) of QEMU's helper takes the rest of a longer line for a line of its own.
MAX_LINE = 4094
MAX_SIZE = 1 << 20
MAX_FILES = 64
MAX_DEPTH = 8
# Of one path, as in the kernel (path_resolution(7)).
MAX_LINKS = 40

# <linux/if.h>: IFNAMSIZ less the final NUL
MAX_NAME = 15

# What QEMU's helper skips at either end of a line: g_ascii_isspace() less the newline. Not the vertical tab, 0x1c-0x1f
# or 0x85, which bytes.strip() or str.splitlines() would take too.
_BLANKS = b" \t\r\f"
_ALL = b"all"

# <sys/stat.h>
_S_IFMT = 0o170000
_S_IFDIR = 0o040000
_S_IFREG = 0o100000
_S_IFLNK = 0o120000
_S_ISVTX = 0o1000
_WRITABLE_BY_OTHERS = 0o022


class Decision:
    """Whether the bridge is granted, and why, as part of a sentence that names file and line."""

    def __init__(self, granted: bool, reason: str) -> None:
        self.granted = granted
        self.reason = reason


def name_fault(name: bytes) -> str:
    """Why `name` cannot be the name of a bridge, or an empty string where it can.

    The kernel's rule is dev_valid_name(), 1-15 bytes without `/`, `:` and blanks; `%` would be a template, and of the
    other bytes those below space and DEL would forge lines of a log.
    """
    if not name:
        return "it is empty"
    if len(name) > MAX_NAME:
        return f"it has {len(name)} bytes and an interface name at most {MAX_NAME}"
    if name in (b".", b".."):
        return "it names a directory"
    for byte in name:
        if byte <= 0x20 or byte == 0x7F:
            return f"it holds a blank or control byte (\\x{byte:02x})"
        if byte in b"/:%":
            return f"it holds `{chr(byte)}'"
    return ""


def decide(bridge: bytes, policy: bytes = DEFAULT_POLICY) -> Decision:
    """The decision of the policy file and all that it includes about `bridge`, at this moment and for this process.

    Raises Refusal where the policy can't be relied on: a file missing, unreadable, unsafe or with a faulty line. Of
    those, only an included file that the caller may not open (EACCES) is passed over.
    """
    reading = _Reading(bridge)
    reading.read(policy, 1, "")
    if reading.denied_by:
        return Decision(False, f"denied by {reading.denied_by}")
    if reading.allowed_by:
        return Decision(True, f"allowed by {reading.allowed_by}")
    reason = f"no `allow {show(bridge)}' and no `allow all' in {show(policy)} or what it includes"
    if reading.closed:
        reason += f" (closed to this user, so passed over: {', '.join(map(show, reading.closed))})"
    return Decision(False, reason)


class _Reading:
    """One walk through a policy: the first allow and the first deny that match, and what was passed over."""

    def __init__(self, bridge: bytes) -> None:
        self.allowed_by = ""
        self.denied_by = ""
        self.closed: list[bytes] = []
        self._matches = (bridge, _ALL)
        self._files = 0
        self._safe_directories: set[bytes] = set()

    def read(self, path: bytes, depth: int, included_at: str) -> None:
        """Read the file `path`, which the line `included_at` includes, and all that it includes in turn."""
        where = f"{included_at}: " if included_at else ""
        if depth > MAX_DEPTH:
            raise Refusal(f"{where}includes go more than {MAX_DEPTH} files deep, perhaps in a circle")
        self._files += 1
        if self._files > MAX_FILES:
            raise Refusal(f"{where}the policy has more than {MAX_FILES} files, perhaps in a circle")
        try:
            text = self._content(path)
        except OSError as error:
            if error.errno == errno.EACCES and included_at:
                self.closed.append(path)
                return
            raise Refusal(f"{where}cannot read `{show(path)}': {because(error)}") from None
        except Refusal as refusal:
            raise Refusal(f"{where}{refusal}") from None
        for number, line in enumerate(text.split(b"\n"), 1):
            self._rule(line, f"{show(path)}:{number}", depth)

    def _rule(self, line: bytes, where: str, depth: int) -> None:
        if len(line) > MAX_LINE:
            raise Refusal(f"{where}: the line has {len(line)} bytes, {MAX_LINE} at most")
        if b"\0" in line:
            raise Refusal(f"{where}: the line holds a NUL byte")
        line = line.lstrip(_BLANKS)
        if not line or line.startswith(b"#"):
            return
        # As in QEMU's helper: a tab parts command and name only where the line has no space, not even at its end.
        command, space, argument = line.partition(b" ")
        if not space:
            command, space, argument = line.partition(b"\t")
        argument = argument.strip(_BLANKS)
        if command not in (b"allow", b"deny", b"include"):
            raise Refusal(f"{where}: unknown command `{show(command)}', only `allow', `deny' and `include' are known")
        if not argument:
            raise Refusal(f"{where}: `{show(command)}' with nothing after it")
        if command == b"include":
            if not argument.startswith(b"/"):
                raise Refusal(f"{where}: `include {show(argument)}' is no absolute path")
            self.read(argument, depth + 1, where)
            return
        fault = name_fault(argument)
        if fault:
            raise Refusal(f"{where}: `{show(argument)}' is no bridge name: {fault}")
        if argument in self._matches:
            rule = f"{where} (`{show(command)} {show(argument)}')"
            if command == b"deny":
                self.denied_by = self.denied_by or rule
            else:
                self.allowed_by = self.allowed_by or rule

    def _content(self, path: bytes) -> bytes:
        """All bytes of a policy file that root alone could have written; OSError where the caller can't open it."""
        self._walk(path)
        # O_NONBLOCK: a fifo must not hold us; O_NOCTTY: a terminal must not become ours.
        flags = posix.O_RDONLY | posix.O_NONBLOCK | posix.O_NOCTTY | posix.O_CLOEXEC
        descriptor = posix.open(path, flags)
        try:
            status = posix.fstat(descriptor)
            if status.st_mode & _S_IFMT != _S_IFREG:
                raise Refusal(f"`{show(path)}' is no regular file")
            _require_root(path, status)
            if status.st_mode & _WRITABLE_BY_OTHERS:
                raise Refusal(f"`{show(path)}' is writable by group or others, `chmod go-w' it")
            if status.st_size > MAX_SIZE:
                raise Refusal(f"`{show(path)}' has {status.st_size} bytes, {MAX_SIZE} at most")
            text = b""
            while len(text) <= MAX_SIZE:
                block = posix.read(descriptor, MAX_SIZE + 1 - len(text))
                if not block:
                    return text
                text += block
            raise Refusal(f"`{show(path)}' has more than {MAX_SIZE} bytes")
        finally:
            posix.close(descriptor)

    def _walk(self, path: bytes) -> None:
        """Refuse `path` unless root alone decides where it leads: every directory and symlink on the way is root's.

        No race with the open that follows: nobody but root can change an entry of such directories (of a sticky one,
        an entry of root's).
        """
        parts = path.split(b"/")[::-1]
        here = b"/"
        links = 0
        self._require_safe_directory(here)
        while parts:
            part = parts.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                # `here` holds no symlink, so its text tells its parent.
                here = here[: here.rindex(b"/")] or b"/"
                continue
            entry = here.rstrip(b"/") + b"/" + part
            if entry in self._safe_directories:
                here = entry
                continue
            status = posix.lstat(entry)
            kind = status.st_mode & _S_IFMT
            if kind == _S_IFLNK:
                _require_root(entry, status)
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, "too many symbolic links")
                target = posix.readlink(entry)
                if target.startswith(b"/"):
                    here = b"/"
                parts += target.split(b"/")[::-1]
            elif kind == _S_IFDIR:
                self._require_safe_directory(entry)
                here = entry
            elif parts:
                raise OSError(errno.ENOTDIR, "a file on the way")

    def _require_safe_directory(self, path: bytes) -> None:
        status = posix.lstat(path)
        _require_root(path, status)
        if status.st_mode & _WRITABLE_BY_OTHERS and not status.st_mode & _S_ISVTX:
            raise Refusal(f"the directory `{show(path)}' is writable by group or others, `chmod go-w' it")
        self._safe_directories.add(path)


def _require_root(path: bytes, status: posix.stat_result) -> None:
    if status.st_uid != 0:
        raise Refusal(f"`{show(path)}' belongs to uid {status.st_uid} and not to root, `chown root' it")
