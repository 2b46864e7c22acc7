# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make sanity`, that is `python -m tests.sanity` in the checkout: what `ansible-test sanity` says of the collection.

ansible-test wants a git tree in ansible_collections/hostnet/qemu without anything that tools have made, the Pythons of
hosts on the search path, and get-pip.py from a server of its own. All of this is made in build/sanity, and a home
directory for it, too: nothing is written outside of the checkout, and nothing but packages is downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ansible_test

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support import pythons  # noqa: E402

BUILD = ROOT / "build/sanity"
COPY = BUILD / "ansible_collections/hostnet/qemu"
HOME = BUILD / "home"
BIN = BUILD / "bin"
# Those of hosts that a release of ansible-core in `requirements/site.txt` knows.
PYTHONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
# What ansible-test runs in a virtual environment that has no pip yet, with the packages that it wants there: a pip in
# place of get-pip.py, which comes from no index of packages. The options have no meaning here.
GET_PIP = """\
import subprocess
import sys
from pathlib import Path

(wheel,) = Path(__file__).parent.glob("pip-{version}-*.whl")
words = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, str(wheel / "pip"), "install", "--quiet", *words]))
"""


def copy_tracked() -> None:
    """Make COPY anew, of the files that git knows, as they are now."""
    shutil.rmtree(COPY, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        source = ROOT / name
        # What has been removed, but not from the index.
        if source.is_symlink() or source.exists():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, COPY / name, follow_symlinks=False)
    # Else it were a part of the checkout's repository, which ignores it, and so would ansible-test.
    subprocess.run(["git", "init", "--quiet"], cwd=COPY, check=True)


def show_pythons() -> None:
    """Fill BIN with links to the machine's Pythons, wherever they are, by the names that ansible-test looks for."""
    shutil.rmtree(BIN, ignore_errors=True)
    BIN.mkdir(parents=True)
    for version in PYTHONS:
        python = pythons.find(version)
        if python:
            (BIN / f"python{version}").symlink_to(python)


def make_home() -> None:
    """Make HOME, where ansible-test finds the user's way to packages, and what installs pip already there."""
    (HOME / ".config").mkdir(parents=True, exist_ok=True)
    config = HOME / ".config/pip"
    config.unlink(missing_ok=True)
    config.symlink_to(Path.home() / ".config/pip")
    cache = HOME / ".ansible/test/cache"
    cache.mkdir(parents=True, exist_ok=True)
    # Each release of ansible-core pins a pip, and asks by its version.
    pins = Path(ansible_test.__path__[0], "_internal/python_requirements.py").read_text(encoding="utf-8")
    for version in re.findall(r"\bpip='([0-9.]+)'", pins):
        if not list(cache.glob(f"pip-{version}-*.whl")):
            pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check"]
            subprocess.run([*pip, "download", "--no-deps", "--dest", cache, f"pip=={version}"], check=True)
        script = cache / f"get_pip_{version.replace('.', '_')}.py"
        script.write_text(GET_PIP.format(version=version), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run ansible-test with these further arguments, and return its exit status; say much only if it does."""
    copy_tracked()
    show_pythons()
    make_home()
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-test"), "sanity", "--venv", "--color", "no", *arguments],
        cwd=COPY,
        env=os.environ | {"HOME": str(HOME), "PATH": f"{BIN}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        # What the tests say, or where one could not be run, all that was done.
        ran = "sanity test(s) listed below" in done.stdout
        said = re.findall(r"^(?:ERROR: |See documentation).*\n", done.stdout, re.MULTILINE)
        print("".join(said) if ran else done.stdout, end="", file=sys.stderr)
        return done.returncode
    tests = set(re.findall(r'^Running sanity test "([^"]+)"', done.stdout, re.MULTILINE))
    versions = sorted(set(re.findall(r" on Python (\S+)$", done.stdout, re.MULTILINE)), key=PYTHONS.index)
    where = f" on Python {', '.join(versions)}" if versions else ""
    print(f"Nothing to say: {len(tests)} of the sanity tests{where}")
    for line in sorted(set(re.findall(r"^WARNING: (Skipping .*|Required .*)$", done.stdout, re.MULTILINE))):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
