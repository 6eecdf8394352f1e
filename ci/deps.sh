#!/bin/sh
# ci/deps.sh [--model | --lint] [--check]: the Debian/Ubuntu packages that a build needs, or with --model those that
# fetching a model needs, or with --lint the linters. --check only asks (exit 1: something is missing).
# Installs as root or through sudo without a password; otherwise prints the one line to run and fails.
set -u
if [ "${1:-}" = --model ]; then
    shift
    packages="python3 python3-pip"
    missing=no
    python3 -m pip --version >/dev/null 2>&1 || missing=yes
elif [ "${1:-}" = --lint ]; then
    shift
    packages="clang-format codespell git"
    missing=no
    command -v clang-format >/dev/null 2>&1 && command -v codespell >/dev/null 2>&1 && command -v git >/dev/null 2>&1 ||
        missing=yes
else
    packages="gcc libc6-dev pkg-config libcjson-dev check libzstd-dev libpcre2-dev libssl-dev"
    modules="libcjson check libzstd libpcre2-8 libcrypto"
    missing=no
    command -v gcc >/dev/null 2>&1 && command -v pkg-config >/dev/null 2>&1 || missing=yes
    [ $missing = no ] && { pkg-config --exists $modules || missing=yes; }
fi
[ $missing = no ] && exit 0
[ "${1:-}" = --check ] && exit 1
line="apt-get update && apt-get install -y --no-install-recommends $packages"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "parity needs: $packages (or what your system calls them); there is no apt-get here" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    sudo=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    sudo="sudo -n"
else
    echo "parity needs some packages; run this, then make again:" >&2
    echo "  sudo sh -c '$line'" >&2
    exit 1
fi
echo "installing: $packages" >&2
$sudo sh -c "DEBIAN_FRONTEND=noninteractive; export DEBIAN_FRONTEND; $line" >&2
