# What cannot be is told in one sentence, with what to do, and exit code 1: addresses, folders, rights, values, files.
# runs: once
words="$work/words"
mkdir -p "$words"
# told SENTENCE-PART COMMAND...: fails with code 1 and one line that has the part.
told() {
  local part=$1 out code=0
  shift
  out=$(timeout 20 "$@" 2>&1 >/dev/null) || code=$?
  same "$code" 1
  has "$out" "$part"
  same "$(printf '%s\n' "$out" | grep -c .)" 1
}
data=$(dirname "$KUBECONFIG")
told "is in use by gantry up (process" "$gantry" up --data "$data" --listen 127.0.0.1:1
told "is in use by gantry up (process" "$gantry" server --data "$data" --listen 127.0.0.1:1
told "is in use by process" "$gantry" store check --data "$data"
busy=$(sed -n 's|^ *server: https://||p' "$KUBECONFIG")
told "$busy is in use by another program; stop that one, or give another address with --listen" \
  "$gantry" server --data "$words/busy" --listen "$busy"
told "203.0.113.7:6443 is no address of this machine" "$gantry" server --data "$words/busy" --listen 203.0.113.7:6443
told 'GANTRY_NODES: "none" is no number from 1 to 100' env GANTRY_NODES=none "$gantry" up --data "$words/none"
told '--pod-cidr: "10.1.2.3/16" has bits behind its prefix; the range is 10.1.0.0/16' "$gantry" up --pod-cidr 10.1.2.3/16
told 'overlaps 10.96.0.0/16, which is --pod-cidr' "$gantry" server --data "$words/none" --pod-cidr 10.96.0.0/16
printf 'log: info\nlistne: 127.0.0.1:1\n' >"$words/wrong.yaml"
told 'wrong.yaml, line 2: "listne" is no flag of gantry up; did you mean "listen"?' "$gantry" up --config "$words/wrong.yaml"
printf 'a: [\n' >"$words/wrong.yaml"
told "wrong.yaml, line" "$gantry" up --config "$words/wrong.yaml"
told "cannot read the configuration $words/missing.yaml" "$gantry" up --config "$words/missing.yaml"
# A user without rights. The program must be where that user may read it.
cp "$gantry" "$words/gantry"
chmod 755 "$work" "$words" "$words/gantry"
told "only root may make; start it as root" setpriv --reuid 65534 --clear-groups "$words/gantry" up --data "$words/up"
told "this user may not; start gantry as root" setpriv --reuid 65534 --clear-groups "$words/gantry" server --data /var/lib/gantry-none
told "this user may not make network namespaces" setpriv --bounding-set -all --inh-caps -all "$gantry" up --data "$words/up"
chmod 700 "$work"
# A kernel that does not do what nodes need: no more network namespaces, no control groups.
told "the kernel's limit of network namespaces is reached; raise it below /proc/sys/user" \
  unshare -Ur sh -c 'echo 0 >/proc/sys/user/max_net_namespaces; exec "$0" up --data "$1"' "$gantry" "$words/up"
told "the kernel's control groups cannot be used: a system without mounted control groups" \
  unshare -m sh -c 'umount -lR /sys/fs/cgroup; exec "$0" up --data "$1"' "$gantry" "$words/up"
# A damaged store: where, and what can be saved; then it is saved.
"$gantry" server --parts api --data "$words/store" --listen 127.0.0.1:0 >"$words/server.log" 2>&1 &
server=$!
eventually test -f "$words/store/kubeconfig"
eventually grep -q 'the API answers' "$words/server.log"
kill "$server"; wait "$server"
has "$("$gantry" store check --data "$words/store")" sound
"$gantry" store dump --data "$words/store" --output "$words/whole.jsonl"
log=$(find "$words/store/store" -name "*log*" ! -name lock | sort | head -n 1)
printf 'damage' | dd of="$log" bs=1 seek=20000 conv=notrunc status=none
told "is damaged at byte" "$gantry" server --parts api --data "$words/store" --listen 127.0.0.1:0
told "can be saved (" "$gantry" store check --data "$words/store"
"$gantry" store dump --salvage --data "$words/store" --output "$words/saved.jsonl" 2>/dev/null
[ "$(wc -l <"$words/saved.jsonl")" -gt 2 ]
"$gantry" store restore "$words/whole.jsonl" --data "$words/again"
has "$("$gantry" store check --data "$words/again")" sound
"$gantry" store dump --data "$words/again" --output "$words/again.jsonl"
cmp "$words/whole.jsonl" "$words/again.jsonl"
told "already holds a store" "$gantry" store restore "$words/whole.jsonl" --data "$words/again"
# Help and completion.
has "$("$gantry" up --help)" 'gantry up --nodes 3 --apply app.yaml'
for shell in bash zsh fish; do has "$("$gantry" completion $shell)" pod-cidr; done
bash -n <("$gantry" completion bash)
has "$("$gantry" version)" 'Kubernetes 1.37'
