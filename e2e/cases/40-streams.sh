# Logs, exec with exit codes, attach-free copies, port-forward, through the API server to the node.
image=gantry.example/demo:1
kubectl run talk --image=$image --command -- sh -c 'echo first; echo second >&2; mkdir -p /www; echo served >/www/index.html; exec busybox httpd -f -p 8080 -h /www'
kubectl wait pod talk --for=condition=Ready --timeout=30s
has "$(kubectl logs talk)" first
same "$(kubectl logs talk --tail=1)" second
same "$(kubectl exec talk -- cat /www/index.html)" served
code=0; kubectl exec talk -- sh -c 'exit 7' || code=$?
same "$code" 7
same "$(echo in | kubectl exec -i talk -- cat)" in
has "$(kubectl exec talk -- cat /proc/1/status)" 'Seccomp:	2'
kubectl cp talk:/www/index.html "$work/copied"
same "$(cat "$work/copied")" served
kubectl port-forward talk 18080:8080 >"$work/forward.log" 2>&1 &
forward=$!
eventually curl -s -m 2 -o "$work/page" http://127.0.0.1:18080/
kill $forward; wait $forward || true
same "$(cat "$work/page")" served
kubectl delete pod talk --wait --timeout=40s
