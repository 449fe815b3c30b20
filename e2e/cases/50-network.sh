# Services by address, node port and name, from pods, the nodes and the machine; only ready pods get traffic.
sed "s/30080/$((30083 + lane))/" demo/app.yaml | k apply -f -
k rollout status deployment web --timeout=60s
node=$(kubectl get node node-1 -o jsonpath='{.status.addresses[0].address}')
eventually sh -c "curl -s -m 2 http://$node:$((30083 + lane))/ | grep -q 'Hello from Gantry'"
sleeper probe
address=$(field service web .spec.clusterIP)
has "$(k exec probe -- timeout 5 wget -q -O - "http://$address/")" 'Hello from Gantry'
has "$(k exec probe -- nslookup web.$ns.svc.cluster.local)" "$address"
has "$(k exec probe -- timeout 5 wget -q -O - "http://web/")" 'Hello from Gantry'
seen=$(for _ in $(seq 40); do k exec probe -- timeout 5 wget -q -O - "http://$address/" | grep -o 'pod [^ ]*'; done | sort -u | wc -l)
same "$seen" 3

# Headless, ExternalName, reverse names, hostPort, hostNetwork, session affinity.
kubectl apply -f - <<YAML
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: $ns}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: $ns}
spec: {type: ExternalName, externalName: example.org}
---
apiVersion: v1
kind: Service
metadata: {name: sticky, namespace: $ns}
spec: {sessionAffinity: ClientIP, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: ported, namespace: $ns, labels: {app: ported}}
spec:
  terminationGracePeriodSeconds: 0
  nodeName: node-1
  containers: [{name: c, image: $image, command: [sh, -c, 'echo by port >/tmp/index.html; exec busybox httpd -f -p 80 -h /tmp'], ports: [{containerPort: 80, hostPort: $((18181 + lane))}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: hosted, namespace: $ns}
spec:
  terminationGracePeriodSeconds: 0
  hostNetwork: true
  nodeName: node-2
  containers: [{name: c, image: $image, command: [sh, -c, 'echo by host >/tmp/index.html; exec busybox httpd -f -p $((18183 + lane)) -h /tmp']}]
YAML
same "$(k exec probe -- nslookup headless.$ns.svc.cluster.local | grep -c 'Address: 10.244')" 3
eventually sh -c 'kubectl -n "$0" exec probe -- nslookup -type=cname outside."$0".svc.cluster.local | grep -q example.org' "$ns"
eventually sh -c 'kubectl -n "$0" exec probe -- nslookup -type=srv _http._tcp.headless."$0".svc.cluster.local | grep -q "80 "' "$ns"
has "$(k exec probe -- nslookup "$address")" "web.$ns.svc.cluster.local"
sticky=$(field service sticky .spec.clusterIP)
eventually k exec probe -- timeout 5 wget -q -O - "http://$sticky/"
same "$(for _ in $(seq 10); do k exec probe -- timeout 5 wget -q -O - "http://$sticky/" | grep -o 'pod [^ ]*'; done | sort -u | wc -l)" 1
eventually sh -c "[ \"\$(curl -s -m 2 http://$node:$((18181 + lane))/)\" = 'by port' ]"
becomes pod hosted .status.phase Running
other=$(kubectl get node node-2 -o jsonpath='{.status.addresses[0].address}')
same "$(field pod hosted .status.podIP)" "$other"
eventually sh -c "[ \"\$(curl -s -m 2 http://$other:$((18183 + lane))/)\" = 'by host' ]"

has "$(kubectl get --raw "/api/v1/namespaces/$ns/services/web:80/proxy/")" "Hello from Gantry"

# A pod that is not ready gets nothing; a service without endpoints refuses at once.
pod=$(k get pods -l app=web -o jsonpath='{.items[0].metadata.name}')
k exec "$pod" -c httpd -- sh -c 'echo' >/dev/null
k label pod "$pod" app=taken --overwrite
eventually sh -c '! kubectl -n "$0" get endpointslice -l kubernetes.io/service-name=web -o yaml | grep -q "name: $1\$"' "$ns" "$pod"
k delete deployment web --wait --timeout=60s
eventually sh -c '[ -z "$(kubectl -n "$0" get pods -l app=web -o name)" ]' "$ns"
eventually sh -c 'kubectl -n "$0" exec probe -- timeout 5 wget -q -O - "http://$1/" 2>&1 | grep -q refused' "$ns" "$address"
k delete service web headless
eventually sh -c 'kubectl -n "$0" exec probe -- nslookup web."$0".svc.cluster.local 2>&1 | grep -q NXDOMAIN' "$ns"
k delete pod --all --wait --grace-period=1 --timeout=60s
