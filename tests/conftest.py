# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the checkout importable as the collection and gives every test that asks a sandbox of its own."""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing of the collection.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# A change is judged by examples that depend on nothing but itself; who works on it sees new ones at every run.
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if "CI" in os.environ else "local")

STARTED = time.monotonic()

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / ".collections"))

from support import guest, summary  # noqa: E402
from support.hosts import RELEASES  # noqa: E402
from support.namespaces import Sandbox  # noqa: E402
from support.qemu import Debian, fetch, fetch_release  # noqa: E402

# Not for the runs of pytest that are a part of this one.
SUMMARY = os.environ.pop(summary.VARIABLE, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a run may do besides."""
    group = parser.getgroup("hostnet.qemu")
    group.addoption("--all-qemus", action="store_true", help="run the QEMUs of later releases of Debian, too")
    group.addoption("--all-launchers", action="store_true", help="build the launchers of all architectures anew")
    group.addoption("--write-docs", action="store_true", help="write the tables in docs/ that are compared otherwise")


def pytest_configure(config: pytest.Config) -> None:
    """Run the tests that this kernel can't in a guest."""
    config.pluginmanager.register(guest)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode, config: pytest.Config
) -> None:
    """Record what ran here, and what did not for what reason."""
    stats = terminalreporter.stats
    counts = [
        f"{len(stats[name])} {name}" for name in ("passed", "failed", "error", "xfailed", "skipped") if name in stats
    ]
    reasons = {f"skipped: {report.longrepr[2]}" for report in stats.get("skipped", [])}
    summary.record(
        summary.Entry(
            what=" ".join(["pytest", *config.invocation_params.args]),
            on=f"Python {platform.python_version()}, Linux {platform.release()}",
            seconds=time.monotonic() - STARTED,
            outcome="failed" if exitstatus else "ok",
            note="; ".join([", ".join(counts), *sorted(reasons)]),
        ),
        SUMMARY,
    )


@pytest.fixture(scope="session", autouse=True)
def plain_environment() -> None:
    """A search path without a version manager's shims, an administrator's umask, and signals as at a terminal.

    What is started in the background ignores SIGINT, and what that starts does too.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.umask(0o022)


@pytest.fixture(scope="session")
def debian() -> Debian:
    """The distribution's own programs and a guest's kernel; asked for before any sandbox, which has no network."""
    return fetch()


@pytest.fixture(scope="session", params=RELEASES)
def release(request: pytest.FixtureRequest) -> tuple[str, Path | None]:
    """A suite of Debian and the tree of its programs, which for this machine's own is none."""
    suite: str = request.param
    # Of testing, os-release has the code name alone, and no number.
    system = platform.freedesktop_os_release()
    own = suite == system.get("VERSION_CODENAME") or (suite == "testing" and "VERSION_ID" not in system)
    if not own and not request.config.getoption("--all-qemus"):
        pytest.skip("without --all-qemus only the QEMU of this machine's release is run")
    return suite, None if own else fetch_release(suite)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Private network and mount namespaces for one test."""
    box = Sandbox()
    try:
        yield box
    finally:
        box.close()
