//! Network namespaces: made, kept by a bind mount, entered.

use crate::error::Error;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::mpsc;

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace, held open.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// That of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn current() -> Result<Netns, Error> {
        File::open(OWN).map(Netns).map_err(Error::io("open the own network namespace"))
    }

    /// The one kept at `path`.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(path: &Path) -> Result<Netns, Error> {
        let file = File::open(path).map_err(Error::io(format!("open the network namespace {}", path.display())))?;
        Ok(Netns(file))
    }

    /// A new one, kept at `path` (a new file in an existing folder) until [`Netns::delete`].
    ///
    /// # Errors
    /// When the file exists, or the right to make namespaces or mounts is missing.
    pub fn create(path: &Path) -> Result<Netns, Error> {
        std::thread::scope(|scope| {
            let work = || {
                unshare()?;
                keep(path)?;
                Netns::current()
            };
            scope.spawn(work).join().unwrap_or(Err(Error::Limit("the thread that makes a namespace has ended")))
        })
    }

    /// Ends the keeping of the one at `path`. It lives on while anybody is in it. None there is no error.
    ///
    /// # Errors
    /// When it cannot be unmounted.
    pub fn delete(path: &Path) -> Result<(), Error> {
        loop {
            match unmount(path, UnmountFlags::DETACH) {
                Ok(()) => {}
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
                Err(error) => return Err(Error::io(format!("unmount {}", path.display()))(error.into())),
            }
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", path.display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// Moves the calling thread into it, for good. Not for threads that others use too.
    ///
    /// # Errors
    /// When the right is missing.
    pub fn enter(&self) -> Result<(), Error> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| Error::io("enter a network namespace")(error.into()))
    }

    /// Runs `work` on a thread of its own inside.
    ///
    /// # Errors
    /// When it cannot be entered, or `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        std::thread::scope(|scope| {
            let inside = || {
                self.enter()?;
                Ok(work())
            };
            scope.spawn(inside).join().unwrap_or(Err(Error::Limit("the work in a network namespace has panicked")))
        })
    }

    /// A second handle of the same namespace.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn again(&self) -> Result<Netns, Error> {
        self.0.try_clone().map(Netns).map_err(Error::io("open a network namespace again"))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Moves the calling thread into a new namespace.
pub(crate) fn unshare() -> Result<(), Error> {
    // SAFETY: only this thread's network namespace changes; no descriptors and no memory are parted.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(|error| Error::io("make a network namespace")(error.into()))
}

/// Keeps the calling thread's namespace at `path`.
pub(crate) fn keep(path: &Path) -> Result<(), Error> {
    File::create_new(path).map_err(Error::io(format!("create {}", path.display())))?;
    mount_bind(OWN, path).map_err(|error| {
        let _ = std::fs::remove_file(path);
        Error::io(format!("keep a network namespace at {}", path.display()))(error.into())
    })
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that lives in a network namespace and does what it is given, one after the other.
pub struct NetnsThread(mpsc::Sender<Job>);

impl NetnsThread {
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn start(netns: &Netns) -> Result<NetnsThread, Error> {
        let netns = netns.again()?;
        let (sender, jobs) = mpsc::channel::<Job>();
        let (ready, entered) = mpsc::channel();
        let work = move || {
            let outcome = netns.enter();
            let inside = outcome.is_ok();
            let _ = ready.send(outcome);
            if inside {
                jobs.into_iter().for_each(|job| job());
            }
        };
        std::thread::Builder::new().name("netns".into()).spawn(work).map_err(Error::io("start a thread"))?;
        entered.recv().unwrap_or(Err(Error::Limit("the thread of a network namespace has ended")))?;
        Ok(NetnsThread(sender))
    }

    /// Does `work` there and waits for its outcome.
    ///
    /// # Errors
    /// When an earlier work panicked.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let gone = || Error::Limit("the thread of a network namespace has ended");
        let (sender, outcome) = mpsc::channel();
        let job = Box::new(move || drop(sender.send(work())));
        self.0.send(job).map_err(|_| gone())?;
        outcome.recv().map_err(|_| gone())
    }

    /// Like [`NetnsThread::run`], for tasks: others run on their thread meanwhile.
    ///
    /// # Errors
    /// When an earlier work panicked.
    pub async fn task<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let gone = || Error::Limit("the thread of a network namespace has ended");
        let (sender, outcome) = tokio::sync::oneshot::channel();
        let job = Box::new(move || drop(sender.send(work())));
        self.0.send(job).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())
    }
}
