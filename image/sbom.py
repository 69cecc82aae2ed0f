#!/usr/bin/env python3
"""Adds the scripts of the page to a bill of materials: sbom.py INPUT OUTPUT.

cargo-cyclonedx lists the crates (CycloneDX 1.5). The scripts are files of npm packages, unchanged,
as vendored.json lists them.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENDORED = ROOT / "src/frontend/http/page/vendor/vendored.json"


def component(script):
    """Returns the component of a script."""
    url = f"pkg:npm/{script['name']}@{script['version']}"
    return {
        "type": "library",
        "bom-ref": url,
        "name": script["name"],
        "version": script["version"],
        "description": f"{script['file']}, with the SHA-256 {script['sha256']}",
        "scope": "required",
        "licenses": [{"license": {"id": script["licence"]}}],
        "purl": url,
    }


def main():
    source, target = sys.argv[1:]
    bill = json.loads(Path(source).read_text(encoding="utf-8"))
    root = bill["metadata"]["component"]["bom-ref"]
    node = next(node for node in bill["dependencies"] if node["ref"] == root)
    scripts = json.loads(VENDORED.read_text(encoding="utf-8"))
    for script in map(component, scripts):
        bill["components"].append(script)
        node.setdefault("dependsOn", []).append(script["bom-ref"])
        bill["dependencies"].append({"ref": script["bom-ref"]})
    Path(target).write_text(json.dumps(bill, indent=2) + "\n", encoding="utf-8")


main()
