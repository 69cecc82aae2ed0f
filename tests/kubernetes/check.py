#!/usr/bin/env python3
"""Validates manifests against the schemas and checks that references between names resolve. Prints
the settings of each ConfigMap as a JSON string on a separate line."""

import json
import sys

import jsonschema
import yaml

from schema import KINDS


def check(where, document):
    jsonschema.validate(document, KINDS[document["kind"]])
    template = document["spec"].get("template") if "spec" in document else None
    if template is None:
        return
    pod, labels = template["spec"], template["metadata"]["labels"]
    selected = document["spec"]["selector"]["matchLabels"].items()
    assert selected <= labels.items(), f"{where}: the selector does not select its own pods"
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod["containers"]:
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted <= volumes, f"{where}: no volume {mounted - volumes}"
        ports = {port.get("name") for port in container.get("ports", [])}
        for probe in ("livenessProbe", "readinessProbe"):
            port = container.get(probe, {}).get("httpGet", {}).get("port")
            assert port is None or port in ports, f"{where}: {probe} uses unknown port {port}"


def main():
    seen = 0
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            documents = list(yaml.safe_load_all(file))
        maps = {d["metadata"]["name"] for d in documents if d["kind"] == "ConfigMap"}
        for document in documents:
            where = f"{path}: {document['kind']}"
            check(where, document)
            seen += 1
            pod = document.get("spec", {}).get("template", {}).get("spec", {})
            referenced = {v["configMap"]["name"] for v in pod.get("volumes", []) if "configMap" in v}
            assert referenced <= maps, f"{where}: no ConfigMap {referenced - maps}"
            for settings in document.get("data", {}).values():
                print(json.dumps(settings))
    assert seen > 0, "no manifest"


main()
