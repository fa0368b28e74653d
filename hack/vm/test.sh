#!/usr/bin/env bash
# Runs the node on Debian 12 as most users have it (kernel 6.1, systemd, cgroup v2) in an emulated machine without a
# network. QEMU's TCG needs no KVM; it is some forty times slower, so this checks function, never time.
# The machine's disk is built once, into the target directory.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
cd "$here"
set -- "$here/hack/vm/test.sh"
target=${CARGO_TARGET_DIR:-$here/target}
vm=$target/vm
mkdir -p "$vm"

missing=()
for package in qemu-system-x86 mmdebstrap e2fsprogs; do
    state=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [ "${state:0:2}" = ii ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
"$here/hack/prepare.sh" build

# The system disk: what a small Debian server has, and a unit that runs the test and turns the machine off.
recipe=$({ sed -n '/^recipe=/,/^fi$/p' "$1"; cat "$here/hack/vm/guest.service"; } | sha256sum | cut -c1-16)
if [ "$(cat "$vm/recipe" 2>/dev/null)" != "$recipe" ]; then
    echo "vm: building the system disk (some minutes)"
    rm -rf "$vm/root" "$vm/root.tar" && mkdir "$vm/root"
    mmdebstrap --quiet --variant=apt --mode=root \
        --include=linux-image-cloud-amd64,systemd,systemd-sysv,dbus,udev,iproute2,kmod,nftables,procps,util-linux \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        bookworm "$vm/root.tar"
    tar -C "$vm/root" -xf "$vm/root.tar" && rm "$vm/root.tar"
    install -D -m 644 "$here/hack/vm/guest.service" "$vm/root/etc/systemd/system/guest.service"
    mkdir -p "$vm/root/etc/systemd/system/multi-user.target.wants" "$vm/root/payload"
    ln -sf ../guest.service "$vm/root/etc/systemd/system/multi-user.target.wants/guest.service"
    ln -sf /dev/null "$vm/root/etc/systemd/system/serial-getty@ttyS0.service"
    echo kakoi-vm >"$vm/root/etc/hostname"
    cp "$vm/root"/boot/vmlinuz-* "$vm/vmlinuz" && cp "$vm/root"/boot/initrd.img-* "$vm/initrd"
    rm -f "$vm/root.img" && truncate -s 4G "$vm/root.img"
    mkfs.ext4 -q -d "$vm/root" "$vm/root.img" && rm -rf "$vm/root"
    echo "$recipe" >"$vm/recipe"
fi

# The payload disk: the program, kubectl, the images, and the test.
[ -n "${KAKOI_BINARY:-}" ] || cargo build --release --locked -p kakoi
images=${KAKOI_IMAGES:-/var/cache/kakoi/images}
"$here/hack/images/build.sh" "$images"
kubectl=$(readlink -f "${KUBECTL:-$(command -v kubectl)}")
# Some packages install a dispatcher beside the versions that it starts.
newest=$(find "$(dirname "$kubectl")" -maxdepth 1 -name 'kubectl.1.*' | sort -V | tail -n 1)
payload=$(mktemp -d)
trap 'rm -rf "$payload" "$vm/payload.img" "$vm/run.img"' EXIT
cp "${KAKOI_BINARY:-$target/release/kakoi}" "$payload/kakoi"
cp "${newest:-$kubectl}" "$payload/kubectl"
cp "$here/hack/vm/guest.sh" "$here/hack/vm/kakoi.service" "$payload/"
cp -r "$here/hack/demo/manifests" "$payload/manifests"
cp -r "$images" "$payload/images"
rm -f "$vm/payload.img" && truncate -s 2G "$vm/payload.img"
mkfs.ext4 -q -d "$payload" "$vm/payload.img"
cp --reflink=auto --sparse=always "$vm/root.img" "$vm/run.img"

log=$vm/console.log
timeout 1500 qemu-system-x86_64 -machine q35,accel=tcg -cpu max -smp 2 -m 2048 -nographic -no-reboot \
    -kernel "$vm/vmlinuz" -initrd "$vm/initrd" \
    -append "root=/dev/vda rw console=ttyS0 quiet systemd.unified_cgroup_hierarchy=1 mitigations=off" \
    -drive "file=$vm/run.img,format=raw,if=virtio" -drive "file=$vm/payload.img,format=raw,if=virtio" \
    -nic none </dev/null | tee "$log" | sed -un 's/\r$//; /^vm: /p'
for line in 'all passed' 'the machine is let go'; do
    grep -q "^vm: $line" <(tr -d '\r' <"$log") || { tail -n 60 "$log"; echo "vm: FAILED; the console is in $log" >&2; exit 1; }
done
