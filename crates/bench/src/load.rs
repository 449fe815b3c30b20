//! Drives a server: so many requests outstanding, or so many a second, and what came of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use meta::Status;

use crate::door::{Ask, Door, Line};
use crate::error::Error;
use crate::machine::Process;
use crate::numbers::percentile;
use crate::pipe::{Answer, Pipe};

/// What came of a load.
#[derive(Debug, Default)]
pub struct Load {
    pub seconds: f64,
    /// Microseconds of each request.
    pub latencies_us: Vec<u32>,
    /// Processor time of the server.
    pub server_us: u64,
    /// Processor time of this process.
    pub client_us: u64,
}

impl Load {
    pub fn per_s(&self) -> f64 {
        self.latencies_us.len() as f64 / self.seconds.max(1e-9)
    }

    /// The server's processor time for each request.
    pub fn cpu_us(&self) -> f64 {
        self.server_us as f64 / self.latencies_us.len().max(1) as f64
    }

    pub fn client_cpu_us(&self) -> f64 {
        self.client_us as f64 / self.latencies_us.len().max(1) as f64
    }

    /// Milliseconds that `share` of the requests did not exceed.
    pub fn ms(&mut self, share: f64) -> f64 {
        percentile(&mut self.latencies_us, share) / 1e3
    }
}

/// How long a load lasts.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Seconds(f64),
    Requests(usize),
}

/// The request with this number.
pub type Maker = Arc<dyn Fn(usize) -> Ask + Send + Sync>;

/// Connections for `outstanding` requests at once: few with HTTP/2, one for each with HTTP/1.1.
///
/// # Errors
/// A connection cannot be had.
pub async fn lines(door: &Door, outstanding: usize, http_two: bool) -> Result<Vec<Line>, Error> {
    let mut lines = Vec::with_capacity(outstanding);
    while lines.len() < outstanding {
        if !http_two {
            lines.push(door.one().await?);
            continue;
        }
        let first = door.two().await?;
        let wanted = SHARED.min(outstanding - lines.len()) - 1;
        lines.extend((0..wanted).filter_map(|_| first.share()));
        lines.push(first);
    }
    Ok(lines)
}

/// Requests that share an HTTP/2 connection.
const SHARED: usize = 32;

/// Keeps `outstanding` requests under way over HTTP/2: those that `make` makes.
///
/// # Errors
/// A request that failed or was refused.
pub async fn piped(server: Process, door: &Door, outstanding: usize, make: Maker, until: Until) -> Result<Load, Error> {
    let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
    let mut pipes = Vec::new();
    for _ in 0..outstanding.div_ceil(SHARED) {
        let sender = sender.clone();
        let take = move |(pipe, sent): (usize, Instant), answer: Answer| {
            // Nobody hears it after a failure.
            let _ = sender.send((pipe, sent.elapsed(), answer));
        };
        pipes.push(Pipe::open(door, take).await?);
    }
    let limit = if let Until::Requests(count) = until { count } else { usize::MAX };
    let time = if let Until::Seconds(seconds) = until { Duration::from_secs_f64(seconds) } else { Duration::MAX };
    let (server_before, client_before) = (server.cpu_us(), Process::own().cpu_us());
    let (began, mut sent) = (Instant::now(), 0);
    let mut send = |pipe: usize| {
        if sent >= limit || began.elapsed() >= time {
            return Ok(false);
        }
        sent += 1;
        pipes[pipe].send(make(sent - 1), (pipe, Instant::now())).map(|()| true)
    };
    let mut under_way = 0;
    for number in 0..outstanding {
        under_way += usize::from(send(number % pipes.len())?);
    }
    let (mut load, mut taken) = (Load::default(), Vec::new());
    while under_way > 0 {
        answers.recv_many(&mut taken, outstanding).await;
        for (pipe, time, answer) in taken.drain(..) {
            let refused =
                |status: Status| Error::doing("drive the server", format!("{} {}", status.code(), status.message()));
            answer.map_err(refused)?;
            load.latencies_us.push(micros(time));
            under_way -= usize::from(!send(pipe)?);
        }
    }
    load.seconds = began.elapsed().as_secs_f64();
    load.server_us = server.cpu_us() - server_before;
    load.client_us = Process::own().cpu_us() - client_before;
    Ok(load)
}

/// Keeps every line busy with the requests that `make` makes.
///
/// # Errors
/// A request that failed or was refused.
pub async fn closed(server: Process, lines: Vec<Line>, make: Maker, until: Until) -> Result<Load, Error> {
    let next = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let limit = if let Until::Requests(count) = until { count } else { usize::MAX };
    let (server_before, client_before) = (server.cpu_us(), Process::own().cpu_us());
    let began = Instant::now();
    let tasks: Vec<_> = lines
        .into_iter()
        .map(|mut line| {
            let (next, stop, make) = (next.clone(), stop.clone(), make.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= limit {
                        break;
                    }
                    let ask = make(number);
                    let sent = Instant::now();
                    line.pass(&ask).await?;
                    latencies.push(micros(sent.elapsed()));
                }
                Ok::<_, Error>(latencies)
            })
        })
        .collect();
    if let Until::Seconds(seconds) = until {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        stop.store(true, Ordering::Relaxed);
    }
    let mut load = Load::default();
    for task in tasks {
        load.latencies_us.extend(task.await.map_err(Error::while_doing("drive the server"))??);
    }
    load.seconds = began.elapsed().as_secs_f64();
    load.server_us = server.cpu_us() - server_before;
    load.client_us = Process::own().cpu_us() - client_before;
    Ok(load)
}

/// Sends requests `2 n` and `2 n + 1` of `count` pairs, each pair one after the other on one line.
///
/// # Errors
/// A request that failed or was refused.
pub async fn pairs(lines: Vec<Line>, make: Maker, count: usize) -> Result<(), Error> {
    let next = Arc::new(AtomicUsize::new(0));
    let work = |mut line: Line| {
        let (next, make) = (next.clone(), make.clone());
        tokio::spawn(async move {
            loop {
                let pair = next.fetch_add(1, Ordering::Relaxed);
                if pair >= count {
                    return Ok::<_, Error>(());
                }
                line.pass(&make(2 * pair)).await?;
                line.pass(&make(2 * pair + 1)).await?;
            }
        })
    };
    let tasks: Vec<_> = lines.into_iter().map(work).collect();
    for task in tasks {
        task.await.map_err(Error::while_doing("drive the server"))??;
    }
    Ok(())
}

/// Calls `send` with the numbers from 0 on, `rate` a second, for so many seconds; returns how many.
pub async fn paced(rate: u64, seconds: f64, mut send: impl FnMut(usize)) -> usize {
    let (began, limit) = (Instant::now(), Duration::from_secs_f64(seconds));
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut sent = 0;
    while began.elapsed() < limit {
        ticks.tick().await;
        let due = (began.elapsed().as_secs_f64() * rate as f64) as usize;
        while sent < due {
            send(sent);
            sent += 1;
        }
    }
    sent
}

/// Microseconds, as many as fit.
pub fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
