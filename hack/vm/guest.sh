# Runs inside the emulated machine: the walkthrough where the kernel is 6.1, the cgroups are v2 and systemd is PID 1.
set -u
export KUBECONFIG=/var/lib/kakoi/admin.kubeconfig HOME=/root PATH=/usr/local/bin:$PATH
failed=0
pass() { echo "vm: ok   $*"; }
fail() { echo "vm: FAIL $*"; failed=1; }
check() { # check WHAT WANTED GOT
    if [ "$2" = "$3" ]; then pass "$1"; else fail "$1: expected «$2», got «$3»"; fi
}
contains() { # contains WHAT PART TEXT
    case "$3" in *"$2"*) pass "$1" ;; *) fail "$1: «$2» is not in «$3»" ;; esac
}

install -m 755 /payload/kakoi /payload/kubectl /usr/local/bin/
install -m 644 /payload/kakoi.service /etc/systemd/system/
mkdir -p /etc/kakoi/certs.d/docker.io
printf '[host."oci:/payload/images"]\n  capabilities = ["pull", "resolve"]\n' >/etc/kakoi/certs.d/docker.io/hosts.toml
ip link add uplink type veth peer name faraway && ip link set faraway up && ip addr add 192.0.2.10/24 dev uplink && ip link set uplink up
ip route add default via 192.0.2.1
echo "vm: $(uname -r), $(stat -f -c %T /sys/fs/cgroup), $(systemctl --version | head -n 1)"

systemctl start kakoi || { journalctl -u kakoi --no-pager | tail -n 40; fail "systemctl start kakoi"; }
kubectl wait --for=condition=Ready node --all --timeout=120s || fail "the node is Ready"
kubectl apply -f /payload/manifests/userns.yaml
kubectl wait --for=condition=Ready --timeout=300s pod/userns
kubectl apply -f /payload/manifests/nginx.yaml -f /payload/manifests/volumes.yaml
kubectl wait --for=condition=Ready --timeout=300s pod/userns pod/nginx pod/volumes || {
    kubectl describe pods; journalctl -u kakoi --no-pager | tail -n 60; fail "the Pods are Ready"
}
record() { cat "/var/lib/kubelet/pods/$(kubectl get pod "$1" -o 'jsonpath={.metadata.uid}')/userns"; }
contains "the first Pod's record" '"hostId":131072,' "$(record userns)"
check "id inside" "uid=0(root) gid=0(root) groups=0(root)" "$(kubectl exec userns -- id)"
check "uid_map inside" "         0     131072      65536" "$(kubectl exec userns -- cat /proc/self/uid_map)"
address=$(kubectl get pod nginx -o 'jsonpath={.status.podIP}')
exec 3<>"/dev/tcp/$address/80"; printf 'GET / HTTP/1.0\r\n\r\n' >&3; contains "nginx answers" "200 OK" "$(head -n 1 <&3)"; exec 3>&-
for file in configmap/colour secret/password downwardapi/labels projected/colour projected/token; do
    check "owner of $file" 0:0 "$(kubectl exec volumes -- stat -Lc %u:%g "/volumes/$file")"
    kubectl exec volumes -- cat "/volumes/$file" >/dev/null || fail "$file is readable"
done
check "emptyDir is writable" 0:0 "$(kubectl exec volumes -- sh -c 'echo x >/volumes/emptydir/f && stat -c %u:%g /volumes/emptydir/f')"

kubectl apply -f - <<'POD'
apiVersion: v1
kind: Pod
metadata: { name: limits }
spec:
  hostUsers: false
  containers:
  - name: c
    image: busybox
    command: [sleep, infinity]
    resources: { limits: { memory: 64Mi, cpu: 500m } }
---
apiVersion: v1
kind: Pod
metadata: { name: hungry }
spec:
  hostUsers: false
  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'x=$(head -c 100000000 /dev/zero | tr "\0" x); echo $x | wc -c']
    resources: { limits: { memory: 16Mi } }
POD
kubectl wait --for=condition=Ready --timeout=120s pod/limits || fail "the Pod with limits is Ready"
group=$(find /sys/fs/cgroup -name memory.max -path '*kakoi*' -exec grep -l '^67108864$' {} + | head -n 1)
contains "the memory limit is in a cgroup of ours" kakoi "${group:-none}"
check "the CPU limit" "50000 100000" "$(cat "$(dirname "${group:-/nonexistent/x}")/cpu.max" 2>/dev/null)"
kubectl wait --for=jsonpath='{.status.containerStatuses[0].state.terminated.reason}'=OOMKilled --timeout=180s pod/hungry ||
    fail "an OOM kill is named: $(kubectl get pod hungry -o 'jsonpath={.status.containerStatuses[0].state}')"

before=$(for pod in userns nginx volumes; do kubectl get pod $pod -o 'jsonpath={.status.containerStatuses[0].containerID} '; record $pod; done)
systemctl restart kakoi || fail "systemctl restart kakoi"
kubectl wait --for=condition=Ready node --all --timeout=120s
kubectl wait --for=condition=Ready --timeout=60s pod/userns pod/nginx pod/volumes
after=$(for pod in userns nginx volumes; do kubectl get pod $pod -o 'jsonpath={.status.containerStatuses[0].containerID} '; record $pod; done)
check "containers and mappings after systemctl restart" "$before" "$after"
check "exec after the restart" 0 "$(kubectl exec userns -- id -u)"
kubectl delete pods --all --timeout=120s || fail "the Pods are deleted"
systemctl stop kakoi && kakoi down
check "cgroups left" "" "$(find /sys/fs/cgroup -maxdepth 1 -name 'kakoi*' ! -name kakoi.service)"
check "mounts left" "" "$(grep -E '/var/lib/(kubelet|kakoi)/' /proc/self/mountinfo)"
check "shims left" "" "$(pgrep -a kakoi)"

# The machine is turned off while Pods run: logind waits for them, and this script goes down with the machine.
printf 'cgroupDriver: systemd\nshutdownGracePeriod: 5m\nshutdownGracePeriodCriticalPods: 4m\n' >/etc/kakoi/config.yaml
systemctl start kakoi || fail "systemctl start kakoi with a graceful shutdown"
kubectl wait --for=condition=Ready node --all --timeout=120s
# Pods are units of systemd now.
kubectl apply -f - <<'POD'
apiVersion: v1
kind: Pod
metadata: { name: unit }
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox
    command: [sleep, infinity]
    resources: { limits: { memory: 64Mi, cpu: 500m } }
POD
kubectl wait --for=condition=Ready --timeout=120s pod/unit || { kubectl describe pod unit; fail "the Pod in a slice is Ready"; }
slice=kubepods-pod$(kubectl get pod unit -o 'jsonpath={.metadata.uid}' | tr - _).slice
check "the slice's memory" "MemoryMax=67108864" "$(systemctl show -p MemoryMax "$slice")"
check "the slice's processor" "CPUQuotaPerSecUSec=500ms" "$(systemctl show -p CPUQuotaPerSecUSec "$slice")"
scope=$(find /sys/fs/cgroup/kubepods.slice -name 'kakoi-*.scope')
check "the scope is handed over" "Delegate=yes" "$(systemctl show -p Delegate "$(basename "$scope")")"
limits() { cat "$scope"/*/memory.max "/sys/fs/cgroup/kubepods.slice/$slice/cpu.max" | tr '\n' ' '; }
before=$(limits)
contains "the container's own limit lies below" 67108864 "$before"
systemctl daemon-reload && systemctl restart kakoi
kubectl wait --for=condition=Ready node --all --timeout=120s
check "limits after daemon-reload and a restart" "$before" "$(limits)"
check "exec in a scope" 0 "$(kubectl exec unit -- id -u)"
kubectl delete pod unit --timeout=120s || fail "the Pod in a slice is deleted"
check "units left" "" "$(systemctl list-units --all --plain --no-legend "$slice" 'kakoi-*.scope')"
delay() { busctl get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager InhibitDelayMaxUSec; }
for _ in $(seq 60); do [ "$(delay)" = "t 300000000" ] && systemd-inhibit --list | grep -q kubelet && break; sleep 1; done
check "logind was told to wait longer" "t 300000000" "$(delay)"
contains "logind has the kubelet's lock" kubelet "$(systemd-inhibit --list)"
pod() { # pod NAME FIELD COMMAND
    kubectl apply -f - <<POD
apiVersion: v1
kind: Pod
metadata: { name: $1, namespace: kube-system }
spec:
  $2
  restartPolicy: Never
  terminationGracePeriodSeconds: 300
  containers: [{ name: c, image: busybox, command: [sh, -c, '$3'] }]
POD
}
pod usual "" 'trap "exit 0" TERM; while :; do sleep 1; done'
pod critical "priorityClassName: system-node-critical" 'trap "while [ ! -e /enough ]; do sleep 1; done; exit 0" TERM; while :; do sleep 1; done'
kubectl -n kube-system wait --for=condition=Ready --timeout=300s pod/usual pod/critical || fail "the Pods are Ready"
systemctl poweroff || fail "systemctl poweroff"
kubectl wait --for=condition=Ready=false node --all --timeout=100s || fail "the node is not ready in a shutdown"
contains "the node says why" "node is shutting down" "$(kubectl get node -o 'jsonpath={.items[0].status.conditions[?(@.type=="Ready")].message}')"
kubectl -n kube-system wait --for=jsonpath='{.status.phase}'=Failed --timeout=100s pod/usual || fail "the usual Pod ends"
check "it was terminated" Terminated "$(kubectl -n kube-system get pod usual -o 'jsonpath={.status.reason}')"
contains "the machine waits for the critical one" kubelet "$(systemd-inhibit --list)"
# The scheduler leaves a node alone that is not ready.
pod late "nodeName: $(kubectl get node -o 'jsonpath={.items[0].metadata.name}')" 'sleep 1'
kubectl -n kube-system wait --for=jsonpath='{.status.reason}'=NodeShutdown --timeout=60s pod/late || fail "a new Pod is refused"
if [ $failed = 0 ]; then echo "vm: all passed"; else journalctl -u kakoi --no-pager | tail -n 80; fi
journalctl -f -u kakoi -n 0 | sed -n '/the shutdown goes on/s/.*/vm: the machine is let go/p' &
# Into the critical Pod's own root.
(cd "/proc/$(pgrep -f '^sh -c trap "while' | head -n 1)/root" && touch enough)
sleep infinity
