//! For tests of this crate and of those above it: images made from scratch, archives of them, and the shim inside a
//! test's own binary.
//!
//! Not for production code. Images hold busybox from this machine (Debian's `busybox-static`).

use std::path::Path;

use crate::image::manifest::machine;
use crate::image::sha256;

/// Makes a test's own binary usable as the shim: put `runtime::testing::shim_here!();` at the top of the test crate's
/// root. Before the test harness starts, the binary looks whether it was called as `... shim DIR`.
#[macro_export]
macro_rules! shim_here {
    () => {
        // glibc runs this before `main`, when the process has one thread.
        #[used]
        #[unsafe(link_section = ".init_array")]
        static SHIM_HERE: extern "C" fn() = {
            extern "C" fn shim_here() {
                $crate::testing::become_shim();
            }
            shim_here
        };
    };
}
pub use crate::shim_here;

/// What [`shim_here!`] runs: becomes the shim when the arguments say so, else returns.
pub fn become_shim() {
    let words: Vec<String> = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    if words.len() == 2 {
        crate::shim::main_if_meant(&words);
    }
}

/// One file of a test image.
pub enum TestFile<'a> {
    Dir(&'a str, u32),
    File(&'a str, &'a [u8], u32),
    Link(&'a str, &'a str),
}

/// An image to be made.
#[derive(Clone, Debug)]
pub struct TestImage {
    /// Plain archives, lowest first.
    pub layers: Vec<Vec<u8>>,
    /// The `config` object of the configuration: `Cmd`, `Env`, `User` ...
    pub config: serde_json::Value,
    /// For which machine; this one unless changed.
    pub architecture: String,
    pub compression: Compression,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A blob with its digest.
#[derive(Clone, Debug)]
pub struct Blob {
    pub media_type: String,
    pub digest: String,
    pub bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &str, bytes: Vec<u8>) -> Blob {
        Blob { media_type: media_type.to_owned(), digest: sha256(&bytes), bytes }
    }

    pub fn descriptor(&self) -> serde_json::Value {
        serde_json::json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// An image as blobs: what a registry stores.
#[derive(Clone, Debug)]
pub struct Blobs {
    pub config: Blob,
    pub layers: Vec<Blob>,
    pub manifest: Blob,
}

impl TestImage {
    /// Busybox with all its commands, users `root`, `app` (1000:1000, also in group `staff` 50) and `nobody`.
    ///
    /// # Panics
    /// When this machine has no busybox.
    pub fn busybox() -> TestImage {
        let busybox = ["/usr/bin/busybox", "/bin/busybox"].iter().find_map(|p| std::fs::read(p).ok());
        let busybox = busybox.expect("tests need busybox: apt-get install busybox-static");
        let commands = std::process::Command::new("busybox").arg("--list").output().expect("busybox runs").stdout;
        let commands = String::from_utf8_lossy(&commands).into_owned();
        let passwd = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:App:/home:/bin/sh\n\
            nobody:x:65534:65534:nobody:/home:/bin/false\n";
        let group = b"root:x:0:\napp:x:1000:\nstaff:x:50:app\nnogroup:x:65534:\n";
        let mut files: Vec<TestFile<'_>> =
            ["bin", "dev", "etc", "proc", "sys", "root", "home", "run", "var"].map(|d| TestFile::Dir(d, 0o755)).into();
        files.push(TestFile::Dir("tmp", 0o1777));
        files.push(TestFile::File("bin/busybox", &busybox, 0o755));
        files.push(TestFile::File("etc/passwd", passwd, 0o644));
        files.push(TestFile::File("etc/group", group, 0o644));
        let names: Vec<String> = commands.lines().filter(|c| *c != "busybox").map(|c| format!("bin/{c}")).collect();
        files.extend(names.iter().map(|n| TestFile::Link(n, "busybox")));
        TestImage {
            layers: vec![archive(&files)],
            config: serde_json::json!({"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]}),
            architecture: machine().architecture,
            compression: Compression::Gzip,
        }
    }

    /// With one more layer on top.
    pub fn layer(mut self, files: &[TestFile<'_>]) -> TestImage {
        self.layers.push(archive(files));
        self
    }

    /// With a setting such as `("User", json!("app"))`.
    pub fn with(mut self, name: &str, value: serde_json::Value) -> TestImage {
        self.config[name] = value;
        self
    }

    pub fn blobs(&self) -> Blobs {
        let packed = |plain: &[u8]| match self.compression {
            Compression::None => (plain.to_vec(), ""),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                std::io::Write::write_all(&mut encoder, plain).expect("writing to memory works");
                (encoder.finish().expect("writing to memory works"), "+gzip")
            }
            Compression::Zstd => (zstd::encode_all(plain, 1).expect("writing to memory works"), "+zstd"),
        };
        let layers: Vec<Blob> = self
            .layers
            .iter()
            .map(|plain| {
                let (bytes, suffix) = packed(plain);
                Blob::new(&format!("application/vnd.oci.image.layer.v1.tar{suffix}"), bytes)
            })
            .collect();
        let diff_ids: Vec<String> = self.layers.iter().map(|l| sha256(l)).collect();
        let config = serde_json::json!({
            "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = Blob::new("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(), "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let manifest = Blob::new("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
        Blobs { config, layers, manifest }
    }

    /// Writes an OCI layout archive that names the image `name`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_oci(&self, path: &Path, name: &str) -> std::io::Result<()> {
        let blobs = self.blobs();
        let mut entry = blobs.manifest.descriptor();
        entry["platform"] = serde_json::json!({"architecture": self.architecture, "os": "linux"});
        entry["annotations"] = serde_json::json!({"io.containerd.image.name": name});
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        let all: Vec<&Blob> = blobs.layers.iter().chain([&blobs.config, &blobs.manifest]).collect();
        let names: Vec<String> = all.iter().map(|b| format!("blobs/{}", b.digest.replace(':', "/"))).collect();
        let mut files = vec![
            TestFile::File("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644),
            TestFile::File("index.json", index.as_bytes(), 0o644),
        ];
        files.extend(all.iter().zip(&names).map(|(b, name)| TestFile::File(name, &b.bytes, 0o644)));
        std::fs::write(path, archive(&files))
    }

    /// Writes an archive as `docker save` does.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_docker(&self, path: &Path, name: &str) -> std::io::Result<()> {
        let config = self.blobs().config;
        let names: Vec<String> = (0..self.layers.len()).map(|n| format!("{n}/layer.tar")).collect();
        let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]).to_string();
        let mut files = vec![TestFile::File("config.json", &config.bytes, 0o644)];
        files.extend(names.iter().zip(&self.layers).map(|(name, plain)| TestFile::File(name, plain, 0o644)));
        files.push(TestFile::File("manifest.json", manifest.as_bytes(), 0o644));
        std::fs::write(path, archive(&files))
    }
}

/// A plain archive of files, owned by root, with fixed times.
pub fn archive(files: &[TestFile<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        let result = match file {
            TestFile::Dir(path, mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                builder.append_data(&mut header, path, std::io::empty())
            }
            TestFile::File(path, bytes, mode) => {
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, path, *bytes)
            }
            TestFile::Link(path, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                builder.append_link(&mut header, path, target)
            }
        };
        result.expect("names in test images are plain");
    }
    builder.into_inner().expect("writing to memory works")
}
