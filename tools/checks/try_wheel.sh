#!/usr/bin/env bash
# Build the wheel, install it into a clean environment with the locked packages, and let it run its demo for a moment.
# usage: tools/checks/try_wheel.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$1" -m venv "$folder/env"
pip() { "$folder/env/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
mkdir -p dist
pip wheel --no-deps --wheel-dir "$folder/wheel" .
pip install "$(grep '^torch==' constraints.txt)"
# Hashes are checked, and nothing is resolved: what the lock does not name is not installed.
pip install --no-deps --require-hashes --requirement requirements.lock
pip install --no-deps "$folder"/wheel/*.whl
pip check
cd "$folder"
env/bin/evenflow demo --seconds 3 --num-adapters 20 --report demo.html
test -s demo.html
cp "$folder"/wheel/*.whl "$OLDPWD/dist/"
echo "dist/$(basename "$folder"/wheel/*.whl) works in a clean environment"
