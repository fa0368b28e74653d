#!/usr/bin/env bash
# The walkthrough on this machine: starts a node, runs the eleven steps with the real kubectl, and leaves the node
# running. `down.sh` undoes it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
manifests=$here/hack/demo/manifests

bold() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] && [ -z "${NO_COLOR:-}" ] || bold() { printf '\n%s\n' "$*"; }
step() { bold "── $*"; }
say() { printf '   %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; eval "$@"; }
expect() { # expect WHAT WANTED GOT
    if [ "$2" = "$3" ]; then say "as expected: $1"; else die "$1: expected «$2», got «$3»"; fi
}

# Debian's packages become the images when no registry answers: `image: nginx` then works as written.
provide_images() {
    local hosts=${root%/}/etc/kakoi/certs.d/docker.io/hosts.toml
    [ -e "$hosts" ] && return
    if timeout 3 bash -c '</dev/tcp/registry-1.docker.io/443' 2>/dev/null; then
        say "docker.io answers: the images come from there"
        return
    fi
    say "docker.io can't be reached: making \`debian\` and \`nginx\` from Debian's packages in $images (about a minute)"
    "$here/hack/images/build.sh" "$images"
    mkdir -p "$(dirname "$hosts")"
    printf 'server = "https://registry-1.docker.io"\n\n[host."oci:%s"]\n  capabilities = ["pull", "resolve"]\n' "$images" >"$hosts"
    printf '%s\n' "$hosts" >>"$made"
}

start() {
    mkdir -p "$run"
    setsid "$kakoi" up --root "$root" ${KAKOI_UP_FLAGS:-} >>"$log" 2>&1 </dev/null &
    local daemon=$! tries=0
    until kubectl wait --for=condition=Ready node --all --timeout=60s >/dev/null 2>&1; do
        kill -0 "$daemon" 2>/dev/null || { tail -n 20 "$log" >&2; die "the node did not start; its log is $log"; }
        [ $((tries += 1)) -lt 300 ] || die "the node does not get Ready; see $log"
        sleep 0.1
    done
}

daemon_pid() { cat "$run/daemon.lock"; }
uid_of() { kubectl get pod "$1" -o 'jsonpath={.metadata.uid}'; }
record_of() { cat "${root%/}/var/lib/kubelet/pods/$(uid_of "$1")/userns"; }
first_id() { record_of "$1" | sed 's/.*"uidMappings":\[{"hostId":\([0-9]*\).*/\1/'; }
ready() { run kubectl wait --for=condition=Ready --timeout=120s "$@"; }
in_pod() { kubectl exec "$1" -- sh -c "$2"; }
# A terminal for kubectl, fed line by line.
type_slowly() { sleep 1; for line in "$@"; do printf '%s\n' "$line"; sleep 0.3; done; }
type_in() { script -qec "$1" /dev/null </dev/stdin; }

# What is not there yet is the demo's, and `down.sh` removes it.
mkdir -p "$state"
for path in "${root%/}/var/lib/kubelet" "${root%/}/var/log/pods"; do
    [ -e "$path" ] || printf '%s\n' "$path" >>"$made"
done
[ -x "$kakoi" ] || die "$kakoi is missing: run \`make demo\`"

bold "kakoi: Kubernetes Pods, each in a user namespace of its own"
provide_images
if kubectl get --raw=/readyz >/dev/null 2>&1; then
    say "a node already runs on $root"
else
    say "starting the node (log: $log)"
    start
fi
kubectl delete pod userns nginx volumes leaked mapped nginx-1000 --ignore-not-found --wait >/dev/null

step "1. What is running"
run "$kakoi version"

step "2. The node"
run kubectl get node -owide

step "3. The feature gate: nothing to do"
say "UserNamespacesSupport is on in every component; --feature-gates=UserNamespacesSupport=false turns it off in all at once"

step "4. A Pod with \`hostUsers: false\`"
run cat "$manifests/userns.yaml"
run kubectl apply -f "$manifests/userns.yaml"
ready pod/userns

step "5. Its IDs on the node"
run "cat ${root%/}/var/lib/kubelet/pods/\$(kubectl get pod userns -o jsonpath='{.metadata.uid}')/userns; echo"
base=$(first_id userns)
if [ "$base" = 131072 ]; then
    say "node IDs 131072-196607 are the Pod's 0-65535"
else
    say "the first Pod of a fresh machine gets 131072; this machine has given that away, or the node is not fresh:"
fi
run "$kakoi userns --root $root"

step "6. Root inside, nobody outside"
printf '$ kubectl exec userns -it -- bash\n'
type_slowly id 'cat /proc/self/uid_map' exit | type_in "kubectl exec userns -it -- bash" | sed 's/\r//g; s/\x1b\[?2004[hl]//g'
expect "id" "uid=0(root) gid=0(root) groups=0(root)" "$(kubectl exec userns -- id)"
expect "uid_map" "$(printf '%10d %10d %10d' 0 "$base" 65536)" "$(kubectl exec userns -- cat /proc/self/uid_map)"

step "7. nginx starts as root without being root"
run kubectl apply -f "$manifests/nginx.yaml"
ready pod/nginx
run kubectl get pod nginx -owide
second=$(first_id nginx)
run "cat ${root%/}/var/lib/kubelet/pods/\$(kubectl get pod nginx -o jsonpath='{.metadata.uid}')/userns; echo"
[ "$second" = $((base + 65536)) ] || say "the next free block: what lies between is held, as \`kakoi userns\` shows above"
address=$(kubectl get pod nginx -o 'jsonpath={.status.podIP}')
say "the first line that $address:80 answers:"
exec 3<>"/dev/tcp/$address/80" && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && head -n 1 <&3 | tr -d '\r'
exec 3>&-
say "its processes, as the node sees them:"
ps -eo uid,pid,args | grep '[n]ginx: ' || true
run "$kakoi who-owns $second --root $root"

step "8. The node's software dies and comes back"
before=$(record_of userns)
shell=$(kubectl exec userns -- cat /proc/sys/kernel/random/boot_id >/dev/null && kubectl get pod userns -o 'jsonpath={.status.containerStatuses[0].containerID}')
daemon=$(daemon_pid)
run "kill -9 $daemon"
tail --pid="$daemon" -f /dev/null
start
ready pod/userns pod/nginx
run kubectl get pods
expect "the mapping of userns" "$before" "$(record_of userns)"
expect "the container of userns" "$shell" "$(kubectl get pod userns -o 'jsonpath={.status.containerStatuses[0].containerID}')"

step "9. The five volume types"
run kubectl apply -f "$manifests/volumes.yaml"
ready pod/volumes
run "kubectl exec volumes -- sh -c 'for f in configmap/colour secret/password downwardapi/labels projected/colour projected/token; do stat -Lc \"%u:%g %a %n\" /volumes/\$f && cat /volumes/\$f >/dev/null; done'"
run "kubectl exec volumes -- sh -c 'echo written > /volumes/emptydir/file && stat -c \"%u:%g %n\" /volumes/emptydir/file'"

step "10. A host directory, as a leak would show it"
leak=$(mktemp -d "${TMPDIR:-/tmp}/kakoi-leak.XXXXXX")
chmod 755 "$leak"
printf '%s\n' "$leak" >>"$made"
install -m 600 /dev/null "$leak/root-only" && echo "only root may read this" >"$leak/root-only"
install -m 600 -o 70000 -g 70000 /dev/null "$leak/stranger"
sed "s|@DIRECTORY@|$leak|" "$manifests/hostpath.yaml" >"$run/hostpath.yaml"
run kubectl apply -f "$run/hostpath.yaml"
ready pod/leaked pod/mapped
say "bound without an ID mapping (the annotation), its files belong to nobody (65534) and stay closed:"
run "kubectl exec leaked -- sh -c 'stat -c \"%u:%g %n\" /leaked/*; cat /leaked/*' || true"
expect "the files that the leak lets read" "" "$(in_pod leaked 'cat /leaked/* 2>/dev/null' || true)"
say "ID-mapped, as Kubernetes does today, the node's root is the Pod's root in that directory:"
run "kubectl exec mapped -- sh -c 'stat -c \"%u:%g %n\" /mapped/*; cat /mapped/root-only'"

step "11. The contrast: the same nginx as user 1000, without a user namespace"
run kubectl apply -f "$manifests/contrast.yaml"
run "kubectl wait pod/nginx-1000 --timeout=120s --for=jsonpath='{.status.containerStatuses[0].state.waiting.reason}'=CrashLoopBackOff"
run kubectl get pod nginx-1000
run "kubectl logs nginx-1000 --previous"
run "kubectl describe pod nginx-1000 | sed -n '/^Events/,\$p'"

bold "All eleven steps are done."
say "The node goes on running. Go on by hand with:"
say "    export KUBECONFIG=$KUBECONFIG"
say "    kubectl get pods -A"
say "    $kakoi userns${KAKOI_ROOT:+ --root $root}"
say "\`make demo-down\` undoes all of it."
