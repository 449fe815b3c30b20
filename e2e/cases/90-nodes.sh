# Nodes: cordon, drain with a budget that holds it back, taints, leases, capacity; priorities and preemption.
# runs: alone
same "$(columns "$(kubectl get nodes)")" 'NAME STATUS ROLES AGE VERSION'
same "$(columns "$(kubectl get nodes -o wide)")" 'NAME STATUS ROLES AGE VERSION INTERNAL-IP EXTERNAL-IP OS-IMAGE KERNEL-VERSION CONTAINER-RUNTIME'
same "$(kubectl get nodes --no-headers | awk '{print $2}' | sort -u)" Ready
has "$(kubectl describe node node-1)" 'Capacity:' 'Allocatable:' 'Non-terminated Pods:' 'Allocated resources:' 'KubeletReady'
has "$(kubectl -n kube-node-lease get lease)" node-1 node-2
kubectl cordon node-2
has "$(kubectl get node node-2)" 'Ready,SchedulingDisabled'
kubectl apply -f - <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: kept, namespace: $ns}
spec:
  replicas: 2
  selector: {matchLabels: {app: kept}}
  template:
    metadata: {labels: {app: kept}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: $image, command: [sleep, "1000"]}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: kept, namespace: $ns}
spec: {minAvailable: 2, selector: {matchLabels: {app: kept}}}
YAML
k rollout status deployment kept --timeout=60s
same "$(k get pods -l app=kept -o jsonpath='{.items[*].spec.nodeName}')" 'node-1 node-1'
kubectl uncordon node-2
same "$(columns "$(k get pdb)")" 'NAME MIN AVAILABLE MAX UNAVAILABLE ALLOWED DISRUPTIONS AGE'
becomes pdb kept .status.currentHealthy 2
has "$(refused kubectl drain node-1 --ignore-daemonsets --delete-emptydir-data --force --timeout=4s --pod-selector=app=kept)" 'disruption budget'
k scale deployment kept --replicas=3
k rollout status deployment kept --timeout=60s
becomes pdb kept .status.disruptionsAllowed 1
kubectl drain node-1 --ignore-daemonsets --delete-emptydir-data --force --timeout=60s --pod-selector=app=kept
same "$(k get pods -l app=kept --field-selector spec.nodeName=node-1 -o name)" ''
kubectl uncordon node-1
kubectl taint node node-1 test=yes:NoSchedule
has "$(kubectl describe node node-1)" 'test=yes:NoSchedule'
k run away --image=$image --overrides='{"spec":{"nodeSelector":{"kubernetes.io/hostname":"node-1"}}}' --command -- sleep 1000
becomes pod away '.status.conditions[0].reason' Unschedulable
has "$(k describe pod away)" 'FailedScheduling' "untolerated taint"
kubectl taint node node-1 test=yes:NoSchedule-
becomes pod away .status.phase Running
kubectl taint node node-1 out=now:NoExecute
eventually sh -c '! kubectl -n "$0" get pod away' "$ns"
kubectl taint node node-1 out-
kubectl label node node-1 disk=fast
k run near --image=$image --overrides='{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"disk","operator":"In","values":["fast"]}]}]}}}}}' --command -- sleep 1000
becomes pod near .spec.nodeName node-1
kubectl label node node-1 disk-
k run wide --image=$image --overrides='{"spec":{"schedulingGates":[{"name":"example.com/wait"}]}}' --command -- sleep 1000
eventually sh -c 'kubectl -n "$0" get pod wide | grep -q SchedulingGated' "$ns"
k patch pod wide --type=json -p '[{"op":"remove","path":"/spec/schedulingGates"}]'
becomes pod wide .status.phase Running

# A pod of a higher class pushes others out.
kubectl create priorityclass "$ns-high" --value=1000 --description=high
big() {
  kubectl apply -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: $ns}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: node-1}
  $2
  containers: [{name: c, image: $image, command: [sleep, "1000"], resources: {requests: {example.com/slot: "1"}, limits: {example.com/slot: "1"}}}]
YAML
}
kubectl patch node node-1 --subresource=status --type=merge -p '{"status":{"capacity":{"example.com/slot":"1"},"allocatable":{"example.com/slot":"1"}}}'
big low ''
becomes pod low .status.phase Running
big second ''
becomes pod second '.status.conditions[0].reason' Unschedulable
has "$(field pod second '.status.conditions[0].message')" 'Insufficient example.com/slot'
big high "priorityClassName: $ns-high"
becomes pod high .status.phase Running
has "$(refused k get pod low)" 'not found'
has "$(k get events)" Preempted
kubectl delete priorityclass "$ns-high"
k delete pod --all --wait --grace-period=0 --force --timeout=60s
k delete deployment kept --wait --timeout=60s

# A node that stands still is noticed long before its lease ends, and is well again when it goes on.
agent=$(pgrep -f " agent .*--data $data/nodes/node-2 ")
stood=$SECONDS
kill -STOP $agent
eventually sh -c 'kubectl get node node-2 | grep -qw NotReady'
[ $((SECONDS - stood)) -lt 30 ] || { echo "noticed after $((SECONDS - stood)) s"; kill -CONT $agent; return 1; }
eventually sh -c 'kubectl get node node-2 -o jsonpath="{.spec.taints}" | grep -q node.kubernetes.io/unreachable'
kill -CONT $agent
eventually sh -c 'kubectl get node node-2 | grep -qw Ready'
eventually sh -c '[ -z "$(kubectl get node node-2 -o jsonpath="{.spec.taints}")" ]'
