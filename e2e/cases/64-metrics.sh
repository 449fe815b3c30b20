# What nodes and pods use: kubectl top, the API behind it, and the kubelet's own endpoints.
# runs: once
kubectl run busy --image=gantry.example/demo:1 --labels=use=much --command -- sh -c 'while :; do :; done'
kubectl wait pod busy --for=condition=Ready --timeout=30s
uses() { [ "$(kubectl top pod busy --no-headers | awk '{sub("m","",$2); print $2}')" -ge 3 ]; }
eventually uses
has "$(kubectl top pods --containers -l use=much)" busy
has "$(kubectl top nodes)" node-2
metrics=/apis/metrics.k8s.io/v1beta1
same "$(kubectl get --raw "$metrics/namespaces/default/pods?labelSelector=use%3Dmuch" | grep -o '"kind":"PodMetrics"' | wc -l)" 1
same "$(kubectl get --raw "$metrics/namespaces/default/pods?labelSelector=use%3Dnone" | grep -o '"kind":"PodMetrics"' | wc -l)" 0
same "$(kubectl get --raw "$metrics/nodes?fieldSelector=metadata.name%3Dnode-1" | grep -o '"kind":"NodeMetrics"' | wc -l)" 1
has "$(kubectl get --raw "$metrics/nodes/node-1")" '"window":"'
has "$(refused kubectl get --raw "$metrics/namespaces/default/pods/none")" 'not found'
has "$(kubectl get podmetrics)" MEMORY
has "$(refused kubectl get podmetrics --as bob)" 'cannot list resource "pods" in API group "metrics.k8s.io"'
kubectl create rolebinding metrics-view --clusterrole=view --user=bob
kubectl get podmetrics --as bob
kubectl delete rolebinding metrics-view
node=$(kubectl get pod busy -o jsonpath='{.spec.nodeName}')
raw() { kubectl get --raw "/api/v1/nodes/$node/proxy/$1"; }
has "$(raw stats/summary)" '"imageFs"'
has "$(raw metrics/resource)" 'container_cpu_usage_seconds_total{container="busy",namespace="default",pod="busy"}'
has "$(raw metrics/cadvisor)" 'container_network_receive_bytes_total{interface="eth0",namespace="default",pod="busy"}'
has "$(raw metrics)" "kubelet_node_name{node=\"$node\"} 1"
has "$(raw pods)" '"name":"busy"'
same "$(kubectl create --raw "/api/v1/nodes/$node/proxy/run/default/busy/busy?cmd=echo%20hello" -f /dev/null)" hello
# A scraper comes to the node itself, with the token of an account that may.
address=$(kubectl get node "$node" -o jsonpath='{.status.addresses[0].address}')
scrape() { curl -s -o "$work/scraped" -w '%{http_code}' --cacert "$data/keys/ca.crt" -H "Authorization: Bearer $1" "https://$address:10250/$2"; }
data=$(dirname "$KUBECONFIG")
kubectl create serviceaccount scraper
kubectl create clusterrole scraper --verb=get --resource=nodes/metrics
kubectl create clusterrolebinding scraper --clusterrole=scraper --serviceaccount=default:scraper
token=$(kubectl create token scraper)
same "$(scrape "$token" metrics/cadvisor)" 200
grep -q 'container_cpu_usage_seconds_total' "$work/scraped"
same "$(scrape "$token" pods)" 403
same "$(scrape "$(kubectl create token default)" metrics)" 403
same "$(scrape nonsense metrics)" 401
kubectl delete clusterrolebinding,clusterrole scraper
kubectl delete serviceaccount scraper
kubectl delete pod busy --grace-period=1 --wait --timeout=40s
# A server without the part does not know the group.
"$gantry" server --parts api --data "$work/plain" --listen 127.0.0.1:0 >"$work/plain.log" 2>&1 &
plain=$!
eventually grep -q 'the API answers' "$work/plain.log"
groups=$(kubectl --kubeconfig "$work/plain/kubeconfig" get --raw /apis)
kill $plain; wait $plain
case "$groups" in *metrics.k8s.io*) echo "the group is there: $groups"; exit 1 ;; esac
