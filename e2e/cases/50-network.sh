# Services by address, by node port and by name, from a pod and from the machine.
kubectl apply -f demo/app.yaml
kubectl rollout status deployment web --timeout=60s
node=$(kubectl get node node-1 -o jsonpath='{.status.addresses[0].address}')
eventually sh -c "curl -s -m 2 http://$node:30080/ | grep -q 'Hello from Gantry'"
kubectl run probe --image=gantry.example/demo:1 --command -- sh -c 'while :; do sleep 1; done'
kubectl wait pod probe --for=condition=Ready --timeout=30s
address=$(kubectl get service web -o jsonpath='{.spec.clusterIP}')
has "$(kubectl exec probe -- wget -q -O - -T 3 "http://$address/")" 'Hello from Gantry'
has "$(kubectl exec probe -- nslookup web.default.svc.cluster.local)" "$address"
kubectl delete pod probe --wait --timeout=40s
kubectl delete -f demo/app.yaml --wait --timeout=60s
