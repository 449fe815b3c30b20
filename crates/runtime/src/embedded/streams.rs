//! Exec, attach, logs and port connections.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::link::{session, unexpected};
use super::{Embedded, blocking, plan_of};
use crate::Error;
use crate::plan::{ProcessPlan, Reply, Request};
use crate::seam::{EXEC_OUTPUT_MAX_BYTES, ExecOutput, ExecRequest, Output, Session, Stream};

/// How long a connection into a pod may take to be made.
const CONNECT_MS: u64 = 5_000;

impl Embedded {
    pub(super) async fn exec_now(&self, id: &str, request: ExecRequest) -> Result<Session, Error> {
        let (sandbox, _) = self.inner.running(id)?;
        let inner = self.inner.clone();
        let process = self.inner.container(id, |c| {
            let r = &c.record;
            plan_of::exec(&inner.host, &inner.cgroups, &r.cgroup, &r.spec, &r.image, request.argv)
        })??;
        let process = ProcessPlan { tty: request.tty, stdin: request.stdin, size: request.size, ..process };
        let dir = self.inner.pod(&sandbox, |p| p.dir.clone())?;
        let request = Request::Exec { container: id.to_owned(), process: Box::new(process) };
        match session(&dir, request).await? {
            (Reply::Started(_), Some(session)) => Ok(session),
            (Reply::Failed { why }, _) => Err(Error::Start { container: id.to_owned(), why }),
            (other, _) => Err(unexpected("run a process in a container", other)),
        }
    }

    pub(super) async fn exec_sync_now(
        &self,
        id: &str,
        argv: Vec<String>,
        timeout_ms: u64,
    ) -> Result<ExecOutput, Error> {
        let request = ExecRequest { argv, ..ExecRequest::default() };
        let run = async {
            let mut session = self.exec_now(id, request).await?;
            let (mut stdout, mut stderr) = (BytesMut::new(), BytesMut::new());
            let keep = |all: &mut BytesMut, bytes: Bytes| {
                let room = EXEC_OUTPUT_MAX_BYTES - all.len();
                all.extend_from_slice(&bytes[..bytes.len().min(room)]);
            };
            while let Some(output) = session.output.recv().await {
                match output {
                    Output::Stdout(bytes) => keep(&mut stdout, bytes),
                    Output::Stderr(bytes) => keep(&mut stderr, bytes),
                    Output::Exit { code } => {
                        return Ok(ExecOutput { code, stdout: stdout.freeze(), stderr: stderr.freeze() });
                    }
                }
            }
            Err(Error::Shim { doing: "run a process in a container".to_owned(), why: "the shim is gone".to_owned() })
        };
        // On time-out the session is dropped, which kills the process.
        match tokio::time::timeout(Duration::from_millis(timeout_ms), run).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { doing: "the command in the container".to_owned(), after_ms: timeout_ms }),
        }
    }

    pub(super) async fn attach_now(&self, id: &str, stdin: bool) -> Result<Session, Error> {
        let (sandbox, _) = self.inner.running(id)?;
        let dir = self.inner.pod(&sandbox, |p| p.dir.clone())?;
        match session(&dir, Request::Attach { container: id.to_owned(), stdin }).await? {
            (Reply::Attached { .. }, Some(session)) => Ok(session),
            (other, _) => Err(unexpected("attach to a container", other)),
        }
    }

    pub(super) async fn reopen_log_now(&self, id: &str) -> Result<(), Error> {
        let (_, link) = self.inner.running(id)?;
        link.order("open the log anew", Request::ReopenLog { container: id.to_owned() }).await
    }

    pub(super) async fn connect_now(&self, sandbox: &str, port: u16) -> Result<Box<dyn Stream>, Error> {
        let network = self.inner.pod(sandbox, |p| p.network())?;
        self.inner.link(sandbox)?;
        let doing = format!("connect to port {port} of the pod");
        let failed = doing.clone();
        let stream = blocking("connect to a pod", move || {
            // A thread of its own: it changes into the pod's network and must not be used again.
            let thread = std::thread::spawn(move || -> std::io::Result<TcpStream> {
                if let Some(path) = network {
                    let file = std::fs::File::open(path)?;
                    crate::sys::join_namespaces(file.as_fd(), libc::CLONE_NEWNET)?;
                }
                let timeout = Duration::from_millis(CONNECT_MS);
                let to = |ip: IpAddr| TcpStream::connect_timeout(&(ip, port).into(), timeout);
                let stream = to(Ipv4Addr::LOCALHOST.into())
                    .or_else(|first| to(Ipv6Addr::LOCALHOST.into()).map_err(|_| first))?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Ok(stream)
            });
            let result = thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the connecting thread panicked")));
            result.map_err(Error::io(failed))
        })
        .await?;
        let stream = tokio::net::TcpStream::from_std(stream).map_err(Error::io(doing))?;
        Ok(Box::new(stream))
    }
}
