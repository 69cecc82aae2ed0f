#!/usr/bin/env bash
# Checks the dependencies with cargo-deny: licences, duplicate crates, sources, and security
# advisories. Installs cargo-deny if it is missing or has another version.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.20.2
# Time to fetch the database of advisories, in seconds.
fetch_timeout=${MCASTOR_ADVISORIES_TIMEOUT:-60}

if [ "$(cargo deny --version 2>/dev/null)" != "cargo-deny $version" ]; then
  # A debug build takes less time to compile, and the check is short.
  echo "installing: cargo-deny $version"
  cargo install --quiet --locked --force --debug --version "$version" cargo-deny
fi

cargo deny --locked --log-level warn check licenses bans sources

# The database is a git repository at github.com, which is not reachable everywhere.
if timeout "$fetch_timeout" cargo deny fetch db >/dev/null 2>&1; then
  cargo deny --locked --log-level warn check --disable-fetch advisories
else
  echo "advisories skipped: the database at github.com/rustsec/advisory-db cannot be fetched"
fi
