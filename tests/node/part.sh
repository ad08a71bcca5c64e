#!/usr/bin/env bash
# Runs one part of the end-to-end tests on a node of its own and then prints all it said:
# parts run side by side, and nobody could read them mixed.
#
#   part.sh SUITE TESTS
set -u
log=$(mktemp)
trap 'rm -f "$log"' EXIT
make part SUITE="$1" T="$2" >"$log" 2>&1
status=$?
cat "$log"
exit $status
