#!/usr/bin/env bash
# Print the Python interpreter of the environment that `make` uses: the active virtualenv or conda
# environment, otherwise .venv in the repository, created on first use with the first working one of
# python3.12, python3.11, python3.10 and python3. PYTHON=... selects .venv with that interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "error: $*" >&2
  exit 1
}

version_of() { # prints nothing if the command is missing or does not run
  "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true
}

is_supported() {
  case "$1" in 3.10.* | 3.11.* | 3.12.*) ;; *) return 1 ;; esac
}

make_venv() {
  local candidates=(python3.12 python3.11 python3.10 python3) candidate version found='' remedy=''
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    version=$(version_of "$candidate")
    if ! is_supported "$version"; then
      found+="${version:+, $candidate ($version)}"
    elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      found+=", $candidate ($version) without venv"
      remedy+="; on Debian or Ubuntu: apt install python${version%.*}-venv"
    else
      echo "Making .venv with $candidate ($version)" >&2
      "$candidate" -m venv .venv >&2 || { rm -rf .venv && fail "$candidate -m venv .venv failed"; }
      return
    fi
  done
  found=${found:-, nothing that runs as ${candidates[*]}}
  fail "Python 3.10, 3.11 or 3.12 with its venv module is needed, found ${found#, }$remedy"
}

environment=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
if [ -z "$environment" ] || [ -n "${PYTHON:-}" ]; then
  environment=$PWD/.venv
  [ -x .venv/bin/python ] || make_venv
fi
version=$(version_of "$environment/bin/python")
version=${version:-none that runs}
is_supported "$version" ||
  fail "Python 3.10, 3.11 or 3.12 is needed, $environment has $version; deactivate it"
if [ -n "${PYTHON:-}" ] && [ "$(version_of "$PYTHON")" != "$version" ]; then
  fail ".venv has Python $version, which is not that of $PYTHON; delete .venv to change it"
fi
echo "$environment/bin/python"
