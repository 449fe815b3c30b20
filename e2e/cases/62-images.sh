# A command works on the nodes' images while their agents run.
# runs: once
data=$(dirname "$KUBECONFIG")
python3 demo/image.py "$work/loaded.tar" gantry.example/loaded:1
"$gantry" image load "$work/loaded.tar" --data "$data" --node node-1
list=$("$gantry" image list --data "$data")
same "$(printf '%s\n' "$list" | grep -c gantry.example/loaded:1)" 1
same "$(printf '%s\n' "$list" | grep -c gantry.example/demo:1)" 2
kubectl run loaded --image=gantry.example/loaded:1 --image-pull-policy=Never --overrides='{"spec":{"nodeName":"node-1"}}' \
  --command -- sh -c 'while :; do sleep 1; done'
kubectl wait pod loaded --for=condition=Ready --timeout=30s
has "$("$gantry" image remove gantry.example/loaded:1 --data "$data")" 'node-1: removed'
# What runs of it goes on running.
same "$(kubectl exec loaded -- sh -c 'ls /bin/busybox')" /bin/busybox
has "$(refused "$gantry" image remove gantry.example/loaded:1 --data "$data")" 'not found'
has "$(refused "$gantry" image load "$KUBECONFIG" --data "$data")" 'is no archive of images'
has "$(refused "$gantry" image pull registry.invalid/x:1 --data "$data" --node node-1)" 'is not reachable'
has "$(refused "$gantry" image list --data "$data" --node node-9)" 'has no node node-9'
kubectl delete pod loaded --grace-period=1 --wait --timeout=40s
