//! A door for the fuzzer to decoders that are nobody else's business: what registries and images say.

use std::io::Write;

use crate::image::{auth, manifest, unpack};

/// Manifests, an index and a configuration to begin with.
pub fn manifests() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let layer =
        format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":10}}"#);
    [
        format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layer},{layer}]}}"#),
        format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":3,"platform":{{"os":"linux","architecture":"amd64","variant":"v8"}}}}]}}"#),
        format!(r#"{{"architecture":"amd64","os":"linux","config":{{"User":"1:2","Env":["A=b"],"Cmd":["a"],"StopSignal":"SIGRTMIN+3"}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#),
    ]
    .map(String::into_bytes)
    .into()
}

pub fn read_manifest(bytes: &[u8]) {
    if let Ok(manifest::Document::Index(list)) = manifest::parse("it", bytes) {
        let _ = manifest::choose("it", &list, &manifest::machine());
        list.iter().for_each(|descriptor| drop(manifest::names_of(descriptor)));
    }
    let _ = manifest::parse_config("it", bytes, 1);
    let _ = manifest::signal(&String::from_utf8_lossy(bytes));
}

pub fn read_challenge(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = auth::challenge(text.lines());
}

/// Layers to begin with: a plain archive of a folder, a file, links and a whiteout; the same compressed.
pub fn layers() -> Vec<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, of: tar::EntryType, link: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(of);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o755);
        let named = match link.is_empty() {
            true => archive.append_data(&mut header, path, bytes),
            false => archive.append_link(&mut header, path, link),
        };
        named.expect("a short path fits a header");
    };
    add("etc", tar::EntryType::Directory, "", b"");
    add("etc/file", tar::EntryType::Regular, "", b"some bytes");
    add("etc/soft", tar::EntryType::Symlink, "/etc/file", b"");
    add("etc/hard", tar::EntryType::Link, "etc/file", b"");
    add("etc/.wh.gone", tar::EntryType::Regular, "", b"");
    let plain = archive.into_inner().expect("memory takes bytes");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&plain).expect("memory takes bytes");
    vec![plain, packed.finish().expect("memory takes bytes")]
}

/// Unpacks a layer into a folder of its own, which is removed; nothing may come to be beside it.
pub fn unpack_layer(bytes: &[u8]) {
    let outer = std::env::temp_dir().join(format!("gantry-fuzz-layer-{}", std::process::id()));
    let root = outer.join("root");
    std::fs::create_dir_all(&root).expect("the folder of temporary files takes folders");
    let _ = unpack::unpack("it", bytes, &root);
    let beside = std::fs::read_dir(&outer).map(|list| list.count());
    std::fs::remove_dir_all(&outer).expect("what was unpacked can be removed");
    assert_eq!(beside.ok(), Some(1), "a layer wrote beside its folder");
}
