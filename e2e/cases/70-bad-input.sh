# Whatever is sent, the answer is a Status that says what is wrong; nothing breaks and nothing is kept.
server=$(kubectl config view --raw -o jsonpath='{.clusters[0].cluster.server}')
part() { kubectl config view --raw -o jsonpath="{$1}" | base64 -d; }
part '.clusters[0].cluster.certificate-authority-data' >"$work/ca"
echo "Authorization: Bearer $(kubectl config view --raw -o jsonpath='{.users[0].user.token}')" >"$work/admin"
# send WANTED-CODE CONTENT-TYPE PATH [CURL FLAGS...]: posts standard input; the answer is a Status of that code.
send() {
  local wanted=$1 type=$2 path=$3 got
  shift 3
  got=$(curl -s -m 30 --cacert "$work/ca" -H "@$work/admin" -H "Content-Type: $type" --data-binary @- \
    -o "$work/answer" -w '%{http_code}' "$@" "$server$path")
  same "$got" "$wanted" || { cat "$work/answer"; return 1; }
  [ "$wanted" -lt 300 ] || has "$(cat "$work/answer")" '"kind":"Status"' '"reason":"'
}
maps="/api/v1/namespaces/$ns/configmaps"
pods="/api/v1/namespaces/$ns/pods"
name() { printf '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"%s"}%s}' "$1" "${2-}"; }
printf '{"apiVersion":"v1","kind":' | send 400 application/json "$maps"
printf '' | send 400 application/json "$maps"
printf 'null' | send 422 application/json "$maps"
printf '[]' | send 400 application/json "$maps"
printf '\xff\xfe\x00' | send 400 application/json "$maps"
printf 'a: [b\n  c: }' | send 400 application/yaml "$maps"
printf 'a: &x [*x, *x]' | send 400 application/yaml "$maps"
printf 'k8s\x00\x0a\xff\xff\xff\xff\xff' | send 400 application/vnd.kubernetes.protobuf "$maps"
printf 'not protobuf' | send 400 application/vnd.kubernetes.protobuf "$maps"
printf '%0.s[' $(seq 100000) | send 400 application/json "$maps"
name a | send 415 text/plain "$maps"
name a ',"data":{"x":1}' | send 400 application/json "$maps"
name a ',"data":[]' | send 400 application/json "$maps"
name a ',"unknown":1' | send 400 application/json "$maps?fieldValidation=Strict"
name a ',"data":{"x":"1"},"data":{}' | send 400 application/json "$maps?fieldValidation=Strict"
name a ',"unknown":1' | send 201 application/json "$maps?fieldValidation=Warn&dryRun=All" -D "$work/headers"
has "$(tr A-Z a-z <"$work/headers")" 'warning: 299'
name a | send 422 application/json "$maps?fieldValidation=Wrong"
name a | send 422 application/json "$maps?dryRun=Some"
name 'Bad_Name' | send 422 application/json "$maps"
has "$(cat "$work/answer")" '"field":"metadata.name"' FieldValueInvalid
name "$(printf 'a%.0s' $(seq 300))" | send 422 application/json "$maps"
name a | sed 's/"name"/"namespace":"other","name"/' | send 400 application/json "$maps"
name a | sed s/ConfigMap/Secret/ | send 400 application/json "$maps"
name a | sed s,v1,apps/v1, | send 400 application/json "$maps"
name a | send 404 application/json "/api/v1/namespaces/none-$ns/configmaps"
name a | send 404 application/json "/api/v1/namespaces/$ns/nothings"
name a | send 405 application/json "$maps" -X PUT
printf '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[]}}' | send 422 application/json "$pods"
has "$(cat "$work/answer")" spec.containers FieldValueRequired
printf '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"C","image":"","ports":[{"containerPort":99999}]}],"restartPolicy":"Maybe","volumes":[{"name":"v","emptyDir":{},"hostPath":{"path":"/"}}]}}' | send 422 application/json "$pods"
has "$(cat "$work/answer")" 'spec.containers[0].name' 'spec.containers[0].image' 'containerPort' 'spec.restartPolicy' 'spec.volumes[0]'
k create configmap here --from-literal=a=b
for type in json-patch+json merge-patch+json strategic-merge-patch+json apply-patch+yaml; do
  printf '{"broken' | send 400 "application/$type" "$maps/here?fieldManager=m" -X PATCH
done
printf '[{"op":"remove","path":"/data/none"}]' | send 422 application/json-patch+json "$maps/here" -X PATCH
printf '[{"op":"test","path":"/data/a","value":"c"}]' | send 422 application/json-patch+json "$maps/here" -X PATCH
printf '{}' | send 415 application/nothing+json "$maps/here" -X PATCH
printf '{"metadata":{"resourceVersion":"1"}}' | send 409 application/merge-patch+json "$maps/here" -X PATCH
printf '{"metadata":{"name":"other"}}' | send 400 application/merge-patch+json "$maps/here" -X PATCH
head -c 4000000 /dev/zero | tr '\0' a | send 413 application/json "$maps"
{ printf '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"big"},"data":{"x":"'; head -c 1500000 /dev/zero | tr '\0' a; printf '"}}'; } | send 422 application/json "$maps"
for query in 'labelSelector=a%3D%3D%3Db' 'fieldSelector=spec.none%3Da' 'continue=broken' 'resourceVersion=x' 'resourceVersionMatch=Exact'; do
  got=$(curl -s -m 10 --cacert "$work/ca" -H "@$work/admin" -o "$work/answer" -w '%{http_code}' "$server$pods?$query")
  case $got in 400|403|422) has "$(cat "$work/answer")" '"kind":"Status"' ;; *) echo "$query: $got"; cat "$work/answer"; false ;; esac
done
same "$(k get configmap -o name | grep -v -e kube-root-ca -e openshift-service-ca | tr '\n' ' ')" 'configmap/here '
has "$(curl -s -m 10 --cacert "$work/ca" -H "@$work/admin" "$server$maps?watch=1&resourceVersion=1&timeoutSeconds=2")" '"type":"ERROR"' '"code":410' || true

# Bad TLS and bad HTTP end cleanly.
refused curl -s -m 5 "${server/https/http}/readyz" >/dev/null || true
printf 'GET / HTTP/1.1\r\nno colon\r\n\r\n' | timeout 5 openssl s_client -quiet -connect "${server#https://}" >/dev/null 2>&1 || true
same "$(kubectl get --raw /readyz)" ok

# Images that cannot be had say so on the pod.
k run nowhere --image=localhost:1/none:1
becomes pod nowhere '.status.containerStatuses[0].state.waiting.reason' ImagePullBackOff
printf 'apiVersion: v1\nkind: Pod\nmetadata: {name: illegal}\nspec: {containers: [{name: c, image: "UPPER CASE"}]}\n' | k apply -f -
becomes pod illegal '.status.containerStatuses[0].state.waiting.reason' InvalidImageName
k delete pod nowhere illegal --grace-period=0 --force
