#!/usr/bin/env python3
"""Renders the chart conf/helm/mcastor with Helm and compares it with the manifests of
conf/kubernetes: with the default values it is daemonset.yml, with the sidecar sidecar.yml, with the
PodMonitor podmonitor.yml. Then renders other values and validates the result as check.py does.

Helm is used as a library: the package helm-python-sdk of PyPI has Helm 4. helm.sh installs it."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from helm_python import Chart
from helm_python.chart import lint
from helm_python.errors import HelmError

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "conf/helm/mcastor"
CHECKSUM = "checksum/settings"


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


def render(chart, name="mcastor", **values):
    files = chart.render(values, name=name)
    return [d for path, text in sorted(files.items()) if path.endswith(".yaml") for d in documents(text)]


def manifest(name):
    return documents((ROOT / "conf/kubernetes" / name).read_text(encoding="utf-8"))


def comparable(document):
    """Removes the checksum, which only the chart has."""
    template = document.get("spec", {}).get("template", {})
    template.get("metadata", {}).get("annotations", {}).pop(CHECKSUM, None)
    for name, text in document.get("data", {}).items():
        document["data"][name] = text.strip()
    return document


def by_kind(rendered):
    return sorted(map(comparable, rendered), key=lambda document: document["kind"])


def expect_equal(what, rendered, expected):
    for found, wanted in zip(by_kind(rendered), by_kind(expected), strict=True):
        assert found == wanted, f"{what}: {found['kind']}:\n{found}\nis not\n{wanted}"
    print(f"equal to {what}: {', '.join(d['kind'] for d in by_kind(expected))}")


def validate(what, rendered):
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        file.write(yaml.safe_dump_all(rendered))
        file.flush()
        check = [sys.executable, str(ROOT / "tests/kubernetes/check.py"), file.name]
        settings = subprocess.run(check, check=True, capture_output=True, text=True).stdout
    for line in settings.splitlines():
        assert json.loads(line).startswith("[http]\n"), line
    print(f"valid: {what}, {len(rendered)} documents")


def expect_refused(chart, what, **values):
    try:
        chart.validate_schema(values)
    except HelmError as error:
        assert what in str(error), f"{what}: {error}"
        print(f"refused: {what}")
    else:
        raise AssertionError(f"{what} was accepted: {values}")


def main():
    report = lint(CHART, strict=True)
    problems = [m for m in report["messages"] if m["severity"] >= 2] + report["errors"]
    assert not problems, problems
    print("lint: no warning")

    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text("utf-8"), re.M)[1]
    with Chart.load(CHART) as chart:
        metadata = chart.metadata
        assert (metadata["version"], metadata["appVersion"]) == (version, version), metadata

        off, on = {"enabled": False}, {"enabled": True}
        expect_equal("daemonset.yml", render(chart), manifest("daemonset.yml"))
        sidecar = render(chart, daemonset=off, sidecar=on)
        expect_equal("sidecar.yml", sidecar, manifest("sidecar.yml"))
        monitor = render(chart, daemonset=off, podMonitor=on)
        expect_equal("podmonitor.yml", monitor, manifest("podmonitor.yml"))

        other = render(
            chart,
            name="other",
            image={"tag": "1.2.3", "pullPolicy": "Always"},
            port=9999,
            capabilities=["NET_RAW", "NET_ADMIN", "BPF", "PERFMON"],
            daemonset={"nodeSelector": {"disk": "ssd"}, "tolerations": []},
            sidecar={"enabled": True, "networks": ""},
            podMonitor=on,
        )
        assert "9999" in other[0]["data"]["mcastor.toml"], other[0]
        validate("other values", other)
        assert render(chart, daemonset=off) == []

        expect_refused(chart, "port", port=0)
        expect_refused(chart, "capabilities", capabilities=["NET_ADMIN"])
        expect_refused(chart, "pullPolicy", image={"pullPolicy": "Sometimes"})
        expect_refused(chart, "daemonsets", daemonsets={})
        expect_refused(chart, "interval", podMonitor={"interval": "often"})


main()
