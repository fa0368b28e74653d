//! What is typed in a session: at least one step for each command that sends requests, with what `kubectl` of some
//! versions has not or words otherwise.

use std::ops::RangeInclusive;

/// A command, its standard input, and the minor versions of `kubectl` that it is for.
pub(crate) struct Step {
    pub(crate) line: &'static str,
    pub(crate) input: &'static str,
    pub(crate) minors: RangeInclusive<u32>,
}

impl Step {
    const fn with(self, input: &'static str) -> Self {
        Self { input, ..self }
    }

    /// Only for versions from this one on.
    const fn since(self, minor: u32) -> Self {
        Self { minors: minor..=u32::MAX, ..self }
    }

    /// Only for versions up to this one.
    const fn until(self, minor: u32) -> Self {
        Self { minors: 0..=minor, ..self }
    }

    /// The arguments: separated by blanks that are not in single quotes.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut words = vec![String::new()];
        for (place, part) in self.line.split('\'').enumerate() {
            let mut pieces = if place % 2 == 0 { part.split(' ').collect() } else { vec![part] }.into_iter();
            words.last_mut().unwrap().push_str(pieces.next().unwrap());
            words.extend(pieces.map(str::to_owned));
        }
        words
    }
}

const fn step(line: &'static str) -> Step {
    Step { line, input: "", minors: 0..=u32::MAX }
}

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: fenced, labels: {app: fenced}}
spec: {hostUsers: false, containers: [{name: c, image: debian}]}
";
const WRONG_POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: wrong}
spec: {hostUser: false, containers: [{name: c, image: debian}]}
";
const MAP: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {tier: a}}
data: {colour: blue}
";
const CHANGED: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {tier: a}}
data: {colour: green}
";
const SECOND: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: second, labels: {tier: a}}
";
const WEB_POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: web-1, labels: {app: web}}
spec: {nodeName: one, terminationGracePeriodSeconds: 0, containers: [{name: nginx, image: nginx}]}
";
const REQUEST: &str = "apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: jane}
spec:
  signerName: example.com/signer
  usages: [client auth]
  request: ";
const EVENT: &str = "apiVersion: v1
kind: Event
metadata: {name: shell.1, namespace: default}
type: Normal
reason: Started
message: Started container shell
involvedObject: {kind: Pod, namespace: default, name: shell, apiVersion: v1}
source: {component: kubelet, host: one}
count: 2
";

pub(crate) const STEPS: &[Step] = &[
    // What the server is.
    step("api-versions"),
    step("api-resources --api-group=apps"),
    step("cluster-info"),
    step("get --raw /healthz"),
    step("get nodes"),
    // Making and reading.
    step("create -f -").with(POD),
    step("create -f -").with(POD),
    step("create -f -").with(WRONG_POD),
    step("create -f - --dry-run=server --validate=false").with(WRONG_POD),
    step("get pods"),
    step("get pod fenced -o wide"),
    step("get pod fenced -o jsonpath={.spec.hostUsers},{.spec.restartPolicy},{.status.qosClass}"),
    step("get pods -A -l app=fenced --field-selector=status.phase=Pending"),
    step("get pods --sort-by=.metadata.name"),
    step("get pods -L app --chunk-size=2"),
    step("get pod,service fenced kubernetes -o name"),
    step("get pod nothing"),
    step("get things"),
    step("describe pod fenced"),
    // What the generators make.
    step("create deployment web --image=nginx"),
    step("create serviceaccount robot"),
    step("create configmap made --from-literal=a=1"),
    step("create secret generic hidden --from-literal=a=1"),
    step("create namespace other"),
    step("create role reader --verb=get --resource=pods"),
    step("create rolebinding reading --role=reader --serviceaccount=default:robot"),
    step("create clusterrole looker --verb=get,list --resource=nodes"),
    step("create clusterrolebinding lookers --clusterrole=looker --group=lookers"),
    step("create quota few --hard=pods=9"),
    step("create priorityclass high --value=1000"),
    step("create service clusterip plain --tcp=80:80 --clusterip=10.96.0.81"),
    step("create ingress web --rule=example.org/*=web:80"),
    step("create job once --image=busybox"),
    step("create cronjob often --image=busybox '--schedule=*/5 * * * *'"),
    step("create poddisruptionbudget web --selector=app=guarded --min-available=1"),
    step("create token robot").since(24),
    step("run shellless --image=debian"),
    step("run brief --image=busybox --rm -i --restart=Never --pod-running-timeout=1s"),
    step("expose pod fenced --port=80 --name=front --cluster-ip=10.96.0.80"),
    step("get all"),
    // Applying.
    step("apply -f -").with(MAP),
    step("apply -f -").with(MAP),
    step("diff -f -").with(CHANGED),
    step("apply -f -").with(CHANGED),
    step("apply view-last-applied configmap settings"),
    step("apply set-last-applied -f -").with(MAP),
    step("apply --dry-run=server -f -").with(MAP),
    step("apply --server-side -f -").with(CHANGED),
    step("apply --server-side --field-manager=other -f -").with(MAP),
    step("apply --server-side --field-manager=other --force-conflicts -f -").with(MAP),
    step("apply --prune -l tier=a -f -").with(SECOND).until(20),
    step("apply --prune -l tier=a --prune-allowlist=core/v1/ConfigMap -f -").with(SECOND).since(26),
    step("apply -f -").with(MAP),
    step("describe configmap settings"),
    step("describe serviceaccount robot"),
    step("describe service front"),
    step("describe deployment web"),
    step("describe quota few"),
    step("describe namespace other"),
    step("describe clusterrole looker"),
    step("describe poddisruptionbudget web"),
    step("describe node one"),
    // What runs.
    step("logs shell --tail=3 --since=1h --timestamps"),
    step("logs shell --previous --follow"),
    step("logs waiting"),
    step("logs two"),
    step("create -f -").with(WEB_POD),
    step("patch pod web-1 --type=merge -p '{\"status\":{\"phase\":\"Running\"}}' --subresource=status")
        .since(24),
    step("logs deployment/web"),
    step("exec -i shell -- cat -A").with("typed\n"),
    step("exec shell -- true"),
    step("exec deployment/web -- true"),
    step("attach -i shell").with("typed\n"),
    step("debug shell --image=busybox -c looking --attach=false"),
    step("debug shell --image=busybox --copy-to=copied --attach=false -c looking"),
    step("debug node/one --image=busybox --attach=false"),
    step("top pods"),
    step("top nodes"),
    step("create -f -").with(EVENT),
    step("get events"),
    step("events --for pod/shell").since(23),
    step("describe pod shell"),
    // Workloads.
    step("rollout status deployment/web --timeout=1s"),
    step("rollout history deployment/web"),
    step("rollout undo deployment/web"),
    step("rollout pause deployment/web"),
    step("rollout resume deployment/web"),
    step("rollout restart deployment/web"),
    step("set image deployment/web nginx=nginx:2"),
    step("set env deployment/web A=1"),
    step("set resources deployment/web --limits=cpu=1"),
    step("set serviceaccount deployment web robot"),
    step("scale deployment/web --replicas=3"),
    step("scale deployment/web --current-replicas=1 --replicas=4"),
    step("autoscale deployment/web --max=5"),
    step("get deployment,hpa -o wide"),
    step("describe hpa web"),
    // Changing.
    step("patch configmap settings -p '{\"data\":{\"size\":\"1\"}}'"),
    step("patch configmap settings --type=merge -p '{\"data\":{\"size\":null}}'"),
    step(
        "patch configmap settings --type=json -p '[{\"op\":\"test\",\"path\":\"/data/colour\",\"value\":\"red\"}]'",
    ),
    step("patch deployment web --subresource=scale --type=merge -p '{\"spec\":{\"replicas\":2}}'").since(24),
    step("label configmap settings tier=b --overwrite"),
    step("label configmap settings tier=c"),
    step("annotate configmap settings note=b"),
    step("edit configmap settings"),
    step("replace -f -").with(MAP),
    step("replace --force -f -").with(MAP),
    step("get configmap settings -o jsonpath={.data}"),
    // Nodes.
    step("taint node one dedicated=a:NoSchedule"),
    step("cordon one"),
    step(
        "get nodes -o custom-columns=NAME:.metadata.name,TAINTS:.spec.taints[*].key,CORDONED:.spec.unschedulable",
    ),
    step("drain one --force --pod-selector=app=web --timeout=10s"),
    step("uncordon one"),
    // Who may what.
    step("auth can-i create pods"),
    step("auth can-i create pods --as=nobody"),
    step("auth can-i get pods --as=system:serviceaccount:default:robot"),
    step("auth can-i --list --as=system:serviceaccount:default:robot"),
    step("auth whoami").since(27),
    step("create -f -").with(REQUEST),
    step("get csr"),
    step("certificate approve jane"),
    step("get csr jane"),
    step("certificate deny jane"),
    // What the server says of itself.
    step("explain pod.spec.hostUsers"),
    step("explain configmap --recursive"),
    step("explain deployment.spec.replicas --api-version=apps/v1"),
    step("explain cronjob.spec.schedule --output=plaintext-openapiv2").since(27),
    // Waiting and deleting.
    step("wait --for=condition=Ready pod/fenced --timeout=1s"),
    step("wait --for=jsonpath={.status.phase}=Pending pod/fenced --timeout=5s").since(23),
    step("delete pod fenced"),
    step("wait --for=delete pod/fenced --timeout=5s"),
    step("delete pod shell --force --grace-period=0"),
    step("delete deployment web --cascade=orphan --wait=false"),
    step("delete configmap --all -n default"),
    step("delete job once --cascade=foreground --wait=false"),
    step("delete namespace other --wait=false"),
    step("delete pod nothing"),
    step("delete pod nothing --ignore-not-found"),
];

/// The input of a step, with a request for a certificate where one belongs.
pub(crate) fn input(step: &Step, request: &str) -> String {
    if step.input == REQUEST { format!("{REQUEST}{request}\n") } else { step.input.to_owned() }
}
