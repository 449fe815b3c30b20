# Images from a registry with TLS and a password: refused without the secret, pulled with it, resumed by digest.
port=$((30000 + RANDOM % 2000))
mkdir -p "$work/registry" "$work/auth"
registry_crt=$work/registry.crt registry_key=$work/registry.key
node=$(kubectl get node node-1 -o jsonpath="{.status.addresses[0].address}")
# The machine itself, as the nodes see it.
registry_host=${node%.*}.1
openssl req -newkey rsa:2048 -nodes -keyout "$registry_key" -subj /CN=registry -out "$work/registry.csr" 2>/dev/null
openssl x509 -req -in "$work/registry.csr" -CA "$registry_ca" -CAkey "$registry_ca_key" -CAcreateserial -days 1 \
  -extfile <(printf "subjectAltName=IP:%s" "$registry_host") -out "$registry_crt" 2>/dev/null
htpasswd -Bbn puller right-password >"$work/auth/htpasswd" 2>/dev/null
cat >"$work/registry.yml" <<YAML
version: 0.1
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: "$registry_host:$port", tls: {certificate: $registry_crt, key: $registry_key}}
auth: {htpasswd: {realm: test, path: $work/auth/htpasswd}}
YAML
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry=$!
trap 'kill $registry 2>/dev/null || true' EXIT
host="$registry_host:$port"
eventually sh -c "[ \"\$(curl -s -o /dev/null -w '%{http_code}' --cacert $registry_ca https://$host/v2/)\" = 401 ]"
python3 e2e/push.py "https://$host" "$registry_ca" puller:right-password "$data/images/demo.tar" team/app v1
k run without --image="$host/team/app:v1" --command -- sleep 1000
eventually sh -c 'kubectl -n "$0" get pod without | grep -Eq "ErrImagePull|ImagePullBackOff"' "$ns"
has "$(k describe pod without)" 'Failed to pull image' 'needs a user and a password'
k create secret docker-registry cred --docker-server="$host" --docker-username=puller --docker-password=right-password
k run with --image="$host/team/app:v1" --overrides='{"spec":{"imagePullSecrets":[{"name":"cred"}]}}' --command -- sh -c 'echo pulled; sleep 1000'
k wait pod with --for=condition=Ready --timeout=60s
eventually sh -c '[ "$(kubectl -n "$0" logs with)" = pulled ]' "$ns"
has "$(field pod with '.status.containerStatuses[0].imageID')" 'sha256:'
k patch serviceaccount default -p '{"imagePullSecrets":[{"name":"cred"}]}'
k run by-account --image="$host/team/app:v1" --image-pull-policy=Always --command -- sleep 1000
k wait pod by-account --for=condition=Ready --timeout=60s
digest=$(field pod with '.status.containerStatuses[0].imageID' | sed 's/.*@//')
k run by-digest --image="$host/team/app@$digest" --command -- sleep 1000
k wait pod by-digest --for=condition=Ready --timeout=60s
k run no-tag --image="$host/team/app:absent" --command -- sleep 1000
eventually sh -c 'kubectl -n "$0" get pod no-tag | grep -Eq "ErrImagePull|ImagePullBackOff"' "$ns"
k delete pod --all --wait --grace-period=0 --force --timeout=60s
kill $registry
