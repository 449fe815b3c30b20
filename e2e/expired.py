#!/usr/bin/env python3
"""expired.py KEY TOKEN: the same token, signed by the cluster's own key (PKCS#8), but expired a minute ago."""
import base64
import json
import subprocess
import sys
import time

key, token = sys.argv[1:]


def encode(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


header, claims, _ = token.split(".")
claims = json.loads(decode(claims))
claims.update(iat=int(time.time()) - 660, nbf=int(time.time()) - 660, exp=int(time.time()) - 60)
signed = f"{header}.{encode(json.dumps(claims).encode())}"
sign = ["openssl", "dgst", "-sha256", "-sign", key, "-keyform", "DER"]
der = subprocess.run(sign, input=signed.encode(), stdout=subprocess.PIPE, check=True).stdout
# SEQUENCE { INTEGER r, INTEGER s }: the token has both as 32 bytes.
numbers, rest = b"", der[2:]
for _ in range(2):
    length = rest[1]
    numbers += rest[2 : 2 + length][-32:].rjust(32, b"\0")
    rest = rest[2 + length :]
print(f"{signed}.{encode(numbers)}")
