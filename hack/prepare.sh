#!/usr/bin/env bash
# Installs what building, the demo and the tests need, and nothing that is there already.
# `prepare.sh build` is enough to build and run the demo; `prepare.sh test` adds what the tests compare against.
set -euo pipefail

want=${1:-build}
packages=(gcc libc6-dev make iproute2 nftables procps util-linux mmdebstrap busybox-static ca-certificates)
[ "$want" = test ] && packages+=(docker-registry runc crun curl iptables e2fsprogs containerd containernetworking-plugins openssl g++ dbus-daemon)

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [ "${state:0:2}" = ii ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "prepare: these packages are missing: ${missing[*]}; install them, or run as root" >&2
        exit 1
    fi
    echo "prepare: installing ${missing[*]}"
    apt-get update -qq
    # The registry is started by the tests, on a port of their own; Debian would start it as a service.
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if ! command -v cargo >/dev/null; then
    echo "prepare: cargo is missing; install Rust 1.95 or newer from https://rustup.rs" >&2
    exit 1
fi

newest_debian() { apt-cache policy kubernetes-client 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9]*\.[0-9]*\).*/\1/p'; }
old() { [ "$(printf '%s\n1.29\n' "$1" | sort -V | head -n 1)" != 1.29 ]; }

if ! command -v kubectl >/dev/null; then
    debian=$(newest_debian)
    if [ -n "$debian" ] && ! old "$debian"; then
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq kubernetes-client >/dev/null
    else
        echo "prepare: kubectl 1.29 or newer is missing (Debian has ${debian:-none}); get it from https://kubernetes.io/docs/tasks/tools/" >&2
        exit 1
    fi
fi
have=$(kubectl version --client 2>/dev/null | sed -n 's/^Client Version: v\([0-9]*\.[0-9]*\).*/\1/p')
if [ -n "$have" ] && old "$have"; then
    echo "prepare: kubectl $have is too old, 1.29 is needed; get a newer one from https://kubernetes.io/docs/tasks/tools/" >&2
    exit 1
fi

# The oldest and the newest kubectl that sessions are held with, beside the one that is installed.
kubectls=$(realpath -m "${CARGO_TARGET_DIR:-$(dirname "$0")/../target}")/kubectl
fetch() { # RELEASE PACKAGE
    [ ! -x "$kubectls/$1/usr/bin/kubectl" ] || return 0
    echo "prepare: fetching $2 of Debian $1"
    rm -rf "$kubectls/$1" "$kubectls/$1.new"
    "$(dirname "$0")/debian/fetch.sh" "$1" "$kubectls/$1.new" "$2" && mv "$kubectls/$1.new" "$kubectls/$1"
}
if [ "$want" = test ]; then
    fetch bookworm kubernetes-client || {
        echo "prepare: Debian 12's kubectl could not be fetched from this machine's mirror; see above, and run it again" >&2
        exit 1
    }
    # sid may be without it for a time. Then its session alone is left out, and says why.
    rm -f "$kubectls/sid.missing"
    fetch sid kubectl || echo "Debian sid's kubectl could not be fetched at $(date -u +%FT%TZ)" | tee "$kubectls/sid.missing" >&2
fi
