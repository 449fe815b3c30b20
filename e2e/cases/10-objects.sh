# Objects that need no node: create, get, patch, apply with conflicts, watch, delete; bad input.
kubectl create namespace objects
kubectl -n objects create configmap a --from-literal=x=1
same "$(kubectl -n objects get configmap a -o jsonpath='{.data.x}')" 1
kubectl -n objects patch configmap a --type merge -p '{"data":{"y":"2"}}'
kubectl -n objects patch configmap a --type json -p '[{"op":"replace","path":"/data/x","value":"3"}]'
same "$(kubectl -n objects get configmap a -o jsonpath='{.data}')" '{"x":"3","y":"2"}'
kubectl -n objects label configmap a tier=test
same "$(kubectl -n objects get configmap -l tier=test -o name)" configmap/a
printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: objects}\ndata: {x: "4"}\n' >"$work/apply.yaml"
has "$(refused kubectl apply --server-side -f "$work/apply.yaml")" conflict
kubectl apply --server-side --force-conflicts -f "$work/apply.yaml"
same "$(kubectl -n objects get configmap a -o jsonpath='{.data.x}')" 4
has "$(refused kubectl -n objects get configmap none)" 'configmaps "none" not found'
has "$(refused kubectl -n objects create configmap Bad_Name)" 'invalid'
printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b, namespace: objects}\ndata: {x: 4}\nunknown: 1\n' >"$work/bad.yaml"
has "$(refused kubectl create -f "$work/bad.yaml")" 'BadRequest'
same "$(kubectl auth can-i delete nodes --as bob || true)" no
same "$(kubectl auth whoami -o jsonpath='{.status.userInfo.username}')" gantry-admin
has "$(kubectl explain pod.spec.containers.image)" 'FIELD: image'
has "$(kubectl api-resources)" deployments
kubectl delete namespace objects --wait --timeout=30s
