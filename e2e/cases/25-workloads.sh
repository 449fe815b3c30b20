# Controllers of pods: ReplicaSet, DaemonSet, StatefulSet, Job, CronJob.
template="{metadata: {labels: {app: APP}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: $image, command: [sh, -c, 'while :; do sleep 0.2; done']}]}}"
kubectl apply -f - <<YAML
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: rs, namespace: $ns}
spec: {replicas: 2, selector: {matchLabels: {app: rs}}, template: ${template/APP/rs}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: ds, namespace: $ns}
spec: {selector: {matchLabels: {app: ds}}, template: ${template/APP/ds}}
---
apiVersion: v1
kind: Service
metadata: {name: sts, namespace: $ns}
spec: {clusterIP: None, selector: {app: sts}, ports: [{port: 80, name: http}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: sts, namespace: $ns}
spec: {serviceName: sts, replicas: 2, selector: {matchLabels: {app: sts}}, template: ${template/APP/sts}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: job, namespace: $ns}
spec: {completions: 3, parallelism: 2, template: {spec: {restartPolicy: Never, containers: [{name: c, image: $image, command: [sh, -c, 'echo worked']}]}}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: bad, namespace: $ns}
spec: {backoffLimit: 0, ttlSecondsAfterFinished: 5, template: {spec: {restartPolicy: Never, containers: [{name: c, image: $image, command: ["false"]}]}}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: indexed, namespace: $ns}
spec: {completionMode: Indexed, completions: 2, parallelism: 2, template: {spec: {restartPolicy: Never, containers: [{name: c, image: $image, command: [sh, -c, 'echo index \$JOB_COMPLETION_INDEX']}]}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: cron, namespace: $ns}
spec: {schedule: "*/1 * * * *", suspend: true, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: $image, command: ["true"]}]}}}}}
YAML
k wait job bad --for=condition=Failed --timeout=60s
becomes replicaset rs .status.readyReplicas 2
same "$(columns "$(k get rs -o wide)")" 'NAME DESIRED CURRENT READY AGE CONTAINERS IMAGES SELECTOR'
victim=$(k get pod -l app=rs -o jsonpath='{.items[0].metadata.name}')
k delete pod "$victim" --wait --timeout=30s
becomes replicaset rs .status.readyReplicas 2
k scale replicaset rs --replicas=1
becomes replicaset rs .status.replicas 1
becomes daemonset ds .status.numberReady 2
same "$(columns "$(k get ds)")" 'NAME DESIRED CURRENT READY UP-TO-DATE AVAILABLE NODE SELECTOR AGE'
k rollout status daemonset ds --timeout=30s
k set env daemonset ds A=1
k rollout status daemonset ds --timeout=60s
has "$(k rollout history daemonset ds)" 'REVISION' 2
k rollout undo daemonset ds
k rollout status daemonset ds --timeout=60s
k rollout status statefulset sts --timeout=60s
same "$(k get pod -l app=sts -o jsonpath='{.items[*].metadata.name}')" 'sts-0 sts-1'
same "$(columns "$(k get sts -o wide)")" 'NAME READY AGE CONTAINERS IMAGES'
has "$(k exec sts-0 -- nslookup sts-1.sts.$ns.svc.cluster.local)" "$(field pod sts-1 .status.podIP)"
k set resources statefulset sts --limits=memory=64Mi
k rollout status statefulset sts --timeout=60s
same "$(field pod sts-1 '.spec.containers[0].resources.limits.memory')" 64Mi
k scale statefulset sts --replicas=1
eventually sh -c '! kubectl -n "$0" get pod sts-1' "$ns"
k wait job job --for=condition=Complete --timeout=60s
same "$(field job job .status.succeeded)" 3
same "$(columns "$(k get job job)")" 'NAME STATUS COMPLETIONS DURATION AGE'
has "$(k get job job)" Complete 3/3
has "$(k logs job/job)" worked
k wait job indexed --for=condition=Complete --timeout=60s
same "$(field job indexed .status.completedIndexes)" 0,1
same "$(k logs -l batch.kubernetes.io/job-completion-index=1 --tail=-1)" 'index 1'
eventually sh -c '! kubectl -n "$0" get job bad' "$ns"
has "$(k describe cronjob cron)" 'Schedule:' '*/1 * * * *'
k create job byhand --from=cronjob/cron
k wait job byhand --for=condition=Complete --timeout=60s
same "$(columns "$(k get cronjob)")" 'NAME SCHEDULE TIMEZONE SUSPEND ACTIVE LAST SCHEDULE AGE'
k patch cronjob cron -p '{"spec":{"suspend":false}}'
k get controllerrevision | shows ds-
k delete rs,ds,sts,job,cronjob --all --wait --timeout=60s
eventually sh -c '[ -z "$(kubectl -n "$0" get pods -o name)" ]' "$ns"
