# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `make molecule` chooses and tells; the scenarios themselves are in molecule/."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from support.install import ROOT


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    """tests/molecule.py, which is no part of the packages of tests."""
    spec = importlib.util.spec_from_file_location("molecule_driver", ROOT / "tests/molecule.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(platforms: list[dict[str, Any]]) -> list[str]:
    return [platform["name"] for platform in platforms]


def test_platforms_are_chosen_by_group_and_by_name(driver: ModuleType) -> None:
    groups = driver.known_platforms()
    assert names(driver.choose("debian", groups)) == ["bullseye", "bookworm", "trixie", "testing", "unstable"]
    assert names(driver.choose("all", groups)) == names(groups["debian"]) + names(groups["public"])
    assert names(driver.choose("trixie,bullseye,trixie", groups)) == ["bullseye", "trixie"]
    assert names(driver.choose("fedora,debian", groups)) == [*names(groups["debian"]), "fedora"]


@pytest.mark.parametrize("words", ["potato", "debian,potato"])
def test_an_unknown_platform_is_refused_with_those_that_there_are(driver: ModuleType, words: str) -> None:
    with pytest.raises(SystemExit, match=rf"^MOLECULE_PLATFORMS={words}: .* potato\. .*all, debian, public.*bullseye,"):
        driver.choose(words, driver.known_platforms())


@pytest.mark.parametrize("words", ["", ","])
def test_no_platform_is_refused(driver: ModuleType, words: str) -> None:
    with pytest.raises(SystemExit, match=r"^MOLECULE_PLATFORMS=,? names no platform"):
        driver.choose(words, driver.known_platforms())


def test_scenarios_are_all_or_those_that_are_named(driver: ModuleType) -> None:
    known = driver.known_scenarios()
    assert known[0] == "default"
    assert driver.choose_scenarios("") == known
    assert driver.choose_scenarios(",".join(reversed(known[:2]))) == known[:2]
    with pytest.raises(SystemExit, match=r"^SCENARIO=defualt: there is no scenario defualt\. Take some of default"):
        driver.choose_scenarios("defualt")


def test_an_image_is_another_one_when_it_is_made_in_another_way(driver: ModuleType) -> None:
    trixie, fedora = (driver.choose(name, driver.known_platforms())[0] for name in ("trixie", "fedora"))
    assert re.fullmatch(r"localhost/hostnet-qemu:trixie-[0-9a-f]{8}", driver.image_of(trixie))
    assert driver.image_of(trixie) == driver.image_of(dict(reversed(trixie.items())))
    assert driver.image_of(fedora) != driver.image_of(fedora | {"install": "true"})


def test_the_workflow_runs_every_platform(driver: ModuleType) -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/molecule.yml").read_text(encoding="utf-8"))
    ran = workflow["jobs"]["molecule"]["strategy"]["matrix"]["platform"]
    assert ran == names(driver.choose("all", driver.known_platforms()))


def test_the_page_has_every_platform_once_and_every_scenario(driver: ModuleType) -> None:
    text = (ROOT / "docs/platforms.md").read_text(encoding="utf-8")
    for platform in driver.choose("all", driver.known_platforms()):
        assert len(re.findall(rf"^\| {re.escape(platform['release'])} \|", text, re.MULTILINE)) == 1, platform
    for scenario in driver.known_scenarios():
        assert f"| `{scenario}` |" in text
    ran = re.search(r"<!-- ran -->(.*)<!-- end of ran -->", text, re.DOTALL)
    assert ran and text.index("| Debian unstable |") < ran.end()
    listed = re.findall(r"^\| [^|]+ \| `([^`]+)` \|$", text[ran.end() :], re.MULTILINE)
    assert listed == ["MOLECULE_PLATFORMS", *names(driver.known_platforms()["public"])]


def test_the_page_is_written_from_what_was_ok_of_this_very_checkout(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"distribution": "Debian GNU/Linux 13 (trixie)", "kernel": "6.1.0-9-amd64", "systemd": "257"}
    facts |= {"ansible_core": "2.19.1", "pyroute2": "0.7.7", "python": "3.13.5", "scenario": "default"}
    ok = {"result": "ok", "tried": driver.tried("default")}
    for name, became in {
        "trixie": ok,
        "bookworm": ok | {"result": "failed"},
        "testing": ok | {"tried": driver.tried("links")},
    }.items():
        (tmp_path / f"default-{name}.json").write_text(json.dumps(facts | became | {"platform": name}))
    page = tmp_path / "platforms.md"
    page.write_text("<!-- ran -->\n<!-- end of ran -->\n\n<!-- others -->\nold\n<!-- end of others -->\nend\n")
    monkeypatch.setattr(driver, "RESULTS", tmp_path)
    monkeypatch.setattr(driver, "PAGE", page)
    driver.write_docs(driver.known_platforms())
    ran, others = page.read_text().split("<!-- end of ran -->")
    assert ran.splitlines()[3:] == [
        "| Debian 13 | Debian GNU/Linux 13 (trixie) | 3.13.5 | 0.7.7 | 257 | default |",
        "",
        "Run by ansible-core 2.19.1 on Linux 6.1.0.",
    ]
    assert "| Debian 12 | `bookworm` |\n| Debian testing | `testing` |\n" in others
    assert "old" not in others and others.endswith("| Alpine | `alpine` |\n<!-- end of others -->\nend\n")


RECAP = """\
PLAY RECAP *********************************************************************
bullseye                   : ok=31   changed=1    unreachable=0    failed=1    skipped=12   rescued=0    ignored=0
bookworm                   : ok=35   changed=1    unreachable=0    failed=0    skipped=12   rescued=0    ignored=0
trixie                     : ok=2    changed=0    unreachable=1    failed=0    skipped=0    rescued=0    ignored=0
"""


def test_what_became_of_each_platform_is_read_from_what_ansible_said(driver: ModuleType) -> None:
    chosen = ["bullseye", "bookworm", "trixie"]
    assert driver.outcomes(chosen, 1, RECAP) == {"bullseye": "failed", "bookworm": "stopped", "trixie": "failed"}
    assert driver.outcomes(chosen, 0, "") == dict.fromkeys(chosen, "ok")
    # Molecule itself has failed, or a scenario without a word of who did.
    assert driver.outcomes(chosen, 1, "Error") == dict.fromkeys(chosen, "failed")
