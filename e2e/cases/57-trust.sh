# Bundles of trust and certificates of pods: who may attest and sign, what a pod finds in its volume.
authority() { openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/$1.key" -subj "/CN=$1" -out "$work/$1.crt" -days 1 2>/dev/null; }
authority one; authority two
signer="example.com/$ns"
bundle() { # NAME SIGNER FILE
  printf 'apiVersion: certificates.k8s.io/v1\nkind: ClusterTrustBundle\nmetadata: {name: "%s", labels: {of: %s}}\nspec:\n  signerName: %s\n  trustBundle: |\n' "$1" "$ns" "${2:-\"\"}"
  sed 's/^/    /' "$3"
}
has "$(kubectl get clustertrustbundles --field-selector=spec.signerName=kubernetes.io/kube-apiserver-serving)" kubernetes.io:kube-apiserver-serving:
has "$(bundle "$ns-bad" '' /etc/hostname | refused kubectl create -f -)" 'at least one trust anchor must be provided'
has "$(bundle "$ns-bad" "$signer" "$work/one.crt" | refused kubectl create -f -)" "must be named with prefix example.com:$ns:"
kubectl create clusterrole "$ns-bundles" --verb=create,get --resource=clustertrustbundles.certificates.k8s.io
kubectl create clusterrolebinding "$ns-bundles" --clusterrole="$ns-bundles" --user="$ns-joe"
has "$(bundle "example.com:$ns:1" "$signer" "$work/one.crt" | refused kubectl --as="$ns-joe" create -f -)" "not permitted to attest for signerName \"$signer\""
# Signers are no resource that could be listed, so the role is written by hand.
kubectl create -f - <<YAML
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: $ns-attest}
rules: [{apiGroups: [certificates.k8s.io], resources: [signers], resourceNames: [example.com/*], verbs: [attest]}]
YAML
kubectl create clusterrolebinding "$ns-attest" --clusterrole="$ns-attest" --user="$ns-joe"
bundle "example.com:$ns:1" "$signer" "$work/one.crt" >"$work/bundle.yaml"
eventually kubectl --as="$ns-joe" create -f "$work/bundle.yaml"
bundle "$ns-own" '' "$work/two.crt" | kubectl create -f -
kubectl apply -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {name: trusting, namespace: $ns}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 1000}
  containers: [{name: c, image: $image, command: [sleep, "1000"], volumeMounts: [{name: tls, mountPath: /tls}]}]
  volumes:
  - name: tls
    projected:
      sources:
      - clusterTrustBundle: {name: $ns-own, path: own.crt}
      - clusterTrustBundle: {name: $ns-none, path: none.crt, optional: true}
      - clusterTrustBundle: {signerName: $signer, labelSelector: {matchLabels: {of: $ns}}, path: signer.crt}
      - podCertificate: {signerName: $signer, keyType: ECDSAP256, credentialBundlePath: bundle.pem, keyPath: key.pem, certificateChainPath: chain.pem}
YAML
request() { k get podcertificaterequests -o jsonpath='{.items[0].metadata.name}'; }
eventually request
asked=$(request)
has "$(k get podcertificaterequest "$asked")" trusting "$signer" Pending
same "$(field podcertificaterequest "$asked" .spec.maxExpirationSeconds)" 86400
field podcertificaterequest "$asked" .spec.stubPKCS10Request | base64 -d >"$work/stub.der"
openssl req -inform der -in "$work/stub.der" -out "$work/stub.pem"
openssl x509 -req -in "$work/stub.pem" -CA "$work/one.crt" -CAkey "$work/one.key" -CAcreateserial -days 1 -out "$work/leaf.crt" 2>/dev/null
moment() { date -u -d "$(openssl x509 -noout "-$1" -in "$work/leaf.crt" | cut -d= -f2) $2" +%FT%TZ; }
answer() { # TYPE CHAIN-FILE
  python3 -c 'import json,sys; print(json.dumps({"status": {"conditions": [{"type": sys.argv[1], "status": "True", "reason": "Test", "message": "m", "lastTransitionTime": sys.argv[2]}], "certificateChain": open(sys.argv[5]).read(), "notBefore": sys.argv[2], "notAfter": sys.argv[3], "beginRefreshAt": sys.argv[4]}}))' \
    "$1" "$(moment startdate '')" "$(moment enddate '')" "$(moment enddate '- 1 hour')" "$2"
}
sign() { k patch podcertificaterequest "$asked" --subresource=status --type=merge -p "$(answer "$@")" "${as[@]}"; }
as=()
has "$(refused sign Issued "$work/two.crt")" 'was not issued to the requested public key'
kubectl create clusterrole "$ns-answer" --verb=patch,get --resource=podcertificaterequests.certificates.k8s.io/status
kubectl create clusterrolebinding "$ns-answer" --clusterrole="$ns-answer" --user="$ns-joe"
eventually kubectl auth can-i patch podcertificaterequests.certificates.k8s.io --subresource=status --as="$ns-joe"
as=(--as="$ns-joe")
has "$(refused sign Issued "$work/leaf.crt")" 'not permitted to "sign"'
as=()
sign Issued "$work/leaf.crt"
k wait pod trusting --for=condition=Ready --timeout=90s
inside() { k exec trusting -- "$@"; }
has "$(refused sign Denied "$work/leaf.crt")" 'immutable after PodCertificateRequest is issued'
same "$(inside cat /tls/own.crt)" "$(cat "$work/two.crt")"
same "$(inside cat /tls/signer.crt)" "$(cat "$work/one.crt")"
same "$(inside cat /tls/none.crt)" ''
same "$(inside cat /tls/chain.pem)" "$(cat "$work/leaf.crt")"
same "$(inside cat /tls/bundle.pem)" "$(inside cat /tls/key.pem /tls/chain.pem)"
same "$(inside stat -L -c %a:%u /tls/key.pem)" 600:1000
inside cat /tls/key.pem >"$work/key.pem"
same "$(openssl pkey -in "$work/key.pem" -pubout)" "$(openssl x509 -in "$work/leaf.crt" -noout -pubkey)"
# What is trusted changes under the pod.
bundle "example.com:$ns:2" "$signer" "$work/two.crt" | kubectl create -f -
eventually sh -c '[ "$(kubectl -n "$0" exec trusting -- cat /tls/signer.crt | grep -c BEGIN)" = 2 ]' "$ns"
k delete pod trusting --wait --grace-period=0 --force --timeout=60s
# The request went with its pod.
eventually sh -c '[ -z "$(kubectl -n "$0" get podcertificaterequests -o name)" ]' "$ns"
kubectl delete clustertrustbundles -l "of=$ns"
kubectl delete clusterrole,clusterrolebinding "$ns-bundles" "$ns-attest" "$ns-answer"
