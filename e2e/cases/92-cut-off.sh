# A pod on a leash: its node ends it when it cannot renew its lease, though the agent stands still, and it starts elsewhere.
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
    metadata: {labels: {app: only}, annotations: {gantry.dev/stop-after-disconnect-seconds: "20"}}
    spec:
      terminationGracePeriodSeconds: 2
      # Where it may go is the second node first.
      affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 100, preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node-2]}]}}]}}
      containers: [{name: c, image: $image, command: [sh, -c, 'exec sleep 73537']}]
YAML
k rollout status statefulset only --timeout=60s
same "$(field pod only-0 .spec.nodeName)" node-2
has "$(refused k annotate pod only-0 --overwrite gantry.dev/stop-after-disconnect-seconds=30)" 'field is immutable'
has "$(refused k run wrong --image=$image --annotations=gantry.dev/stop-after-disconnect-seconds=3)" 'must be a whole number of seconds from 20 to 86400'
# The agent renews its lease, which holds the pod for longer each time.
sleep 25
uid=$(field pod only-0 .metadata.uid)
same "$(field pod only-0 '.status.containerStatuses[0].restartCount')" 0
processes() { pgrep -fx 'sleep 73537' | wc -l; }
same "$(processes)" 1
agent=$(pgrep -f " agent .*--data $data/nodes/node-2 ")
kill -STOP $agent
# Never two of them at a time, until the second one runs.
for _ in $(seq 600); do
  [ "$(processes)" -le 1 ] || { echo "two run"; kill -CONT $agent; return 1; }
  [ "$(field pod only-0 .spec.nodeName 2>/dev/null || true)" != node-1 ] || break
  sleep 0.1
done
kill -CONT $agent
becomes pod only-0 .spec.nodeName node-1
k wait pod only-0 --for=condition=Ready --timeout=60s
[ "$(field pod only-0 .metadata.uid)" != "$uid" ]
same "$(processes)" 1
eventually sh -c 'kubectl get node node-2 | grep -qw Ready'
eventually sh -c '[ -z "$(kubectl get node node-2 -o jsonpath="{.spec.taints}")" ]'
