#!/bin/sh
# Puts redis-server and redis-cli (>= 7.0) for the tests at .cache/redis/bin, without a service on port 6379:
# from PATH where they are new enough; else from Debian's package redis-tools, installed as root or unpacked here.
# That package holds the whole server: redis-check-rdb is the server's binary, which goes by the name it is called by.
set -eu
cd "$(dirname "$0")/.."
home=$PWD/.cache/redis
bin=$home/bin

# Redis itself, not a fork that answers to its name, and at least 7.0 (functions).
fits() {
  "$1" --version 2>/dev/null | grep -Eq '^Redis server v=([7-9]|[1-9][0-9]+)\.'
}

ready() {
  fits "$bin/redis-server" && "$bin/redis-cli" --version >/dev/null 2>&1
}

link() { # name, file
  mkdir -p "$bin"
  ln -sf "$2" "$bin/$1"
}

use_installed() {
  cli=$(command -v redis-cli) || return 1
  for name in redis-server redis-check-rdb; do
    if server=$(command -v "$name"); then
      link redis-server "$server"
      link redis-cli "$cli"
      ready && return 0
    fi
  done
  return 1
}

install_as_root() {
  export DEBIAN_FRONTEND=noninteractive
  set -- apt-get install -y -q --no-install-recommends redis-tools
  "$@" || { apt-get update -q && "$@"; }
}

# apt's own lists may be missing or old, and only root may renew them: lists of our own can always be made.
own_apt() {
  apt-get -q -o "Dir::State=$home/apt/state" -o Dir::State::status=/var/lib/dpkg/status \
    -o "Dir::Cache=$home/apt/cache" "$@"
}

fetch() { # package...
  apt-get -q download "$@" && return
  mkdir -p "$home/apt/state/lists/partial" "$home/apt/cache/archives/partial"
  own_apt update && own_apt download "$@"
}

missing_libraries() { # deb
  dpkg-deb -f "$1" Depends | tr ',' '\n' | sed 's/^ *//; s/[ (|:].*//' | grep '^lib' | while read -r package; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
  done
}

unpack() {
  rm -rf "$home"
  mkdir -p "$home/deb" "$home/root" "$bin"
  (cd "$home/deb" && fetch redis-tools) || return 1
  missing=$(missing_libraries "$home"/deb/redis-tools_*.deb)
  # shellcheck disable=SC2086 # a list of words
  [ -z "$missing" ] || (cd "$home/deb" && fetch $missing) || return 1
  for deb in "$home"/deb/*.deb; do dpkg-deb -x "$deb" "$home/root" || return 1; done
  rm -rf "$home/deb" "$home/apt"
  ln -sf redis-check-rdb "$home/root/usr/bin/redis-server"
  libraries=$(find "$home/root" -name '*.so.*' -exec dirname {} + | sort -u | paste -s -d :)
  for name in redis-server redis-cli; do
    # shellcheck disable=SC2016 # the wrapper expands it
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "%s" "$@"\n' \
      "$libraries" "$home/root/usr/bin/$name" >"$bin/$name"
    chmod +x "$bin/$name"
  done
}

main() {
  ready && return
  use_installed && return
  mkdir -p "$PWD/.cache"
  log=$PWD/.cache/redis.log
  echo "getting Debian's Redis for the tests (log: $log)"
  if ! command -v apt-get >/dev/null; then
    echo "no apt-get here" >"$log"
  elif [ "$(id -u)" = 0 ]; then
    install_as_root >"$log" 2>&1 && use_installed && return
  else
    unpack >"$log" 2>&1 && ready && return
  fi
  tail -n 20 "$log" >&2
  echo "The tests need redis-server and redis-cli >= 7.0: put them on PATH (Debian 12: apt-get install -y redis-tools," >&2
  echo "which starts no service; macOS: brew install redis) and run this again." >&2
  return 1
}

main
