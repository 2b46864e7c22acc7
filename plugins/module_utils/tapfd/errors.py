# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How tapfd words what it reports.

tapfd is installed beside the bridge helper, where start-up time is the product: all its files import only modules that
are compiled into the interpreter or nearly so (`posix` and not `os`, `_socket` and not `socket`), and not even
`__future__`, which is a file to be found and read.
"""

from errno import errorcode
from posix import strerror
from posix import write as _write


class Refusal(Exception):
    """What was asked for is refused; the message is a full sentence for the person who asked."""


def because(error: OSError) -> str:
    """The errno of `error` in words and by name: `No such device (ENODEV)`."""
    number = error.errno or 0
    return f"{strerror(number)} ({errorcode.get(number, number)})"


def show(text: bytes) -> str:
    """`text` for a terminal or a log: printable ASCII as it is, every other byte and the backslash as \\xNN."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in text)


def write(descriptor: int, message: bytes) -> None:
    """Write all of `message`, as far as there is somebody to read it."""
    try:
        while message:
            message = message[_write(descriptor, message) :]
    except OSError:
        # Nobody is left to tell.
        pass
