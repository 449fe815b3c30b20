# A machine of its own (a network namespace with a link) joins a server by token, and runs a pod; its certificates are
# renewed while it runs; a wrong token and a missing one are told in one sentence.
# runs: once
join="$work/join"
mkdir -p "$join"
n=$$
netns="gantry-e2e-$n"
ip netns add "$netns"
ip link add "ge$n" type veth peer name eth0 netns "$netns"
ip addr add 10.77.77.1/24 dev "ge$n"
ip link set "ge$n" up
ip -n "$netns" addr add 10.77.77.2/24 dev eth0
ip -n "$netns" link set eth0 up
ip -n "$netns" link set lo up
ip -n "$netns" route add default via 10.77.77.1
server= agent=
cleanup() {
  [ -z "$agent" ] || { kill "$agent" 2>/dev/null || true; wait "$agent" 2>/dev/null || true; }
  [ -z "$server" ] || { kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; }
  # Containers outlive their agent; down takes them away.
  nsenter --net="/run/netns/$netns" "$gantry" down --data "$join/agent" || true
  ip netns del "$netns"
  ip link del "ge$n" 2>/dev/null || true
}
trap cleanup EXIT
"$gantry" server --data "$join/server" --listen 10.77.77.1:16443 --certificate-lifetime 30s >"$join/server.log" 2>&1 &
server=$!
own() { kubectl --kubeconfig "$join/server/kubeconfig" "$@"; }
eventually sh -c "[ \"\$(kubectl --kubeconfig '$join/server/kubeconfig' get --raw /readyz 2>/dev/null)\" = ok ]"
same "$(stat -c %a "$join/server/join-token")" 600
inside() { nsenter --net="/run/netns/$netns" "$gantry" agent --server https://10.77.77.1:16443 --node machine --data "$join/agent" \
  --state "$join/state" --cgroup "/gantry-join-$n" "$@"; }
has "$(refused inside)" 'has not joined yet; give the server'
sed "s/^gantry1\.[0-9a-f]*/gantry1.$(printf '%064d' 0)/" "$join/server/join-token" >"$join/wrong"
has "$(refused inside --token-file "$join/wrong")" 'is not the server that the token is of'
echo nonsense >"$join/wrong"
has "$(refused inside --token-file "$join/wrong")" 'is no token to join with'
nsenter --net="/run/netns/$netns" "$gantry" agent --server https://10.77.77.1:16443 --node machine --data "$join/agent" \
  --state "$join/state" --cgroup "/gantry-join-$n" --token-file "$join/server/join-token" --label role=joined \
  >"$join/agent.log" 2>&1 &
agent=$!
trap 'code=$?; [ $code = 0 ] || tail -n 15 "$join/server.log" "$join/agent.log"; cleanup; exit $code' EXIT
eventually sh -c "kubectl --kubeconfig '$join/server/kubeconfig' get node machine"
own wait node machine --for=condition=Ready --timeout=30s
same "$(own get node -l role=joined -o name)" node/machine
"$gantry" image load "$data/images/demo.tar" --data "$join/agent"
eventually sh -c "kubectl --kubeconfig '$join/server/kubeconfig' get serviceaccount default"
own run joined --image=gantry.example/demo:1 --restart=Never --command -- sh -c 'echo from the pod; sleep 1000'
own wait pod joined --for=condition=Ready --timeout=30s
# Logs come from the node's endpoints, whose certificate the server signed.
eventually sh -c "[ \"\$(kubectl --kubeconfig '$join/server/kubeconfig' logs joined)\" = 'from the pod' ]"
own get csr -o wide
# Certificates hold 30 s here: after twice that, everything still works, with new ones.
serial() { openssl s_client -connect "$1" </dev/null 2>/dev/null | openssl x509 -noout -serial; }
first=$(serial 10.77.77.1:16443) node_first=$(serial 10.77.77.2:10250)
renewed() { [ "$(serial "$1")" != "$2" ]; }
eventually renewed 10.77.77.1:16443 "$first"
eventually renewed 10.77.77.2:10250 "$node_first"
has "$(cat "$join/agent.log")" "the node's client certificate is renewed"
twice() { [ "$(grep -c "client certificate is renewed" "$join/agent.log")" -ge 2 ]; }
eventually twice
same "$(own logs joined)" 'from the pod'
same "$(own get node machine -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" True
# The agent dies, and the server ends; another agent waits for the server, and takes over what runs, without a token.
id=$(own get pod joined -o jsonpath='{.status.containerStatuses[0].containerID}')
kill -9 "$agent"; wait "$agent" || true
kill "$server"; wait "$server"
nsenter --net="/run/netns/$netns" "$gantry" agent --server https://10.77.77.1:16443 --node machine --data "$join/agent" \
  --state "$join/state" --cgroup "/gantry-join-$n" --label role=joined >>"$join/agent.log" 2>&1 &
agent=$!
eventually grep -q 'waiting for the server' "$join/agent.log"
"$gantry" server --data "$join/server" --listen 10.77.77.1:16443 --certificate-lifetime 30s >>"$join/server.log" 2>&1 &
server=$!
eventually sh -c "[ \"\$(kubectl --kubeconfig '$join/server/kubeconfig' logs joined)\" = 'from the pod' ]"
same "$(own get pod joined -o jsonpath='{.status.containerStatuses[0].containerID}')" "$id"
own delete pod joined --grace-period=1 --wait --timeout=40s
own run left --image=gantry.example/demo:1 --restart=Never --command -- sleep 1000
own wait pod left --for=condition=Ready --timeout=30s
# What is left of a node goes, also while its agent runs.
nsenter --net="/run/netns/$netns" "$gantry" down --data "$join/agent"
wait "$agent"
agent=
[ ! -e "$join/state" ]
same "$(nsenter --net="/run/netns/$netns" nft list tables)" ''
same "$(nsenter --net="/run/netns/$netns" ip -o link | grep -c ': gp' || true)" 0
same "$(find /sys/fs/cgroup -type d -name "gantry-join-$n" | wc -l)" 0
same "$(grep -c "$join/state" /proc/self/mounts || true)" 0
