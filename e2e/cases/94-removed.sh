# A node that runs is deleted: its pods end, it comes anew with the network that it had, and pods run there again.
# runs: alone
# runs: once
k apply -f - <<YAML
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: only, namespace: $ns}
spec:
  serviceName: none
  selector: {matchLabels: {app: only}}
  template:
    metadata: {labels: {app: only}}
    spec:
      terminationGracePeriodSeconds: 3
      nodeSelector: {kubernetes.io/hostname: node-2}
      # Deaf to what asks it to end, it takes all of its grace.
      containers: [{name: c, image: $image, command: [sh, -c, 'trap "" TERM; while :; do sleep 73.739; done']}]
YAML
k rollout status statefulset only --timeout=60s
processes() { pgrep -fx 'sleep 73.739' | wc -l; }
same "$(processes)" 1
uid=$(field pod only-0 .metadata.uid)
of() { kubectl get node node-2 -o jsonpath="{$1}" --ignore-not-found; }
node=$(of .metadata.uid) network=$(of .spec.podCIDR)
kubectl delete node node-2 --wait=false
eventually sh -c '[ -n "$(kubectl -n "$0" get pod only-0 -o jsonpath="{.metadata.deletionTimestamp}")" ]' "$ns"
has "$(field pod only-0 '.status.conditions[?(@.type=="DisruptionTarget")].reason')" DeletionByPodGC
# While anything runs there it is no node, and nobody takes the pod's name.
while [ "$(field pod only-0 .metadata.uid 2>/dev/null)" = "$uid" ]; do
  [ "$(processes)" -le 1 ]
  [ "$(processes)" = 0 ] || same "$(of .metadata.uid)" ''
  sleep 0.1
done
eventually sh -c 'kubectl get node node-2 | grep -qw Ready'
[ "$(of .metadata.uid)" != "$node" ]
eventually sh -c '[ "$(kubectl get node node-2 -o jsonpath="{.spec.podCIDR}")" = "$0" ]' "$network"
k rollout status statefulset only --timeout=60s
same "$(field pod only-0 .spec.nodeName)" node-2
same "$(processes)" 1
# Its lease goes with the new object, and what it serves is reached.
same "$(kubectl -n kube-node-lease get lease node-2 -o jsonpath='{.metadata.ownerReferences[0].uid}')" "$(of .metadata.uid)"
same "$(k exec only-0 -- echo reached)" reached
