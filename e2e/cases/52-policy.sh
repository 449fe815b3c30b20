# Limits, quotas, classes, pod security: what a namespace's keeper sets holds for its users.
kubectl apply -f - <<YAML
apiVersion: v1
kind: LimitRange
metadata: {name: limits, namespace: $ns}
spec: {limits: [{type: Container, default: {memory: 64Mi}, defaultRequest: {cpu: 20m}, max: {memory: 128Mi}}]}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: quota, namespace: $ns}
spec: {hard: {pods: "2", requests.cpu: 100m, count/configmaps: "4", services.nodeports: "0"}}
YAML
becomes resourcequota quota '.status.hard.pods' 2
k run one --image=$image --command -- sleep 1000
same "$(field pod one '.spec.containers[0].resources.limits.memory') $(field pod one '.spec.containers[0].resources.requests.cpu')" '64Mi 20m'
has "$(refused k run two --image=$image --overrides='{"spec":{"containers":[{"name":"two","image":"i","resources":{"limits":{"memory":"1Gi"}}}]}}')" 'maximum memory usage per Container is 128Mi'
has "$(refused k run two --image=$image --overrides='{"spec":{"containers":[{"name":"two","image":"i","resources":{"requests":{"cpu":"90m"}}}]}}')" 'exceeded quota: quota' 'requests.cpu'
k run two --image=$image --command -- sleep 1000
has "$(refused k run three --image=$image)" 'exceeded quota: quota' 'pods=1' 'limited: pods=2'
becomes resourcequota quota '.status.used.pods' 2
k create configmap x; k create configmap y
has "$(refused k create configmap z)" 'exceeded quota'
k delete configmap x
eventually k create configmap z
has "$(refused k create service nodeport n --tcp=80)" 'exceeded quota'
same "$(columns "$(k get resourcequota)")" 'NAME AGE REQUEST LIMIT' || same "$(columns "$(k get resourcequota)")" 'NAME REQUEST LIMIT AGE'
has "$(k describe quota quota)" 'Used' 'Hard'
has "$(k describe limitrange limits)" 'Container'
k delete pod --all --wait --grace-period=0 --force --timeout=60s

# Pod security by the namespace's labels; classes of priority and of runtime.
kubectl create namespace "$ns-strict"
kubectl label namespace "$ns-strict" pod-security.kubernetes.io/enforce=restricted pod-security.kubernetes.io/warn=restricted
has "$(refused kubectl -n "$ns-strict" run bad --image=$image)" 'violates PodSecurity "restricted:latest"' allowPrivilegeEscalation runAsNonRoot
has "$(kubectl -n "$ns-strict" create deployment bad --image=$image 2>&1)" 'Warning: would violate PodSecurity'
kubectl delete namespace "$ns-strict" --wait --timeout=60s
k delete resourcequota quota
kubectl create priorityclass "$ns-mid" --value=500 --description=middle
has "$(kubectl get priorityclass)" system-cluster-critical "$ns-mid"
kubectl apply -f - <<YAML
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: $ns-runtime}
handler: gantry
overhead: {podFixed: {cpu: 5m}}
scheduling: {nodeSelector: {kubernetes.io/hostname: node-2}}
---
apiVersion: v1
kind: Pod
metadata: {name: classy, namespace: $ns}
spec:
  priorityClassName: $ns-mid
  runtimeClassName: $ns-runtime
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: $image, command: [sleep, "1000"]}]
YAML
same "$(field pod classy .spec.priority) $(field pod classy .spec.overhead.cpu)" '500 5m'
becomes pod classy .spec.nodeName node-2
has "$(refused k run none --image=$image --overrides='{"spec":{"priorityClassName":"none"}}')" 'no PriorityClass with name none was found'
has "$(refused k run none --image=$image --overrides='{"spec":{"runtimeClassName":"none"}}')" 'RuntimeClass'
k delete pod classy --wait --timeout=30s
kubectl delete runtimeclass "$ns-runtime"; kubectl delete priorityclass "$ns-mid"
