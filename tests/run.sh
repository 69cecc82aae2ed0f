#!/usr/bin/env bash
# Runs all tests. The last lines are the totals over all test programs.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT

status=0
run() { "$@" 2>&1 | tee -a "$log"; local code=${PIPESTATUS[0]}; [ "$code" = 0 ] || status=$code; }
run cargo test --locked --all-targets --no-fail-fast
run cargo test --locked --doc
run tests/kernels/run.py --short

awk -v status="$status" '
  /^test result: / {
    for (i = 1; i < NF; i++) {
      if ($(i + 1) ~ /^passed/) passed += $i
      if ($(i + 1) ~ /^failed/) failed += $i
      if ($(i + 1) ~ /^ignored/) skipped += $i
    }
  }
  /^kernels: / { passed += $2; failed += $4; skipped += $6 }
  /^failed beside others: / { alone = alone $0 "\n" }
  END {
    if (alone != "") printf "\nPassed only alone, at most three are accepted:\n%s", alone
    print ""
    printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
    if (passed == 0) { print "no test ran" > "/dev/stderr"; exit 1 }
  }' "$log" || status=1
exit "$status"
