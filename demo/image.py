#!/usr/bin/env python3
"""Makes the demo's image, an OCI archive with busybox in it, without any registry or other tool.

usage: image.py OUT.tar NAME:TAG"""
import gzip, hashlib, io, json, subprocess, sys, tarfile

out, name = sys.argv[1:3]


def add(tar, path, data=None, mode=0o755, kind=tarfile.REGTYPE, link=""):
    entry = tarfile.TarInfo(path)
    entry.mode, entry.type, entry.linkname = mode, kind, link
    if data is not None:
        entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data) if data is not None else None)


layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w", format=tarfile.PAX_FORMAT) as tar:
    for folder in ("bin", "dev", "etc", "proc", "root", "run", "sys", "var"):
        add(tar, folder, kind=tarfile.DIRTYPE)
    add(tar, "tmp", mode=0o1777, kind=tarfile.DIRTYPE)
    with open("/usr/bin/busybox", "rb") as busybox:
        add(tar, "bin/busybox", busybox.read())
    for applet in subprocess.check_output(["/usr/bin/busybox", "--list"], text=True).split():
        if applet != "busybox":
            add(tar, "bin/" + applet, mode=0o777, kind=tarfile.SYMTYPE, link="busybox")
    add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", 0o644)
    add(tar, "etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)
plain = layer.getvalue()
packed = gzip.compress(plain, 6, mtime=0)


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def described(media, data, **more):
    return {"mediaType": media, "digest": digest(data), "size": len(data), **more}


OCI = "application/vnd.oci.image"
config = json.dumps({
    "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
    "rootfs": {"type": "layers", "diff_ids": [digest(plain)]},
}).encode()
manifest = json.dumps({
    "schemaVersion": 2, "mediaType": OCI + ".manifest.v1+json", "config": described(OCI + ".config.v1+json", config),
    "layers": [described(OCI + ".layer.v1.tar+gzip", packed)],
}).encode()
index = json.dumps({
    "schemaVersion": 2, "mediaType": OCI + ".index.v1+json",
    "manifests": [described(OCI + ".manifest.v1+json", manifest, annotations={
        "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rsplit(":", 1)[-1]})],
}).encode()
with tarfile.open(out, "w") as tar:
    add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644)
    add(tar, "index.json", index, 0o644)
    add(tar, "blobs", kind=tarfile.DIRTYPE)
    add(tar, "blobs/sha256", kind=tarfile.DIRTYPE)
    for blob in (packed, config, manifest):
        add(tar, "blobs/sha256/" + digest(blob)[7:], blob, 0o644)
