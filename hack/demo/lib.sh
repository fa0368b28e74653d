# What the demo's two scripts share. KAKOI_ROOT moves the whole node below another directory.
root=${KAKOI_ROOT:-/}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
kakoi=${KAKOI_BINARY:-${CARGO_TARGET_DIR:-$here/target}/release/kakoi}
state=${root%/}/var/lib/kakoi
run=${root%/}/run/kakoi
log=$run/kakoi.log
made=$state/demo-made
images=${KAKOI_IMAGES:-/var/cache/kakoi/images}
export KUBECONFIG=$state/admin.kubeconfig

die() { echo "demo: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "needs root: sudo make demo"
