#!/bin/sh
# Makes .venv and installs Keyside in it, editable: `tools/bootstrap.sh local` (what the demo needs) or
# `tools/bootstrap.sh dev` (what the tests need, and local with it). PYTHON names the interpreter to use.
set -eu
cd "$(dirname "$0")/.."

extra=${1:-}
case $extra in
local | dev) ;;
*) echo "usage: tools/bootstrap.sh local|dev" >&2 && exit 2 ;;
esac

fits='import sys; sys.exit(sys.version_info < (3, 11))'

find_python() {
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$candidate" -c "$fits" 2>/dev/null && "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

# Every prerequisite is looked at before anything is made, so that one message names all that is missing.
python=$(find_python)
missing=
[ -n "$python" ] || missing='Python >= 3.11 with venv'
command -v git >/dev/null || missing="${missing:+$missing, }git"
if [ -n "$missing" ]; then
  {
    echo "Keyside needs: $missing."
    echo "On Debian 12 or newer, or Ubuntu 24.04 or newer:  apt-get install -y python3 python3-venv git make"
  } >&2
  exit 1
fi

# A venv outlives its interpreter's upgrade or its own folder's move badly: make it anew if it does not run.
if ! { .venv/bin/python -c "$fits" && .venv/bin/python -m pip --version; } >/dev/null 2>&1; then
  echo "making .venv with $("$python" --version)"
  rm -rf .venv
  "$python" -m venv .venv
fi

mkdir -p .cache
log=.cache/bootstrap-$extra.log
echo "installing keyside[$extra] (log: $log)"
if ! .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
  -c constraints.txt -e ".[$extra]" >"$log" 2>&1; then
  tail -n 40 "$log" >&2
  echo "pip failed; its whole output is in $log" >&2
  exit 1
fi

touch .venv/.stamp-local
if [ "$extra" = dev ]; then
  touch .venv/.stamp-dev
fi
