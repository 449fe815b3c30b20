# Logs, exec with terminals and exit codes, attach, copies, port-forward, through the API server to the node.
k run talk --image=$image --command -- sh -c 'echo first; echo second >&2; mkdir -p /www; echo served >/www/index.html; exec busybox httpd -f -p 8080 -h /www'
k wait pod talk --for=condition=Ready --timeout=60s
eventually sh -c 'kubectl -n "$0" logs talk | grep -q second' "$ns"
has "$(k logs talk)" first
same "$(k logs talk --tail=1)" second
has "$(k logs talk --timestamps --since=1h)" 'Z first'
same "$(k exec talk -- cat /www/index.html)" served
same "$(code k exec talk -- sh -c 'exit 7')" 7
same "$(echo in | k exec -i talk -- cat)" in
has "$(refused k exec talk -- /no/such/program)" 'o such file'
head -c 3000000 /dev/urandom >"$work/big"
same "$(k exec -i talk -- sha256sum <"$work/big" | cut -c1-64)" "$(sha256sum <"$work/big" | cut -c1-64)"
same "$(script -qec "stty rows 33 cols 77; kubectl -n $ns exec -it talk -- sh -c 'sleep 0.5; stty size'" /dev/null </dev/null | tr -dc '0-9 ')" '33 77'
code=0; script -qec "kubectl -n $ns exec -it talk -- sh -c 'exit 9'" /dev/null </dev/null || code=$?
same "$code" 9
k cp "$ns/talk:/www/index.html" "$work/copied"
same "$(cat "$work/copied")" served
mkdir -p "$work/tree/sub"; cp "$work/big" "$work/tree/sub/"
k cp "$work/tree" "$ns/talk:/tmp/tree"
same "$(k exec talk -- sha256sum /tmp/tree/sub/big | cut -c1-64)" "$(sha256sum <"$work/big" | cut -c1-64)"
port=$((20000 + RANDOM % 10000))
kubectl -n "$ns" port-forward talk $port:8080 >"$work/forward.log" 2>&1 &
forward=$!
eventually curl -s -m 2 -o "$work/page" http://127.0.0.1:$port/
for _ in 1 2 3; do same "$(curl -s -m 5 http://127.0.0.1:$port/)" served; done
kill $forward; wait $forward || true

same "$(kubectl get --raw "/api/v1/namespaces/$ns/pods/talk:8080/proxy/index.html")" served

# Following, all containers, attach to a container that reads.
kubectl apply -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {name: pair, namespace: $ns}
spec:
  restartPolicy: Never
  containers:
  - {name: one, image: $image, command: [sh, -c, 'for i in 1 2 3; do echo one \$i; sleep 0.3; done']}
  - {name: two, image: $image, stdin: true, stdinOnce: true, command: [sh, -c, 'while read line; do echo "got \$line"; done']}
YAML
eventually k logs pair -c one
same "$(timeout 20 kubectl -n "$ns" logs -f pair -c one | tr '\n' ' ')" 'one 1 one 2 one 3 '
has "$(refused k logs pair -c none)" 'not valid for pod'
becomes pod pair '.status.containerStatuses[1].started' true
has "$( (sleep 1; echo hello; sleep 1) | timeout 20 kubectl -n "$ns" attach -i pair -c two 2>&1 || true)" 'got hello'
becomes pod pair .status.phase Succeeded
has "$(k logs pair --all-containers --prefix)" 'one 3' 'got hello' '[pod/pair/two]'
has "$(k get events --field-selector involvedObject.name=pair)" Started

# A shell put beside a running container.
same "$(k run tail --image=$image --restart=Never --command -- sh -c 'for i in $(seq 2000); do echo line $i; done' >/dev/null; becomes pod tail .status.phase Succeeded; k logs tail | wc -l)" 2000
same "$(k logs tail --limit-bytes=6)" 'line 1'
k debug talk --image=$image --target=talk -c dbg -- sh -c 'echo debugging; sleep 100' >/dev/null 2>&1 || true
eventually sh -c '[ "$(kubectl -n "$0" logs talk -c dbg)" = debugging ]' "$ns"
k delete pod --all --wait --grace-period=1 --timeout=60s
