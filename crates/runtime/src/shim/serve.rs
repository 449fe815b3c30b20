//! The shim's loop: one `poll` over its socket, its connections, and the processes with their streams.
//!
//! Invariants: nothing here blocks except the moment in which a new process is set up; a slow reader slows its
//! process (bounded buffers) but loses its connection when it takes nothing for [`STUCK_MS`], so that a dead client
//! cannot hold a container's log; all output a process wrote before it ended is delivered before its end is reported.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};

use super::log::{LogWriter, now};
use super::spawn::{self, Spawned};
use super::{Pod, SOCKET_FILE};
use crate::plan::{ContainerPlan, Envelope, PROTOCOL, ProcessPlan, Record, Reply, Request, frame};
use crate::seam::{PidNamespace, boot_ms};

/// Bytes waiting for one connection before its process is no longer read from, and the other way round.
const BUFFER_BYTES: usize = 256 << 10;
/// How long a full connection may take nothing.
const STUCK_MS: u128 = 10_000;
/// How often it is looked at the clock while the time that a pod is held for goes by.
const HOLD_LOOK_MS: u64 = 1_000;
/// How soon what was killed and has not ended is killed again.
const KILL_AGAIN_MS: u64 = 20;
/// Connections at a time.
const CONNECTIONS_MAX: usize = 256;
const READ_BYTES: usize = 32 << 10;

struct Connection {
    key: u64,
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    role: Role,
    full_since: Option<Instant>,
    /// To be closed when the output is gone.
    closing: bool,
    gone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Has not said what it wants.
    New,
    Control,
    /// The streams of the task with this key.
    Streams {
        task: u64,
        stdin: bool,
    },
}

struct Task {
    key: u64,
    container: String,
    pidfd: OwnedFd,
    record: Record,
    stdin: Option<OwnedFd>,
    stdin_waiting: Vec<u8>,
    stdin_ends: bool,
    output: [Option<OwnedFd>; 2],
    terminal: Option<OwnedFd>,
    /// `None` for a process started by exec.
    first: Option<First>,
    ended: bool,
}

/// What only a container's first process has.
struct First {
    /// Its mounts, kept for a moment longer than it: to free them takes a while, for which its end should not wait.
    mounts: Option<OwnedFd>,
    log: Option<LogWriter>,
    stdin_once: bool,
    oom_file: Option<std::path::PathBuf>,
    cgroup_procs: Vec<std::path::PathBuf>,
}

struct Shim {
    pod: Pod,
    listener: UnixListener,
    connections: Vec<Connection>,
    tasks: Vec<Task>,
    next_key: u64,
    quitting: bool,
}

/// What a poll slot stands for.
#[derive(Clone, Copy)]
enum Slot {
    Listener,
    Connection(u64),
    Output(u64, usize),
    Terminal(u64),
    Stdin(u64),
    End(u64),
}

pub(super) fn run(pod: Pod, listener: UnixListener) {
    let _ = listener.set_nonblocking(true);
    let (connections, tasks) = (Vec::new(), Vec::new());
    let mut shim = Shim { pod, listener, connections, tasks, next_key: 1, quitting: false };
    let mut buffer = vec![0; READ_BYTES];
    while !(shim.quitting && shim.connections.iter().all(|c| c.output.is_empty())) {
        for (slot, events) in shim.wait() {
            shim.handle(slot, events, &mut buffer);
        }
        shim.let_go();
        shim.sweep();
    }
    let _ = std::fs::remove_file(SOCKET_FILE);
    if let Some(reaper) = &shim.pod.reaper {
        let _ = rustix::process::pidfd_send_signal(reaper, Signal::KILL);
    }
}

impl Shim {
    fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    /// Polls what we want to hear of now.
    fn wait(&self) -> Vec<(Slot, PollFlags)> {
        let mut slots = vec![Slot::Listener];
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        let mut timeout = None;
        for c in &self.connections {
            let mut flags = PollFlags::empty();
            if !c.closing && self.takes_input(c) {
                flags |= PollFlags::IN;
            }
            if !c.output.is_empty() {
                flags |= PollFlags::OUT;
            }
            if c.full_since.is_some() {
                timeout = Some(Timespec { tv_sec: 1, tv_nsec: 0 });
            }
            if !flags.is_empty() {
                slots.push(Slot::Connection(c.key));
                fds.push(PollFd::new(&c.stream, flags));
            }
        }
        for task in self.tasks.iter().filter(|t| !t.ended) {
            slots.push(Slot::End(task.key));
            fds.push(PollFd::new(&task.pidfd, PollFlags::IN));
            if self.viewers_have_room(task.key) {
                for (n, fd) in task.output.iter().enumerate() {
                    if let Some(fd) = fd {
                        slots.push(Slot::Output(task.key, n));
                        fds.push(PollFd::new(fd, PollFlags::IN));
                    }
                }
                if let Some(terminal) = &task.terminal {
                    slots.push(Slot::Terminal(task.key));
                    fds.push(PollFd::new(terminal, PollFlags::IN));
                }
            }
            if !task.stdin_waiting.is_empty()
                && let Some(stdin) = task.stdin.as_ref().or(task.terminal.as_ref())
            {
                slots.push(Slot::Stdin(task.key));
                fds.push(PollFd::new(stdin, PollFlags::OUT));
            }
        }
        // The time of a poll stands still while the machine sleeps, so that it may be late, but not for long.
        if let Some(until_ms) = self.pod.held_until_ms.filter(|_| self.tasks.iter().any(|t| !t.ended)) {
            let ms = until_ms.saturating_sub(boot_ms()).clamp(KILL_AGAIN_MS, HOLD_LOOK_MS);
            timeout =
                Some(Timespec { tv_sec: (ms / 1000).cast_signed(), tv_nsec: (ms % 1000 * 1_000_000).cast_signed() });
        }
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        let ready = slots.into_iter().zip(fds.iter().map(PollFd::revents));
        ready.filter(|(_, events)| !events.is_empty()).collect()
    }

    fn is_let_go(&self) -> bool {
        self.pod.held_until_ms.is_some_and(|until_ms| until_ms <= boot_ms())
    }

    /// Kills everything once nobody may hold on to it any longer, over and over for as long as something is left.
    fn let_go(&mut self) {
        if !self.is_let_go() {
            return;
        }
        for task in self.tasks.iter().filter(|t| !t.ended) {
            if let Some(first) = &task.first {
                kill_cgroup(first);
            }
            let _ = rustix::process::pidfd_send_signal(&task.pidfd, Signal::KILL);
        }
    }

    fn takes_input(&self, connection: &Connection) -> bool {
        match connection.role {
            Role::Streams { task, .. } => {
                self.tasks.iter().find(|t| t.key == task).is_none_or(|t| t.stdin_waiting.len() < BUFFER_BYTES)
            }
            Role::New | Role::Control => connection.output.len() < BUFFER_BYTES,
        }
    }

    fn viewers_have_room(&self, task: u64) -> bool {
        self.viewers(task).all(|c| c.output.len() < BUFFER_BYTES)
    }

    fn viewers(&self, key: u64) -> impl Iterator<Item = &Connection> {
        self.connections.iter().filter(move |c| matches!(c.role, Role::Streams { task, .. } if task == key))
    }

    fn handle(&mut self, slot: Slot, events: PollFlags, buffer: &mut [u8]) {
        match slot {
            Slot::Listener => self.accept(),
            Slot::Connection(key) => self.serve_connection(key, events, buffer),
            Slot::Output(key, stream) => drop(self.read_output(key, Some(stream), buffer)),
            Slot::Terminal(key) => drop(self.read_output(key, None, buffer)),
            Slot::Stdin(key) => self.write_stdin(key),
            Slot::End(key) => self.end(key, buffer),
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() >= CONNECTIONS_MAX || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let key = self.key();
            let (input, output) = (Vec::new(), Vec::new());
            let role = Role::New;
            let c = Connection { key, stream, input, output, role, full_since: None, closing: false, gone: false };
            self.connections.push(c);
        }
    }

    fn serve_connection(&mut self, key: u64, events: PollFlags, buffer: &mut [u8]) {
        let Some(c) = self.connections.iter_mut().find(|c| c.key == key) else { return };
        if events.contains(PollFlags::OUT) {
            c.flush();
        }
        if !events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) || c.closing {
            return;
        }
        match c.stream.read(buffer) {
            Ok(0) => c.gone = true,
            Ok(n) => c.input.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => c.gone = true,
        }
        let input = std::mem::take(&mut c.input);
        let mut rest = &input[..];
        loop {
            match frame::split(rest) {
                Ok(Some((kind, range, next))) => {
                    self.take_frame(key, kind, &rest[range]);
                    rest = &rest[next..];
                }
                Ok(None) => break,
                Err(_) => {
                    if let Some(c) = self.connections.iter_mut().find(|c| c.key == key) {
                        c.gone = true;
                    }
                    return;
                }
            }
        }
        let rest = rest.to_vec();
        if let Some(c) = self.connections.iter_mut().find(|c| c.key == key) {
            c.input = rest;
        }
    }

    fn take_frame(&mut self, key: u64, kind: u8, payload: &[u8]) {
        if kind == frame::MESSAGE {
            let reply = match serde_json::from_slice::<Envelope<Request>>(payload) {
                Ok(Envelope { id, body }) => Some((id, self.answer(key, body))),
                Err(error) => {
                    let id = serde_json::from_slice::<serde_json::Value>(payload).ok();
                    let id = id.and_then(|v| v.get("id").and_then(serde_json::Value::as_u64)).unwrap_or(0);
                    Some((id, Reply::Failed { why: format!("not understood: {error}") }))
                }
            };
            if let Some((id, reply)) = reply {
                self.send(key, id, reply);
            }
            return;
        }
        let role = self.connections.iter().find(|c| c.key == key).map(|c| c.role);
        let Some(Role::Streams { task, stdin }) = role else { return };
        let Some(task) = self.tasks.iter_mut().find(|t| t.key == task && !t.ended) else { return };
        match kind {
            frame::STDIN if stdin && !task.stdin_ends && (task.stdin.is_some() || task.terminal.is_some()) => {
                task.stdin_waiting.extend_from_slice(payload);
            }
            frame::STDIN_END if stdin => task.end_stdin(),
            frame::RESIZE => {
                if let (Some(terminal), [a, b, c, d]) = (&task.terminal, payload) {
                    let (columns, rows) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
                    spawn::set_window(terminal.as_fd(), columns, rows);
                }
            }
            _ => {}
        }
    }

    fn send(&mut self, key: u64, id: u64, reply: Reply) {
        let Ok(text) = serde_json::to_vec(&Envelope { id, body: reply }) else { return };
        if let Some(c) = self.connections.iter_mut().find(|c| c.key == key) {
            c.put(frame::MESSAGE, &text);
            c.flush();
        }
    }

    fn answer(&mut self, key: u64, request: Request) -> Reply {
        let result = match request {
            Request::Hello => {
                self.set_role(key, Role::Control);
                let first = self.tasks.iter().filter(|t| t.first.is_some());
                let records = first.map(|t| t.record.clone()).collect();
                return Reply::Hello { protocol: PROTOCOL, pid: std::process::id().cast_signed(), records };
            }
            Request::Start(_) | Request::Exec { .. } if self.is_let_go() => {
                Err("the node is cut off, and the pod asks not to run then".to_owned())
            }
            Request::Hold { .. } if self.is_let_go() => return Reply::LetGo,
            Request::Hold { until_ms } => {
                self.pod.held_until_ms = Some(until_ms);
                Ok(())
            }
            Request::Start(plan) => return self.start(&plan),
            Request::Exec { container, process } => return self.exec(key, &container, &process),
            Request::Attach { container, stdin } => match self.first_of(&container) {
                Some(task) if !task.ended => {
                    let (task, tty) = (task.key, task.terminal.is_some());
                    self.set_role(key, Role::Streams { task, stdin });
                    return Reply::Attached { tty };
                }
                _ => Err(format!("container {container:?} does not run")),
            },
            Request::Kill { container, signal, everything } => self.kill(&container, signal, everything),
            Request::Forget { container } => {
                // Its files are the agent's to remove.
                self.tasks.retain(|t| t.container != container || !t.ended);
                Ok(())
            }
            Request::ReopenLog { container } => match self.tasks.iter_mut().find(|t| t.is_first(&container)) {
                Some(Task { first: Some(First { log: Some(log), .. }), .. }) => {
                    log.reopen().map_err(|e| format!("open the log file: {e}"))
                }
                _ => Ok(()),
            },
            Request::Quit => {
                for task in self.tasks.iter().filter(|t| !t.ended) {
                    let _ = rustix::process::pidfd_send_signal(&task.pidfd, Signal::KILL);
                }
                self.quitting = true;
                Ok(())
            }
        };
        match result {
            Ok(()) => Reply::Done,
            Err(why) => Reply::Failed { why },
        }
    }

    fn set_role(&mut self, key: u64, role: Role) {
        if let Some(c) = self.connections.iter_mut().find(|c| c.key == key) {
            c.role = role;
        }
    }

    fn first_of(&self, container: &str) -> Option<&Task> {
        self.tasks.iter().find(|t| t.is_first(container))
    }

    fn start(&mut self, plan: &ContainerPlan) -> Reply {
        if self.first_of(&plan.id).is_some() {
            return Reply::Failed { why: format!("container {:?} was started before", plan.id) };
        }
        let nothing = self.pod.nothing.as_fd();
        let spawned = match &plan.pid {
            PidNamespace::Container => spawn::start(plan, nothing, None, true),
            PidNamespace::Host => spawn::start(plan, nothing, None, false),
            PidNamespace::Pod => match &self.pod.reaper {
                Some(reaper) => spawn::start(plan, nothing, Some(reaper.as_fd()), false),
                None => Err("the pod has no shared process namespace".to_owned()),
            },
            PidNamespace::Target(other) => match self.first_of(other).filter(|t| !t.ended) {
                Some(task) => spawn::start(plan, nothing, Some(task.pidfd.as_fd()), false),
                None => Err(format!("container {other:?}, whose processes it should share, does not run")),
            },
        };
        let log = plan.log.as_ref().map(LogWriter::open).transpose();
        match (spawned, log) {
            (Err(why), _) => Reply::Failed { why },
            (Ok(spawned), Err(error)) => {
                let _ = rustix::process::pidfd_send_signal(&spawned.pidfd, Signal::KILL);
                let _ = wait(&spawned.pidfd);
                Reply::Failed { why: format!("open the log file: {error}") }
            }
            (Ok(spawned), Ok(log)) => {
                let first = First {
                    mounts: crate::sys::mounts_of(spawned.pidfd.as_fd()).ok(),
                    log,
                    stdin_once: plan.stdin_once,
                    oom_file: plan.oom_file.clone(),
                    cgroup_procs: plan.cgroup_procs.clone(),
                };
                Reply::Started(self.add(plan.id.clone(), spawned, Some(first)).0)
            }
        }
    }

    fn exec(&mut self, key: u64, container: &str, process: &ProcessPlan) -> Reply {
        let Some(first) = self.first_of(container).filter(|t| !t.ended) else {
            return Reply::Failed { why: format!("container {container:?} does not run") };
        };
        match spawn::exec(process, first.pidfd.as_fd()) {
            Ok(spawned) => {
                let (record, task) = self.add(container.to_owned(), spawned, None);
                self.set_role(key, Role::Streams { task, stdin: process.stdin });
                Reply::Started(record)
            }
            Err(why) => Reply::Failed { why },
        }
    }

    fn add(&mut self, container: String, spawned: Spawned, first: Option<First>) -> (Record, u64) {
        let record =
            Record { container: container.clone(), pid: spawned.pid, started_us: now_us(), ..Record::default() };
        let Spawned { pidfd, stdin, stdout, stderr, terminal, .. } = spawned;
        for fd in [&stdin, &stdout, &stderr, &terminal].into_iter().flatten() {
            let _ = rustix::io::ioctl_fionbio(fd, true);
        }
        let key = self.key();
        self.tasks.push(Task {
            key,
            container,
            pidfd,
            record: record.clone(),
            stdin,
            stdin_waiting: Vec::new(),
            stdin_ends: false,
            output: [stdout, stderr],
            terminal,
            first,
            ended: false,
        });
        (record, key)
    }

    fn kill(&self, container: &str, signal: i32, everything: bool) -> Result<(), String> {
        let Some(task) = self.first_of(container).filter(|t| !t.ended) else { return Ok(()) };
        let number = Signal::from_named_raw(signal).ok_or_else(|| format!("no signal {signal}"))?;
        if everything && let Some(first) = &task.first {
            kill_cgroup(first);
        }
        match rustix::process::pidfd_send_signal(&task.pidfd, number) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(format!("send signal {signal}: {errno}")),
        }
    }

    /// Reads once from stdout, stderr or (`None`) the terminal, and passes it on.
    fn read_output(&mut self, key: u64, stream: Option<usize>, buffer: &mut [u8]) -> bool {
        let Some(task) = self.tasks.iter_mut().find(|t| t.key == key) else { return false };
        let slot = match stream {
            Some(n) => &mut task.output[n],
            None => &mut task.terminal,
        };
        let Some(fd) = slot else { return false };
        let bytes = match rustix::io::read(&*fd, &mut *buffer) {
            Ok(n) if n > 0 => &buffer[..n],
            Err(Errno::AGAIN | Errno::INTR) => return false,
            // The end; for a terminal that is EIO, when nobody has its other end open any more.
            Ok(_) | Err(_) => {
                *slot = None;
                return false;
            }
        };
        let number = stream.unwrap_or(0);
        if let Some(First { log: Some(log), .. }) = &mut task.first {
            log.write(number, bytes);
        }
        let kind = if number == 0 { frame::STDOUT } else { frame::STDERR };
        for c in &mut self.connections {
            if matches!(c.role, Role::Streams { task, .. } if task == key) {
                c.put(kind, bytes);
                c.flush();
            }
        }
        true
    }

    fn write_stdin(&mut self, key: u64) {
        let Some(task) = self.tasks.iter_mut().find(|t| t.key == key) else { return };
        let Some(fd) = task.stdin.as_ref().or(task.terminal.as_ref()) else {
            task.stdin_waiting = Vec::new();
            return;
        };
        match rustix::io::write(fd, &task.stdin_waiting) {
            Ok(n) => drop(task.stdin_waiting.drain(..n)),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => {
                task.stdin_waiting = Vec::new();
                task.stdin = None;
            }
        }
        if task.stdin_waiting.is_empty() {
            task.stdin_waiting = Vec::new();
            if task.stdin_ends {
                task.stdin = None;
            }
        }
    }

    /// A process ended: deliver the rest of its output, then say how it ended.
    fn end(&mut self, key: u64, buffer: &mut [u8]) {
        let Some(at) = self.tasks.iter().position(|t| t.key == key && !t.ended) else { return };
        let Some((exit_code, signal)) = wait(&self.tasks[at].pidfd) else { return };
        if let Some(first) = &self.tasks[at].first {
            kill_cgroup(first);
        }
        for stream in [Some(0), Some(1), None] {
            while self.read_output(key, stream, buffer) {}
        }
        let task = &mut self.tasks[at];
        task.ended = true;
        task.record.finished_us = now_us().max(task.record.started_us);
        (task.record.exit_code, task.record.signal) = (exit_code, signal);
        (task.stdin, task.terminal, task.output) = (None, None, [None, None]);
        task.stdin_waiting = Vec::new();
        let mounts = task.first.as_mut().and_then(|first| first.mounts.take());
        let record = match &mut task.first {
            Some(first) => {
                if let Some(mut log) = first.log.take() {
                    log.finish();
                }
                task.record.oom = first.oom_file.as_deref().is_some_and(was_killed_for_memory);
                Some(task.record.clone())
            }
            None => None,
        };
        for c in &mut self.connections {
            if matches!(c.role, Role::Streams { task, .. } if task == key) {
                c.put(frame::EXIT, &exit_code.to_le_bytes());
                c.flush();
                c.closing = true;
            }
        }
        match record {
            Some(record) => self.report(&record),
            None => self.tasks.retain(|t| t.key != key),
        }
        drop(mounts);
    }

    fn report(&mut self, record: &Record) {
        let name = exit_file(&record.container);
        if let Ok(text) = serde_json::to_vec(record) {
            let new = format!("{name}.new");
            let _ = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &name));
        }
        let control: Vec<u64> = self.connections.iter().filter(|c| c.role == Role::Control).map(|c| c.key).collect();
        for key in control {
            self.send(key, 0, Reply::Ended(record.clone()));
        }
    }

    /// Drops connections that are done, dead or stuck, and what depended on them.
    fn sweep(&mut self) {
        for c in &mut self.connections {
            match c.output.len() >= BUFFER_BYTES {
                false => c.full_since = None,
                true => {
                    let since = *c.full_since.get_or_insert_with(Instant::now);
                    c.gone |= since.elapsed().as_millis() > STUCK_MS;
                }
            }
            c.gone |= c.closing && c.output.is_empty();
        }
        let gone: Vec<Role> = self.connections.iter().filter(|c| c.gone).map(|c| c.role).collect();
        self.connections.retain(|c| !c.gone);
        for role in gone {
            let Role::Streams { task, stdin } = role else { continue };
            let Some(task) = self.tasks.iter_mut().find(|t| t.key == task && !t.ended) else { continue };
            match &task.first {
                // Nobody can hear it any more, so a process of an exec ends with its connection.
                None => drop(rustix::process::pidfd_send_signal(&task.pidfd, Signal::KILL)),
                Some(first) if first.stdin_once && stdin => task.end_stdin(),
                Some(_) => {}
            }
        }
    }
}

impl Task {
    fn is_first(&self, container: &str) -> bool {
        self.first.is_some() && self.container == container
    }

    fn end_stdin(&mut self) {
        self.stdin_ends = true;
        if self.stdin_waiting.is_empty() {
            self.stdin = None;
        }
    }
}

impl Connection {
    fn put(&mut self, kind: u8, payload: &[u8]) {
        frame::put(&mut self.output, kind, payload);
    }

    fn flush(&mut self) {
        while !self.output.is_empty() && !self.gone {
            match self.stream.write(&self.output) {
                Ok(n) => {
                    self.output.drain(..n);
                    self.full_since = None;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.gone = true,
            }
        }
        // The shim stays small: a burst does not keep its memory.
        self.output = Vec::new();
    }
}

/// Name of the file that keeps how a container ended.
pub(crate) fn exit_file(container: &str) -> String {
    format!("{container}.exit")
}

fn now_us() -> i64 {
    let (seconds, nanoseconds) = now();
    seconds * 1_000_000 + i64::from(nanoseconds / 1000)
}

/// The exit code (128 + signal for a signal) and the signal of an ended process.
fn wait(pidfd: &OwnedFd) -> Option<(i32, i32)> {
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).ok()??;
    match status.terminating_signal() {
        Some(signal) => Some((128 + signal, signal)),
        None => Some((status.exit_status().unwrap_or(0), 0)),
    }
}

/// Kills what is left in a container's cgroup; needed when it shared its process namespace.
fn kill_cgroup(first: &First) {
    let Some(file) = first.cgroup_procs.first() else { return };
    for _ in 0..8 {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let pids: Vec<_> = text.lines().filter_map(|l| rustix::process::Pid::from_raw(l.parse().ok()?)).collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

fn was_killed_for_memory(file: &std::path::Path) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().any(|l| l.strip_prefix("oom_kill ").is_some_and(|n| n.trim() != "0"))
}
