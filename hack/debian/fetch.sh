#!/bin/bash
# Unpacks packages of a Debian release into a directory: `hack/debian/fetch.sh RELEASE DIR PACKAGE…`. Nothing is installed,
# and the machine's own sources, lists and status stay as they are.
set -euo pipefail

release=${1:?usage: hack/debian/fetch.sh RELEASE DIR PACKAGE…}
target=$(realpath -m "${2:?usage: hack/debian/fetch.sh RELEASE DIR PACKAGE…}")
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The machine's own mirror.
mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -v security | sort -u | head -n 1)
[ -n "$mirror" ] || { echo "this machine's apt names no mirror: add one to /etc/apt/sources.list.d" >&2; exit 1; }
echo "deb $mirror $release main" > "$work/sources.list"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
: > "$work/status"
cat > "$work/apt.conf" <<CONF
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
APT::Sandbox::User "root";
CONF
export APT_CONFIG=$work/apt.conf
apt-get -qq update
(cd "$work" && apt-get -qq download "$@")

mkdir -p "$target"
for package in "$work"/*.deb; do
  dpkg-deb -x "$package" "$target"
done
