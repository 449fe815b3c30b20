# Objects that need no node: every way to write, read, change and delete them.
k create configmap a --from-literal=x=1
same "$(field configmap a .data.x)" 1
k patch configmap a --type merge -p '{"data":{"y":"2"}}'
k patch configmap a --type json -p '[{"op":"replace","path":"/data/x","value":"3"}]'
same "$(field configmap a .data)" '{"x":"3","y":"2"}'
k label configmap a tier=test
same "$(k get configmap -l tier=test -o name)" configmap/a
k label configmap a tier=other --overwrite
k label configmap a tier-
same "$(field configmap a .metadata.labels)" ''
k annotate configmap a note='of a test'
same "$(field configmap a .metadata.annotations.note)" 'of a test'
printf '#!/bin/sh\nsed -i '"'"'s/"2"$/"5"/'"'"' "$1"\n' >"$work/editor"
chmod +x "$work/editor"
EDITOR="$work/editor" k edit configmap a
same "$(field configmap a .data.y)" 5

# Apply: the server's and the client's.
config() { printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s, namespace: %s}\ndata: {%s}\n' "$1" "$ns" "$2"; }
config a 'x: "4"' >"$work/a.yaml"
has "$(refused kubectl apply --server-side -f "$work/a.yaml")" conflict .data.x
kubectl apply --server-side --force-conflicts -f "$work/a.yaml"
same "$(field configmap a .data.x)" 4
has "$(k get configmap a --show-managed-fields -o jsonpath='{.metadata.managedFields[*].manager}')" kubectl
config b 'x: "1", w: "2"' >"$work/b.yaml"
has "$(kubectl apply -f "$work/b.yaml")" created
has "$(kubectl apply -f "$work/b.yaml")" unchanged
config b 'x: "2", z: "3"' >"$work/b2.yaml"
same "$(code kubectl diff -f "$work/b2.yaml")" 1
has "$(kubectl diff -f "$work/b2.yaml" || true)" '-  w: "2"' '+  z: "3"'
kubectl apply -f "$work/b2.yaml"
same "$(field configmap b .data)" '{"x":"2","z":"3"}'
same "$(code kubectl diff -f "$work/b2.yaml")" 0
kubectl apply view-last-applied configmap b -n "$ns" | shows 'z: "3"'
config b 'only: one' | kubectl replace -f -
same "$(field configmap b .data)" '{"only":"one"}'
config b 'again: one' | kubectl replace --force -f -
kubectl apply -f "$work/b.yaml" --dry-run=server
same "$(field configmap b .data)" '{"again":"one"}'
config c 'x: "1"' | kubectl create -f - --save-config

# Reading: all output forms.
has "$(k get configmap a -o yaml)" 'kind: ConfigMap' 'x: "4"'
has "$(k get configmap a -o json)" '"kind": "ConfigMap"'
same "$(k get configmap a -o go-template='{{.data.x}}')" 4
same "$(k get configmap a -o custom-columns=N:.metadata.name --no-headers)" a
same "$(k get configmap a b -o name | tr '\n' ' ')" 'configmap/a configmap/b '
same "$(columns "$(k get configmap a -o wide)")" 'NAME DATA AGE'
same "$(columns "$(k get configmap --show-labels)")" 'NAME DATA AGE LABELS'
same "$(columns "$(k get configmap -L tier)")" 'NAME DATA AGE TIER'
same "$(k get configmap --sort-by=.metadata.creationTimestamp --no-headers | tail -n 1 | cut -d" " -f1)" c
same "$(k get configmap --field-selector metadata.name=a -o name)" configmap/a
same "$(k get configmap --chunk-size=1 -o name | wc -l)" "$(k get configmap -o name | wc -l)"
has "$(kubectl get configmap -A)" NAMESPACE "$ns"
has "$(k describe configmap a)" 'Name:' 'x:' 4
has "$(kubectl get --raw "/api/v1/namespaces/$ns/configmaps/a")" '"x":"4"'

# A watch shows what comes, in order.
timeout 20 kubectl -n "$ns" get configmap --watch-only --output-watch-events >"$work/events.log" 2>&1 &
watcher=$!
sleep 1
k create configmap watched --from-literal=n=1
k patch configmap watched -p '{"data":{"n":"2"}}'
k delete configmap watched
eventually grep -q DELETED "$work/events.log"
kill $watcher || true
same "$(awk '$2=="watched"||$3=="watched"{print $1}' "$work/events.log" | tr '\n' ' ')" 'ADDED MODIFIED DELETED '

# Secrets are shown encoded and kept sealed; immutable ones stay.
k create secret generic s --from-literal=password=hidden-word
same "$(field secret s .data.password | base64 -d)" hidden-word
lacks "$(grep -c hidden-word -r "$data/store" || true)" ':1'
k patch secret s -p '{"immutable":true}'
has "$(refused k patch secret s -p '{"stringData":{"password":"x"}}')" immutable
k create secret tls t --cert=<(openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/t.key" -subj /CN=t -days 1 2>/dev/null) --key="$work/t.key"
same "$(field secret t .type)" kubernetes.io/tls
k create secret docker-registry d --docker-server=x --docker-username=u --docker-password=p
has "$(field secret d '.data.\.dockerconfigjson' | base64 -d)" '"username":"u"'

# Namespaces take everything in them along; the three cascades.
kubectl create namespace "$ns-2"
kubectl -n "$ns-2" create configmap x
kubectl -n "$ns-2" create serviceaccount y
kubectl delete namespace "$ns-2" --wait --timeout=60s
has "$(refused kubectl get namespace "$ns-2")" 'not found'
for cascade in background foreground orphan; do
  k create deployment cascade --image=none --replicas=0
  eventually sh -c 'kubectl -n "$0" get replicaset -l app=cascade -o name | grep -q .' "$ns"
  k delete deployment cascade --cascade=$cascade --wait --timeout=30s
  if [ $cascade = orphan ]; then
    same "$(k get replicaset -l app=cascade -o jsonpath='{.items[*].metadata.ownerReferences}')" ''
    k delete replicaset -l app=cascade
  else
    eventually sh -c '[ -z "$(kubectl -n "$0" get replicaset -l app=cascade -o name)" ]' "$ns"
  fi
done

# Events of both groups, and the kinds that only wait to be read.
kubectl create -f - <<YAML
apiVersion: events.k8s.io/v1
kind: Event
metadata: {name: new, namespace: $ns}
eventTime: "2026-01-01T00:00:00.000000Z"
action: Testing
reason: Tested
note: from the new group
type: Normal
reportingController: example.com/test
reportingInstance: test-1
regarding: {kind: ConfigMap, name: a, namespace: $ns, apiVersion: v1}
---
apiVersion: v1
kind: PodTemplate
metadata: {name: template, namespace: $ns}
template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: lease, namespace: $ns}
spec: {holderIdentity: me, leaseDurationSeconds: 10}
YAML
has "$(k get events)" Tested 'from the new group'
has "$(k events)" Tested
has "$(k get events.events.k8s.io new -o yaml)" 'note: from the new group'
same "$(columns "$(k get podtemplate)")" 'NAME CONTAINERS IMAGES POD LABELS'
same "$(columns "$(k get lease)")" 'NAME HOLDER AGE'
