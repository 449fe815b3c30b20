//! This machine and its processes: who used how much, and what else was running.

use std::collections::BTreeMap;
use std::time::Instant;

use meta::{Value, json};

/// What /proc counts processor time in: a constant of Linux' interface, whatever the kernel's own clock.
const TICKS_PER_S: u64 = 100;

/// Time and memory of one process, from its files in /proc. Gone processes read as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process(pub u32);

impl Process {
    pub fn own() -> Process {
        Process(std::process::id())
    }

    pub fn exists(self) -> bool {
        // One that has ended and was not waited for has no command line any more.
        std::fs::read(format!("/proc/{}/cmdline", self.0)).is_ok_and(|words| !words.is_empty())
    }

    /// Microseconds of processor time since it began; those of children that it waited for are not in it.
    pub fn cpu_us(self) -> u64 {
        self.ticks(&[13, 14])
    }

    /// The same with the children that it waited for.
    pub fn cpu_with_children_us(self) -> u64 {
        self.ticks(&[13, 14, 15, 16])
    }

    fn ticks(self, fields: &[usize]) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        // The second field is a name in parentheses and may hold anything.
        let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let words: Vec<&str> = rest.split_whitespace().collect();
        let field = |at: usize| words.get(at - 2).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        fields.iter().map(|at| field(*at)).sum::<u64>() * 1_000_000 / TICKS_PER_S
    }

    /// Its children, as long as they are not taken over by others.
    pub fn children(self) -> Vec<Process> {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", self.0)) else { return Vec::new() };
        let lists =
            tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
        lists
            .flat_map(|list| {
                list.split_whitespace().filter_map(|word| word.parse().ok().map(Process)).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Its command line.
    pub fn words(self) -> Vec<String> {
        let text = std::fs::read(format!("/proc/{}/cmdline", self.0)).unwrap_or_default();
        text.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }

    /// The same as [`Process::cpu_us`] to the microsecond, of each thread by its number; for those who do little.
    pub fn cpu_fine_us(self) -> FineCpu {
        let mut found = BTreeMap::new();
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.0)) else { return FineCpu(found) };
        for thread in threads.flatten() {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let ns = text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            found.insert(thread.file_name(), ns / 1000);
        }
        FineCpu(found)
    }

    /// All processes of the machine.
    pub fn all() -> Vec<Process> {
        let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
        all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Process)).collect()
    }

    /// All processes whose command line begins with these words.
    pub fn all_of(first: &[&str]) -> Vec<Process> {
        let begins = |process: &Process| {
            process.words().iter().zip(first).filter(|(is, wanted)| is == wanted).count() == first.len()
        };
        Process::all().into_iter().filter(begins).collect()
    }

    /// Memory in use now, in MB of 1,000,000 bytes.
    pub fn rss_mb(self) -> f64 {
        self.status_mb("VmRSS:")
    }

    /// The most it ever used.
    pub fn peak_mb(self) -> f64 {
        self.status_mb("VmHWM:")
    }

    fn status_mb(self, key: &str) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0.0);
        kib * 1024.0 / 1e6
    }

    /// Processor time by name of thread, in microseconds; threads that ended are missing.
    pub fn threads_us(self) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.0)) else { return found };
        for thread in threads.flatten() {
            let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
            let ns = read("schedstat").split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            *found.entry(read("comm").trim().to_owned()).or_default() += ns / 1000;
        }
        found
    }
}

/// Processor time of threads.
pub struct FineCpu(BTreeMap<std::ffi::OsString, u64>);

impl FineCpu {
    /// What was spent from `before` to this, in microseconds. What a thread that ended meanwhile spent is not in it, and what
    /// it spent before takes nothing from the others.
    pub fn since(&self, before: &FineCpu) -> u64 {
        self.0.iter().map(|(thread, us)| us.saturating_sub(before.0.get(thread).copied().unwrap_or(0))).sum()
    }
}

/// Processor time of the whole machine that somebody used, in microseconds.
fn busy_us() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().skip(1).map(|word| word.parse().unwrap_or(0)).collect();
    // user, nice, system, irq, softirq, steal; the others are idle or counted among these.
    let ticks: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| fields.get(*at)).sum();
    ticks * 1_000_000 / TICKS_PER_S
}

/// The beginning of a run, to tell afterwards what else was running meanwhile.
pub struct Meter {
    began: Instant,
    busy_us: u64,
    own_us: u64,
}

impl Meter {
    pub fn start() -> Meter {
        Meter { began: Instant::now(), busy_us: busy_us(), own_us: Process::own().cpu_with_children_us() }
    }

    /// What the machine is, and how it fared since the start. Only for when all children have been waited for.
    pub fn tell(&self) -> Value {
        let seconds = self.began.elapsed().as_secs_f64();
        let busy = busy_us().saturating_sub(self.busy_us);
        let own = Process::own().cpu_with_children_us().saturating_sub(self.own_us);
        let cores = cores();
        let foreign = busy.saturating_sub(own) as f64 / (seconds * 1e6 * cores as f64).max(1.0) * 100.0;
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let memory = read("/proc/meminfo");
        let memory_kib = memory.split_whitespace().nth(1).and_then(|word| word.parse::<i64>().ok()).unwrap_or(0);
        json!({
            "cores": (i64::try_from(cores).unwrap_or(0)),
            "cpu": (cpu()),
            "kernel": (read("/proc/sys/kernel/osrelease").trim()),
            "memory_mb": (memory_kib * 1024 / 1_000_000),
            "foreign_cpu_percent": (crate::numbers::rounded(foreign)),
            "seconds": (crate::numbers::rounded(seconds)),
        })
    }
}

/// The processor's name.
pub fn cpu() -> String {
    let told = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = told.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    model.trim_start_matches([' ', '\t', ':']).to_owned()
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Lets this thread, and what it starts from here on, run on these processors only. Where that is refused all stays as it
/// was: the figures then say so by themselves, since the processor times are told.
pub fn pin(to: &[usize]) {
    let _ = rustix::thread::sched_setaffinity(None, &set_of(to));
}

/// The same for any thread, by its id.
pub fn pin_thread(id: i32, to: &[usize]) {
    if let Some(id) = rustix::thread::Pid::from_raw(id) {
        let _ = rustix::thread::sched_setaffinity(Some(id), &set_of(to));
    }
}

fn set_of(cores: &[usize]) -> rustix::thread::CpuSet {
    let mut set = rustix::thread::CpuSet::new();
    for core in cores {
        set.set(*core);
    }
    set
}

/// Ends a pinning.
pub fn unpin() {
    pin(&(0..all_cores()).collect::<Vec<_>>());
}

/// Processors that there are, whatever this thread may use.
fn all_cores() -> usize {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count().max(1)
}

/// The full path of a program, if it is installed.
pub fn program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/local/sbin"]);
    folders.map(|folder| std::path::Path::new(folder).join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let (meter, own) = (Meter::start(), Process::own());
        let began = Instant::now();
        let mut sum = 0_u64;
        while began.elapsed().as_millis() < 60 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(own.cpu_us() >= 10_000 && own.rss_mb() > 0.5 && own.peak_mb() >= own.rss_mb() - 1.0);
        assert!(!own.threads_us().is_empty());
        let told = meter.tell();
        assert!(told["cores"].as_int().unwrap() >= 1 && told["memory_mb"].as_int().unwrap() > 100);
        assert_eq!(Process(u32::MAX).cpu_us(), 0);
        assert!(program("sh").is_some() && program("no-such-program-here").is_none());
    }

    #[test]
    fn a_thread_that_ends_takes_nothing_from_the_others() {
        let of = |threads: &[(&str, u64)]| FineCpu(threads.iter().map(|(id, us)| ((*id).into(), *us)).collect());
        assert_eq!(of(&[("1", 150), ("3", 7)]).since(&of(&[("1", 100), ("2", 1_000)])), 57);
    }
}
