# A second cluster beside the first; killed outright and started again; taken away without a trace.
# runs: once
two="$work/two"
mkdir -p "$two/images"
cp "$data/images/demo.tar" "$two/images/"
port=$((30000 + RANDOM % 2000))
second() { kubectl --kubeconfig "$two/kubeconfig" "$@"; }
start() {
  printf 'pod-cidr: 10.60.0.0/16\nnodes: 1\nlog: warn\n' >"$work/two.yaml"
  GANTRY_CONFIG="$work/two.yaml" GANTRY_SERVICE_CIDR=10.61.0.0/16 "$gantry" up --data "$two" --listen "127.0.0.1:$port" \
    --certificate-lifetime 40s >>"$work/two.log" 2>&1 &
  up=$!
  eventually sh -c "[ \"\$(kubectl --kubeconfig '$two/kubeconfig' get --raw /readyz 2>/dev/null)\" = ok ]"
  eventually sh -c "kubectl --kubeconfig '$two/kubeconfig' get node node-1 >/dev/null 2>&1"
  second wait node node-1 --for=condition=Ready --timeout=30s
}
trap '"$gantry" down --data "$two" || true; tail -n 5 "$work/two.log"' EXIT
start
name=$(cat "$two/name")
eventually sh -c "kubectl --kubeconfig '$two/kubeconfig' get serviceaccount default >/dev/null 2>&1"
second create configmap kept --from-literal=a=1
second create deployment stays --image=gantry.example/demo:1 -- sh -c 'while :; do sleep 1; done'
second rollout status deployment stays --timeout=40s
has "$(second get pods -o jsonpath='{.items[0].status.podIP}')" 10.60.
has "$(second get service kubernetes -o jsonpath='{.spec.clusterIP}')" 10.61.0.1
address=$(second get node node-1 -o jsonpath='{.status.addresses[0].address}')
# Both live, each with its own.
refused kubectl get configmap kept >/dev/null
same "$(kubectl get nodes --no-headers | wc -l)" 2
# The certificates of the server change while it runs.
serial() { openssl s_client -connect "127.0.0.1:$port" </dev/null 2>/dev/null | openssl x509 -noout -serial; }
first=$(serial)
renewed() { [ "$(serial)" != "$first" ]; }
eventually renewed
second get --raw /readyz
# A shim dies, then an agent: pods come back, or are taken over.
pod=$(second get pods -o jsonpath='{.items[0].metadata.name}')
kill -9 "$(pgrep -f "^gantry shim /run/gantry-$name/" | head -n 1)"
restarted() { [ "$(second get pod "$pod" -o jsonpath='{.status.containerStatuses[0].restartCount}')" -ge 1 ] || ! second get pod "$pod"; }
eventually restarted
second rollout status deployment stays --timeout=60s
id=$(second get pods -o jsonpath='{.items[0].status.containerStatuses[0].containerID}')
kill -9 "$(pgrep -f "gantry agent .*/run/gantry-$name/" | head -n 1)"
eventually sh -c "kubectl --kubeconfig '$two/kubeconfig' exec deployment/stays -- true 2>/dev/null"
same "$(second get pods -o jsonpath='{.items[0].status.containerStatuses[0].containerID}')" "$id"
# The whole of it is killed; a new start finds everything as it was.
kill -9 "$up"; wait "$up" || true
start
same "$(second get configmap kept -o jsonpath='{.data.a}')" 1
same "$(second get node node-1 -o jsonpath='{.status.addresses[0].address}')" "$address"
second rollout status deployment stays --timeout=60s
eventually sh -c "kubectl --kubeconfig '$two/kubeconfig' exec deployment/stays -- true 2>/dev/null"
# Ctrl-C leaves nothing on the machine; neither does down while it runs.
kill -INT "$up"; wait "$up"
"$here/leftovers.sh" "$name"
start
same "$(second get configmap kept -o jsonpath='{.data.a}')" 1
"$gantry" down --data "$two"
wait "$up"
"$here/leftovers.sh" "$name"
[ -f "$two/kubeconfig" ]
"$gantry" down --data "$two" --delete-data
[ ! -e "$two" ]
trap - EXIT
