#!/bin/bash
# Puts Debian sid's containerd, and its runc with the libraries that it needs, into a directory: `hack/containerd/fetch.sh DIR`.
# Nothing is installed: the tests of user namespaces over a foreign runtime name the directory with KAKOI_CONTAINERD=DIR.
set -euo pipefail

target=$(realpath -m "${1:?usage: hack/containerd/fetch.sh DIR}")
[ ! -e "$target" ] || { echo "$target is there already: remove it, or name another directory" >&2; exit 1; }
command -v patchelf >/dev/null || { echo "patchelf is missing: apt-get install patchelf" >&2; exit 1; }
root=$target/root
mkdir -p "$target/bin"
"$(dirname "$0")/../debian/fetch.sh" sid "$root" containerd runc libc6 libseccomp2 libgcc-s1
cp "$root"/usr/bin/{containerd,containerd-shim-runc-v2,ctr} "$target/bin"
cp "$root/usr/sbin/runc" "$target/bin"
# runc wants a newer C library than Debian stable has.
loader=$(find "$root/usr/lib" -name 'ld-linux-*.so.*' -o -name 'ld-linux-*.so.[0-9]' | head -n 1)
patchelf --set-interpreter "$loader" --set-rpath "$(dirname "$loader")" "$target/bin/runc"
"$target/bin/containerd" --version
"$target/bin/runc" --version | head -n 1
