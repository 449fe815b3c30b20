//! Life of a container, and what it sees of itself.

use runtime::{ExecRequest, State};

use crate::support::{Lab, drain, log_lines, texts};

#[tokio::test]
async fn a_container_runs_logs_and_ends() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox("web").await;
    assert!(sandbox.ready && sandbox.network.as_ref().unwrap().exists());
    let id = lab.run(lab.shell(&sandbox.id, "echo hello; echo oops >&2; hostname; exit 3")).await;
    let status = lab.ended(&id).await;
    assert_eq!((status.state, status.exit_code, &*status.reason), (State::Exited, 3, "Error"));
    assert!(status.started_at.unwrap() <= status.finished_at.unwrap());
    let mut lines = log_lines(&lab.log_path());
    lines.sort();
    assert_eq!(lines, ["stderr F oops", "stdout F hello", "stdout F web"]);
    lab.close().await;
}

#[tokio::test]
async fn exec_runs_beside_and_stop_ends() {
    let lab = Lab::new().await;
    let sandbox = lab.sandbox("one").await;
    let id = lab.run(lab.shell(&sandbox.id, "trap 'echo bye; exit 7' TERM; while :; do sleep 0.1; done")).await;
    let output =
        lab.runtime.exec_sync(&id, vec!["sh".into(), "-c".into(), "echo $0; exit 4".into()], 5_000).await.unwrap();
    assert_eq!((output.code, &output.stdout[..]), (4, &b"sh\n"[..]));
    let request = ExecRequest { argv: vec!["cat".into()], stdin: true, ..ExecRequest::default() };
    let mut session = lab.runtime.exec(&id, request).await.unwrap();
    session.input.send(runtime::Input::Stdin("ping".into())).await.unwrap();
    session.input.send(runtime::Input::Close).await.unwrap();
    assert_eq!(drain(&mut session).await, ("ping".into(), String::new(), 0));
    lab.runtime.stop(&id, 10_000).await.unwrap();
    let status = lab.runtime.container(&id).await.unwrap();
    assert_eq!((status.exit_code, status.signal), (7, 0));
    assert_eq!(texts(&log_lines(&lab.log_path())), ["bye"]);
    lab.close().await;
}
