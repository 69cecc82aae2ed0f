#!/usr/bin/env python3
"""Writes THIRD-PARTY.md: the crates of the release build and the scripts of the page, with their
versions, licences and licence texts. With --check, only compares the file with the dependencies.

The crates are those that the binary is built from: normal and build dependencies, and procedural
macros. Crates of tests are not listed. The scripts are files of npm packages, unchanged, as
vendored.json lists them.
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTICE = ROOT / "THIRD-PARTY.md"
SCRIPTS = ROOT / "src/frontend/http/page/vendor"
TARGETS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"]
LICENCE_FILE = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicen[cs]e)", re.IGNORECASE)
HEADER = """\
# Third-party notices

mcastor contains the crates below, and its page contains the scripts. `tests/third-party.py` writes
this file from `Cargo.lock`, the sources of the crates and the folder of the scripts; `make test`
checks that it is current.

Each binary also contains the standard library of Rust (MIT or Apache-2.0). The binary of the
container image is also linked statically with the GNU C library (LGPL-2.1-or-later).

"""


def metadata(target):
    """Returns the dependency graph for a target as cargo resolves it."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    return json.loads(subprocess.check_output(command, cwd=ROOT))


def crates_of(graph):
    """Returns the packages of the release build by their id, without mcastor itself."""
    nodes = {node["id"]: node for node in graph["resolve"]["nodes"]}
    root = graph["resolve"]["root"]
    reached, pending = set(), [root]
    while pending:
        for dependency in nodes[pending.pop()]["deps"]:
            kinds = {kind["kind"] for kind in dependency["dep_kinds"]}
            if kinds != {"dev"} and dependency["pkg"] not in reached:
                reached.add(dependency["pkg"])
                pending.append(dependency["pkg"])
    return {package["id"]: package for package in graph["packages"] if package["id"] in reached}


def scripts():
    """Returns the scripts of the page. Fails if one is not the file of its package."""
    found = json.loads((SCRIPTS / "vendored.json").read_text(encoding="utf-8"))
    for script in found:
        script["folder"] = SCRIPTS / f"{script['name']}-{script['version']}"
        file = script["folder"] / Path(script["file"]).name
        if hashlib.sha256(file.read_bytes()).hexdigest() != script["sha256"]:
            sys.exit(f"{file} is not {script['file']} of {script['name']} {script['version']}")
    listed = {script["folder"].name for script in found}
    unlisted = {path.name for path in SCRIPTS.iterdir() if path.is_dir()} - listed
    if unlisted:
        sys.exit(f"vendored.json does not list {', '.join(unlisted)}")
    return found


def licence_texts(folder):
    """Returns the licence texts in the folder of a crate or script, by file name."""
    texts = {}
    for path in sorted(folder.iterdir()):
        files = [path]
        # ring and others keep some texts in a folder.
        if path.is_dir() and LICENCE_FILE.match(path.name):
            files = sorted(path.iterdir())
        for file in files:
            named = LICENCE_FILE.match(file.name) or file.parent != folder
            if named and file.is_file() and file.suffix not in {".rs", ".html"}:
                name = str(file.relative_to(folder))
                texts[name] = file.read_text(encoding="utf-8", errors="replace")
    return texts


def normalised(text):
    """Returns a text without differences in line breaks and indentation."""
    return " ".join(text.split())


def render(packages):
    packages = sorted(packages, key=lambda p: (p["name"], p["version"]))
    numbers, texts, rows, script_rows = {}, [], [], []

    def numbers_of(folder):
        """Returns the numbers of the licence texts in a folder."""
        cited = []
        for text in licence_texts(folder).values():
            key = normalised(text)
            if not key:
                continue
            if key not in numbers:
                texts.append(text)
                numbers[key] = len(texts)
            if numbers[key] not in cited:
                cited.append(numbers[key])
        return cited

    for package in packages:
        cited = numbers_of(Path(package["manifest_path"]).parent)
        # Crates without a licence file: the authors, for the copyright notice.
        authors = ", ".join(re.sub(r"\s*<[^>]*>", "", author) for author in package["authors"])
        links = ", ".join(f"[{n}](#text-{n})" for n in sorted(cited))
        notice = links or f"none in the crate; by {authors or package['repository']}"
        rows.append(f"| {package['name']} | {package['version']} | {package['license']} | {notice} |")
    for script in scripts():
        links = ", ".join(f"[{n}](#text-{n})" for n in numbers_of(script["folder"]))
        script_rows.append(f"| {script['name']} | {script['version']} | {script['licence']} | {links} |")
    out = [HEADER, "## Crates\n\n", "| Crate | Version | Licence | Texts |\n|---|---|---|---|\n"]
    out.append("\n".join(rows) + "\n\n## Scripts\n\n")
    out.append("| Package of npm | Version | Licence | Texts |\n|---|---|---|---|\n")
    out.append("\n".join(script_rows) + "\n\n## Licence texts\n")
    for number, text in enumerate(texts, 1):
        lines = "\n".join(line.rstrip() for line in text.strip("\n\ufeff").splitlines())
        out.append(f"\n### Text {number}\n\n~~~text\n{lines}\n~~~\n")
    return "".join(out)


def main():
    packages = {}
    for target in TARGETS:
        packages.update(crates_of(metadata(target)))
    unlicensed = [p["name"] for p in packages.values() if not p["license"]]
    if unlicensed:
        sys.exit(f"no licence is declared by: {', '.join(unlicensed)}")
    text = render(packages.values())
    if "--check" not in sys.argv[1:]:
        NOTICE.write_text(text, encoding="utf-8")
    elif not NOTICE.exists() or NOTICE.read_text(encoding="utf-8") != text:
        sys.exit("THIRD-PARTY.md is not current; run: make third-party")


main()
