//! The known ways out of other runtimes' containers, each tried with a user namespace and without one: what a request
//! or a volume of the attacker's can do while the runtime sets a container up.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use cri::v1::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::machine::{Machine, container, fenced_options, node_options, on_a_machine};

/// A setting of the node whose change would run a program of the attacker's on it.
const SETTING: &str = "/proc/sys/kernel/core_pattern";

/// A machine with a file that no container may read and a directory that none may write, and the two kinds of Pod.
struct Target {
    machine: Machine,
    /// Sandbox, and the options of its containers.
    pods: Vec<(String, NamespaceOption)>,
    secret: PathBuf,
    setting: String,
}

impl Target {
    async fn new(mut machine: Machine) -> Self {
        let secret = machine.path().join("secret");
        std::fs::write(&secret, "the node's secret").unwrap();
        let (plain, fenced) = (machine.sandbox_config("plain"), machine.fenced_config("fenced", 1));
        let pods = vec![
            (machine.run_sandbox(plain).await, node_options()),
            (machine.run_sandbox(fenced).await, fenced_options(1)),
        ];
        Self { machine, pods, secret, setting: setting() }
    }

    /// Runs a container to its end, and answers what it wrote, or why it was refused.
    async fn outcome(&mut self, sandbox: &str, config: ContainerConfig) -> String {
        let machine = &mut self.machine;
        let id = match machine.create_container(sandbox, config).await {
            Ok(id) => id,
            Err(refusal) => return refusal.message().to_owned(),
        };
        let request = StartContainerRequest { container_id: id.clone() };
        let text = if let Err(refusal) = machine.runtime.start_container(request).await {
            refusal.message().to_owned()
        } else {
            machine.wait_exited(&id).await;
            machine.log(&id).await
        };
        let request = RemoveContainerRequest { container_id: id };
        machine.runtime.remove_container(request).await.unwrap();
        self.assert_unharmed(&text);
        text
    }

    fn assert_unharmed(&self, text: &str) {
        assert!(!text.contains("the node's secret"), "a container read the node's file: {text}");
        assert_eq!(setting(), self.setting, "a container changed the node: {text}");
        assert_eq!(std::fs::read_to_string(&self.secret).unwrap(), "the node's secret");
    }

    /// A directory of the attacker's, as an ID-mapped volume would be; whoever is root in a Pod may write it.
    fn volume(&self, name: &str) -> PathBuf {
        let path = self.machine.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        path
    }
}

/// Ends what looks at it.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn setting() -> String {
    std::fs::read_to_string(SETTING).unwrap()
}

fn mount(source: &Path, destination: &str) -> Mount {
    Mount {
        host_path: source.to_string_lossy().into_owned(),
        container_path: destination.to_owned(),
        ..Mount::default()
    }
}

fn shell(options: &NamespaceOption, script: &str) -> ContainerConfig {
    container("attack", options.clone(), &["sh", "-c", script])
}

#[test]
fn cve_2024_21626_a_working_directory_behind_a_descriptor_is_not_the_nodes() {
    let name = "escapes::cve_2024_21626_a_working_directory_behind_a_descriptor_is_not_the_nodes";
    on_a_machine(name, |machine| async move {
        let mut target = Target::new(machine).await;
        // From wherever the container is, up to the root of whatever that is, and down to the secret.
        let script = format!(
            "i=0; while [ $i -lt 20 ]; do cd .. 2>/dev/null; i=$((i+1)); done; cat ./{} ../{0}; echo tried",
            target.secret.strip_prefix("/").unwrap().display()
        );
        let mut ran = 0;
        for (sandbox, options) in target.pods.clone() {
            for descriptor in 0..14 {
                for directory in ["/proc/self/fd", "/proc/thread-self/fd"] {
                    let mut config = shell(&options, &script);
                    config.working_dir = format!("{directory}/{descriptor}");
                    ran += usize::from(target.outcome(&sandbox, config).await.contains("tried"));
                }
            }
            // The attack by exec, through a link that the container plants.
            let id = target.machine.run_container(&sandbox, shell(&options, "sleep 1000")).await;
            for descriptor in 0..14 {
                let plant = format!("cd /proc/self/fd/{descriptor} && {script}");
                let said = target.machine.try_exec(&id, &["sh", "-c", &plant]).await.unwrap();
                target.assert_unharmed(&String::from_utf8_lossy(&said.stdout));
            }
        }
        assert_eq!(ran, 0, "no descriptor of the runtime's leads to a directory");
        target.machine.down();
    });
}

#[test]
fn cve_2019_5736_the_runtimes_own_program_cannot_be_had_or_changed() {
    let name = "escapes::cve_2019_5736_the_runtimes_own_program_cannot_be_had_or_changed";
    on_a_machine(name, |machine| async move {
        let mut target = Target::new(machine).await;
        for (sandbox, options) in target.pods.clone() {
            // The container's first process is the runtime's program, if that can be had.
            let mut itself = container("attack", options.clone(), &["/proc/self/exe", "x"]);
            itself.args = Vec::new();
            target.outcome(&sandbox, itself).await;
            // One that waits for execs, and writes to whatever is not the image's own program.
            let watch = "while :; do for p in /proc/[0-9]*; do case $(ls -l $p/exe 2>/dev/null) in \
                */bin/busybox|'') ;; *) echo seen; echo x 2>/dev/null >$p/exe && echo overwritten;; esac; done; done";
            let id = target.machine.run_container(&sandbox, shell(&options, watch)).await;
            for command in [["/proc/self/exe"].as_slice(), &["true"]] {
                for _ in 0..10 {
                    // The program may refuse to run inside; what counts is what the watcher could do.
                    let _ = target.machine.try_exec(&id, command).await;
                }
            }
            let log = target.machine.log(&id).await;
            assert!(!log.contains("overwritten"), "{log}");
            target.assert_unharmed(&log);
            let after = container("after", options.clone(), &["echo", "whole"]);
            let after = target.outcome(&sandbox, after).await;
            assert!(after.contains("whole"), "the runtime is damaged: {after}");
        }
        target.machine.down();
    });
}

#[test]
fn cve_2021_30465_a_mount_below_a_volume_that_changes_meanwhile_stays_in_the_container() {
    let name = "escapes::cve_2021_30465_a_mount_below_a_volume_that_changes_meanwhile_stays_in_the_container";
    on_a_machine(name, |machine| async move {
        let mut target = Target::new(machine).await;
        let (shared, inner) = (target.volume("shared"), target.volume("inner"));
        let outside = target.volume("outside");
        std::fs::create_dir(outside.join("mine")).unwrap();
        std::fs::write(inner.join("mark"), "mounted").unwrap();
        // Another container of the Pod keeps exchanging the directory that the second mount goes through.
        std::fs::create_dir_all(shared.join("way/mine")).unwrap();
        symlink(&outside, shared.join("link")).unwrap();
        let stop = AtomicBool::new(false);
        let exchange = || {
            while !stop.load(Ordering::Relaxed) {
                let (one, other) = (shared.join("way"), shared.join("link"));
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            }
        };
        let pods = target.pods.clone();
        let before = crate::machine::mounts();
        std::thread::scope(|scope| {
            scope.spawn(exchange);
            let attack = async {
                for (sandbox, options) in pods {
                    for _ in 0..8 {
                        let mut config = shell(&options, "cat /shared/way/mine/mark; true");
                        config.mounts = vec![mount(&shared, "/shared"), mount(&inner, "/shared/way/mine")];
                        target.outcome(&sandbox, config).await;
                        assert_eq!(std::fs::read_dir(outside.join("mine")).unwrap().count(), 0);
                        assert_eq!(crate::machine::mounts(), before, "a mount got out of the container");
                    }
                }
            };
            // Also when the attack succeeds, which is a panic.
            let _stopped = Stop(&stop);
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(attack));
        });
        target.machine.down();
    });
}

#[test]
fn cve_2025_31133_and_52565_devices_that_are_links_do_not_unmask_or_open_the_nodes_files() {
    let name =
        "escapes::cve_2025_31133_and_52565_devices_that_are_links_do_not_unmask_or_open_the_nodes_files";
    on_a_machine(name, |machine| async move {
        let mut target = Target::new(machine).await;
        let devices = target.volume("devices");
        for link in ["null", "console", "ptmx", "tty"] {
            symlink(SETTING, devices.join(link)).unwrap();
        }
        symlink("/proc/sys/kernel", devices.join("pts")).unwrap();
        let script = format!("cat /proc/kcore | wc -c; echo '|/x' >{SETTING}; echo tried");
        for (sandbox, options) in target.pods.clone() {
            for terminal in [false, true] {
                let mut config = shell(&options, &script);
                config.tty = terminal;
                config.mounts = vec![mount(&devices, "/dev")];
                let text = target.outcome(&sandbox, config).await;
                let is_masked = text.lines().any(|line| line.trim_end().ends_with(" 0"));
                assert!(is_masked || !text.contains("tried"), "the mask is not whole: {text}");
            }
        }
        target.machine.down();
    });
}

#[test]
fn cve_2025_52881_a_proc_that_is_none_does_not_turn_the_runtimes_writes_elsewhere() {
    let name = "escapes::cve_2025_52881_a_proc_that_is_none_does_not_turn_the_runtimes_writes_elsewhere";
    on_a_machine(name, |machine| async move {
        let mut target = Target::new(machine).await;
        let proc = target.volume("proc");
        let hit = target.machine.path().join("hit");
        std::fs::write(&hit, "untouched").unwrap();
        let files = ["oom_score_adj", "attr/exec", "attr/apparmor/exec", "uid_map", "setgroups", "fd/3"];
        for process in ["self", "thread-self", "1"] {
            for file in files {
                let path = proc.join(process).join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                symlink(&hit, path).unwrap();
            }
        }
        std::fs::create_dir_all(proc.join("sys/net/ipv4")).unwrap();
        symlink(SETTING, proc.join("sys/net/ipv4/ip_unprivileged_port_start")).unwrap();
        for (sandbox, options) in target.pods.clone() {
            let mut config = shell(&options, "echo ran");
            config.mounts = vec![mount(&proc, "/proc")];
            let linux = config.linux.as_mut().unwrap();
            linux.resources =
                Some(LinuxContainerResources { oom_score_adj: 999, ..LinuxContainerResources::default() });
            target.outcome(&sandbox, config).await;
            assert_eq!(std::fs::read_to_string(&hit).unwrap(), "untouched");
        }
        target.machine.down();
    });
}
