# What pods mount: configuration that changes under them, secrets, tokens, host folders, memory, projections.
k create configmap conf --from-literal=a=1 --from-literal=b=2
k create secret generic sec --from-literal=key=hidden
kubectl apply -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {name: mounts, namespace: $ns, labels: {app: mounts}, annotations: {note: first}}
spec:
  terminationGracePeriodSeconds: 1
  nodeName: node-1
  securityContext: {fsGroup: 777}
  containers:
  - name: c
    image: $image
    command: [sh, -c, 'trap "exit 0" TERM; while :; do sleep 0.2; done']
    envFrom: [{configMapRef: {name: conf}, prefix: C_}, {secretRef: {name: sec}}]
    volumeMounts:
    - {name: conf, mountPath: /conf}
    - {name: conf, mountPath: /one, subPath: a}
    - {name: sec, mountPath: /sec, readOnly: true}
    - {name: all, mountPath: /all}
    - {name: host, mountPath: /host}
    - {name: scratch, mountPath: /scratch}
  - {name: other, image: $image, command: [sleep, "1000"], volumeMounts: [{name: scratch, mountPath: /there}]}
  volumes:
  - {name: conf, configMap: {name: conf}}
  - {name: sec, secret: {secretName: sec, defaultMode: 0400, items: [{key: key, path: deep/file}]}}
  - {name: host, hostPath: {path: $work/host, type: DirectoryOrCreate}}
  - {name: scratch, emptyDir: {}}
  - name: all
    projected:
      sources:
      - configMap: {name: conf, items: [{key: b, path: from-conf}]}
      - secret: {name: sec}
      - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}]}
      - serviceAccountToken: {path: token, audience: someone, expirationSeconds: 600}
YAML
k wait pod mounts --for=condition=Ready --timeout=60s
inside() { k exec mounts -c c -- "$@"; }
same "$(inside cat /conf/a /one /all/from-conf)" "$(printf '1\n1\n2' | tr -d '\n')"
same "$(inside sh -c 'echo $C_a $key')" '1 hidden'
same "$(inside cat /sec/deep/file)" hidden
same "$(inside stat -L -c %a:%g /sec/deep/file)" 440:777
has "$(refused inside touch /sec/x)" 'Read-only'
same "$(inside cat /all/labels)" 'app="mounts"'
same "$(inside cut -d. -f2 /all/token | tr '_-' '/+' | base64 -d 2>/dev/null | grep -o '"aud":\["someone"\]')" '"aud":["someone"]'
inside sh -c 'echo shared >/scratch/f; echo kept >/host/f'
same "$(k exec mounts -c other -- cat /there/f)" shared
same "$(cat "$work/host/f")" kept
k patch configmap conf -p '{"data":{"a":"new"}}'
k annotate pod mounts note=second --overwrite
eventually sh -c '[ "$(kubectl -n "$0" exec mounts -c c -- cat /conf/a)" = new ]' "$ns"
eventually sh -c '[ "$(kubectl -n "$0" exec mounts -c c -- cat /all/note)" = second ]' "$ns"
same "$(inside cat /one)" 1
same "$(field pod mounts '.status.containerStatuses[0].restartCount')" 0
k run missing --image=$image --overrides='{"spec":{"volumes":[{"name":"v","configMap":{"name":"later"}}],"containers":[{"name":"missing","image":"'$image'","command":["sleep","1000"],"volumeMounts":[{"name":"v","mountPath":"/v"}]}]}}'
eventually sh -c 'kubectl -n "$0" get events --field-selector involvedObject.name=missing | grep -q FailedMount' "$ns"
k create configmap later --from-literal=x=y
k wait pod missing --for=condition=Ready --timeout=90s
k run noconfig --image=$image --overrides='{"spec":{"containers":[{"name":"noconfig","image":"'$image'","command":["sleep","1000"],"env":[{"name":"X","valueFrom":{"secretKeyRef":{"name":"absent","key":"k"}}}]}]}}'
becomes pod noconfig '.status.containerStatuses[0].state.waiting.reason' CreateContainerConfigError
k delete pod --all --wait --grace-period=1 --timeout=60s
