#!/usr/bin/env python3
"""Pushes the image of an OCI archive to a registry.

usage: push.py URL CA-FILE USER:PASSWORD ARCHIVE REPOSITORY TAG"""
import base64, json, ssl, sys, tarfile, urllib.parse, urllib.request

url, ca, login, archive, repository, tag = sys.argv[1:7]
context = ssl.create_default_context(cafile=ca)
auth = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def call(method, address, data=None, **headers):
    request = urllib.request.Request(address, data=data, method=method, headers={**auth, **headers})
    return urllib.request.urlopen(request, context=context)


with tarfile.open(archive) as tar:
    def read(digest):
        return tar.extractfile("blobs/" + digest.replace(":", "/")).read()

    described = json.load(tar.extractfile("index.json"))["manifests"][0]
    manifest = read(described["digest"])
    content = json.loads(manifest)
    for blob in [content["config"], *content["layers"]]:
        place = call("POST", f"{url}/v2/{repository}/blobs/uploads/", b"").headers["Location"]
        place = urllib.parse.urljoin(url, place)
        place += ("&" if "?" in place else "?") + "digest=" + blob["digest"]
        call("PUT", place, read(blob["digest"]), **{"Content-Type": "application/octet-stream"})
    call("PUT", f"{url}/v2/{repository}/manifests/{tag}", manifest, **{"Content-Type": described["mediaType"]})
