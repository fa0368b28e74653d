#!/bin/sh
# Builds the OCI images `busybox`, `debian` and `nginx` from this machine's Debian packages, without a registry.
#
#   build.sh DEST [NAME...]           OCI layouts DEST/NAME, one for each image (default: all three)
#   build.sh push DEST HOST:PORT      copies them into a plain HTTP registry, as library/NAME:latest
#
# DEST can be used as a mirror: `[host."oci:DEST"]` in certs.d/docker.io/hosts.toml.
# Cached by this directory's content in $KAKOI_IMAGE_CACHE (default: $XDG_CACHE_HOME/kakoi/images).
# Needs: busybox-static, mmdebstrap, tar, cargo; root for debian and nginx.
# PACK may name a prebuilt packer (`cargo build -p image --example pack`).
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
repository=$(CDPATH='' cd -- "$here/../.." && pwd)
cache=${KAKOI_IMAGE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/kakoi/images}
export SOURCE_DATE_EPOCH=0 LC_ALL=C

fail() { echo "build.sh: $*" >&2; exit 1; }

pack() {
    if [ -n "${PACK:-}" ]; then "$PACK" "$@"; else
        (cd "$repository" && cargo run --quiet -p image --example pack -- "$@")
    fi
}

need() { command -v "$1" >/dev/null || fail "$1 is missing; install it: apt-get install $2"; }

# The same tree gives the same archive: sorted, no times, numeric owners.
archive() {
    tar --create --file "$2" --directory "$1" --format=posix --sort=name --mtime=@0 --numeric-owner \
        --owner=0 --group=0 --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime .
}

build_busybox() {
    need busybox busybox-static
    mkdir -p "$work/root/bin" "$work/root/etc" "$work/root/tmp" "$work/root/root" "$work/root/home" \
        "$work/root/var/www" "$work/root/proc" "$work/root/sys" "$work/root/dev" "$work/root/usr/bin"
    cp "$(command -v busybox)" "$work/root/bin/busybox"
    # The applets' names come from the program itself; `--install` would need to run inside the image.
    busybox --list | while read -r applet; do
        [ "$applet" = busybox ] || ln -s busybox "$work/root/bin/$applet"
    done
    cp "$here/busybox.passwd" "$work/root/etc/passwd"
    cp "$here/busybox.group" "$work/root/etc/group"
    chmod 1777 "$work/root/tmp"
    chmod 0700 "$work/root/root"
    archive "$work/root" "$work/busybox.tar"
    pack layout --out "$1" --layer "$work/busybox.tar" --cmd sh \
        --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}

# A small Debian as an archive; further arguments go to mmdebstrap.
bootstrap() {
    need mmdebstrap mmdebstrap
    [ "$(id -u)" = 0 ] || fail "the debian and nginx images are built as root (packages set owners)"
    out=$1
    shift
    # The machine's own sources: whatever leads to packages here leads to them for the image too.
    mmdebstrap --quiet --variant=minbase --mode=root --format=tar \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/lintian/*' \
        --customize-hook='rm -rf "$1"/var/log/apt "$1"/var/log/*.log "$1"/var/cache/ldconfig/aux-cache' \
        --customize-hook='rm -f "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/etc/machine-id; touch "$1"/etc/machine-id' \
        $(apt_proxy) "$@" "$suite" "$out" $(apt_sources) >&2
}

apt_sources() {
    for list in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
        [ ! -s "$list" ] || { echo "$list"; return; }
    done
}

apt_proxy() {
    apt-config dump | sed -n 's/^\(Acquire::https\{0,1\}::Proxy\) "\(..*\)";$/--aptopt=\1="\2"/p'
}

build_debian() {
    bootstrap "$work/debian.tar"
    pack layout --out "$1" --layer "$work/debian.tar" --cmd bash \
        --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}

# As the nginx image that everyone knows: starts as root (it makes its cache directories and binds port 80),
# workers run as `nginx`, logs go to the container's output, SIGQUIT stops it gracefully.
build_nginx() {
    bootstrap "$work/nginx.tar" --include=nginx-light \
        --customize-hook="upload $here/nginx.conf /etc/nginx/nginx.conf" \
        --customize-hook="upload $here/nginx-entrypoint.sh /docker-entrypoint.sh" \
        --customize-hook='chroot "$1" groupadd --system --gid 101 nginx' \
        --customize-hook='chroot "$1" useradd --system --uid 101 --gid 101 --home-dir /nonexistent --shell /bin/false nginx' \
        --customize-hook='install -d -m 0755 "$1"/var/cache/nginx; chmod 0755 "$1"/docker-entrypoint.sh' \
        --customize-hook='rm -rf "$1"/var/lib/nginx "$1"/etc/passwd- "$1"/etc/group- "$1"/etc/shadow- "$1"/etc/gshadow-' \
        --customize-hook='mkdir -p "$1"/var/log/nginx; ln -sf /dev/stdout "$1"/var/log/nginx/access.log; ln -sf /dev/stderr "$1"/var/log/nginx/error.log'
    pack layout --out "$1" --layer "$work/nginx.tar" \
        --entrypoint /docker-entrypoint.sh --cmd nginx --cmd=-g --cmd 'daemon off;' \
        --expose 80/tcp --stop-signal SIGQUIT \
        --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}

push_all() {
    for layout in "$1"/*/index.json; do
        name=$(basename "$(dirname "$layout")")
        pack push --from "$1/$name" "$2/library/$name"
    done
}

build() {
    name=$1
    key=$( (cat "$here"/*; echo "$suite"; [ "$name" != busybox ] || sha256sum "$(command -v busybox)") | sha256sum | cut -c1-16)
    kept=$cache/$name-$key
    if [ ! -f "$kept/index.json" ]; then
        work=$(mktemp -d)
        trap 'rm -rf "$work"' EXIT
        mkdir -p "$cache"
        "build_$name" "$work/layout"
        rm -rf "$kept.new.$$" && cp -r "$work/layout" "$kept.new.$$"
        # Whoever comes first wins; the others have the same.
        mv -T "$kept.new.$$" "$kept" 2>/dev/null || rm -rf "$kept.new.$$"
        rm -rf "$work"
        trap - EXIT
    fi
    mkdir -p "$destination"
    rm -rf "${destination:?}/$name.new.$$" && cp -r "$kept" "$destination/$name.new.$$"
    rm -rf "${destination:?}/$name" && mv -T "$destination/$name.new.$$" "$destination/$name"
}

[ $# -ge 1 ] || fail "write: build.sh DEST [NAME...] or build.sh push DEST HOST:PORT"
if [ "$1" = push ]; then
    [ $# = 3 ] || fail "write: build.sh push DEST HOST:PORT"
    push_all "$2" "$3"
    exit
fi
destination=$1
shift
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
[ $# -gt 0 ] || set -- busybox debian nginx
for name in "$@"; do
    case $name in
        busybox | debian | nginx) build "$name" ;;
        *) fail "there is no image $name; there are busybox, debian, nginx" ;;
    esac
done
