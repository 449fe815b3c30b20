# A pod runs as a real container, restarts, fails and ends as it should.
k run one --image=$image --restart=Never --command -- sh -c 'echo "hello $(hostname)"; exit 3'
becomes pod one .status.phase Failed
same "$(field pod one '.status.containerStatuses[0].state.terminated.exitCode')" 3
same "$(field pod one '.status.containerStatuses[0].state.terminated.reason')" Error
same "$(k logs one)" 'hello one'
sleeper two
has "$(field pod two .status.podIP)" 10.244.
same "$(columns "$(k get pod two)")" 'NAME READY STATUS RESTARTS AGE'
same "$(columns "$(k get pod two -o wide)")" 'NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES'
has "$(k get pod two)" '1/1' Running
has "$(k describe pod two)" 'Status:' Running 'Scheduled' 'Started' 'QoS Class:'
k run none --image=gantry.example/missing:1 --image-pull-policy=Never
becomes pod none '.status.containerStatuses[0].state.waiting.reason' ErrImageNeverPull
k run crash --image=$image --command -- sh -c 'echo once; exit 1'
becomes pod crash '.status.containerStatuses[0].state.waiting.reason' CrashLoopBackOff
same "$(k logs crash --previous)" once
has "$(k get pod crash)" CrashLoopBackOff
has "$(k run --rm -i quick --image=$image --restart=Never --command -- echo done-at-once)" done-at-once

# Updates in place: labels, image, and what may not change.
has "$(refused k patch pod two -p '{"spec":{"nodeName":"other"}}')" 'pod updates may not change fields'
k set image pod/two two=$image
kubectl apply -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {name: parts, namespace: $ns, labels: {app: parts}, annotations: {why: "for tests"}}
spec:
  restartPolicy: Always
  terminationGracePeriodSeconds: 3
  initContainers:
  - {name: first, image: $image, command: [sh, -c, 'echo first >>/shared/order'], volumeMounts: [{name: shared, mountPath: /shared}]}
  - {name: side, image: $image, restartPolicy: Always, command: [sh, -c, 'echo side >>/shared/order; trap "exit 0" TERM; while :; do sleep 0.2; done'],
     startupProbe: {exec: {command: [test, -f, /shared/order]}, periodSeconds: 1}, volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: main
    image: $image
    command: [sh, -c, 'echo main >>/shared/order; mkdir -p /shared/www; echo ok >/shared/www/index.html; busybox httpd -p 8080 -h /shared/www; trap "exit 0" TERM; while :; do sleep 0.2; done']
    env:
    - {name: PLAIN, value: "a \$(OTHER) \$\$(OTHER)"}
    - {name: OTHER, value: other}
    - {name: AFTER, value: "\$(OTHER)!"}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: WHY, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['why']"}}}
    - {name: NODE_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    resources: {limits: {memory: 64Mi, cpu: 500m}, requests: {memory: 32Mi, cpu: 10m}}
    readinessProbe: {httpGet: {path: /index.html, port: 8080}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
    lifecycle:
      postStart: {exec: {command: [sh, -c, 'echo post >/shared/post']}}
      preStop: {exec: {command: [sh, -c, 'echo stopping >/proc/1/fd/1']}}
    volumeMounts: [{name: shared, mountPath: /shared}]
    securityContext: {runAsNonRoot: false, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE, KILL]}}
  volumes: [{name: shared, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]
YAML
k wait pod parts --for=condition=Ready --timeout=60s || { k get pod parts -o yaml; false; }
same "$(k exec parts -c main -- cat /shared/order | tr '\n' ' ')" 'first side main '
same "$(k exec parts -c main -- cat /shared/post)" post
same "$(k exec parts -c main -- sh -c 'echo "$PLAIN|$AFTER|$POD|$WHY|$LIMIT"')" 'a $(OTHER) $(OTHER)|other!|parts|for tests|64'
same "$(k exec parts -c main -- sh -c 'echo $NODE_IP')" "$(field pod parts .status.hostIP)"
has "$(refused k exec parts -c main -- touch /file)" 'Read-only file system'
has "$(k exec parts -c main -- cat /proc/1/status)" 'Seccomp:	2' 'NoNewPrivs:	1' 'CapEff:	0000000000000420'
has "$(k exec parts -c main -- df /shared)" tmpfs
has "$(k get pod parts)" '2/2'
same "$(field pod parts .status.qosClass)" Burstable
k delete pod parts --wait --timeout=30s

# Out of memory is told as such; a failing liveness probe restarts; a readiness gate holds back.
kubectl apply -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {name: greedy, namespace: $ns}
spec:
  restartPolicy: Never
  containers: [{name: c, image: $image, command: [sh, -c, 'exec dd if=/dev/zero of=/dev/null bs=64M count=1'], resources: {limits: {memory: 16Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: sick, namespace: $ns}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: $image, command: [sh, -c, 'while :; do sleep 0.2; done'], livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1}}]
---
apiVersion: v1
kind: Pod
metadata: {name: gated, namespace: $ns}
spec:
  readinessGates: [{conditionType: example.com/ready}]
  containers: [{name: c, image: $image, command: [sleep, "1000"]}]
  terminationGracePeriodSeconds: 0
---
apiVersion: v1
kind: Pod
metadata: {name: user, namespace: $ns}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [4000], sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "0"}]}
  hostname: given
  subdomain: sub
  hostAliases: [{ip: 10.9.9.9, hostnames: [alias.example]}]
  dnsConfig: {options: [{name: timeout, value: "3"}]}
  containers:
  - name: c
    image: $image
    workingDir: /tmp
    terminationMessagePolicy: FallbackToLogsOnError
    command: [sh, -c, 'id -u; id -g; id -G; pwd; touch /v/f; stat -c %g /v/f; hostname -f; grep alias /etc/hosts; grep -c timeout:3 /etc/resolv.conf; echo said >/dev/termination-log; sysctl -n net.ipv4.ip_unprivileged_port_start']
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, emptyDir: {}}]
YAML
becomes pod greedy '.status.containerStatuses[0].state.terminated.reason' OOMKilled
eventually sh -c '[ "$(kubectl -n "$0" get pod sick -o jsonpath="{.status.containerStatuses[0].restartCount}")" -ge 1 ]' "$ns"
becomes pod gated '.status.containerStatuses[0].ready' true
same "$(k get pod gated -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" False
becomes pod user .status.phase Succeeded
same "$(k logs user | tr '\n' ' ')" "1000 3000 3000 2000 4000 /tmp 2000 given.sub.$ns.svc.cluster.local 10.9.9.9	alias.example 1 0 "
same "$(field pod user '.status.containerStatuses[0].state.terminated.message')" 'said'
k delete pod --all --wait --timeout=60s --grace-period=1

# A node refuses what it cannot have: pods that chose others, and kernel settings that are not a pod's own. A resize that
# there is no room for waits for it.
pinned() { # NAME SPEC
  kubectl apply -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: $ns}
spec: {nodeName: node-2, terminationGracePeriodSeconds: 0, containers: [{name: c, image: $image, command: [sleep, "1000"], resources: {requests: {cpu: 10m}}}], $2}
YAML
}
pinned elsewhere 'nodeSelector: {kubernetes.io/hostname: node-1}'
pinned settings 'securityContext: {sysctls: [{name: kernel.msgmax, value: "65536"}]}'
pinned grows 'restartPolicy: Always'
becomes pod elsewhere .status.reason NodeAffinity
becomes pod settings .status.reason SysctlForbidden
has "$(k get pod elsewhere)" NodeAffinity
k wait pod grows --for=condition=Ready --timeout=60s
ask() { k patch pod grows --subresource=resize -p "{\"spec\":{\"containers\":[{\"name\":\"c\",\"resources\":{\"requests\":{\"cpu\":\"$1\"}}}]}}"; }
ask 1000
becomes pod grows '.status.conditions[?(@.type=="PodResizePending")].reason' Infeasible
same "$(field pod grows '.status.containerStatuses[0].allocatedResources.cpu')" 10m
ask 20m
becomes pod grows '.status.containerStatuses[0].allocatedResources.cpu' 20m
same "$(field pod grows '.status.conditions[?(@.type=="PodResizePending")].reason')" ''
has "$(kubectl get --raw /api/v1/nodes/node-2/proxy/logs/)" '<pre>'
k delete pod elsewhere settings grows --wait --grace-period=0 --force --timeout=60s
