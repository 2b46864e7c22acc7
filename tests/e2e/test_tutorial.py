# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What docs/tutorial.md has its readers type and see: its files as they stand there, its commands as they are typed.

Not done is what needs other machines: packages are laid instead of installed, the fleet is its first host alone, and
its modules run under the interpreter of the tests, which has pyroute2. In the guests runs a smaller Linux than that of
the installer, which takes an emulator much longer to start.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.install import LAUNCHER, ROOT, install
from support.machine import UID, ports, wait_for
from support.namespaces import MS_BIND, Sandbox, ip, mount
from support.pages import matches
from support.playbook import prepare
from support.qemu import Debian, initramfs, lay

TUTORIAL = (ROOT / "docs/tutorial.md").read_text("utf-8")
GUEST = Path("/usr/local/bin/guest")
# Of the shell in a guest.
PROMPT = "~ # "

# A shell like the installer's; what its `modprobe` finds are the two modules that there are. It is a function, since
# this busybox takes its own program of a name before any on the path.
SHELL = """\
#!/bin/busybox sh
export PATH=/programs HOME=/ PS1='~ # ' ENV=/modprobe
/bin/busybox mkdir /programs
/bin/busybox --install -s /programs
mount -t devtmpfs devtmpfs /dev
echo 'modprobe() { for module in /modules/*.ko; do insmod "$module"; done; }' >/modprobe
exec /bin/busybox sh -i
"""
# Of sudo, what the tutorial needs of it.
SUDO = """\
#!/bin/sh
[ "$1" = -u ] || exec "$@"
user=$2
shift 2
exec setpriv --reuid="$user" --regid="$user" --init-groups "$@"
"""


def section(heading: str) -> str:
    """The text of a section."""
    (text,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", TUTORIAL, re.DOTALL | re.MULTILINE)
    return text  # type: ignore[no-any-return]


def command(heading: str, words: str) -> str:
    """The one command of a section that has these words, of those that are shown without an answer."""
    typed = "".join(re.findall(r"```sh\n(.*?)```", section(heading), re.DOTALL))
    # What a here-document holds is a part of its command.
    (found,) = (one for one in re.findall(r".*<<'END'\n(?:.*\n)*?END|.+", typed) if words in one)
    return found


def files(heading: str) -> dict[str, str]:
    """The files of a section: blocks of YAML, with the last name of a file before each."""
    named = re.findall(r"`(fleet/\S+?\.yml)`[^`]*(?:`[^`]+`[^`]*)*?```yaml\n(.*?)```", section(heading), re.DOTALL)
    assert len(named) == section(heading).count("```yaml")
    return dict(named)


def transcripts(heading: str, prompt: str) -> list[list[tuple[str, str]]]:
    """For each block of a section in which somebody types after this prompt: the commands and the answers shown."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", section(heading), re.DOTALL):
        if block.startswith(prompt):
            steps = (step.partition("\n") for step in re.split(rf"^{re.escape(prompt)}", block, flags=re.MULTILINE)[1:])
            found.append([(typed, answer.strip()) for typed, _newline, answer in steps])
    return found


class Terminal:
    """A command that was typed, and what it says; the shell of a guest in it can be typed to."""

    def __init__(self, said: Path, words: list[str]) -> None:
        self._said = said
        with open(said, "wb") as output:
            self.process = subprocess.Popen(
                words, cwd="/", stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def console(self) -> str:
        """What it has said so far, without what only moves the cursor."""
        text = self._said.read_text("utf-8", "replace")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")

    @property
    def errors(self) -> str:
        """A part of `console`."""
        return ""

    def type(self, line: str) -> None:
        """Type a line."""
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def wait_for_prompt(self, after: int = 0) -> None:
        """Wait until the shell of a guest has ended what it says from the character `after` on."""
        wait_for("the shell of a guest", lambda: self.console[after:].endswith(f"\n{PROMPT}"), [self])

    def answer(self, line: str) -> str:
        """Type a line into the shell of a guest; return what it says, without the line and the next prompt."""
        before = len(self.console)
        self.type(line)
        self.wait_for_prompt(before)
        return self.console[before:].partition("\n")[2].removesuffix(PROMPT).strip()


def as_user(words: list[str]) -> list[str]:
    """The command that has an unprivileged user of no group run these words."""
    return ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *words]


@pytest.fixture
def host(debian: Debian, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A host with QEMU and with what stands for sudo and Debian's installer, where the tutorial's `guest` has it."""
    prepare(sandbox)
    lay(sandbox, debian)
    if os.path.exists("/dev/kvm"):
        # On machines that are guests themselves it may start and then hang. This one does not start.
        mount("/dev/null", "/dev/kvm", None, MS_BIND)
    sudo = Path("/usr/local/sbin/sudo")
    sudo.parent.mkdir(exist_ok=True)
    sudo.write_text(SUDO)
    sudo.chmod(0o755)
    monkeypatch.setenv(
        "PATH", f"/usr/local/sbin:/usr/local/bin:{Path(sys.prefix, 'bin')}:/usr/sbin:/usr/bin:/sbin:/bin"
    )

    for words in ("sudo tee", "sudo chmod"):
        subprocess.run(["sh", "-ec", command("Two guests", words)], check=True)
    (installer,) = re.findall(r"^installer=(.+)$", GUEST.read_text(), re.MULTILINE)
    Path(installer).mkdir(parents=True)
    Path(installer, "linux").write_bytes(debian.kernel.read_bytes())
    Path(installer, "initrd.gz").write_bytes(initramfs(debian, SHELL, ["virtio_pci", "virtio_net"], "bin/sh"))
    return sandbox


@pytest.fixture
def open_terminal(host: Sandbox) -> Iterator[Callable[[str], Terminal]]:
    """A function that opens a terminal and types a command there; all end with the test."""
    opened: list[Terminal] = []

    def open_one(typed: str) -> Terminal:
        words = shlex.split(typed)
        # With sudo, that decides who it is.
        opened.append(
            Terminal(host.scratch / f"terminal-{len(opened)}", words if words[0] == "sudo" else as_user(words))
        )
        return opened[-1]

    yield open_one
    for terminal in opened:
        terminal.process.kill()
        terminal.process.wait()


class Fleet:
    """The directory of the tutorial's hosts, of which there is the first."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._directory = sandbox.scratch / "checkout"
        for name in ("group_vars", "host_vars"):
            (self._directory / "fleet" / name).mkdir(parents=True)
        self._environment = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "HOME": str(self._directory),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        }

    def write(self, written: dict[str, str]) -> None:
        """Write files of the tutorial."""
        for name, content in written.items():
            (self._directory / name).write_text(content, "utf-8")

    def run(self, typed: str) -> str:
        """Run a command of the tutorial, for the first host; return what it says."""
        limits = f" --limit hv1 --extra-vars ansible_python_interpreter={shlex.quote(sys.executable)}"
        done = subprocess.run(
            ["sh", "-c", typed + limits],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


def compare(typed: str, shown: str, said: str) -> None:
    """Fail unless a command said what the tutorial shows."""
    said = re.sub(r" +$", "", said, flags=re.MULTILINE).strip()
    assert matches(shown, said) if shown else said == "", f"{typed}\n{said}\n\nThe tutorial has:\n{shown}"


def check(heading: str, block: int) -> None:
    """Type what one block of a section shows behind a `$`, and compare the answers."""
    for typed, answer in transcripts(heading, "$ ")[block]:
        words = ["sh", "-c", typed]
        done = subprocess.run(
            # With sudo, that decides who it is.
            words if typed.startswith("sudo ") else as_user(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        compare(typed, answer, done.stdout)


def test_two_guests_see_each_other(host: Sandbox, open_terminal: Callable[[str], Terminal]) -> None:
    install(host, "allow br0\n")
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "set", "br0", "up")

    first = command("Two guests", "guest 1")
    second = "guest 2"
    assert f"start `{second}`" in section("Two guests")
    guests = [open_terminal(first), open_terminal(second)]
    for guest in guests:
        guest.wait_for_prompt()
    for guest, steps in zip(guests, transcripts("Two guests", PROMPT), strict=True):
        for typed, answer in steps:
            compare(typed, answer, guest.answer(typed))
    check("Two guests", 0)
    for guest in guests:
        guest.type("poweroff -f")
    wait_for("the taps to go", lambda: ports() == [])
    check("Two guests", 1)


def test_a_fleet_where_each_has_their_own(host: Sandbox, open_terminal: Callable[[str], Terminal]) -> None:
    fleet = Fleet(host)
    fleet.write(files("Several hosts"))
    done = fleet.run(command("Several hosts", "qemu_bridge_serial"))
    (message,) = re.findall(r'"msg": "(.+)"', section("The host"))
    assert matches(message, done), done
    check("Several hosts", 0)

    heading = "Whose bridge is it"
    assert "-a name=lab" in command(heading, "builtin.group")
    assert "'name=alice groups=lab append=true'" in command(heading, "builtin.user")
    host.add_user("alice", UID + 1, {"lab": UID + 2})
    fleet.write(files(heading))
    fleet.run(command(heading, "ansible-playbook"))
    for block in range(len(transcripts(heading, "$ "))):
        check(heading, block)

    for words in ("guest 3", "guest 4"):
        guest = open_terminal(command(heading, words))
        wait_for(
            "a tap on br-lab that is in use",
            lambda: any("LOWER_UP" in port["flags"] for port in ports("br-lab")),
            [guest],
        )
        guest.process.kill()
        wait_for("it to be free", lambda: not any("LOWER_UP" in port["flags"] for port in ports("br-lab")))

    fleet.run(command("Taking it away", "absent"))
    assert not [name for name in ("br0", "br-lab", "alice0") if Path("/sys/class/net", name).exists()]
    assert not LAUNCHER.exists()
