#!/usr/bin/env bash
# Install this repository (editable) and its requirements into the environment of tools/environment.sh.
#   [PYTHON=python3.12] [EXTRAS=all] tools/install.sh
# Versions come from constraints.txt, but a working torch and torchvision are kept. Does nothing if
# the last installation had the same setup.py, constraints.txt and EXTRAS.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${EXTRAS:-all}

python=$(tools/environment.sh)
stamp=${python%/bin/python}/.mcbeit_mm_installed
state="$PWD [$extras] $(cat setup.py constraints.txt | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
  echo "Already installed for $python (delete $stamp to install again)"
  exit
fi

if ! "$python" -m pip --version >/dev/null; then
  echo "error: no pip in this environment; run: $python -m ensurepip" >&2
  exit 1
fi
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
"$python" tools/constraints.py >"$constraints"
echo "Installing for $python (with a new torch: minutes, and 6 GB)"
"$python" -m pip install --disable-pip-version-check -c "$constraints" -e ".[$extras]"

if ! report=$("$python" tools/doctor.py); then
  echo "$report" >&2
  exit 1
fi
grep '^WARN' <<<"$report" || true
echo "$state" >"$stamp"
echo "Installed for $python"
