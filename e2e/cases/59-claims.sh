# Claims and volumes: bound at once or for the node of a pod, kept when the pod goes, released when the claim goes.
dir=$work/claims-$ns
mkdir -p "$dir/disk"
kubectl apply -f - <<YAML
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local-$ns}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: local-$ns}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: local-$ns
  persistentVolumeReclaimPolicy: Retain
  local: {path: $dir/disk}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node-1]}]}]}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: host-$ns}
spec:
  capacity: {storage: 2Gi}
  accessModes: [ReadWriteMany]
  storageClassName: host-$ns
  hostPath: {path: $dir/host, type: DirectoryOrCreate}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: local, namespace: $ns}
spec: {accessModes: [ReadWriteOnce], storageClassName: local-$ns, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: host, namespace: $ns}
spec: {accessModes: [ReadWriteMany], storageClassName: host-$ns, resources: {requests: {storage: 1Gi}}}
YAML
becomes pvc host '.status.phase' Bound
same "$(field pvc host '.status.capacity.storage')" 2Gi
same "$(field pvc local '.status.phase')" Pending
pod() {
  kubectl apply -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: $ns}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 777}
  containers:
  - name: c
    image: $image
    command: [sh, -c, 'cat /local/f; echo $1 >>/local/f; echo $1 >>/host/f; exec sleep 1000']
    volumeMounts: [{name: local, mountPath: /local}, {name: host, mountPath: /host}, {name: read, mountPath: /read}]
  volumes:
  - {name: local, persistentVolumeClaim: {claimName: local}}
  - {name: host, persistentVolumeClaim: {claimName: host}}
  - {name: read, persistentVolumeClaim: {claimName: host, readOnly: true}}
YAML
  k wait pod "$1" --for=condition=Ready --timeout=60s
}
pod first
same "$(field pod first '.spec.nodeName')" node-1
same "$(field pvc local '.spec.volumeName')" "local-$ns"
same "$(stat -c %g "$dir/disk")" 777
has "$(refused k exec first -- touch /read/x)" Read-only
k delete pod first --wait --timeout=30s
pod second
same "$(k logs second)" first
same "$(tr '\n' ' ' <"$dir/host/f")" 'first second '
k delete pvc local --wait=false
same "$(field pvc local '.status.phase')" Bound
k delete pod second --wait --timeout=30s
k wait pvc local --for=delete --timeout=30s
becomes pv "local-$ns" '.status.phase' Released
k run none --image=$image --overrides='{"spec":{"volumes":[{"name":"v","persistentVolumeClaim":{"claimName":"none"}}],"containers":[{"name":"none","image":"'$image'","volumeMounts":[{"name":"v","mountPath":"/v"}]}]}}'
becomes pod none '.status.conditions[0].reason' Unschedulable
has "$(field pod none '.status.conditions[0].message')" 'persistentvolumeclaim "none" not found'
kubectl delete pv "local-$ns" "host-$ns" --wait=false
kubectl delete storageclass "local-$ns"
