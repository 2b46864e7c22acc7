# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make molecule`, that is `python -m tests.molecule` in the checkout: the scenarios of molecule/ on chosen platforms.

Molecule runs one scenario on all its platforms at once. This chooses the platforms from molecule/platforms.yml, makes
the images that are missing, runs as many scenarios side by side as there are processors, and says what became of them:
in a table, in a file for each scenario and platform below build/molecule/results, and with `--write-docs` in
docs/platforms.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from tests.support.summary import Entry, record

ROOT = Path(__file__).resolve().parent.parent
MOLECULE = ROOT / "molecule"
BUILD = ROOT / "build/molecule"
FACTS = BUILD / "facts"
LOGS = BUILD / "logs"
RESULTS = BUILD / "results"
PAGE = ROOT / "docs/platforms.md"
CONTAINERFILE = MOLECULE / "shared/Containerfile"

# What the role would install is in the images already, since the containers have no network.
PACKAGES = "acl,dbus,iproute2,python3,python3-pyroute2,systemd,systemd-sysv,udev"
WITHOUT = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
# As many things at once as there are processors: all of them compute most of the time.
AT_ONCE = os.cpu_count() or 1

Platform = dict[str, str]


def known_platforms() -> dict[str, list[Platform]]:
    """The groups of molecule/platforms.yml."""
    groups: dict[str, list[Platform]] = yaml.safe_load((MOLECULE / "platforms.yml").read_text(encoding="utf-8"))
    return groups


def choose(words: str, groups: dict[str, list[Platform]]) -> list[Platform]:
    """The platforms that are named, by themselves or by their group, in the order of the file."""
    every = [platform for group in groups.values() for platform in group]
    names: set[str] = set()
    listed = [word for word in words.split(",") if word]
    if not listed:
        raise SystemExit(f"MOLECULE_PLATFORMS={words} names no platform: take all, {', '.join(groups)}, or some names.")
    for word in listed:
        chosen = every if word == "all" else groups.get(word) or [item for item in every if item["name"] == word]
        if not chosen:
            raise SystemExit(
                f"MOLECULE_PLATFORMS={words}: there is no platform {word}. Take all, {', '.join(groups)}, or some of "
                f"{','.join(item['name'] for item in every)}."
            )
        names.update(item["name"] for item in chosen)
    return [platform for platform in every if platform["name"] in names]


def known_scenarios() -> list[str]:
    """All scenarios, the default one first."""
    names = sorted(path.parent.name for path in MOLECULE.glob("*/molecule.yml"))
    return sorted(names, key=lambda name: name != "default")


def choose_scenarios(words: str) -> list[str]:
    known = known_scenarios()
    chosen = [word for word in words.split(",") if word]
    for word in chosen:
        if word not in known:
            raise SystemExit(f"SCENARIO={words}: there is no scenario {word}. Take some of {','.join(known)}.")
    return [name for name in known if name in chosen] if chosen else known


def environment() -> dict[str, str]:
    """That of Molecule, Ansible and podman."""
    return os.environ | {
        "CONTAINERS_CONF": str(MOLECULE / "shared/containers.conf"),
        # Frames around what Ansible says fold its lines.
        "MOLECULE_COMMAND_BORDERS": "false",
        # Without it Molecule wants the scenarios elsewhere, and says so each time.
        "MOLECULE_GLOB": "molecule/*/molecule.yml",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def config_of(platforms: list[Platform]) -> Path:
    """The file by which Molecule knows its platforms; calls for others do not get into its way."""
    return BUILD / f"{','.join(platform['name'] for platform in platforms)}.yml"


def molecule(scenario: str, platforms: list[Platform], command: str, *options: str) -> list[str]:
    """A command of Molecule for one scenario on these platforms."""
    program = str(Path(sys.executable).with_name("molecule"))
    configs = ["--base-config=molecule/base.yml", f"--base-config={config_of(platforms)}"]
    return [program, *configs, command, f"--scenario-name={scenario}", *options]


def run_logged(command: Iterable[str | Path], log: Path, **options: Any) -> int:
    """Run a command with all that it says in a file, and return its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        return subprocess.run(
            list(command),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
            **options,
        ).returncode


def image_of(platform: Platform) -> str:
    """The name of a platform's image, another one when it is made in another way."""
    recipe = [platform, PACKAGES, WITHOUT, CONTAINERFILE.read_text(encoding="utf-8")]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return f"localhost/hostnet-qemu:{platform['name']}-{digest[:8]}"


def make_image(platform: Platform) -> bool:
    """Make the image of a platform if it is missing; return whether it is there then."""
    name = image_of(platform)
    env = environment()
    if subprocess.run(["podman", "image", "exists", name], env=env, check=False).returncode == 0:
        return True
    log = LOGS / f"image-{platform['name']}.log"
    log.unlink(missing_ok=True)
    begin = time.monotonic()
    if "image" in platform:
        build = ["podman", "build", "--network=host", f"--tag={name}", f"--build-arg=IMAGE={platform['image']}"]
        build += [f"--build-arg=INSTALL={platform['install']}", f"--file={CONTAINERFILE}"]
        with tempfile.TemporaryDirectory() as context:
            made = run_logged([*build, context], log, env=env) == 0
    else:
        with tempfile.TemporaryDirectory() as directory:
            archive = Path(directory, "root.tar")
            debootstrap = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={PACKAGES}"]
            # Of what a mirror has no newer list.
            debootstrap += ['--aptopt=Acquire::Check-Valid-Until "false"']
            debootstrap += [f"--dpkgopt=path-exclude={pattern}" for pattern in WITHOUT]
            made = run_logged([*debootstrap, platform["name"], archive], log, env=env) == 0
            made = made and run_logged(["podman", "import", "--quiet", archive, name], log, env=env) == 0
    if made:
        print(f"Made the image of {platform['release']} in {time.monotonic() - begin:.0f} s.", flush=True)
    else:
        print(
            f"{log.read_text(encoding='utf-8')}The image of {platform['release']} could not be made: see above.",
            flush=True,
        )
    return made


def outcomes(names: list[str], status: int, said: str) -> dict[str, str]:
    """What became of each platform, by the exit status of Molecule and what it and Ansible have said.

    Ansible leaves out a platform on which a task has failed, and goes on with the others to the end of its playbook.
    Then Molecule stops, so that what it has not come to was run on no platform.
    """
    failed = set(re.findall(r"^(\S+) +: ok=.* (?:unreachable|failed)=[1-9]", said, re.MULTILINE)) or set(names)
    return {name: "ok" if status == 0 else "failed" if name in failed else "stopped" for name in names}


def run_scenario(scenario: str, platforms: list[Platform]) -> list[dict[str, Any]]:
    """Run a scenario from beginning to end; return what became of it on each platform."""
    log = LOGS / f"{scenario}.log"
    log.unlink(missing_ok=True)
    print(f"Running {scenario} on {', '.join(platform['release'] for platform in platforms)}.", flush=True)
    this = tried(scenario)
    begin = time.monotonic()
    status = run_logged(molecule(scenario, platforms, "test"), log, env=environment() | {"NO_COLOR": "1"})
    seconds = round(time.monotonic() - begin)
    said = log.read_text(encoding="utf-8", errors="replace")
    if status:
        print(f"{said}{scenario} failed after {seconds} s: see above, or {log.relative_to(ROOT)}.", flush=True)
    became = outcomes([platform["name"] for platform in platforms], status, said)
    results = []
    for name, release in ((platform["name"], platform["release"]) for platform in platforms):
        consists = FACTS / scenario / f"{name}.json"
        result: dict[str, Any] = {
            "scenario": scenario,
            "platform": name,
            "release": release,
            "result": became[name],
            "seconds": seconds,
            "tried": this,
            "ansible_core": metadata.version("ansible-core"),
        }
        if consists.exists():
            result |= json.loads(consists.read_text(encoding="utf-8"))
        (RESULTS / f"{scenario}-{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        results.append(result)
    return results


def table(rows: list[list[str]]) -> str:
    """Columns side by side."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows)


def summary(results: list[dict[str, Any]]) -> str:
    """A row for each scenario, a column for each platform."""
    platforms = list(dict.fromkeys(result["platform"] for result in results))
    outcomes = {(result["scenario"], result["platform"]): result for result in results}
    rows = [["scenario", *platforms, "seconds"]]
    for scenario in dict.fromkeys(result["scenario"] for result in results):
        row = [outcomes[scenario, platform] for platform in platforms]
        rows.append([scenario, *(result["result"] for result in row), str(row[0]["seconds"])])
    return table(rows)


def in_parallel(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, items))


def tried(scenario: str) -> str:
    """A hash of what a scenario tries, and of the scenario."""
    digest = hashlib.sha256()
    directories = (ROOT / "files", ROOT / "plugins", ROOT / "roles", MOLECULE / "shared", MOLECULE / scenario)
    for path in sorted(path for directory in directories for path in directory.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def write_docs(groups: dict[str, list[Platform]]) -> None:
    """Write the tables of docs/platforms.md: what was ok with this checkout as it is, by this call or before it."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")]
    ok = [result for result in found if result["result"] == "ok" and result["tried"] == tried(result["scenario"])]
    ran = ["| release | in full | Python | pyroute2 | systemd | scenarios |", "| --- | --- | --- | --- | --- | --- |"]
    others = ["| release | `MOLECULE_PLATFORMS` |", "| --- | --- |"]
    for platform in (platform for group in groups.values() for platform in group):
        of = {result["scenario"]: result for result in ok if result["platform"] == platform["name"]}
        if of:
            facts = next(iter(of.values()))
            words = [
                platform["release"],
                *(facts[name] or "none" for name in ("distribution", "python", "pyroute2", "systemd")),
            ]
            ran.append(f"| {' | '.join(words)} | {', '.join(name for name in known_scenarios() if name in of)} |")
        else:
            others.append(f"| {platform['release']} | `{platform['name']}` |")
    ran_by = (f"ansible-core {item['ansible_core']} on Linux {item['kernel'].split('-')[0]}" for item in ok)
    ran += ["", f"Run by {', '.join(sorted(set(ran_by)))}."]
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in (("ran", ran), ("others", others)):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = before + begin + "".join(f"{line}\n" for line in lines) + end + rest.split(end)[1]
    PAGE.write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Return 0 if every scenario was ok on every platform."""
    parser = argparse.ArgumentParser(prog="make molecule ARGS=…", allow_abbrev=False)
    parser.add_argument("--platforms", default="debian", help=argparse.SUPPRESS)
    parser.add_argument("--scenarios", default="", help=argparse.SUPPRESS)
    parser.add_argument("--write-docs", action="store_true", help="write the tables in docs/platforms.md")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="a command of molecule instead of test, and its options"
    )
    options = parser.parse_args(arguments)
    groups = known_platforms()
    platforms = choose(options.platforms, groups)
    scenarios = choose_scenarios(options.scenarios)

    if not all(in_parallel(make_image, platforms)):
        return 1
    for scenario in scenarios:
        shutil.rmtree(FACTS / scenario, ignore_errors=True)
        (FACTS / scenario).mkdir(parents=True)
    made = [platform | {"image": image_of(platform)} for platform in platforms]
    config_of(platforms).write_text(yaml.safe_dump({"platforms": made}), encoding="utf-8")
    if options.command:
        commands = [molecule(scenario, platforms, *options.command) for scenario in scenarios]
        return max(subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode for command in commands)

    RESULTS.mkdir(parents=True, exist_ok=True)
    results = [
        result for found in in_parallel(lambda name: run_scenario(name, platforms), scenarios) for result in found
    ]
    print(summary(results))
    for scenario in scenarios:
        of = [result for result in results if result["scenario"] == scenario]
        bad = [f"{result['release']}: {result['result']}" for result in of if result["result"] != "ok"]
        on = ", ".join(result["release"] for result in of)
        record(Entry(f"molecule {scenario}", on, of[0]["seconds"], "failed" if bad else "ok", ", ".join(bad)))
    if any(result["result"] != "ok" for result in results):
        return 1
    if options.write_docs:
        write_docs(groups)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
