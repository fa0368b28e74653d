#!/usr/bin/env bash
# Leaves the machine as the demo found it: no process, mount, namespace, link, table, cgroup or directory of it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ -x "$kakoi" ] && "$kakoi" down --root "$root"
# Never through a mount: what is still mounted is somebody's data.
remove() {
    if grep -q " $1/" /proc/self/mountinfo; then
        die "something is still mounted below $1; see /proc/self/mountinfo"
    fi
    rm -rf --one-file-system "$1"
}
if [ -e "$made" ]; then
    while IFS= read -r path; do
        case "$path" in
            */hosts.toml) rm -f "$path"; rmdir -p --ignore-fail-on-non-empty "$(dirname "$path")" ;;
            *) remove "$path" ;;
        esac
    done <"$made"
    remove "$state"
fi
# /run/kakoi has the machine's registers, too: other instances may have entries in them.
machine=/run/kakoi
if [ -d "$run" ]; then
    find "$run" -mindepth 1 -maxdepth 1 ! -name ids ! -name network -exec rm -rf --one-file-system {} +
fi
grep -slF "\"root\":\"$root\"" "$machine/ids"/* | xargs -r rm -f
[ -n "$(find "$machine/ids" -type f ! -name .lock 2>/dev/null)" ] || rm -rf "$machine/ids"
for directory in "$machine/network" "$run" "$machine"; do
    rmdir "$directory" 2>/dev/null || true
done
echo "The demo is undone. These stay: the images in $images, and the Debian packages that hack/prepare.sh names."
