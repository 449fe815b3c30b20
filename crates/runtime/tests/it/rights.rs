//! What a container may and may not do, read from inside it.

use std::path::Path;
use std::time::Duration;

use runtime::testing::{TestFile, TestImage};
use runtime::{Device, Error, ExecRequest, Mount, PidNamespace, Propagation, Seccomp};
use serde_json::json;

use crate::support::{IMAGE, Lab, drain, log_lines, texts};

#[tokio::test]
async fn the_default_filter_is_on_also_for_exec() {
    let lab = Lab::new().await;
    let script = "grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status | tr '\\t' ' '; \
        unshare -U true 2>&1 | grep -o 'Operation not permitted'; \
        unshare -m true 2>&1 | grep -o 'Operation not permitted'; \
        mount -t tmpfs x /tmp 2>&1 | grep -io 'permission denied\\|not permitted'";
    let (status, lines) = lab.script(|_| {}, script).await;
    assert_eq!(status.exit_code, 0, "{lines:?}");
    let expected = [
        "CapEff: 00000000a80425fb",
        "NoNewPrivs: 0",
        "Seccomp: 2",
        "Operation not permitted",
        "Operation not permitted",
    ];
    assert_eq!(&texts(&lines)[..5], expected, "{lines:?}");
    let sandbox = lab.sandbox("exec").await;
    let id = lab.run(lab.shell(&sandbox.id, "sleep 100")).await;
    let argv = ["grep", "-E", "^(Seccomp|CapEff|CapBnd):", "/proc/self/status"].map(str::to_owned);
    let output = lab.runtime.exec_sync(&id, argv.into(), 5_000).await.unwrap();
    let text = String::from_utf8(output.stdout.to_vec()).unwrap().replace('\t', " ");
    assert_eq!(text, "CapEff: 00000000a80425fb\nCapBnd: 00000000a80425fb\nSeccomp: 2\n");
    lab.close().await;
}

#[tokio::test]
async fn filters_can_be_off_or_from_a_file() {
    let lab = Lab::new().await;
    let script = "grep ^Seccomp: /proc/self/status | tr '\\t' ' '; mkdir /tmp/d && echo made || echo refused";
    let off = lab.script(|s| s.security.seccomp = Seccomp::Unconfined, script).await;
    assert_eq!(texts(&off.1), ["Seccomp: 0", "made"]);
    let profile = lab.dir.path().join("profile.json");
    let text =
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(&profile, text).unwrap();
    let own = lab.script(|s| s.security.seccomp = Seccomp::Localhost(profile.clone()), script).await;
    assert_eq!(texts(&own.1), ["Seccomp: 2", "refused"]);
    let nnp = lab
        .script(
            |s| s.security.no_new_privileges = true,
            "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | tr '\\t' ' '",
        )
        .await;
    assert_eq!(texts(&nnp.1), ["NoNewPrivs: 1", "Seccomp: 2"]);
    lab.close().await;
}

#[tokio::test]
async fn users_groups_and_capabilities() {
    let lab = Lab::new().await;
    let who = "id; grep CapEff /proc/self/status | tr '\\t' ' '; echo $HOME; \
        touch /root/x 2>/dev/null && echo can || echo cannot";
    let (_, lines) = lab.script(|s| s.security.user = Some("app".into()), who).await;
    let expected =
        ["uid=1000(app) gid=1000(app) groups=50(staff),1000(app)", "CapEff: 0000000000000000", "/home", "cannot"];
    assert_eq!(texts(&lines), expected);
    let (_, lines) = lab
        .script(
            |s| {
                s.security.user = Some("4711".into());
                s.security.group = Some(12);
                s.security.supplemental_groups = vec![77, 50];
            },
            "id",
        )
        .await;
    assert_eq!(texts(&lines), ["uid=4711 gid=12 groups=12,50(staff),77"]);
    let caps = "grep -E 'Cap(Eff|Bnd|Inh|Amb)' /proc/self/status | tr '\\t' ' '";
    let (_, lines) = lab
        .script(
            |s| {
                s.security.drop_capabilities = vec!["ALL".into()];
                s.security.add_capabilities = vec!["NET_BIND_SERVICE".into(), "SYS_RESOURCE".into()];
            },
            caps,
        )
        .await;
    let resource = if own_capability(24) { "0000000001000400" } else { "0000000000000400" };
    let expected: Vec<String> =
        [("Inh", "0000000000000000"), ("Eff", resource), ("Bnd", resource), ("Amb", "0000000000000000")]
            .map(|(set, mask)| format!("Cap{set}: {mask}"))
            .into();
    assert_eq!(texts(&lines), expected);
    let (status, _) = lab.script(|s| s.security.user = Some("nobody:staff".into()), "id -u; id -g").await;
    assert_eq!(status.exit_code, 0);
    lab.close().await;
}

fn own_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|l| l.strip_prefix("CapBnd:\t")).unwrap();
    u64::from_str_radix(mask, 16).unwrap() & (1 << number) != 0
}

#[tokio::test]
async fn the_kernel_files_are_guarded() {
    let lab = Lab::new().await;
    let script = "echo 1 2>/dev/null >/proc/sys/kernel/panic && echo wrote || echo read-only; \
        cat /proc/timer_list /proc/keys 2>/dev/null | wc -c; \
        ls /sys/firmware | wc -l; mkdir /sys/fs/cgroup/x 2>/dev/null || echo no cgroup; \
        touch /sys/kernel/x 2>/dev/null || echo no sys; \
        ls /dev | tr '\\n' ' '; cat /proc/1/comm; ls /proc/self/fd | wc -l; \
        cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true";
    let (status, lines) = lab.script(|s| s.resources.memory_limit_bytes = Some(64 << 20), script).await;
    assert_eq!(status.exit_code, 0, "{lines:?}");
    let expected = [
        "read-only",
        "0",
        "0",
        "no cgroup",
        "no sys",
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero sh",
        // Standard streams and the directory that ls reads.
        "4",
        "67108864",
    ];
    assert_eq!(texts(&lines), expected);
    let (_, lines) =
        lab.script(|s| s.security.unmasked_proc = true, "test -w /proc/sys/kernel/panic && echo open").await;
    assert_eq!(texts(&lines), ["open"]);
    let (_, lines) = lab
        .script(
            |s| s.security.privileged = true,
            "grep Seccomp: /proc/self/status | tr '\\t' ' '; \
        mount -t tmpfs x /tmp && echo mounted; test -c /dev/kmsg && echo devices",
        )
        .await;
    assert_eq!(texts(&lines), ["Seccomp: 0", "mounted", "devices"]);
    lab.close().await;
}

#[tokio::test]
async fn only_allowed_devices_can_be_opened() {
    let lab = Lab::new().await;
    // The container has MKNOD, as everywhere, but the device cgroup lets it open only what it was given.
    let script = "mknod /tmp/kmsg c 1 11 && (head -c 1 /tmp/kmsg >/dev/null 2>&1 && echo opened || echo refused); \
        test -c /dev/given && head -c 2 /dev/given | wc -c; echo x > /dev/null && echo ok";
    let (_, lines) = lab
        .script(
            |s| {
                s.devices.push(Device {
                    host_path: "/dev/zero".into(),
                    container_path: "/dev/given".into(),
                    permissions: "r".into(),
                });
            },
            script,
        )
        .await;
    assert_eq!(texts(&lines), ["refused", "2", "ok"]);
    lab.close().await;
}

#[tokio::test]
async fn mounts_go_where_they_should_and_nowhere_else() {
    let lab = Lab::new().await;
    let host = lab.dir.path().join("volume");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "from the host\n").unwrap();
    std::fs::write(lab.dir.path().join("one"), "a file\n").unwrap();
    // The image's own link must not lead the mount out of the container.
    let archive = lab.dir.path().join("links.tar");
    TestImage::busybox()
        .layer(&[TestFile::Link("data", "../../../../../../tmp"), TestFile::Link("out", "/nowhere/deep")])
        .write_oci(&archive, "registry.test/links:1")
        .unwrap();
    lab.runtime.load(archive).await.unwrap();
    let script = "cat /data/v/file /etc/one /out/v/file; touch /data/v/x 2>/dev/null || echo read-only; \
        touch /rw/made; touch /x 2>/dev/null || echo root read-only; touch /tmp/x 2>/dev/null || echo tmp too";
    let change = |s: &mut runtime::ContainerSpec| {
        s.image = "registry.test/links:1".into();
        s.mounts = vec![
            Mount::new(&host, "/data/v").read_only(),
            Mount::new(&host, "/out/v"),
            Mount::new(lab.dir.path().join("one"), "/etc/one").read_only(),
            Mount::new(&host, "/rw"),
        ];
        s.security.read_only_root = true;
    };
    let (_, lines) = lab.script(change, script).await;
    let expected = ["from the host", "a file", "from the host", "read-only", "root read-only", "tmp too"];
    assert_eq!(texts(&lines), expected);
    assert!(host.join("made").exists() && !Path::new("/tmp/v").exists() && !Path::new("/nowhere").exists());
    let sandbox = lab.sandbox("bad").await;
    for (from, to, why) in [
        (host.as_path(), "/proc/sys", "would change /proc"),
        (host.as_path(), "relative", "absolute path"),
        (Path::new("/does/not/exist"), "/x", "No such file"),
    ] {
        let mut spec = lab.shell(&sandbox.id, "true");
        spec.mounts = vec![Mount::new(from, to)];
        let id = lab.runtime.create(spec).await.unwrap();
        let error = lab.runtime.start(&id).await.unwrap_err();
        assert!(matches!(error, Error::Start { .. }) && error.to_string().contains(why), "{error}");
        let status = lab.runtime.container(&id).await.unwrap();
        assert_eq!((status.exit_code, &*status.reason), (128, "StartError"));
        assert!(status.message.contains(why), "{}", status.message);
    }
    lab.close().await;
}

/// Whoever may unmount his own root comes out where there is nothing, and not among the machine's files.
#[tokio::test]
async fn below_a_containers_root_is_nothing() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox("deep").await;
    let mut spec = lab.shell(&sandbox.id, "cat /proc/self/mountinfo; umount -l / && echo unmounted; sleep 1000");
    spec.security.privileged = true;
    let log = lab.log_path();
    let id = lab.run(spec).await;
    let told = async {
        loop {
            let lines = log_lines(&log);
            if lines.iter().any(|line| line.ends_with(" unmounted")) {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let lines = tokio::time::timeout(Duration::from_secs(20), told).await.expect("the root is unmounted");
    let own = lab.dir.path().display().to_string();
    let roots: Vec<&String> = lines.iter().filter(|line| line.split(' ').nth(6) == Some("/")).collect();
    assert!(roots.len() == 1 && roots[0].contains(" - overlay "), "{roots:?}");
    assert!(!lines.iter().any(|line| line.split(' ').nth(6).is_some_and(|at| at.starts_with(&own))), "{lines:#?}");
    // Who joins later finds no program at all, neither the container's nor the machine's.
    let joined = lab.runtime.exec_sync(&id, vec!["/bin/ls".into(), "/".into()], 5_000).await;
    assert!(joined.is_err(), "{joined:?}");
    lab.close().await;
}

#[tokio::test]
async fn mounts_travel_as_asked() {
    let lab = Lab::new().await;
    let host = lab.dir.path().join("shared");
    std::fs::create_dir_all(host.join("in")).unwrap();
    std::fs::create_dir_all(host.join("out")).unwrap();
    rustix_mount(&host, None);
    let sandbox = lab.sandbox("two").await;
    let mut both = lab.shell(&sandbox.id, "mount -t tmpfs inner /v/out && touch /v/out/mark && sleep 100");
    both.mounts = vec![Mount { propagation: Propagation::Bidirectional, ..Mount::new(&host, "/v") }];
    both.security.privileged = true;
    let mut slave = lab.shell(&sandbox.id, "sleep 100");
    slave.mounts = vec![Mount { propagation: Propagation::HostToContainer, ..Mount::new(&host, "/v") }];
    let mut private = lab.shell(&sandbox.id, "sleep 100");
    private.mounts = vec![Mount::new(&host, "/v")];
    let slave = lab.run(slave).await;
    let private = lab.run(private).await;
    let both = lab.run(both).await;
    // The shell's mount is done when a second process sees the mark.
    let wait = ["sh", "-c", "until test -e /v/out/mark; do sleep 0.02; done"].map(str::to_owned);
    lab.runtime.exec_sync(&both, wait.into(), 10_000).await.unwrap();
    assert!(host.join("out/mark").exists(), "a bidirectional mount reaches the host");
    rustix_mount(&host.join("in"), Some("tmpfs"));
    std::fs::write(host.join("in/mark"), "").unwrap();
    let sees = async |id: &str, path: &str| {
        let argv = ["test", "-e", path].map(str::to_owned);
        lab.runtime.exec_sync(id, argv.into(), 5_000).await.unwrap().code == 0
    };
    assert!(sees(&slave, "/v/in/mark").await && sees(&slave, "/v/out/mark").await);
    assert!(!sees(&private, "/v/in/mark").await && !sees(&private, "/v/out/mark").await);
    for path in [host.join("in"), host.join("out"), host] {
        rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    lab.close().await;
}

#[tokio::test]
async fn a_mount_from_where_others_write_follows_no_link() {
    let lab = Lab::new().await;
    let host = lab.dir.path().join("volume");
    std::fs::create_dir_all(host.join("real")).unwrap();
    std::os::unix::fs::symlink("/", host.join("link")).unwrap();
    let sandbox = lab.sandbox("links").await;
    for (path, starts) in [("real", true), ("link", false), ("link/etc", false)] {
        let mut spec = lab.shell(&sandbox.id, "sleep 100");
        spec.mounts = vec![Mount { no_links: true, ..Mount::new(host.join(path), "/v") }];
        let id = lab.runtime.create(spec).await.unwrap();
        assert_eq!(lab.runtime.start(&id).await.is_ok(), starts, "{path}");
    }
    lab.close().await;
}

/// Makes the path a shared mount point: a bind of itself, or a new file system.
fn rustix_mount(path: &Path, kind: Option<&str>) {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
    match kind {
        Some(kind) => mount(kind, path, kind, MountFlags::empty(), None).unwrap(),
        None => mount_bind(path, path).unwrap(),
    }
    mount_change(path, MountPropagationFlags::SHARED).unwrap();
}

#[tokio::test]
async fn processes_are_shared_as_asked() {
    let lab = Lab::new().await;
    let mut spec = lab.sandbox_spec("share");
    spec.share_processes = true;
    let sandbox = lab.runtime.run_sandbox(spec).await.unwrap();
    let count = "ls -d /proc/[0-9]* | wc -l; tr '\\0' ' ' < /proc/1/cmdline | cut -c1-6";
    let mut first = lab.shell(&sandbox.id, "sleep 4711");
    first.pid = PidNamespace::Pod;
    let first = lab.run(first).await;
    let run = async |pid: PidNamespace, script: &str| {
        let mut spec = lab.shell(&sandbox.id, script);
        spec.pid = pid;
        let _ = std::fs::remove_file(lab.log_path());
        let id = lab.run(spec).await;
        lab.ended(&id).await;
        log_lines(&lab.log_path()).iter().map(|l| l["stdout F ".len()..].to_owned()).collect::<Vec<_>>()
    };
    let pod = run(PidNamespace::Pod, "ps | grep -c 'sleep 471[1]'; tr '\\0' ' ' < /proc/1/cmdline | cut -c1-6").await;
    assert_eq!(pod, ["1", "gantry"]);
    let target = run(PidNamespace::Target(first.clone()), "ps | grep -c 'sleep 471[1]'").await;
    assert_eq!(target, ["1"]);
    let own = run(PidNamespace::Container, count).await;
    assert!(own[0].parse::<u32>().unwrap() <= 4 && own[1].starts_with("sh"), "{own:?}");
    let host = run(PidNamespace::Host, &format!("test -d /proc/{} && echo host", std::process::id())).await;
    assert_eq!(host, ["host"]);
    // What a process leaves behind in a shared namespace goes with its container.
    let left = run(PidNamespace::Pod, "sleep 4712 & sleep 0.1; echo done").await;
    assert_eq!(left, ["done"]);
    let argv = ["sh", "-c", "ps | grep -c 'sleep 471[2]'"].map(str::to_owned);
    let output = lab.runtime.exec_sync(&first, argv.into(), 5_000).await.unwrap();
    assert_eq!(&output.stdout[..], b"0\n");
    lab.close().await;
}

#[tokio::test]
async fn start_says_what_is_wrong() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox("wrong").await;
    let fail = async |change: &dyn Fn(&mut runtime::ContainerSpec)| {
        let mut spec = lab.shell(&sandbox.id, "true");
        change(&mut spec);
        let id = lab.runtime.create(spec).await.unwrap();
        lab.runtime.start(&id).await.unwrap_err().to_string()
    };
    let error = fail(&|s| s.command = vec!["nothing-here".into()]).await;
    assert!(error.contains(r#"exec: "nothing-here": executable file not found in $PATH"#), "{error}");
    let error = fail(&|s| s.command = vec!["/etc/passwd".into()]).await;
    assert!(error.contains("Permission denied"), "{error}");
    let error = fail(&|s| s.command = vec!["/proc/self/exe".into()]).await;
    assert!(error.contains("/proc/self/exe"), "{error}");
    let error = fail(&|s| s.security.user = Some("ghost".into())).await;
    assert!(error.contains("unable to find user ghost"), "{error}");
    let error = fail(&|s| s.working_dir = Some("/proc/self/fd/3".into())).await;
    assert!(error.contains("working directory"), "{error}");
    let spec = runtime::ContainerSpec::new(&sandbox.id, "x", "registry.test/none:1");
    assert!(matches!(lab.runtime.create(spec).await.unwrap_err(), Error::ImageMissing { .. }));
    let id = lab.run(lab.shell(&sandbox.id, "sleep 100")).await;
    let request = ExecRequest { argv: vec!["nope".into()], ..ExecRequest::default() };
    let error = lab.runtime.exec(&id, request).await.unwrap_err().to_string();
    assert!(error.contains("not found in $PATH"), "{error}");
    lab.close().await;
}

#[tokio::test]
async fn the_image_says_how_it_runs() {
    let lab = Lab::new().await;
    let archive = lab.dir.path().join("app.tar");
    let image = TestImage::busybox()
        .with("User", json!("app"))
        .with("WorkingDir", json!("/home/new"))
        .with("Entrypoint", json!(["sh", "-c"]))
        .with("Cmd", json!(["pwd; id -un; echo $A"]))
        .with("StopSignal", json!("SIGUSR1"))
        .with("Env", json!(["PATH=/bin", "A=image"]));
    image.write_docker(&archive, "registry.test/app:2").unwrap();
    let loaded = lab.runtime.load(archive).await.unwrap();
    assert_eq!(loaded[0].tags, ["registry.test/app:2"]);
    assert_eq!((loaded[0].config.uid(), &*loaded[0].config.user), (None, "app"));
    let (status, lines) = lab
        .script(
            |s| {
                s.image = "registry.test/app:2".into();
                s.command.clear();
            },
            "",
        )
        .await;
    assert_eq!((texts(&lines), status.stop_signal), (vec!["/home/new", "app", "image"], 10));
    // The layer is the one of the busybox image, so it is there once.
    let layers = std::fs::read_dir(lab.dir.path().join("root/images/layers")).unwrap().count();
    assert_eq!((layers, lab.runtime.images().await.unwrap().len()), (1, 2));
    lab.runtime.remove_image("registry.test/app:2").await.unwrap();
    lab.runtime.remove_image(IMAGE).await.unwrap();
    assert_eq!(std::fs::read_dir(lab.dir.path().join("root/images/layers")).unwrap().count(), 0);
    lab.close().await;
}

#[tokio::test]
async fn terminals_work() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox("tty").await;
    let mut spec = lab.shell(&sandbox.id, "tty; stty size; read line; echo \"got $line\"; exit 5");
    spec.tty = true;
    spec.stdin = true;
    let id = lab.run(spec).await;
    let mut attached = lab.runtime.attach(&id, true).await.unwrap();
    attached.input.send(runtime::Input::Resize { columns: 99, rows: 33 }).await.unwrap();
    let request = ExecRequest {
        argv: ["sh", "-c", "tty; stty size; sleep 0.05; test -t 0 && echo terminal"].map(str::to_owned).into(),
        tty: true,
        stdin: true,
        size: Some((120, 40)),
    };
    let mut session = lab.runtime.exec(&id, request).await.unwrap();
    let (out, _, code) = drain(&mut session).await;
    assert_eq!((&*out, code), ("/dev/pts/1\r\n40 120\r\nterminal\r\n", 0));
    attached.input.send(runtime::Input::Stdin("words\n".into())).await.unwrap();
    let (out, _, code) = drain(&mut attached).await;
    assert!(out.contains("got words") && code == 5, "{out}");
    assert_eq!(lab.ended(&id).await.exit_code, 5);
    let lines = log_lines(&lab.log_path());
    assert_eq!(lines[0], "stdout F /dev/pts/0\r");
    lab.close().await;
}
