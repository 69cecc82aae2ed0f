#!/usr/bin/env bash
# Checks the chart conf/helm/mcastor. Installs Helm as a library of Python in target/helm.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=0.2.2
venv=target/helm-$version
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet "helm-python-sdk==$version" pyyaml jsonschema || { rm -rf "$venv"; exit 1; }
fi
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" tests/kubernetes/helm.py
