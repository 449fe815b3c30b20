//! Limits, memory kills, logs, and what outlives the agent.

use std::process::Stdio;
use std::time::Duration;

use runtime::{Embedded, ExecRequest, Input, LogSpec, NetworkNamespace, Output, Resources, Runtime, State};

use crate::support::{Lab, drain, log_lines, processes, read_until, shims, texts};

#[tokio::test]
async fn limits_hold_and_change_in_place() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox("limits").await;
    let mut spec = lab.shell(&sandbox.id, "sleep 100");
    spec.resources = Resources {
        cpu_shares: Some(512),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(100_000),
        memory_limit_bytes: Some(32 << 20),
        pids_limit: Some(10),
        ..Resources::default()
    };
    let id = lab.run(spec).await;
    let stats = lab.runtime.stats(&id).await.unwrap();
    assert_eq!((stats.memory_limit_bytes, stats.pids), (32 << 20, 1));
    assert!(stats.cpu_ns > 0 && stats.memory_usage_bytes > 0);
    let pod = lab.runtime.sandbox_stats(&sandbox.id).await.unwrap();
    assert!(pod.cpu_ns >= stats.cpu_ns);
    let change = Resources { memory_limit_bytes: Some(64 << 20), ..Resources::default() };
    lab.runtime.update(&id, change).await.unwrap();
    assert_eq!(lab.runtime.stats(&id).await.unwrap().memory_limit_bytes, 64 << 20);
    let status = lab.runtime.container(&id).await.unwrap();
    assert_eq!((status.resources.memory_limit_bytes, status.resources.cpu_shares), (Some(64 << 20), Some(512)));
    let argv = ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; echo $?"].map(str::to_owned);
    let output = lab.runtime.exec_sync(&id, argv.into(), 10_000).await.unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("can't fork"), "{output:?}");
    let argv = ["dd", "if=/dev/zero", "of=/big", "bs=1M", "count=3"].map(str::to_owned);
    lab.runtime.exec_sync(&id, argv.into(), 10_000).await.unwrap();
    let stats = lab.runtime.stats(&id).await.unwrap();
    assert!(stats.writable_bytes >= 3 << 20 && stats.writable_inodes >= 1, "{stats:?}");
    lab.close().await;
}

#[tokio::test]
async fn a_container_is_in_all_its_groups_and_sees_them_as_its_root() {
    const OURS: [&str; 7] = ["memory", "cpu", "cpuacct", "cpuset", "pids", "devices", "blkio"];
    let lab = Lab::new().await;
    let sandbox = lab.sandbox("groups").await;
    let id = lab.run(lab.shell(&sandbox.id, "sleep 100")).await;
    let pid = lab.runtime.container(&id).await.unwrap().pid;
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    for line in text.lines() {
        let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let own = lab.embedded.cgroups().is_v2() || controllers.split(',').any(|one| OURS.contains(&one));
        assert!(!own || path.ends_with(&format!("{}/pod-groups/{id}", lab.cgroup)), "{line}");
    }
    // From inside, for the first process and for one that came later.
    for file in ["/proc/1/cgroup", "/proc/self/cgroup"] {
        let output = lab.runtime.exec_sync(&id, vec!["cat".into(), file.into()], 10_000).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.lines().count() > 0 && text.lines().all(|line| line.ends_with(":/")), "{file}: {text}");
    }
    lab.close().await;
}

#[tokio::test]
async fn a_kill_for_memory_is_seen() {
    let lab = Lab::new().await;
    let hog = "head -c 200000000 /dev/zero | tail -c 190000000 | wc -c";
    let sandbox = lab.sandbox("oom").await;
    let mut spec = lab.shell(&sandbox.id, &format!("exec sh -c 'a=$({hog}); exit 9'"));
    spec.resources.memory_limit_bytes = Some(16 << 20);
    spec.security.oom_score_adj = Some(900);
    let id = lab.run(spec).await;
    let status = lab.ended(&id).await;
    assert_eq!(status.reason, "OOMKilled", "{status:?}");
    let mut spec = lab.shell(&sandbox.id, "exec tail -c 190000000 /dev/zero");
    spec.resources.memory_limit_bytes = Some(16 << 20);
    let id = lab.run(spec).await;
    let status = lab.ended(&id).await;
    assert_eq!((&*status.reason, status.exit_code, status.signal), ("OOMKilled", 137, 9));
    lab.close().await;
}

#[tokio::test]
async fn a_guaranteed_pods_score_is_clamped_and_set() {
    let lab = Lab::new().await;
    for (asked, least) in [(-997, -997), (500, 500)] {
        let (status, lines) =
            lab.script(|s| s.security.oom_score_adj = Some(asked), "cat /proc/self/oom_score_adj").await;
        let found: i32 = texts(&lines)[0].parse().unwrap();
        assert!(status.exit_code == 0 && found >= least && (asked < 0 || found == asked), "{found}");
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(own.trim(), "0", "the agent's own score stays");
    lab.close().await;
}

#[tokio::test]
async fn logs_rotate_by_size_and_on_request() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox("logs").await;
    let mut spec = lab.shell(&sandbox.id, "i=0; while read x; do i=$((i+1)); echo line $i $x; done");
    spec.stdin = true;
    spec.log = Some(LogSpec { path: lab.log_path(), max_bytes: 4_000, max_files: 2 });
    let id = lab.run(spec).await;
    let mut session = lab.runtime.attach(&id, true).await.unwrap();
    let send = async |text: String| session.input.send(Input::Stdin(text.into())).await.unwrap();
    send("abcdefghij\n".repeat(500)).await;
    let mut seen = String::new();
    while !seen.contains("line 500 ") {
        if let Some(Output::Stdout(bytes)) = session.output.recv().await {
            seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
    let files = std::fs::read_dir(lab.log_path().parent().unwrap()).unwrap().count();
    assert_eq!(files, 3);
    assert!(std::fs::metadata(lab.log_path()).unwrap().len() <= 4_000);
    let moved = lab.log_path().with_extension("moved");
    std::fs::rename(lab.log_path(), &moved).unwrap();
    lab.runtime.reopen_log(&id).await.unwrap();
    session.input.send(Input::Stdin("after\n".into())).await.unwrap();
    read_until(&mut session, "line 501 after").await;
    assert_eq!(texts(&log_lines(&lab.log_path())), ["line 501 after"]);
    session.input.send(Input::Close).await.unwrap();
    assert_eq!(drain(&mut session).await.2, 0);
    lab.close().await;
}

#[tokio::test]
async fn much_output_arrives_whole() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox("much").await;
    let id = lab.run(lab.shell(&sandbox.id, "sleep 100")).await;
    let request = ExecRequest {
        argv: ["sh", "-c", "head -c 20000000 /dev/zero | tr '\\0' x; cat | wc -c >&2; exit 6"]
            .map(str::to_owned)
            .into(),
        stdin: true,
        ..ExecRequest::default()
    };
    let session = lab.runtime.exec(&id, request).await.unwrap();
    let runtime::Session { input, mut output } = session;
    let feeding = tokio::spawn(async move {
        let piece = bytes::Bytes::from(vec![b'y'; 1 << 20]);
        for _ in 0..10 {
            input.send(Input::Stdin(piece.clone())).await.unwrap();
        }
        input.send(Input::Close).await.unwrap();
        input
    });
    let (mut count, mut error, mut code) = (0, String::new(), None);
    while let Some(piece) = output.recv().await {
        match piece {
            Output::Stdout(bytes) => {
                count += bytes.len();
                if count < 2_000_000 {
                    // A slow reader slows the process and loses nothing.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            Output::Stderr(bytes) => error.push_str(&String::from_utf8_lossy(&bytes)),
            Output::Exit { code: c } => code = Some(c),
        }
    }
    drop(feeding.await.unwrap());
    assert_eq!((count, error.trim(), code), (20_000_000, "10485760", Some(6)));
    lab.close().await;
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox("slow").await;
    let id = lab.run(lab.shell(&sandbox.id, "sleep 100")).await;
    let error = lab.runtime.exec_sync(&id, vec!["sleep".into(), "4713".into()], 100).await.unwrap_err();
    assert!(matches!(error, runtime::Error::Timeout { after_ms: 100, .. }), "{error}");
    let argv = ["sh", "-c", "while ps | grep -q 'sleep 471[3]'; do sleep 0.02; done"].map(str::to_owned);
    assert_eq!(lab.runtime.exec_sync(&id, argv.into(), 5_000).await.unwrap().code, 0);
    // A container that ignores its signal is killed after its time.
    let id = lab.run(lab.shell(&sandbox.id, "trap '' TERM; while :; do sleep 1; done")).await;
    lab.runtime.stop(&id, 200).await.unwrap();
    let status = lab.runtime.container(&id).await.unwrap();
    assert_eq!((status.exit_code, status.signal, &*status.reason), (137, 9, "Error"));
    lab.close().await;
}

#[tokio::test]
async fn networks_are_made_joined_or_the_hosts() {
    let lab = Lab::new().await;
    let first = lab.sandbox("first").await;
    let server = "echo -e 'HTTP/1.0 200 OK\\r\\n\\r\\nhello' | nc -l -p 8080";
    let id = lab.run(lab.shell(&first.id, server)).await;
    let mut joined = lab.sandbox_spec("second");
    joined.network = NetworkNamespace::Path(first.network.clone().unwrap());
    let second = lab.runtime.run_sandbox(joined).await.unwrap();
    let other = lab.run(lab.shell(&second.id, "sleep 100")).await;
    let argv =
        ["sh", "-c", "ip -o link | wc -l; until netstat -ltn | grep -q 8080; do sleep 0.02; done"].map(str::to_owned);
    let output = lab.runtime.exec_sync(&other, argv.into(), 5_000).await.unwrap();
    assert_eq!(output.code, 0, "the listener of the other sandbox is seen");
    let mut stream = lab.runtime.connect(&first.id, 8080).await.unwrap();
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut text).await.unwrap();
    assert!(text.ends_with("hello\n"), "{text}");
    drop(stream);
    assert!(lab.runtime.connect(&first.id, 8081).await.is_err());
    lab.ended(&id).await;
    let mut host = lab.sandbox_spec("host");
    (host.network, host.hostname) = (NetworkNamespace::Host, None);
    let host = lab.runtime.run_sandbox(host).await.unwrap();
    assert!(host.network.is_none());
    let id = lab.run(lab.shell(&host.id, "sleep 100")).await;
    let argv = ["readlink", "/proc/self/ns/net"].map(str::to_owned);
    let output = lab.runtime.exec_sync(&id, argv.into(), 5_000).await.unwrap();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), own.to_string_lossy());
    let mut sysctl = lab.sandbox_spec("sysctl");
    sysctl.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "7".into());
    let sysctl = lab.runtime.run_sandbox(sysctl).await.unwrap();
    let id = lab
        .run(lab.shell(
            &sysctl.id,
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; df -m /dev/shm | tail -1 | awk '{print $2}'",
        ))
        .await;
    lab.ended(&id).await;
    assert_eq!(texts(&log_lines(&lab.log_path())), ["7", "64"]);
    lab.close().await;
}

/// Runs this binary's `agent_to_be_killed` in a process of its own, kills it, and finds what it had started.
#[tokio::test]
async fn what_nobody_holds_any_more_is_killed_and_does_not_start_again() {
    let lab = Lab::new().await;
    let mut spec = lab.sandbox_spec("held");
    spec.held_until_ms = Some(runtime::boot_ms() + 3_600_000);
    let sandbox = lab.runtime.run_sandbox(spec).await.unwrap();
    let stubborn = "trap '' TERM; sleep 100 & while :; do sleep 1; done";
    let (one, two) =
        (lab.run(lab.shell(&sandbox.id, stubborn)).await, lab.run(lab.shell(&sandbox.id, "sleep 99")).await);
    let until_ms = runtime::boot_ms() + 300;
    assert!(lab.runtime.hold(&sandbox.id, until_ms).await.unwrap());
    for id in [&one, &two] {
        assert_eq!(lab.ended(id).await.signal, 9);
    }
    assert!(runtime::boot_ms() >= until_ms);
    let id = lab.runtime.create(lab.shell(&sandbox.id, "true")).await.unwrap();
    let refused = lab.runtime.start(&id).await.unwrap_err().to_string();
    assert!(refused.contains("cut off"), "{refused}");
    assert!(!lab.runtime.hold(&sandbox.id, runtime::boot_ms() + 3_600_000).await.unwrap(), "it is too late");
    lab.close().await;
}

#[tokio::test]
async fn a_killed_agent_stops_no_container() {
    let lab = Lab::new().await;
    let mut agent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "life::agent_to_be_killed", "--nocapture", "--include-ignored"])
        .env("GANTRY_TEST_AGENT_DIR", lab.dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ready = lab.dir.path().join("ready");
    for _ in 0..500 {
        if ready.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(ready.exists(), "the other agent got ready");
    agent.kill().unwrap();
    agent.wait().unwrap();
    // One container goes on, one ends while nobody looks.
    std::fs::write(lab.dir.path().join("volume/go"), "").unwrap();
    let exit = async {
        loop {
            let pods = std::fs::read_dir(lab.dir.path().join("state/pods")).unwrap();
            let files = pods.flatten().flat_map(|p| std::fs::read_dir(p.path()).unwrap().flatten());
            if files.map(|f| f.path()).any(|p| p.extension().is_some_and(|e| e == "exit")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), exit).await.unwrap();
    let found = lab.embedded.found().await.unwrap();
    assert_eq!((found.sandboxes.len(), found.containers.len()), (1, 3));
    assert!(found.sandboxes[0].ready);
    let by_name = |name: &str| found.containers.iter().find(|c| c.name == name).unwrap().clone();
    assert_eq!((by_name("goes-on").state, by_name("created").state), (State::Running, State::Created));
    let ended = by_name("ends");
    assert_eq!((ended.state, ended.exit_code, &*ended.reason), (State::Exited, 42, "Error"));
    let output = lab.runtime.exec_sync(&by_name("goes-on").id, vec!["hostname".into()], 5_000).await.unwrap();
    assert_eq!(&output.stdout[..], b"survivor\n");
    lab.runtime.start(&by_name("created").id).await.unwrap();
    lab.close().await;
}

#[tokio::test]
async fn agent_to_be_killed() {
    let Some(dir) = std::env::var_os("GANTRY_TEST_AGENT_DIR").map(std::path::PathBuf::from) else { return };
    let runtime = Embedded::open(Lab::config(&dir)).unwrap();
    runtime.found().await.unwrap();
    let mut spec = runtime::SandboxSpec::new("default", "survivor", "u");
    spec.cgroup_parent = format!("/{}/pod", dir.file_name().unwrap().to_string_lossy());
    let sandbox = runtime.run_sandbox(spec).await.unwrap();
    std::fs::create_dir(dir.join("volume")).unwrap();
    for (name, script) in [
        ("goes-on", "sleep 1000"),
        ("ends", "until test -e /v/go; do sleep 0.02; done; exit 42"),
        ("created", "sleep 1"),
    ] {
        let mut spec = runtime::ContainerSpec::new(&sandbox.id, name, crate::support::IMAGE);
        spec.command = ["sh", "-c", script].map(str::to_owned).into();
        spec.mounts.push(runtime::Mount::new(dir.join("volume"), "/v"));
        let id = runtime.create(spec).await.unwrap();
        if name != "created" {
            runtime.start(&id).await.unwrap();
        }
    }
    std::fs::write(dir.join("ready"), "").unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_dead_shim_is_noticed_and_cleared() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox("dead").await;
    let id = lab.run(lab.shell(&sandbox.id, "sleep 4714")).await;
    let pid = rustix::process::Pid::from_raw(sandbox.pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let status = lab.ended(&id).await;
    assert_eq!((status.state, status.exit_code, &*status.reason), (State::Exited, 255, "Unknown"));
    assert!(!lab.runtime.sandboxes().await.unwrap()[0].ready);
    // A new agent comes to the same end.
    let again = Embedded::open(Lab::config(lab.dir.path())).unwrap();
    let found = again.found().await.unwrap();
    assert_eq!((found.containers[0].state, found.sandboxes[0].ready), (State::Exited, false));
    lab.close().await;
}

#[tokio::test]
async fn shims_come_of_a_seed_or_without_one() {
    let lab = Lab::new().await;
    let dir = lab.dir.path().display().to_string();
    lab.sandbox("one").await;
    let [(seed, _)] = processes("seed", &dir)[..] else { panic!("one seed") };
    assert_eq!(processes("shim", &dir).len(), 1);
    let seed = rustix::process::Pid::from_raw(seed).unwrap();
    rustix::process::kill_process(seed, rustix::process::Signal::KILL).unwrap();
    // The first that asks in vain is executed; the next comes of a new seed. All of them are what they should be.
    for name in ["two", "three"] {
        let sandbox = lab.sandbox(name).await;
        let id = lab.run(lab.shell(&sandbox.id, "exit 3")).await;
        assert_eq!(lab.ended(&id).await.exit_code, 3);
        let own = processes("shim", &sandbox.id);
        assert!(own.len() == 1 && own[0].0 == sandbox.pid, "{own:?}, {}", sandbox.pid);
    }
    assert_eq!(processes("seed", &dir).len(), 1);
    lab.close().await;
    assert!(processes("seed", &dir).is_empty(), "it ends with its runtime");
}

#[tokio::test]
async fn the_shim_is_small() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox("small").await;
    for _ in 0..3 {
        let id = lab.run(lab.shell(&sandbox.id, "echo x; sleep 1000")).await;
        lab.runtime.exec_sync(&id, vec!["true".into()], 5_000).await.unwrap();
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", sandbox.pid)).unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    };
    // Its own memory; pages of the program file are shared by all shims.
    assert!(field("RssAnon:") < 3_000 && field("Threads:") == 1, "{status}");
    let fds = std::fs::read_dir(format!("/proc/{}/fd", sandbox.pid)).unwrap().count();
    // Of each container its process, its mounts, two pipes and its log.
    assert!(fds < 13 + 3 * 5, "{fds} descriptors");
    assert_eq!(shims(&lab.dir.path().display().to_string()).len(), 1);
    lab.close().await;
}

#[tokio::test]
async fn a_second_removal_changes_nothing() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox("twice").await;
    let id = lab.run(lab.shell(&sandbox.id, "sleep 100")).await;
    assert!(lab.runtime.start(&id).await.is_err(), "a container starts once");
    for _ in 0..2 {
        lab.runtime.stop_sandbox(&sandbox.id).await.unwrap();
    }
    let status = lab.runtime.container(&id).await.unwrap();
    assert_eq!((status.state, status.signal), (State::Exited, 9));
    for _ in 0..2 {
        lab.runtime.remove(&id).await.unwrap();
        lab.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    }
    assert!(lab.runtime.container(&id).await.is_err());
    lab.close().await;
}
