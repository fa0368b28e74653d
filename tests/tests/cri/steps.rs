//! What is asked of each runtime, step by step, as a kubelet and as a person with `crictl` ask it.

use std::collections::BTreeSet;
use std::path::Path;

use cri::v1::{
    AttachRequest, Capability, ContainerFilter, ContainerStatsRequest, ContainerStatusRequest, DnsConfig,
    ExecRequest, ImageSpec, ImageStatusRequest, Int64Value, KeyValue, LinuxContainerResources,
    ListContainersRequest, ListPodSandboxRequest, Mount, NamespaceMode, NamespaceOption, PodSandboxFilter,
    PodSandboxStateValue, PodSandboxStatusRequest, PortForwardRequest, RemoveContainerRequest,
    RemoveImageRequest, RemovePodSandboxRequest, ReopenContainerLogRequest, SecurityProfile, StatusRequest,
    StopContainerRequest, StopPodSandboxRequest, UpdateContainerResourcesRequest, VersionRequest,
    security_profile::ProfileType,
};

use tonic::Status;

use crate::side::{Side, container, done, security, told};

/// Answers by their steps' names.
pub(crate) type Answers = Vec<(&'static str, String)>;

/// Every step, in order.
pub(crate) async fn all(side: &mut Side) -> Answers {
    let mut answers = Answers::new();
    about(side, &mut answers).await;
    images(side, &mut answers).await;
    unknown(side, &mut answers).await;
    sandboxes(side, &mut answers).await;
    lists(side, &mut answers).await;
    lives(side, &mut answers).await;
    ends(side, &mut answers).await;
    stops(side, &mut answers).await;
    execs(side, &mut answers).await;
    surroundings(side, &mut answers).await;
    users(side, &mut answers).await;
    rights(side, &mut answers).await;
    mounts(side, &mut answers).await;
    resources(side, &mut answers).await;
    answers
}

async fn about(side: &mut Side, answers: &mut Answers) {
    let version = side.runtime.version(VersionRequest::default()).await.unwrap().into_inner();
    answers.push(("the version of the API", version.runtime_api_version));
    let status = side.runtime.status(StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
    let conditions: Vec<_> = status.conditions.iter().map(|one| (one.r#type.as_str(), one.status)).collect();
    answers.push(("the runtime's conditions", format!("{conditions:?}")));
}

fn image(name: &str) -> ImageSpec {
    ImageSpec { image: name.to_owned(), ..ImageSpec::default() }
}

/// The names of what was listed, sorted: no order is promised.
fn names<T>(listed: Result<Vec<T>, Status>, name: impl Fn(T) -> Option<String>) -> String {
    told(listed.map(|items| items.into_iter().filter_map(name).collect::<BTreeSet<_>>()))
}

async fn images(side: &mut Side, answers: &mut Answers) {
    let of = |name: &str| ImageStatusRequest { image: Some(image(name)), verbose: false };
    let found = side.images.image_status(of("busybox")).await.unwrap().into_inner().image.unwrap();
    answers.push(("an image's names", format!("{:?}", found.repo_tags)));
    answers.push(("an image's user", format!("{:?} {:?}", found.uid.map(|uid| uid.value), found.username)));
    let by_id = side.images.image_status(of(&found.id)).await.unwrap().into_inner().image.unwrap();
    answers.push(("an image by its ID", (by_id.id == found.id).to_string()));
    let missing = side.images.image_status(of("nobody/nothing:1")).await;
    answers.push(("an image that is not there", told(missing.map(|answer| answer.into_inner().image))));
    let removed =
        side.images.remove_image(RemoveImageRequest { image: Some(image("nobody/nothing:1")) }).await;
    answers.push(("an image that is not there, removed", done(removed)));
}

async fn unknown(side: &mut Side, answers: &mut Answers) {
    let id = || "0123456789".to_owned();
    let status = PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: false };
    answers.push(("the status of no sandbox", done(side.runtime.pod_sandbox_status(status).await)));
    let stop = StopPodSandboxRequest { pod_sandbox_id: id() };
    answers.push(("no sandbox, stopped", done(side.runtime.stop_pod_sandbox(stop).await)));
    let remove = RemovePodSandboxRequest { pod_sandbox_id: id() };
    answers.push(("no sandbox, removed", done(side.runtime.remove_pod_sandbox(remove).await)));
    let status = ContainerStatusRequest { container_id: id(), verbose: false };
    answers.push(("the status of no container", done(side.runtime.container_status(status).await)));
    answers.push(("no container, started", done(side.try_start(&id()).await)));
    let stop = StopContainerRequest { container_id: id(), timeout: 0 };
    answers.push(("no container, stopped", done(side.runtime.stop_container(stop).await)));
    let remove = RemoveContainerRequest { container_id: id() };
    answers.push(("no container, removed", done(side.runtime.remove_container(remove).await)));
    answers.push(("a command in no container", side.exec(&id(), "true").await));
    let exec = ExecRequest { container_id: id(), cmd: vec!["sh".into()], stdout: true, ..Default::default() };
    answers.push(("a session in no container", done(side.runtime.exec(exec).await)));
    let attach = AttachRequest { container_id: id(), stdout: true, ..AttachRequest::default() };
    answers.push(("attaching to no container", done(side.runtime.attach(attach).await)));
    let forward = PortForwardRequest { pod_sandbox_id: id(), port: vec![80] };
    answers.push(("a port of no sandbox", done(side.runtime.port_forward(forward).await)));
    let numbers = ContainerStatsRequest { container_id: id() };
    answers.push(("the numbers of no container", done(side.runtime.container_stats(numbers).await)));
    let update = UpdateContainerResourcesRequest {
        container_id: id(),
        linux: Some(LinuxContainerResources::default()),
        ..Default::default()
    };
    answers.push(("no container, updated", done(side.runtime.update_container_resources(update).await)));
    let reopen = ReopenContainerLogRequest { container_id: id() };
    answers.push(("the log of no container", done(side.runtime.reopen_container_log(reopen).await)));
}

async fn sandboxes(side: &mut Side, answers: &mut Answers) {
    let mut config = side.sandbox("one");
    config.labels.insert("label".into(), "l".into());
    config.annotations.insert("annotation".into(), "a".into());
    let pod = side.run(config.clone()).await;
    let of = |id: &str| PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let status = side.runtime.pod_sandbox_status(of(&pod.id)).await.unwrap().into_inner().status.unwrap();
    let (metadata, namespaces) = (status.metadata.clone().unwrap(), status.linux.clone().unwrap());
    answers
        .push(("a sandbox's name", format!("{} {} {}", metadata.name, metadata.namespace, metadata.attempt)));
    answers.push(("a sandbox's labels", format!("{:?} {:?}", status.labels, status.annotations)));
    answers.push(("a sandbox's state", format!("{:?} {}", status.state(), status.created_at > 0)));
    let options = namespaces.namespaces.unwrap().options.unwrap();
    let modes = (options.network(), options.pid(), options.ipc());
    answers.push(("a sandbox's namespaces", format!("{modes:?}")));
    let network = status.network.unwrap();
    answers.push((
        "a sandbox's address",
        format!("{} {:?}", network.ip.split('.').count(), network.additional_ips),
    ));
    let again = side.try_run(&config).await;
    answers.push(("the same sandbox, asked for again", told(again.map(|id| id == pod.id))));
    let first = side.start(&pod, container("c", "exec sleep 1000")).await;
    let stop = || StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    answers.push(("a sandbox, stopped", done(side.runtime.stop_pod_sandbox(stop()).await)));
    answers.push(("a stopped sandbox, stopped", done(side.runtime.stop_pod_sandbox(stop()).await)));
    let status = side.runtime.pod_sandbox_status(of(&pod.id)).await.unwrap().into_inner().status.unwrap();
    answers.push(("a stopped sandbox's state", format!("{:?}", status.state())));
    answers.push(("a stopped sandbox's container", format!("{:?}", side.status(&first).await.state())));
    let made = side.try_create(&pod, container("late", "true")).await;
    answers.push(("a container in a stopped sandbox", done(made)));
    let remove = || RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    answers.push(("a sandbox, removed", done(side.runtime.remove_pod_sandbox(remove()).await)));
    answers.push(("a removed sandbox, removed", done(side.runtime.remove_pod_sandbox(remove()).await)));
    let gone = ContainerStatusRequest { container_id: first, verbose: false };
    answers.push(("a removed sandbox's container", done(side.runtime.container_status(gone).await)));
    let (other, _) = side.sleeper("running").await;
    let remove = RemovePodSandboxRequest { pod_sandbox_id: other.id };
    answers.push(("a running sandbox, removed", done(side.runtime.remove_pod_sandbox(remove).await)));
    let mut host = side.sandbox("host");
    // As a kubelet has it: the node's name is not to be changed.
    host.hostname.clear();
    let linux = host.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    linux.namespace_options =
        Some(NamespaceOption { network: NamespaceMode::Node.into(), ..NamespaceOption::default() });
    let host = side.run(host).await;
    let status = side.runtime.pod_sandbox_status(of(&host.id)).await.unwrap().into_inner().status.unwrap();
    answers.push((
        "the address of a sandbox in the node's network",
        format!("{:?}", status.network.map(|network| network.ip)),
    ));
    side.clean().await;
}

async fn lists(side: &mut Side, answers: &mut Answers) {
    let mut config = side.sandbox("listed");
    config.labels.insert("app".into(), "a".into());
    let pod = side.run(config).await;
    side.pod("other").await;
    let mut listed = container("listed", "exec sleep 1000");
    listed.labels.insert("tier".into(), "t".into());
    let id = side.start(&pod, listed).await;
    side.try_create(&pod, container("made", "true")).await.unwrap();
    let label = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let ready = |state: i32| Some(PodSandboxStateValue { state });
    let filters = [
        ("sandboxes, all", PodSandboxFilter::default()),
        ("sandboxes by label", PodSandboxFilter { label_selector: label("app", "a"), ..Default::default() }),
        (
            "sandboxes by another label",
            PodSandboxFilter { label_selector: label("app", "b"), ..Default::default() },
        ),
        ("sandboxes by state", PodSandboxFilter { state: ready(0), ..Default::default() }),
        ("sandboxes by another state", PodSandboxFilter { state: ready(1), ..Default::default() }),
        ("sandboxes by ID", PodSandboxFilter { id: pod.id.clone(), ..Default::default() }),
        (
            "sandboxes by the beginning of an ID",
            PodSandboxFilter { id: pod.id[..13].to_owned(), ..Default::default() },
        ),
        (
            "sandboxes by an ID that nobody has",
            PodSandboxFilter { id: "0123456789".into(), ..Default::default() },
        ),
    ];
    for (step, filter) in filters {
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let items = side.runtime.list_pod_sandbox(request).await.map(|answer| answer.into_inner().items);
        answers.push((step, names(items, |item| Some(item.metadata?.name))));
    }
    let state = |state: i32| Some(cri::v1::ContainerStateValue { state });
    let filters = [
        ("containers, all", ContainerFilter::default()),
        ("containers by state", ContainerFilter { state: state(1), ..Default::default() }),
        ("containers by sandbox", ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() }),
        (
            "containers by the beginning of a sandbox's ID",
            ContainerFilter { pod_sandbox_id: pod.id[..13].to_owned(), ..Default::default() },
        ),
        ("containers by label", ContainerFilter { label_selector: label("tier", "t"), ..Default::default() }),
        ("containers by ID", ContainerFilter { id: id[..13].to_owned(), ..Default::default() }),
    ];
    for (step, filter) in filters {
        let request = ListContainersRequest { filter: Some(filter) };
        let items = side.runtime.list_containers(request).await.map(|answer| answer.into_inner().containers);
        answers.push((step, names(items, |item| Some(item.metadata?.name))));
    }
    let short = ContainerStatusRequest { container_id: id[..13].to_owned(), verbose: false };
    answers
        .push(("a container by the beginning of its ID", done(side.runtime.container_status(short).await)));
    side.clean().await;
}

async fn lives(side: &mut Side, answers: &mut Answers) {
    let pod = side.pod("life").await;
    let mut config = container("c", "echo begun; exec sleep 1000");
    config.labels.insert("l".into(), "1".into());
    config.annotations.insert("a".into(), "2".into());
    let id = side.try_create(&pod, config.clone()).await.unwrap();
    let made = side.status(&id).await;
    answers.push(("a made container", format!("{:?} {} {}", made.state(), made.started_at, made.exit_code)));
    answers.push(("a container's labels", format!("{:?} {:?}", made.labels, made.annotations)));
    answers.push((
        "a container's image",
        format!("{:?} {}", made.image.unwrap().image, made.image_ref.is_empty()),
    ));
    let log = Path::new(&made.log_path);
    answers.push((
        "a container's log",
        log.strip_prefix(&pod.config.log_directory).unwrap().display().to_string(),
    ));
    answers.push(("a command in a container that is only made", side.exec(&id, "true").await));
    let again = side.try_create(&pod, config).await;
    answers.push(("the same container, asked for again", told(again.map(|again| again == id))));
    answers.push(("a container, started", done(side.try_start(&id).await)));
    let started = side.status(&id).await;
    answers.push((
        "a started container",
        format!("{:?} {}", started.state(), started.started_at >= started.created_at),
    ));
    answers.push(("a started container, started", done(side.try_start(&id).await)));
    let reopen = ReopenContainerLogRequest { container_id: id.clone() };
    std::fs::rename(log, log.with_extension("old")).unwrap();
    answers.push(("a log, opened again", done(side.runtime.reopen_container_log(reopen.clone()).await)));
    answers.push(("the new log", log.exists().to_string()));
    let remove = RemoveContainerRequest { container_id: id.clone() };
    answers.push(("a running container, removed", done(side.runtime.remove_container(remove.clone()).await)));
    answers.push(("a removed container, removed", done(side.runtime.remove_container(remove).await)));
    let ended = side.start(&pod, container("ends", "true")).await;
    side.ended(&ended).await;
    answers.push(("an ended container, started", done(side.try_start(&ended).await)));
    answers.push(("a command in an ended container", side.exec(&ended, "true").await));
    let reopen = ReopenContainerLogRequest { container_id: ended };
    answers.push((
        "the log of an ended container, opened again",
        done(side.runtime.reopen_container_log(reopen).await),
    ));
    side.clean().await;
}

async fn ends(side: &mut Side, answers: &mut Answers) {
    let lines = [
        ("a container that succeeds", "echo out; echo err >&2"),
        ("a container that fails", "exit 3"),
        ("a container that kills itself", "kill -9 $$"),
        ("a container whose last line has no end", "printf begun"),
        ("a container with long lines", "i=0; while [ $i -lt 9000 ]; do printf xx; i=$((i+1)); done; echo"),
    ];
    for (step, line) in lines {
        let outcome = side.outcome(container("c", line)).await.replace(&"x".repeat(100), "X");
        answers.push((step, outcome));
    }
    let mut missing = container("c", "");
    missing.command = vec!["no-such-program".to_owned()];
    answers.push(("a program that is not there", side.outcome(missing).await));
    let mut memory = container("c", "exec tail /dev/zero");
    memory.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() });
    answers.push(("a container out of memory", side.outcome(memory).await));
    let mut other = container("c", "true");
    other.image = Some(image("nobody/nothing:1"));
    answers.push(("a container of an image that is not there", side.outcome(other).await));
    let mut place = container("c", "pwd");
    place.working_dir = "/made/here".into();
    answers.push(("a working directory that is not there", side.outcome(place).await));
    side.clean().await;
}

async fn stops(side: &mut Side, answers: &mut Answers) {
    let pod = side.pod("stops").await;
    let stop =
        |container_id: &str, timeout| StopContainerRequest { container_id: container_id.to_owned(), timeout };
    let lines = [
        (
            "a container that ends when it is told",
            "trap 'exit 7' TERM; while :; do sleep 1 & wait $!; done",
            10,
        ),
        ("a container that does not listen", "trap '' TERM; while :; do sleep 1; done", 1),
        ("a container that is given no time", "trap 'exit 7' TERM; while :; do sleep 1 & wait $!; done", 0),
    ];
    for (index, (step, line, timeout)) in lines.into_iter().enumerate() {
        let name = format!("c{index}");
        let id = side.start(&pod, container(&name, line)).await;
        // The trap must be set before the signal comes.
        side.exec(&id, "until grep -q SigCgt:.*[1-9a-f] /proc/1/status; do :; done").await;
        let stopped = done(side.runtime.stop_container(stop(&id, timeout)).await);
        let status = side.status(&id).await;
        answers
            .push((step, format!("{stopped} {:?} {} {}", status.state(), status.exit_code, status.reason)));
        if index == 0 {
            answers.push((
                "a stopped container, stopped",
                done(side.runtime.stop_container(stop(&id, 1)).await),
            ));
        }
    }
    let made = side.try_create(&pod, container("made", "true")).await.unwrap();
    let stopped = done(side.runtime.stop_container(stop(&made, 1)).await);
    answers.push((
        "a container that is only made, stopped",
        format!("{stopped} {:?}", side.status(&made).await.state()),
    ));
    side.clean().await;
}

async fn execs(side: &mut Side, answers: &mut Answers) {
    let (pod, id) = side.sleeper("exec").await;
    answers.push(("a command", side.exec(&id, "echo out; echo err >&2; exit 5").await));
    answers.push(("a command that takes too long", side.exec_within(&id, "exec sleep 100", 1).await));
    answers.push(("its process", side.exec(&id, "ps | grep -c '[s]leep 100$'").await));
    answers.push(("a command without a limit", side.exec_within(&id, "echo done", 0).await));
    let request = cri::v1::ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["no-such-program".into()],
        timeout: 5,
    };
    let missing = side.runtime.exec_sync(request).await.map(|answer| answer.into_inner().exit_code);
    answers.push(("a command that is not there", told(missing)));
    let large = side.exec(&id, "dd if=/dev/zero bs=1024 count=2048 2>/dev/null | tr '\\0' x").await;
    answers.push(("a command that says 2 MiB", large.len().to_string()));
    let exec = ExecRequest { container_id: id.clone(), cmd: vec!["sh".into()], ..ExecRequest::default() };
    answers.push(("a session without a stream", done(side.runtime.exec(exec).await)));
    let exec = ExecRequest {
        container_id: id.clone(),
        cmd: vec!["sh".into()],
        stderr: true,
        tty: true,
        stdout: true,
        ..Default::default()
    };
    answers.push(("a terminal with standard error", done(side.runtime.exec(exec).await)));
    let exec = ExecRequest { container_id: id, cmd: vec!["sh".into()], stdout: true, ..Default::default() };
    let url = side.runtime.exec(exec).await.map(|answer| answer.into_inner().url);
    answers.push(("the place of a session", told(url.map(|url| url.starts_with("http://127.0.0.1:")))));
    let forward = PortForwardRequest { pod_sandbox_id: pod.id, port: vec![80] };
    let url = side.runtime.port_forward(forward).await.map(|answer| answer.into_inner().url);
    answers.push(("the place of a port", told(url.map(|url| url.starts_with("http://127.0.0.1:")))));
    side.clean().await;
}

async fn surroundings(side: &mut Side, answers: &mut Answers) {
    let mut config = side.sandbox("about");
    config.dns_config = Some(DnsConfig {
        servers: vec!["192.0.2.1".into(), "192.0.2.2".into()],
        searches: vec!["a.example".into(), "b.example".into()],
        options: vec!["ndots:5".into()],
    });
    config.linux.as_mut().unwrap().sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "80".into());
    let pod = side.run(config).await;
    let mut config = container("c", "exec sleep 1000");
    config.envs = vec![
        KeyValue { key: "A".into(), value: "1 = 2".into() },
        KeyValue { key: "PATH".into(), value: "/bin:/x".into() },
    ];
    config.working_dir = "/tmp".into();
    // As a kubelet asks, for `procMount: Default`.
    security(&mut config).masked_paths =
        ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"]
            .map(str::to_owned)
            .to_vec();
    security(&mut config).readonly_paths =
        ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq"].map(str::to_owned).to_vec();
    let id = side.start(&pod, config).await;
    let lines = [
        ("the host name", "hostname"),
        ("the resolver's settings", "cat /etc/resolv.conf"),
        ("a sysctl", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"),
        ("variables", "echo \"$A|$PATH|$HOME|$HOSTNAME\""),
        ("the working directory", "pwd"),
        ("shared memory", "stat -f -c %T /dev/shm; df /dev/shm | awk 'NR==2{print $2}'; stat -c %a /dev/shm"),
        ("devices", "ls /dev | sort | tr '\\n' ' '"),
        ("the first process", "cat /proc/1/comm; ls /proc | grep -c '^[0-9]*$'"),
        (
            "masked places",
            "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c; ls /sys/firmware /proc/scsi 2>/dev/null | grep -c .",
        ),
        (
            "places to read only",
            "for p in /proc/sys/kernel/domainname /proc/sysrq-trigger /proc/irq/default_smp_affinity /sys/kernel/x; do (echo x >$p) 2>/dev/null && echo wrote $p; done; echo checked",
        ),
        (
            "the cgroups",
            "ls /sys/fs/cgroup | grep -c .; touch /sys/fs/cgroup/memory/x 2>/dev/null || echo refused",
        ),
        ("the root directory", "touch /x && echo writable; stat -c %a / /tmp /etc | tr '\\n' ' '"),
        ("descriptors", "ls /proc/self/fd | tr '\\n' ' '"),
        ("limits of memory locking and core files", "grep -c . /proc/self/limits"),
    ];
    for (step, line) in lines {
        let answer = side.exec(&id, line).await;
        answers.push((step, answer));
    }
    side.clean().await;
}

async fn users(side: &mut Side, answers: &mut Answers) {
    let line = "id; cat /proc/self/status | grep -E '^(Groups|NoNewPrivs|Seccomp):' | tr -s '\\t ' ' ' | tr '\\n' ' '; echo $HOME";
    answers.push(("the image's user", side.outcome(container("c", line)).await));
    let mut by_id = container("c", line);
    security(&mut by_id).run_as_user = Some(Int64Value { value: 12_345 });
    answers.push(("a user that has no name", side.outcome(by_id).await));
    let mut with_group = container("c", line);
    security(&mut with_group).run_as_user = Some(Int64Value { value: 1000 });
    security(&mut with_group).run_as_group = Some(Int64Value { value: 2000 });
    security(&mut with_group).supplemental_groups = vec![3000, 4000];
    answers.push(("a user with groups", side.outcome(with_group).await));
    let mut by_name = container("c", line);
    security(&mut by_name).run_as_username = "nobody".into();
    answers.push(("a user by name", side.outcome(by_name).await));
    let mut missing = container("c", line);
    security(&mut missing).run_as_username = "nobody-at-all".into();
    answers.push(("a user whom the image does not know", side.outcome(missing).await));
    let mut group_alone = container("c", line);
    security(&mut group_alone).run_as_group = Some(Int64Value { value: 2000 });
    answers.push(("a group without a user", side.outcome(group_alone).await));
    side.clean().await;
}

async fn rights(side: &mut Side, answers: &mut Answers) {
    let line = "grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t ' ' ' | tr '\\n' ' '";
    answers.push(("capabilities", side.outcome(container("c", line)).await));
    let mut changed = container("c", line);
    security(&mut changed).capabilities = Some(Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["CHOWN".into(), "MKNOD".into()],
        ..Capability::default()
    });
    answers.push(("capabilities, changed", side.outcome(changed).await));
    let mut none = container("c", line);
    security(&mut none).capabilities =
        Some(Capability { drop_capabilities: vec!["ALL".into()], ..Capability::default() });
    answers.push(("no capabilities", side.outcome(none).await));
    let mut wrong = container("c", line);
    security(&mut wrong).capabilities =
        Some(Capability { add_capabilities: vec!["NOT_ONE".into()], ..Capability::default() });
    answers.push(("a capability that is none", side.outcome(wrong).await));
    let mut user = container("c", line);
    security(&mut user).run_as_user = Some(Int64Value { value: 1000 });
    answers.push(("a user's capabilities", side.outcome(user).await));
    let mut no_new = container("c", line);
    security(&mut no_new).no_new_privs = true;
    answers.push(("no new privileges", side.outcome(no_new).await));
    let mut default = container("c", line);
    security(&mut default).seccomp = Some(SecurityProfile::default());
    answers.push(("the runtime's seccomp profile", side.outcome(default).await));
    let mut unconfined = container("c", line);
    security(&mut unconfined).seccomp =
        Some(SecurityProfile { profile_type: ProfileType::Unconfined.into(), ..Default::default() });
    answers.push(("no seccomp profile", side.outcome(unconfined).await));
    let mut missing = container("c", line);
    security(&mut missing).seccomp = Some(SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: "/no/such/profile".into(),
    });
    answers.push(("a seccomp profile that is not there", side.outcome(missing).await));
    let mut read_only = container(
        "c",
        "touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo shm; touch /tmp/x 2>/dev/null || echo refused",
    );
    security(&mut read_only).readonly_rootfs = true;
    answers.push(("a root directory to read only", side.outcome(read_only).await));
    side.clean().await;
}

async fn mounts(side: &mut Side, answers: &mut Answers) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "text").unwrap();
    let at = |from: &Path, to: &str, readonly| Mount {
        host_path: from.display().to_string(),
        container_path: to.to_owned(),
        readonly,
        ..Mount::default()
    };
    let mut config = container(
        "c",
        "cat /a/file; echo; touch /a/new && echo wrote; touch /b/new 2>/dev/null || echo refused; cat /etc/one",
    );
    config.mounts = vec![
        at(dir.path(), "/a", false),
        at(dir.path(), "/b", true),
        at(&dir.path().join("file"), "/etc/one", true),
    ];
    answers.push(("mounts", side.outcome(config).await));
    let mut missing = container("c", "ls -ld /a | cut -c1-10");
    missing.mounts = vec![at(&dir.path().join("missing"), "/a", false)];
    answers.push(("a mount of what is not there", side.outcome(missing).await));
    let mut over = container("c", "cat /a/file");
    over.mounts = vec![at(dir.path(), "/a/../a", false)];
    answers.push(("a mount whose place climbs", side.outcome(over).await));
    side.clean().await;
}

async fn resources(side: &mut Side, answers: &mut Answers) {
    let pod = side.pod("resources").await;
    let mut config = container("c", "exec sleep 1000");
    config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        ..LinuxContainerResources::default()
    });
    let id = side.start(&pod, config).await;
    let shown = "cd /sys/fs/cgroup; cat cpu/cpu.cfs_quota_us cpu/cpu.shares memory/memory.limit_in_bytes | tr '\\n' ' '";
    answers.push(("limits", side.exec(&id, shown).await));
    let update = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources {
            cpu_quota: 70_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 96 << 20,
            ..Default::default()
        }),
        ..UpdateContainerResourcesRequest::default()
    };
    answers.push(("limits, changed", done(side.runtime.update_container_resources(update).await)));
    answers.push(("the new limits", side.exec(&id, shown).await));
    let stats = side.runtime.container_stats(ContainerStatsRequest { container_id: id }).await.unwrap();
    let stats = stats.into_inner().stats.unwrap();
    let attributes = stats.attributes.unwrap();
    let counted = |usage: Option<u64>| usage.is_some_and(|value| value > 0);
    answers.push((
        "a container's numbers",
        format!(
            "{} {} {}",
            attributes.metadata.unwrap().name,
            counted(stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map(|value| value.value)),
            counted(stats.memory.and_then(|memory| memory.working_set_bytes).map(|value| value.value)),
        ),
    ));
    side.clean().await;
}
