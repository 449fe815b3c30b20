#!/usr/bin/env bash
# What of clusters is left on this machine, one line each: processes, mounts, links, namespaces, cgroups, nftables tables,
# folders in /run. With NAME (what stands in a data folder's file `name`) of that cluster only, else of all. Exit code 1
# when there is something. It looks with the machine's own tools, not with gantry's. usage: leftovers.sh [NAME]
set -euo pipefail
short=${1:-'[0-9a-f]\{7\}'}
found() { sed "s|^|$1 |"; }
list() {
  for process in /proc/[0-9]*; do
    # Ended meanwhile, or the kernel's own.
    line=$(tr '\0' ' ' 2>/dev/null <"$process/cmdline") || continue
    case "$line" in *gantry\ shim\ *|*gantry\ agent\ *) printf '%s %s\n' "${process#/proc/}" "$line" ;; esac
  done 2>/dev/null | grep -- "/run/gantry-$short/" | cut -c1-150 | found process
  cat /proc/[0-9]*/mounts 2>/dev/null | cut -d' ' -f2 | sort -u | grep "^/run/gantry-$short" | found mount
  ip -o link 2>/dev/null | cut -d' ' -f2 | grep "^gt${short}0" | found link
  find /sys/fs/cgroup -maxdepth 2 -type d -name "gantry-*" 2>/dev/null | grep "/gantry-$short\$" | found cgroup
  nft list tables 2>/dev/null | grep "gt$short-outside" | found table
  find /run -maxdepth 1 -name 'gantry-*' 2>/dev/null | grep "/gantry-$short\$" | found folder
  find /run/netns /var/run/netns -maxdepth 1 -name 'gantry-*' 2>/dev/null | sort -u | found namespace
}
left=$(list || true)
[ -z "$left" ] || { echo "$left"; exit 1; }
