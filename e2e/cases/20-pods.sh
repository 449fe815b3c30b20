# A pod runs as a real container, restarts, fails and ends as it should.
eventually kubectl get serviceaccount default
image=gantry.example/demo:1
kubectl run one --image=$image --restart=Never --command -- sh -c 'echo "hello $(hostname)"; exit 3'
eventually sh -c '[ "$(kubectl get pod one -o jsonpath={.status.phase})" = Failed ]'
same "$(kubectl get pod one -o jsonpath='{.status.containerStatuses[0].state.terminated.exitCode}')" 3
kubectl run two --image=$image --command -- sh -c 'trap "exit 0" TERM; while :; do sleep 1; done'
kubectl wait pod two --for=condition=Ready --timeout=30s
address=$(kubectl get pod two -o jsonpath='{.status.podIP}')
has "$address" 10.244.
kubectl run none --image=gantry.example/missing:1 --image-pull-policy=Never
eventually sh -c '[ "$(kubectl get pod none -o jsonpath={.status.containerStatuses[0].state.waiting.reason})" = ErrImageNeverPull ]'
kubectl delete pod one two none --wait --timeout=40s
