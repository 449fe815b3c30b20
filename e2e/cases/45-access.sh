# Who may do what: roles, tokens, certificates, impersonation; strangers get clear refusals.
same "$(kubectl auth whoami -o jsonpath='{.status.userInfo.username}')" gantry-admin
same "$(kubectl auth can-i delete nodes --as bob || true)" no
k create serviceaccount robot
k create role reader --verb=get,list,watch --resource=configmaps
k create rolebinding robots --role=reader --serviceaccount="$ns:robot"
kubectl create clusterrole "$ns-nodes" --verb=get --resource=nodes
kubectl create clusterrolebinding "$ns-nodes" --clusterrole="$ns-nodes" --serviceaccount="$ns:robot"
robot="system:serviceaccount:$ns:robot"
same "$(k auth can-i list configmaps --as "$robot")" yes
same "$(k auth can-i list secrets --as "$robot" || true)" no
has "$(k auth can-i --list --as "$robot")" configmaps nodes
token=$(k create token robot --duration=10m)
server=$(kubectl config view --raw -o jsonpath='{.clusters[0].cluster.server}')
kubectl config view --raw -o jsonpath='{.clusters[0].cluster.certificate-authority-data}' | base64 -d >"$work/ca.crt"
with() { kubectl --kubeconfig=/dev/null --server="$server" --certificate-authority="$work/ca.crt" "$@"; }
same "$(with --token="$token" auth whoami -o jsonpath='{.status.userInfo.username}')" "$robot"
with --token="$token" -n "$ns" get configmaps
has "$(refused with --token="$token" -n "$ns" get secrets)" Forbidden "cannot list resource \"secrets\""
has "$(refused with --token=wrong get pods)" 'must be logged in'
expired=$(python3 "$here/expired.py" "$data/keys/tokens.key" "$token")
has "$(refused with --token="$expired" get pods)" 'must be logged in'
has "$(refused with --token="${token%?????}aaaaa" get pods)" 'must be logged in'
has "$(refused with -n "$ns" --token= get pods --request-timeout=5s </dev/null)" ''
same "$(curl -s --cacert "$work/ca.crt" -o /dev/null -w '%{http_code}' "$server/api/v1/pods")" 403
same "$(curl -s --cacert "$work/ca.crt" -H 'Authorization: Bearer wrong' -o /dev/null -w '%{http_code}' "$server/api/v1/pods")" 401
has "$(curl -s --cacert "$work/ca.crt" "$server/api/v1/pods")" 'system:anonymous' '"reason":"Forbidden"'
k delete serviceaccount robot
eventually sh -c '[ "$(curl -s --cacert "$0" -H "Authorization: Bearer $1" -o /dev/null -w "%{http_code}" "$2/api/v1/nodes")" = 401 ]' "$work/ca.crt" "$token" "$server"

# Nobody gives away what they do not have.
k create serviceaccount climber
k create role climber --verb=create,update,bind --resource=roles
k create rolebinding climber --role=climber --serviceaccount="$ns:climber"
has "$(refused k create role more --verb=get --resource=secrets --as "system:serviceaccount:$ns:climber")" 'attempting to grant RBAC permissions not currently held'

# A certificate is asked for, approved and works; a certificate of another authority does not.
openssl req -new -newkey rsa:2048 -nodes -keyout "$work/jane.key" -subj /CN=jane/O=painters -out "$work/jane.csr" 2>/dev/null
kubectl create -f - <<YAML
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: $ns-jane}
spec: {signerName: kubernetes.io/kube-apiserver-client, usages: [client auth], expirationSeconds: 3600, request: $(base64 -w0 "$work/jane.csr")}
YAML
has "$(kubectl get csr "$ns-jane")" Pending
kubectl certificate approve "$ns-jane"
eventually sh -c '[ -n "$(kubectl get csr "$0" -o jsonpath="{.status.certificate}")" ]' "$ns-jane"
has "$(kubectl get csr "$ns-jane")" 'Approved,Issued'
kubectl get csr "$ns-jane" -o jsonpath='{.status.certificate}' | base64 -d >"$work/jane.crt"
same "$(with --client-certificate="$work/jane.crt" --client-key="$work/jane.key" auth whoami -o jsonpath='{.status.userInfo.username} {.status.userInfo.groups[0]}')" 'jane painters'
openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/evil.key" -subj /CN=jane/O=system:masters -out "$work/evil.crt" -days 1 2>/dev/null
refused with --client-certificate="$work/evil.crt" --client-key="$work/evil.key" get pods
kubectl create -f - <<YAML
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: $ns-no}
spec: {signerName: kubernetes.io/kube-apiserver-client, usages: [client auth], request: $(base64 -w0 "$work/jane.csr")}
YAML
kubectl certificate deny "$ns-no"
has "$(kubectl get csr "$ns-no")" Denied

# A pod has a token of its own, bound to it, and it works from inside.
sleeper inside
has "$(k exec inside -- ls /var/run/secrets/kubernetes.io/serviceaccount)" ca.crt namespace token
same "$(k exec inside -- cat /var/run/secrets/kubernetes.io/serviceaccount/namespace)" "$ns"
inner=$(k exec inside -- cat /var/run/secrets/kubernetes.io/serviceaccount/token)
same "$(with --token="$inner" auth whoami -o jsonpath='{.status.userInfo.username}')" "system:serviceaccount:$ns:default"
k delete pod inside --wait --grace-period=1 --timeout=60s
eventually sh -c '[ "$(curl -s --cacert "$0" -H "Authorization: Bearer $1" -o /dev/null -w "%{http_code}" "$2/api/v1/nodes")" = 401 ]' "$work/ca.crt" "$inner" "$server"
has "$(cat "$data/audit.log" | grep -c '"user"')" ''
kubectl delete csr "$ns-jane" "$ns-no"
kubectl delete clusterrole,clusterrolebinding "$ns-nodes"
