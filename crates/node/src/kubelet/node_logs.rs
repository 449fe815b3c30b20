//! `/logs/`: what the node's machine writes below `/var/log`, as folders to click through and files to read.
//!
//! Nothing outside that folder is shown, whatever links in it say, also while they change: pods that mount it could make some.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use runtime::Rooted;
use rustix::fs::{Dir, FileType, OFlags, ResolveFlags};
use tokio::io::AsyncReadExt;

use super::{Body, bare, full, text};

const FOLDER: &str = "/var/log";
const PIECE_BYTES: usize = 64 << 10;
/// Names of one folder that are shown.
const NAMES_MAX: usize = 10_000;

/// Answers for `parts`, the path below `/logs`.
pub async fn answer(parts: &[&str]) -> Response<Body> {
    show(Path::new(FOLDER), parts).await
}

async fn show(root: &Path, parts: &[&str]) -> Response<Body> {
    let is_folder_asked = parts.last().is_none_or(|last| last.is_empty());
    let found =
        open(root, parts).and_then(|fd| Some((FileType::from_raw_mode(rustix::fs::fstat(&fd).ok()?.st_mode), fd)));
    match found {
        Some((FileType::Directory, fd)) if is_folder_asked => match listing(fd) {
            Ok(page) => full(StatusCode::OK, "text/html; charset=utf-8", page),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot read the folder: {error}\n")),
        },
        // Links in a listing hold for a folder that ends with a slash.
        Some((FileType::Directory, _)) => {
            let mut response = bare(StatusCode::MOVED_PERMANENTLY);
            let last = parts.last().copied().unwrap_or("logs");
            if let Ok(location) = HeaderValue::from_str(&format!("{}/", escaped(last))) {
                response.headers_mut().insert(LOCATION, location);
            }
            response
        }
        Some((FileType::RegularFile, fd)) if !is_folder_asked => file(File::from(fd)).await,
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// Opens what is asked for, links followed; `None` when it is not there or not below `root`.
fn open(root: &Path, parts: &[&str]) -> Option<OwnedFd> {
    let root = root.canonicalize().ok()?;
    let mut place = root.clone();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        if part.contains(['/', '\0']) || matches!(*part, "." | "..") {
            return None;
        }
        place.push(part);
    }
    let place: PathBuf = place.canonicalize().ok()?.strip_prefix(&root).ok()?.to_owned();
    // Links were followed above; one that has come since leads nowhere. Nobody waits for the other end of a pipe.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    Rooted::open(&root).ok()?.get_with(&place, flags, ResolveFlags::NO_SYMLINKS).ok()
}

fn listing(folder: OwnedFd) -> std::io::Result<String> {
    let mut names: Vec<String> = Vec::new();
    for entry in Dir::new(folder)?.take(NAMES_MAX) {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if name != "." && name != ".." {
            names.push(format!("{name}{}", if entry.file_type() == FileType::Directory { "/" } else { "" }));
        }
    }
    names.sort();
    let shown = |name: &String| {
        let text = name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        format!("<a href=\"{}\">{text}</a>\n", escaped(name))
    };
    Ok(format!(
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n{}</pre>\n",
        names.iter().map(shown).collect::<String>()
    ))
}

/// A name as a part of a URL.
fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

async fn file(file: File) -> Response<Body> {
    let file = tokio::fs::File::from_std(file);
    // What is written while it is read is left for the next reader: a busy file would never end.
    let length = file.metadata().await.map(|found| found.len()).unwrap_or(0);
    let pieces = futures_util::stream::unfold(file.take(length), |mut file| async move {
        let mut piece = vec![0; PIECE_BYTES];
        match file.read(&mut piece).await {
            Ok(read) if read > 0 => {
                piece.truncate(read);
                Some((Ok(Frame::data(Bytes::from(piece))), file))
            }
            _ => None,
        }
    });
    let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(root: &Path, path: &str, expected: (u16, &str)) {
        let parts: Vec<&str> = if path.is_empty() { Vec::new() } else { path.split('/').collect() };
        let response = show(root, &parts).await;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body);
        assert!(code == expected.0 && body.contains(expected.1), "{path}: {code} {body}");
    }

    #[tokio::test]
    async fn only_what_lies_below_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir_all(root.join("pods")).unwrap();
        std::fs::write(dir.path().join("secret"), "hidden").unwrap();
        std::fs::write(root.join("a <b>"), "of a").unwrap();
        std::fs::write(root.join("pods/c"), "of c").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("out")).unwrap();
        std::os::unix::fs::symlink("pods/c", root.join("in")).unwrap();
        check(&root, "", (200, "<a href=\"a%20%3Cb%3E\">a &lt;b&gt;</a>")).await;
        check(&root, "pods/", (200, "<a href=\"c\">c</a>")).await;
        check(&root, "pods", (301, "")).await;
        for (path, content) in [("a <b>", "of a"), ("pods/c", "of c"), ("in", "of c")] {
            check(&root, path, (200, content)).await;
        }
        std::os::unix::fs::symlink(root.join("pods/c"), root.join("whole")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), rustix::fs::Mode::RUSR).unwrap();
        check(&root, "whole", (200, "of c")).await;
        for path in ["out", "pipe", "../secret", "pods/../../secret", "none", "pods/c/", "./pods/c"] {
            check(&root, path, (404, "not found")).await;
        }
    }
}
