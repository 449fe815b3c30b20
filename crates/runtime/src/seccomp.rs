//! Seccomp: the default profile, profiles from files, and their compilation to the kernel's filter language.
//!
//! The default is an allow-list with the effect of the common `RuntimeDefault`: what an ordinary program needs is
//! allowed, everything else fails with EPERM (`clone3` with ENOSYS, so that C libraries fall back to `clone`, whose
//! flags a filter can see). Capabilities that are given to the container open the calls they are for.
//!
//! Filters are compiled here, on the agent's side, and travel to the container as finished instructions: no C library
//! is needed, and a profile that cannot be compiled fails before anything is started. Calls of another architecture
//! (32-bit programs) get the profile's default action.

use std::collections::BTreeMap;
use std::sync::Mutex;

use base64::Engine;
use serde::Deserialize;

use crate::seccomp_names::number;
use crate::sys::Instruction;
use crate::{Error, capability};

/// Largest profile file.
const PROFILE_MAX_BYTES: u64 = 4 << 20;
/// The kernel's limit of instructions.
const PROGRAM_MAX: usize = 4096;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const LOG: u32 = 0x7ffc_0000;
const TRAP: u32 = 0x0003_0000;
const KILL_THREAD: u32 = 0x0000_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const EPERM: u32 = ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = ERRNO | libc::ENOSYS as u32;

/// Namespaces a process must not make: every CLONE_NEW* flag of `clone`.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
const AF_VSOCK: u64 = 40;

/// Always allowed.
const ALLOWED: &str = "
    accept accept4 access adjtimex alarm arch_prctl bind brk capget capset chdir chmod chown clock_adjtime
    clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3
    epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown
    fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate
    futex futex_waitv futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid
    getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid
    getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr inotify_add_watch
    inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_setup io_submit ioctl
    ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr
    link linkat listen listxattr llistxattr lremovexattr lseek lsetxattr lstat madvise membarrier memfd_create
    memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap modify_ldt mprotect mq_getsetattr
    mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock
    munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_getfd pidfd_open
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2
    prlimit64 process_madvise process_mrelease process_vm_readv process_vm_writev pselect6 ptrace pwrite64 pwritev
    pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr rename
    renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
    sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid
    setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt
    setuid setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs
    statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
    timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill
    truncate umask uname unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev cachestat
    map_shadow_stack futex_wake futex_wait futex_requeue lsm_get_self_attr lsm_list_modules
";

/// Allowed when this capability is given.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount2 unshare
         statmount listmount",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime settimeofday"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node migrate_pages move_pages"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// Values of `personality` that change nothing of security.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// A comparison of one argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    argument: u32,
    test: Test,
    value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// After `and` with this mask.
    Masked(u64),
}

/// `action` for a call when all conditions hold.
#[derive(Clone, Debug)]
struct Rule {
    call: u32,
    conditions: Vec<Condition>,
    action: u32,
}

/// The default filter for a container with these capabilities, as base64 of its instructions. Containers have few
/// different sets of capabilities, so the compiled filters are kept.
pub(crate) fn default_filter(capabilities: u64) -> Result<String, Error> {
    const KEPT_MAX: usize = 64;
    static KEPT: Mutex<BTreeMap<u64, String>> = Mutex::new(BTreeMap::new());
    if let Some(filter) = crate::lock(&KEPT).get(&capabilities) {
        return Ok(filter.clone());
    }
    let filter = compile_default(capabilities)?;
    let mut kept = crate::lock(&KEPT);
    if kept.len() < KEPT_MAX {
        kept.insert(capabilities, filter.clone());
    }
    Ok(filter)
}

fn compile_default(capabilities: u64) -> Result<String, Error> {
    let mut rules = Vec::new();
    let mut add = |names: &str, conditions: &[Condition], action: u32| {
        let calls = names.split_whitespace().filter_map(number);
        rules.extend(calls.map(|call| Rule { call, conditions: conditions.to_vec(), action }));
    };
    add(ALLOWED, &[], ALLOW);
    let given = |name: &str| capability::number(name).is_some_and(|n| capabilities & (1 << n) != 0);
    for (_, calls) in BY_CAPABILITY.iter().filter(|(name, _)| given(name)) {
        add(calls, &[], ALLOW);
    }
    if !given("SYS_ADMIN") {
        // The flags are the first argument on every architecture we run on.
        let none = Condition { argument: 0, test: Test::Masked(CLONE_NAMESPACES), value: 0 };
        add("clone", &[none], ALLOW);
        add("clone3", &[], ENOSYS);
    }
    for value in PERSONALITIES {
        add("personality", &[Condition { argument: 0, test: Test::Equal, value }], ALLOW);
    }
    add("socket", &[Condition { argument: 0, test: Test::NotEqual, value: AF_VSOCK }], ALLOW);
    compile(rules, EPERM).map(|p| encode(&p))
}

/// The filter of a profile file in the OCI (docker) form.
pub(crate) fn file_filter(path: &std::path::Path, capabilities: u64) -> Result<String, Error> {
    use std::io::Read;
    let doing = format!("read the seccomp profile {}", path.display());
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io(doing.clone()))?;
    file.take(PROFILE_MAX_BYTES).read_to_end(&mut text).map_err(Error::io(doing))?;
    profile_filter(&text, capabilities)
        .map_err(|why| Error::ImageInvalid { what: format!("seccomp profile {}", path.display()), why })
}

fn profile_filter(text: &[u8], capabilities: u64) -> Result<String, String> {
    let profile: Profile = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let given = |name: &String| capability::number(name).is_some_and(|n| capabilities & (1 << n) != 0);
    let machine = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let here = |name: &String| name == machine;
    let mut rules = Vec::new();
    for entry in &profile.syscalls {
        let (includes, excludes) = (&entry.includes, &entry.excludes);
        let included =
            includes.caps.iter().all(given) && (includes.arches.is_empty() || includes.arches.iter().any(here));
        if !included || excludes.caps.iter().any(given) || excludes.arches.iter().any(here) {
            continue;
        }
        let action = action(&entry.action, entry.errno_ret)?;
        let conditions = entry.args.iter().map(Arg::condition).collect::<Result<Vec<_>, _>>()?;
        // Names this kernel or architecture does not have are passed over, as every runtime does.
        for call in entry.names.iter().chain(&entry.name).filter_map(|n| number(n)) {
            rules.push(Rule { call, conditions: conditions.clone(), action });
        }
    }
    compile(rules, default).map(|p| encode(&p)).map_err(|e| e.to_string())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "null_is_empty")]
    args: Vec<Arg>,
    #[serde(default)]
    includes: Scope,
    #[serde(default)]
    excludes: Scope,
}

#[derive(Deserialize, Default)]
struct Scope {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<Arg>, D::Error> {
    Ok(Option::<Vec<Arg>>::deserialize(d)?.unwrap_or_default())
}

impl Arg {
    fn condition(&self) -> Result<Condition, String> {
        if self.index > 5 {
            return Err(format!("a call has no argument {}", self.index));
        }
        let (test, value) = match self.op.as_str() {
            "SCMP_CMP_EQ" => (Test::Equal, self.value),
            "SCMP_CMP_NE" => (Test::NotEqual, self.value),
            "SCMP_CMP_LT" => (Test::Less, self.value),
            "SCMP_CMP_LE" => (Test::LessOrEqual, self.value),
            "SCMP_CMP_GT" => (Test::Greater, self.value),
            "SCMP_CMP_GE" => (Test::GreaterOrEqual, self.value),
            "SCMP_CMP_MASKED_EQ" => (Test::Masked(self.value), self.value_two),
            other => return Err(format!("unknown comparison {other:?}")),
        };
        Ok(Condition { argument: self.index, test, value })
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<u32, String> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_ERRNO" => ERRNO | errno.unwrap_or(libc::EPERM as u32) & 0xfff,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        other => return Err(format!("the action {other:?} is not supported")),
    })
}

fn encode(program: &[Instruction]) -> String {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for i in program {
        bytes.extend_from_slice(&i.code.to_le_bytes());
        bytes.extend_from_slice(&[i.jt, i.jf]);
        bytes.extend_from_slice(&i.k.to_le_bytes());
    }
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
/// Offsets in `struct seccomp_data`.
const AT_NUMBER: u32 = 0;
const AT_ARCHITECTURE: u32 = 4;
const AT_ARGUMENTS: u32 = 16;

fn step(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// One block per call, unconditional neighbours with one action merged into ranges. The kernel remembers calls that
/// are always allowed in a bit map, so a plain chain costs nothing at run time.
fn compile(mut rules: Vec<Rule>, default: u32) -> Result<Vec<Instruction>, Error> {
    rules.sort_by_key(|r| r.call);
    let mut program = vec![
        step(LOAD, 0, 0, AT_ARCHITECTURE),
        step(JUMP_EQUAL, 1, 0, ARCHITECTURE),
        step(RETURN, 0, 0, default),
        step(LOAD, 0, 0, AT_NUMBER),
    ];
    let mut range: Option<(u32, u32, u32)> = None;
    for block in rules.chunk_by(|a, b| a.call == b.call) {
        let call = block[0].call;
        // An unconditional rule makes the others of its call pointless.
        if let Some(plain) = block.iter().find(|r| r.conditions.is_empty()) {
            range = match range {
                Some((low, high, action)) if high + 1 == call && action == plain.action => Some((low, call, action)),
                other => {
                    push_range(&mut program, other);
                    Some((call, call, plain.action))
                }
            };
            continue;
        }
        push_range(&mut program, range.take());
        let mut body = Vec::new();
        for rule in block {
            push_rule(&mut body, rule);
        }
        body.push(step(RETURN, 0, 0, default));
        let skip = u8::try_from(body.len()).map_err(|_| too_large())?;
        program.push(step(JUMP_EQUAL, 0, skip, call));
        program.append(&mut body);
    }
    push_range(&mut program, range);
    program.push(step(RETURN, 0, 0, default));
    if program.len() > PROGRAM_MAX { Err(too_large()) } else { Ok(program) }
}

fn too_large() -> Error {
    Error::TooLarge { what: "the seccomp profile".to_owned(), limit: PROGRAM_MAX as u64 }
}

fn push_range(program: &mut Vec<Instruction>, range: Option<(u32, u32, u32)>) {
    let Some((low, high, action)) = range else { return };
    if low == high {
        program.push(step(JUMP_EQUAL, 0, 1, low));
    } else {
        program.push(step(JUMP_GREATER_OR_EQUAL, 0, 2, low));
        program.push(step(JUMP_GREATER, 1, 0, high));
    }
    program.push(step(RETURN, 0, 0, action));
}

/// Falls through to what follows when a condition does not hold. Arguments are 64 bits, the machine has 32, so each
/// is compared in halves. `NEXT` is filled in when the length of the rule is known.
fn push_rule(body: &mut Vec<Instruction>, rule: &Rule) {
    const NEXT: u8 = 255;
    let mut code: Vec<Instruction> = Vec::new();
    for Condition { argument, test, value } in &rule.conditions {
        let low_at = AT_ARGUMENTS + 8 * argument;
        let (high, low) = ((value >> 32) as u32, *value as u32);
        let load_high = step(LOAD, 0, 0, low_at + 4);
        let load_low = step(LOAD, 0, 0, low_at);
        match test {
            Test::Equal => {
                code.extend([load_high, step(JUMP_EQUAL, 0, NEXT, high), load_low, step(JUMP_EQUAL, 0, NEXT, low)])
            }
            Test::NotEqual => {
                code.extend([load_high, step(JUMP_EQUAL, 0, 2, high), load_low, step(JUMP_EQUAL, NEXT, 0, low)])
            }
            Test::Masked(mask) => code.extend([
                load_high,
                step(AND, 0, 0, (mask >> 32) as u32),
                step(JUMP_EQUAL, 0, NEXT, high),
                load_low,
                step(AND, 0, 0, *mask as u32),
                step(JUMP_EQUAL, 0, NEXT, low),
            ]),
            Test::Greater | Test::GreaterOrEqual => {
                let last = if *test == Test::Greater { JUMP_GREATER } else { JUMP_GREATER_OR_EQUAL };
                code.extend([
                    load_high,
                    step(JUMP_GREATER, 3, 0, high),
                    step(JUMP_EQUAL, 0, NEXT, high),
                    load_low,
                    step(last, 0, NEXT, low),
                ]);
            }
            Test::Less | Test::LessOrEqual => {
                let last = if *test == Test::Less { JUMP_GREATER_OR_EQUAL } else { JUMP_GREATER };
                code.extend([
                    load_high,
                    step(JUMP_GREATER, NEXT, 0, high),
                    step(JUMP_EQUAL, 0, 2, high),
                    load_low,
                    step(last, NEXT, 0, low),
                ]);
            }
        }
    }
    code.push(step(RETURN, 0, 0, rule.action));
    // Six conditions of six steps at most per rule: every distance fits into a byte.
    let length = code.len().min(usize::from(NEXT));
    for (at, instruction) in code.iter_mut().enumerate() {
        let next = length.saturating_sub(at + 1) as u8;
        for jump in [&mut instruction.jt, &mut instruction.jf] {
            if *jump == NEXT {
                *jump = next;
            }
        }
    }
    body.append(&mut code);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], architecture: u32, call: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(call.to_le_bytes());
        data.extend(architecture.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        arguments.iter().for_each(|a| data.extend(a.to_le_bytes()));
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let i = &program[at];
            at += 1;
            let jump = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
            match i.code {
                LOAD => accumulator = u32::from_le_bytes(data[i.k as usize..][..4].try_into().unwrap()),
                AND => accumulator &= i.k,
                JUMP_EQUAL => at += jump(accumulator == i.k),
                JUMP_GREATER => at += jump(accumulator > i.k),
                JUMP_GREATER_OR_EQUAL => at += jump(accumulator >= i.k),
                RETURN => return i.k,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    fn decode(text: &str) -> Vec<Instruction> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        let le = |b: &[u8]| u32::from_le_bytes(b.try_into().unwrap());
        bytes.chunks_exact(8).map(|c| step(u16::from_le_bytes([c[0], c[1]]), c[2], c[3], le(&c[4..]))).collect()
    }

    #[track_caller]
    fn check(program: &[Instruction], name: &str, first: u64, expected: u32) {
        let found = run(program, ARCHITECTURE, number(name).unwrap(), [first, 0, 0, 0, 0, 0]);
        assert_eq!(found, expected, "{name}({first:#x})");
    }

    #[test]
    fn the_default_lets_ordinary_programs_work() {
        for name in ALLOWED.split_whitespace() {
            assert!(number(name).is_some() || cfg!(not(target_arch = "x86_64")), "{name} is no system call");
        }
        for (capability, calls) in BY_CAPABILITY {
            assert!(capability::number(capability).is_some(), "{capability}");
            calls.split_whitespace().for_each(|c| assert!(number(c).is_some() || c.starts_with("io"), "{c}"));
        }
        let plain = decode(&default_filter(0).unwrap());
        for name in ["read", "openat", "execve", "exit_group", "futex", "epoll_wait", "seccomp", "rseq", "statx"] {
            check(&plain, name, 0, ALLOW);
        }
        for name in ["mount", "keyctl", "bpf", "unshare", "setns", "reboot", "kexec_load", "io_uring_setup", "chroot"] {
            check(&plain, name, 0, EPERM);
        }
        check(&plain, "clone3", 0, ENOSYS);
        check(&plain, "clone", 0x11, ALLOW);
        check(&plain, "clone", 0x1000_0011, EPERM);
        check(&plain, "personality", 0x8, ALLOW);
        check(&plain, "personality", 0x4, EPERM);
        check(&plain, "socket", 2, ALLOW);
        check(&plain, "socket", 40, EPERM);
        assert_eq!(run(&plain, 0x4000_0003, 1, [0; 6]), EPERM, "32-bit calls are not let through by number");
        let admin = decode(&default_filter(1 << capability::number("SYS_ADMIN").unwrap()).unwrap());
        check(&admin, "mount", 0, ALLOW);
        check(&admin, "clone3", 0, ALLOW);
        check(&admin, "clone", 0x1000_0011, ALLOW);
        check(&admin, "reboot", 0, EPERM);
    }

    #[test]
    fn profiles_compare_whole_arguments() {
        let profile = |op: &str, value: u64| {
            let text = format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5,"syscalls":[{{"names":["read","nope"],
                "action":"SCMP_ACT_ALLOW","args":[{{"index":0,"value":{value},"valueTwo":1,"op":"{op}"}}]}},
                {{"names":["write"],"action":"SCMP_ACT_KILL_PROCESS","args":null}}]}}"#
            );
            decode(&profile_filter(text.as_bytes(), 0).unwrap())
        };
        let big = 0x1_0000_0005u64;
        for (op, test) in [
            ("SCMP_CMP_EQ", (|a, b| a == b) as fn(u64, u64) -> bool),
            ("SCMP_CMP_NE", |a, b| a != b),
            ("SCMP_CMP_LT", |a, b| a < b),
            ("SCMP_CMP_LE", |a, b| a <= b),
            ("SCMP_CMP_GT", |a, b| a > b),
            ("SCMP_CMP_GE", |a, b| a >= b),
            ("SCMP_CMP_MASKED_EQ", |a, b| a & b == 1),
        ] {
            let program = profile(op, big);
            for argument in [0, 1, 3, 4, 5, 6, 0x1_0000_0000, big - 1, big, big + 1, 0x2_0000_0000, u64::MAX] {
                let expected = if test(argument, big) { ALLOW } else { ERRNO | 5 };
                check(&program, "read", argument, expected);
            }
            check(&program, "write", 0, KILL_PROCESS);
            check(&program, "close", 0, ERRNO | 5);
        }
        for bad in ["", "{}", r#"{"defaultAction":"NO"}"#, "[]"] {
            assert!(profile_filter(bad.as_bytes(), 0).is_err(), "{bad}");
        }
    }
}
